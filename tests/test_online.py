"""OnlineDistiller: what each optimizer gets, real runs on real hosts, files, resume, validation, two ranks."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import MODELS, DefaultScope
from run_helpers import (
    HOSTS,
    ROOT,
    classifier,
    config,
    count,
    run,
    scalars,
    scenes,
    segmentor,
    validation,
)  # fmt: skip

from lckd_mm import cli
from lckd_mm.config import student_config
from lckd_mm.distillation import NonFiniteError
from lckd_mm.distillation.online_optim import OnlineOptimWrapperConstructor
from lckd_mm.hosts import build_model, fabricate_samples

KD = dict(loss=dict(type='lckd_mm.KDLoss', tau=3.0), on='logits')
CRITIC = dict(type='lckd_mm.ConvCritic', widths=(8,))
CONNECTOR = dict(type='lckd_mm.ConvBN')
ADVERSARIAL = dict(
    loss=dict(type='lckd_mm.AdversarialLoss', critic=CRITIC, loss=dict(type='lckd_mm.LSGANLoss')), on='stage4',
    connector=CONNECTOR,
)  # fmt: skip
SGD = dict(optimizer=dict(type='SGD', lr=0.02, momentum=0.9))
SEVERAL = dict(
    constructor='lckd_mm.OnlineOptimWrapperConstructor',
    nets=SGD,
    features=dict(optimizer=dict(type='Adam', lr=1e-3)),
    critics=dict(optimizer=dict(type='Adam', lr=1e-3)),
)
HOOK = dict(type='lckd_mm.OnlineHook')


def online(host='mmpretrain', widths=(4, 4), **extra):
    make, _, logits, _ = HOSTS[host]
    taps = {'stage4': 'backbone.layer4@preact', **logits}
    model = dict(
        type='lckd_mm.OnlineDistiller',
        nets=[make(width) for width in widths],
        taps=taps,
        terms=dict(loss_kd=KD, loss_adversarial=ADVERSARIAL),
        steps=dict(features=['loss_adversarial']),
    )
    return model | extra


def one_term(**extra):
    return online(terms=dict(loss_kd=KD), steps=None, **extra)


@pytest.fixture
def built(scope):
    def build(**extra):
        scope('mmpretrain')
        torch.manual_seed(0)
        config = online(**extra)
        config.setdefault('data_preprocessor', HOSTS['mmpretrain'][3]['data_preprocessor'])
        net = MODELS.build(Config(dict(model=config)).model)
        net.init_weights()
        return net

    return build


def batch(model, seed=0, size=64):
    generator = torch.Generator().manual_seed(seed)
    samples = fabricate_samples(model.student, 4, (size, size))
    for i, sample in enumerate(samples):
        sample.set_gt_label(i)
    return dict(inputs=[torch.randint(256, (3, size, size), generator=generator).byte() for _ in samples],
                data_samples=samples)  # fmt: skip


def training(scenes, work_dir, model, host='mmpretrain', optimizers=None, iters=10, **extra):
    cfg = config(host, scenes, work_dir, model, iters=iters, **extra)
    cfg.default_hooks.distillation = HOOK
    cfg.default_hooks.checkpoint.interval = 5
    if optimizers is not None:
        cfg.optim_wrapper = optimizers
    return cfg


def losses_of(model, seed=0):
    return model.train().loss(**model.data_preprocessor(batch(model, seed), True))


def reaches(loss, module):
    """Whether a loss gives a module's parameters a gradient."""
    found = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True, allow_unused=True)
    return any(g is not None and g.any() for g in found)


# ---- what is computed ----


def test_each_net_has_its_own_losses_and_its_peers_scores_as_the_teachers(built):
    model = built(widths=(4, 6)).train()
    data = model.data_preprocessor(batch(model), True)
    losses = model.loss(**data)
    assert set(losses) == {f'net{k}.{n}' for k in (0, 1) for n in ('loss_task', 'loss_kd', 'loss_adversarial')}
    logits = [net(data['inputs'], mode='tensor') for net in model.nets]
    for k in (0, 1):
        p, q = (logits[i].div(3).log_softmax(1) for i in (1 - k, k))
        torch.testing.assert_close(losses[f'net{k}.loss_kd'], 9 * (p.exp() * (p - q)).sum(1).mean())
        assert reaches(losses[f'net{k}.loss_kd'], model.nets[k])
        assert not reaches(losses[f'net{k}.loss_kd'], model.nets[1 - k])
    # the peers begin with other weights than net 0
    same = built(widths=(4, 4))
    assert not torch.equal(same.student.head.fc.weight, same.peers[0].head.fc.weight)


def test_three_nets_learn_in_a_circle(built):
    model = built(widths=(4, 4, 6))
    assert model.pairs == [(0, 2), (1, 0), (2, 1)]
    data = model.data_preprocessor(batch(model), True)
    losses = model.train().loss(**data)
    logits = [net(data['inputs'], mode='tensor').div(3).log_softmax(1) for net in model.nets]
    for k, j in model.pairs:
        gap = 9 * (logits[j].exp() * (logits[j] - logits[k])).sum(1).mean()
        torch.testing.assert_close(losses[f'net{k}.loss_kd'], gap)
    assert model.terms['net0_from2']['loss_adversarial'].loss.critics[0].in_channels == 48


def test_every_optimizer_gets_the_gradient_of_its_own_losses_at_the_same_weights(built):
    """With plain SGD the step is the gradient, so that each share of it can be told from the weights' change."""
    model = built()
    model.train()
    rates = dict(nets=0.1, features=0.01, critics=0.001)
    wrapper = OnlineOptimWrapperConstructor(
        {name: dict(optimizer=dict(type='SGD', lr=lr)) for name, lr in rates.items()}
    )(model)
    assert isinstance(wrapper, OptimWrapperDict) and list(wrapper.keys()) == ['nets', 'features', 'critics']
    data = batch(model)
    model._passes -= 1  # the peers' random numbers are those of a pass
    losses = model.loss(**model.data_preprocessor(data, True))
    critics = [p for n, p in model.terms.named_parameters() if '.critics.' in n]
    others = [p for p in model.parameters() if not any(p is c for c in critics)]
    of_nets = sum(v for n, v in losses.items() if 'adversarial' not in n)
    adversarial = sum(v for n, v in losses.items() if 'adversarial' in n)
    before = {p: p.detach().clone() for p in [*critics, *others]}

    def gradients(value, parameters):
        found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found)]

    sides = gradients(of_nets, others), gradients(adversarial, others)
    expected = {p: 0.1 * a + 0.01 * b for p, a, b in zip(others, *sides)}
    expected |= {p: 0.001 * g for p, g in zip(critics, gradients(adversarial, critics))}
    assert sum(g.abs().sum() for g in gradients(adversarial, list(model.peers.parameters()))) > 0
    logged = model.train_step(data, wrapper)
    assert logged['loss'].item() == pytest.approx(sum(v.item() for v in losses.values()), rel=1e-5)
    for parameter, step in expected.items():
        torch.testing.assert_close(before[parameter] - parameter, step, rtol=1e-3, atol=1e-6)
        assert parameter.grad is None
    # connectors of the adversarial part are trained by its own optimizer alone
    taught_by_nets = set(wrapper['nets'].param_groups[0]['params'])
    assert not taught_by_nets & set(model.terms.parameters())


def test_a_critic_without_an_optimizer_follows_the_step_of_its_term(built):
    model = built()
    critics = {p for n, p in model.terms.named_parameters() if '.critics.' in n}
    wrapper = OnlineOptimWrapperConstructor({'nets': SGD, 'features': SGD})(model)
    assert critics <= set(wrapper['features'].param_groups[0]['params'])
    assert not critics & set(wrapper['nets'].param_groups[0]['params'])
    model = built(steps=None)
    wrapper = OnlineOptimWrapperConstructor({'nets': SGD})(model)
    assert set(wrapper['nets'].param_groups[0]['params']) == set(model.parameters())


def test_accumulated_gradients_are_those_of_the_sum_of_the_batches(built):
    ends = []
    for counts in (1, 2):
        model = built(terms=dict(loss_kd=KD), steps=None)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 0.0
        model.train()
        nets = dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=counts)
        wrapper = OnlineOptimWrapperConstructor({'nets': nets})(model)
        if counts == 2:
            model.train_step(batch(model, 0), wrapper)
            assert all(p.grad is None for p in model.parameters())
            model.train_step(batch(model, 1), wrapper)
        else:
            losses = [losses_of(model, seed) for seed in (0, 1)]
            wrapper['nets'].update_params(sum(sum(one.values()) for one in losses) / 2)
        ends.append([p.detach().clone() for p in model.student.parameters()])
    for a, b in zip(*ends):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


class Attached(torch.nn.Module):
    """Keeps the graph of both nets' second pass."""

    def forward(self, student, teacher, inputs, replay):
        (ours,), (theirs,) = replay(inputs.detach().requires_grad_())
        return (ours - theirs).square().mean()


def test_a_loss_that_runs_the_nets_again_leaves_the_peer_alone(built):
    for loss in (
        dict(type='lckd_mm.JacobianLoss', mode='noise'),
        dict(type='lckd_mm.JacobianLoss', mode='gradient'),
        dict(type=Attached),
    ):
        jacobian = dict(loss=loss, on='logits')
        model = built(terms=dict(loss_jacobian=jacobian), steps=None)
        statistics = [b.clone() for b in model.buffers()]
        loss = losses_of(model)['net0.loss_jacobian']
        assert reaches(loss, model.student) and not reaches(loss, model.peers)
        moved = [b for b, old in zip(model.buffers(), statistics) if b.dtype == torch.int64 and (b - old).max() > 1]
        assert not moved  # each BatchNorm counted one batch


# ---- whole runs ----


def test_net_0_trains_as_alone_to_the_bit_with_weight_zero(scenes, tmp_path):
    def dropping(width):
        model = classifier(width)
        model['backbone']['drop_path_rate'] = 0.3  # so that it draws random numbers
        return model

    plain = run(config('mmpretrain', scenes, tmp_path / 'plain', dropping(4), iters=6))
    model = one_term() | dict(nets=[dropping(4), dropping(6)])
    model['terms']['loss_kd'] = dict(KD, weight=0.0)
    null = run(training(scenes, tmp_path / 'null', model, iters=6))
    expected, got = plain.model.state_dict(), null.model.state_dict()
    assert list(expected) == list(got)
    assert all(torch.equal(expected[k], got[k]) for k in expected)


@pytest.mark.parametrize('host, optimizers', [
    ('mmpretrain', SEVERAL), ('mmseg', SEVERAL), ('mmdet', None), ('mmpretrain', None),
])  # fmt: skip
def test_it_trains_and_every_file_is_a_plain_one(host, optimizers, scenes, tmp_path):
    model = online(host, widths=(4, 6))
    if optimizers is None:
        model['steps'] = None
    if host == 'mmdet':
        del model['terms']['loss_adversarial']
    cfg = training(scenes, tmp_path / 'run', model, host, optimizers)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    runner = run(cfg)
    net0, net1 = runner.model.nets
    fresh = MODELS.build(runner.cfg.model)
    fresh.init_weights()
    for (name, a), (_, b) in zip(runner.model.named_parameters(), fresh.named_parameters(), strict=True):
        assert not torch.equal(a, b) or 'layer4' in name or 'bn' in name or 'bias' in name, name
    # files: the last checkpoint and its other net, nothing of the one before
    assert sorted(p.name for p in (tmp_path / 'run').glob('*.pth')) == ['iter_10.net1.pth', 'iter_10.pth']
    for net, name, width in ((net0, 'iter_10.pth', 4), (net1, 'iter_10.net1.pth', 6)):
        plain = HOSTS[host][0](width)
        plain.setdefault('data_preprocessor', HOSTS[host][3].get('data_preprocessor'))
        plain = build_model(plain, host)
        stored = torch.load(tmp_path / 'run' / name)
        plain.load_state_dict(stored['state_dict'], strict=True)
        assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), net.state_dict().values()))
        assert 'meta' in stored
    entry = scalars(tmp_path / 'run')[-1]
    assert entry['net1.loss_kd'] > 0
    assert ('nets.lr' in entry) == (optimizers is not None)


@pytest.mark.full
@pytest.mark.parametrize('optimizers', [SEVERAL, None])
def test_a_resumed_run_ends_where_the_whole_one_does(optimizers, scenes, tmp_path):
    def steady():
        # Every batch is the whole data set in order, so that what is fed does not depend on where the run was cut.
        model = online() if optimizers else online(steps=None)
        cfg = training(scenes, tmp_path / 'whole', model, optimizers=optimizers, iters=4)
        cfg.train_dataloader.update(batch_size=16, sampler=dict(type='DefaultSampler', shuffle=False))
        cfg.train_dataloader.dataset.pipeline[1] = dict(type='CenterCrop', crop_size=48)
        cfg.default_hooks.checkpoint.update(interval=2, max_keep_ckpts=1)
        cfg.param_scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[3], gamma=0.1)
        return cfg

    class Killed(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 3:
                raise KeyboardInterrupt

    whole = run(steady())
    cfg = steady()
    cfg.work_dir = str(tmp_path / 'resumed')
    with pytest.raises(KeyboardInterrupt):
        run(copy.deepcopy(cfg), Killed())
    files = lambda: sorted(p.name for p in (tmp_path / 'resumed').glob('*.pth'))  # noqa: E731
    assert files() == ['iter_2.net1.pth', 'iter_2.pth']
    cfg.load_from, cfg.resume = str(tmp_path / 'resumed' / 'iter_2.pth'), True
    resumed = run(cfg)
    assert resumed.iter == 4
    assert files() == ['iter_4.net1.pth', 'iter_4.pth']
    for a, b in zip(whole.model.nets, resumed.model.nets):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    a, b = (r.model.terms.state_dict() for r in (whole, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_file_of_another_run_is_not_resumed(scenes, tmp_path):
    run(config('mmpretrain', scenes, tmp_path / 'plain', classifier(4), iters=10))
    run(training(scenes, tmp_path / 'three', one_term(widths=(4, 4, 4)), iters=10))
    for folder, message in (('plain', 'OnlineHook'), ('three', '2 nets beside net 0, the config has 1')):
        cfg = training(scenes, tmp_path / 'new', one_term(), iters=12)
        cfg.load_from, cfg.resume = str(tmp_path / folder / 'iter_10.pth'), True
        with pytest.raises(ValueError, match=message):
            run(cfg)
    # as a start, net 0 is taken from either
    cfg = training(scenes, tmp_path / 'start', one_term(), iters=1)
    cfg.load_from = str(tmp_path / 'plain' / 'iter_10.pth')
    cfg.optim_wrapper.optimizer.lr = 0.0
    runner = run(cfg)
    stored = torch.load(tmp_path / 'plain' / 'iter_10.pth')['state_dict']
    assert torch.equal(runner.model.student.head.fc.weight, stored['head.fc.weight'])


class Predictions(Hook):
    """Keeps what net 0 predicts in a validation."""

    priority = 'LOWEST'

    def __init__(self):
        self.seen = []

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append((data_batch, outputs))


def test_validation_reports_every_net_and_the_ensemble(scenes, tmp_path):
    loader = dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
    loader['dataset'] = HOSTS['mmpretrain'][1](scenes, 'train')
    loader['dataset']['pipeline'][1] = dict(type='CenterCrop', crop_size=48)
    val = dict(val_dataloader=loader, val_cfg=dict(type='ValLoop'), val_evaluator=dict(type='Accuracy', topk=(1,)))
    cfg = training(scenes, tmp_path / 'run', one_term(), **val)
    cfg.default_hooks.checkpoint.update(save_best='ensemble/accuracy/top1', rule='greater')
    hook = Predictions()
    runner = run(cfg, hook)
    entry = next(e for e in scalars(tmp_path / 'run') if 'accuracy/top1' in e)
    truth = torch.cat([s.gt_label for _, outputs in hook.seen for s in outputs])
    model = runner.model.eval()
    with torch.no_grad():
        scores = [
            torch.stack([s.pred_score for data, _ in hook.seen for s in net.val_step(data)]) for net in model.nets
        ]
    for name, score in (('', scores[0]), ('net1/', scores[1]), ('ensemble/', (scores[0] + scores[1]) / 2)):
        expected = 100 * (score.argmax(1) == truth).float().mean().item()
        assert entry[f'{name}accuracy/top1'] == pytest.approx(expected, abs=1e-3), name
    (best,) = (tmp_path / 'run').glob('best_*iter_10.pth')
    assert best.with_name(best.stem + '.net1.pth').exists()


def test_segmentors_are_validated_with_their_ensemble(scenes, tmp_path):
    hook = Predictions()
    model = online('mmseg', terms=dict(loss_kd=KD), steps=None)
    runner = run(training(scenes, tmp_path / 'run', model, 'mmseg', **validation(scenes)), hook)
    entry = next(e for e in scalars(tmp_path / 'run') if 'mIoU' in e)
    assert {'mIoU', 'net1/mIoU', 'ensemble/mIoU'} <= set(entry)
    with torch.no_grad():
        right = total = 0
        for data, _ in hook.seen:
            probability = sum(
                torch.stack([s.seg_logits.data for s in net.val_step(data)]).softmax(1)
                for net in runner.model.eval().nets
            )
            truth = torch.stack([s.gt_sem_seg.data[0] for s in runner.model.val_step(data)])
            right += (probability.argmax(1) == truth)[truth != 255].sum().item()
            total += (truth != 255).sum().item()
    assert entry['ensemble/aAcc'] == pytest.approx(100 * right / total, abs=0.01)


def test_a_schedule_reaches_the_terms_of_every_net(scenes, tmp_path):
    schedule = dict(type='lckd_mm.LossWeightHook', term='loss_kd', schedule='stop', end=5)
    cfg = training(scenes, tmp_path / 'run', one_term(), custom_hooks=[schedule])
    cfg.default_hooks.logger.interval = 1
    cfg.log_processor.window_size = 1
    run(cfg)
    for k in (0, 1):
        values = [e[f'net{k}.loss_kd'] for e in scalars(tmp_path / 'run') if f'net{k}.loss_kd' in e]
        assert min(values[:5]) > 0 and set(values[5:]) == {0.0}


# ---- tools and ranks ----

TINY = (
    'train_cfg.max_epochs=2', 'train_cfg.val_interval=2', 'train_dataloader.dataset.subset=60',
    'default_hooks.checkpoint.interval=1', 'param_scheduler.0.T_max=2',
)  # fmt: skip
DIGITS = 'configs/digits/online-afd_wrn10-1_wrn10-1_1xb30_digits300.py'


def test_tools_train_and_test_either_net(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    cli.train([DIGITS, '--work-dir', str(tmp_path), '--cfg-options', *TINY])
    (file,) = tmp_path.glob('*/vis_data/scalars.json')
    validated = json.loads(file.read_text().splitlines()[-1])
    for net, name, metric in ((0, 'epoch_2.pth', 'accuracy/top1'), (1, 'epoch_2.net1.pth', 'net1/accuracy/top1')):
        DefaultScope._instance_dict.clear()
        out = tmp_path / f'{net}.json'
        options = ['--net', str(net), '--work-dir', str(tmp_path / f'test{net}'), '--out', str(out)]
        cli.test([DIGITS, str(tmp_path / name), *options])
        assert json.loads(out.read_text())['accuracy/top1'] == pytest.approx(validated[metric])
    cfg = Config.fromfile(DIGITS)
    assert student_config(cfg).model.type == 'ImageClassifier'
    with pytest.raises(ValueError, match='nets 0 to 1'):
        student_config(cfg, 2)


RANKS = """
import sys, torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from lckd_mm.cli import commands as cli

class Keep(Hook):
    def after_train(self, runner):
        model = runner.model.module
        state = dict(nets=[net.state_dict() for net in model.nets], terms=model.terms.state_dict(),
                     wrapper=type(runner.model).__name__)
        torch.save(state, f'{runner.work_dir}/rank{get_rank()}.pt')

build = cli.build_runner
def with_hook(cfg):
    runner = build(cfg)
    runner.register_hook(Keep(), priority='LOWEST')
    return runner
cli.build_runner = with_hook
cli.train(sys.argv[1:])
"""


# One optimizer, under DDP's own reduction, through which the penalty's second derivatives go.
ONE_OPTIMIZER = f"""
_base_ = '{ROOT / DIGITS}'
model = dict(steps=None, terms=dict(loss_adversarial=dict(
    loss=dict(penalty=dict(type='lckd_mm.GradientPenalty', kind='max-al')))))
optim_wrapper = dict(_delete_=True, optimizer=dict(type='SGD', lr=0.05))
"""


@pytest.mark.parametrize(
    'wrapper', ['OnlineDataParallel', pytest.param('MMDistributedDataParallel', marks=pytest.mark.full)]
)
def test_two_ranks_stay_one(wrapper, tmp_path):
    config = DIGITS
    if wrapper != 'OnlineDataParallel':
        config = tmp_path / 'one_optimizer.py'
        config.write_text(ONE_OPTIMIZER)
    script = tmp_path / 'train.py'
    script.write_text(RANKS)
    port = 29000 + os.getpid() % 900
    epochs = count(full=2, reduced=1)
    command = [
        *(sys.executable, '-W', 'ignore', '-m', 'torch.distributed.run', '--nproc_per_node=2'),
        *(f'--master_port={port}', script, config, '--launcher', 'pytorch', '--work-dir', tmp_path, '--cfg-options'),
        *(*TINY, f'train_cfg.max_epochs={epochs}', f'train_cfg.val_interval={epochs}'),
    ]
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=f'{ROOT}:{os.environ.get("PYTHONPATH", "")}')
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = (torch.load(tmp_path / f'rank{rank}.pt') for rank in (0, 1))
    assert a['wrapper'] == wrapper
    multipliers = [v for k, v in a['terms'].items() if k.endswith('multiplier')]
    assert len(multipliers) == (0 if config == DIGITS else 2) and all(multipliers)
    for ours, theirs in zip([*a['nets'], a['terms']], [*b['nets'], b['terms']]):
        assert all(torch.equal(ours[k], theirs[k]) for k in ours if 'running_' not in k)
    # each rank saw other images: only what is averaged is equal
    assert any(not torch.equal(a['nets'][1][k], b['nets'][1][k]) for k in a['nets'][1] if 'running_mean' in k)
    assert (tmp_path / f'epoch_{epochs}.net1.pth').exists()


# ---- what is refused ----

OTHER_IMAGES = dict(type='ClsDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3)


@pytest.mark.parametrize('extra, error, message', [
    (dict(nets=[classifier(4)]), ValueError, 'two or more'),
    (dict(terms={}), ValueError, 'terms must be'),
    (dict(steps=dict(features=['loss_x'])), ValueError, "'loss_x'"),
    (dict(steps=dict(a=['loss_kd'], b=['loss_kd'])), ValueError, 'two steps'),
    (dict(steps=dict(critics=['loss_kd'])), ValueError, "'critics'"),
    (dict(terms=dict(loss_ofd=dict(loss=dict(type='lckd_mm.OFDLoss'), on='stage4',
                                   teacher_connector=dict(type='lckd_mm.MarginReLU'))), steps=None),
     ValueError, 'MarginReLU'),
    (dict(terms=dict(loss_ofd=dict(loss=dict(type='lckd_mm.OFDLoss'), on='stage4',
                                   teacher_connector=[dict(type='lckd_mm.MarginReLU')])), steps=None),
     ValueError, 'MarginReLU'),
    (dict(terms=dict(loss_x=dict(loss=dict(type='lckd_mm.KDLoss'), on='logits', reuse='logits')), steps=None),
     ValueError, 'a peer is not frozen, so it cannot be reused'),
    (dict(widths=(4, 6), terms=dict(loss_a=dict(ADVERSARIAL, connector=None)), steps=None), ValueError,
     'differ in shape'),
    (dict(nets=[classifier(4), dict(classifier(4), data_preprocessor=OTHER_IMAGES)]), ValueError, 'net 1 normalises'),
])  # fmt: skip
def test_a_wrong_config_is_refused_with_a_sentence(built, extra, error, message):
    with pytest.raises(error, match=message):
        built(**extra)


def test_optimizers_are_checked_against_the_steps(built):
    model = built()
    for configs, message in (
        ({'nets': SGD}, 'needs features, nets'),
        ({'nets': SGD, 'features': SGD, 'other': SGD}, 'are nets, features, other'),
    ):
        with pytest.raises(ValueError, match=message):
            OnlineOptimWrapperConstructor(configs)(model)
    with pytest.raises(ValueError, match="'critics' has nothing to train"):
        OnlineOptimWrapperConstructor({'nets': SGD, 'critics': SGD})(built(terms=dict(loss_kd=KD), steps=None))
    with pytest.raises(TypeError, match='no OnlineDistiller'):
        OnlineOptimWrapperConstructor({'nets': SGD})(torch.nn.Linear(1, 1))


def test_tools_that_look_know_that_there_is_no_teacher(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'analysis'))
    import complexity
    import list_taps

    with pytest.raises(ValueError, match='distils from no teacher'):
        list_taps.main([DIGITS, '--teacher'])
    complexity.main([DIGITS, '--size', '16', '16'])
    assert 'net 0' in (out := capsys.readouterr().out) and 'net 1' in out


def test_inheritance_and_exploration_between_peers_comes_by_composition(built):
    """Each net's auto-encoder of its peer's features is trained along; half of the channels inherit, half explore."""
    shares = dict(on='stage4', teacher_connector='loss_reconstruction')

    def part(which):
        return [dict(type='lckd_mm.ChannelPart', part=which), dict(type='lckd_mm.FactorEncoder')]

    ft = dict(type='lckd_mm.FTLoss')
    terms = dict(
        loss_reconstruction=dict(
            loss=dict(type='lckd_mm.ReconstructionLoss'), on='stage4',
            teacher_connector=dict(type='lckd_mm.AutoEncoder', online=True),
        ),
        loss_inherit=dict(loss=ft, connector=part('inherit'), **shares),
        loss_explore=dict(loss=dict(type='lckd_mm.ExploreLoss', loss=ft), connector=part('explore'), **shares),
    )  # fmt: skip
    model = built(widths=(8, 8), terms=terms, steps=None)
    losses = losses_of(model)
    for k in (0, 1):
        encoder = model.terms[f'net{k}_from{1 - k}']['loss_reconstruction'].teacher_connectors
        for name in terms:
            reached = [reaches(losses[f'net{k}.{name}'], m) for m in (encoder, model.nets[k], model.nets[1 - k])]
            assert reached == ([True, False, False] if name == 'loss_reconstruction' else [False, True, False])


def test_a_term_that_is_nan_is_named_with_its_net(built):
    model = built(terms=dict(loss_kd=KD), steps=None)
    with torch.no_grad():
        model.peers[0].head.fc.bias.fill_(float('nan'))
    with pytest.raises(NonFiniteError, match=r"term 'net0.loss_kd' is nan.*net 1 tap 'logits'"):
        losses_of(model)

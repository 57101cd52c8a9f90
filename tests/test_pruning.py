"""PruningHook in real runs: the ramp, what is taken out, files, resuming, momentum, EMA, and two processes."""

import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from run_helpers import HOOK, HOSTS, ROOT, classifier, config, distiller, run, scalars, scenes, teacher_file, validation
from small_nets import mask2former
from torch import nn
from torch.nn.utils import prune

from lckd_mm.backbones import wide_resnet
from lckd_mm.hooks import PruningHook
from lckd_mm.hosts import build_model


def pruning(**arguments):
    return dict(type='lckd_mm.PruningHook', **dict(dict(sparsity=0.75, end=4, interval=2), **arguments))


def pruned(host, scenes, work_dir, iters=8, model=None, hooks=(), **arguments):
    cfg = config(host, scenes, work_dir, model or HOSTS[host][0](4), iters)
    cfg.custom_hooks = [pruning(**arguments), *hooks]
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = 4
    return cfg


def convolutions(model):
    """Those of the backbone without the first, by the names of their weights."""
    found = {f'backbone.{n}.weight': m for n, m in model.backbone.named_modules() if isinstance(m, nn.Conv2d)}
    return dict(list(found.items())[1:])


def zeros(state, names):
    return {name: (state[name] == 0).float().mean().item() for name in names}


def test_the_ramp_is_cubic():
    hook = PruningHook(0.8)
    hook._stop = 100
    expected = [0.0, 0.8 - 0.8 * 0.75**3, 0.8 - 0.8 / 8, 0.8, 0.8]
    assert [hook.sparsity_at(t) for t in (0, 25, 50, 100, 500)] == pytest.approx(expected)
    hook._stop = 0
    assert [hook.sparsity_at(t) for t in (0, 1)] == [0.8, 0.8]


class Watch(Hook):
    """What is zero at the beginning of each forward pass."""

    def before_train(self, runner):
        self.seen = []
        self.handle = runner.model.register_forward_pre_hook(self.look)

    def look(self, model, args):
        student = getattr(model, 'student', model)
        self.seen.append({n: (m.weight == 0).clone() for n, m in convolutions(student).items()})


@pytest.mark.parametrize('host', HOSTS)
def test_weights_go_along_the_ramp_and_stay_out(host, scenes, tmp_path):
    watch = Watch()
    runner = run(pruned(host, scenes, tmp_path), watch)
    ramp = [0.0, 0.0, *[0.75 - 0.75 / 8] * 2, *[0.75] * 4]
    logged = [entry['sparsity'] for entry in scalars(tmp_path)]
    for t, (seen, sparsity) in enumerate(zip(watch.seen, ramp)):
        for name, out in seen.items():
            assert int(out.sum()) == int(sparsity * out.numel() + 1e-9), (t, name)
    for before, after in zip(watch.seen, watch.seen[1:]):
        assert all((before[n] & ~after[n]).sum() == 0 for n in before)
    total = sum(out.numel() for out in watch.seen[-1].values())
    exact = [sum(int(out.sum()) for out in seen.values()) / total for seen in watch.seen]
    assert logged == pytest.approx(exact, rel=1e-4)
    # The first layer, norms and heads are whole; the file is plain, and sparse.
    saved = torch.load(tmp_path / 'iter_8.pth')['state_dict']
    build_model(HOSTS[host][0](4), host).load_state_dict(saved, strict=True)
    assert all(part == pytest.approx(0.75, abs=0.01) for part in zeros(saved, convolutions(runner.model)).values())
    others = [n for n, p in runner.model.named_parameters() if n not in convolutions(runner.model) and p.dim() > 1]
    assert others and all(part < 0.01 for part in zeros(saved, others).values())
    # Nothing is left attached.
    assert not any(p._backward_hooks for p in runner.model.parameters())


@pytest.mark.parametrize('optimizer', [dict(type='SGD', lr=1.0, momentum=0.9, weight_decay=5e-4), dict(type='Adam')])
def test_it_trains_as_torchs_own_reparametrisation_does(optimizer, scenes, tmp_path):
    """Momentum, weight decay and clipping see nothing of a pruned weight."""

    class Reparametrised(Hook):
        """Prunes once before training, by torch."""

        def before_train(self, runner):
            for layer in convolutions(runner.model).values():
                prune.l1_unstructured(layer, 'weight', int(0.6 * layer.weight.numel()))
                # The optimizer has the tensor; torch keeps it under another name.
                layer.weight_orig.data.mul_(layer.weight_mask)

    states = []
    for name in ('ours', 'torch'):
        cfg = pruned('mmpretrain', scenes, tmp_path / name, iters=4, end=0, sparsity=0.6)
        cfg.optim_wrapper.update(clip_grad=dict(max_norm=0.1))
        cfg.optim_wrapper.optimizer = optimizer
        cfg.default_hooks.checkpoint = None
        if name == 'torch':
            cfg.custom_hooks = []
        runner = run(cfg, *([Reparametrised()] if name == 'torch' else []))
        states.append({n: m.weight.detach() for n, m in convolutions(runner.model).items()})
    # What clipping sees: the gradient of what is pruned is a thousandth of it here.
    ours, theirs = ([entry['grad_norm'] for entry in scalars(tmp_path / name)] for name in ('ours', 'torch'))
    assert ours == pytest.approx(theirs, rel=1e-5)
    for name, ours in states[0].items():
        torch.testing.assert_close(ours, states[1][name], rtol=1e-5, atol=1e-7)
        assert (ours == 0).float().mean() > 0.59


def students(path):
    return torch.load(path, weights_only=False)


@pytest.mark.parametrize('kind', ['plain', 'distilled'])
def test_resuming_is_bit_exact(kind, scenes, tmp_path, teacher_file):
    """Data of a fixed order, so that only weights, masks and optimizer decide."""

    def cfg(name, iters):
        model = None
        if kind == 'distilled':
            teacher, path = teacher_file('mmpretrain')
            model = distiller('mmpretrain', classifier(4), teacher, path)
        out = pruned('mmpretrain', scenes, tmp_path / name, iters, model, end=6, interval=1)
        if kind == 'distilled':
            # Before the hook that stores the connectors under the same key.
            out.default_hooks.pruning = out.custom_hooks.pop()
            out.default_hooks.distillation = HOOK
        out.train_dataloader.batch_size = 16
        out.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
        out.train_dataloader.dataset.pipeline[1] = dict(type='CenterCrop', crop_size=48)
        out.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=iters)
        out.default_hooks.checkpoint = dict(type='CheckpointHook', interval=4)
        out.param_scheduler = []
        return out

    whole = run(cfg('whole', 8)).model
    again = cfg('again', 8)
    again.resume, again.load_from = True, str(tmp_path / 'whole' / 'epoch_4.pth')
    watch = Watch()
    resumed = run(again, watch).model
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())
    first, last = (students(tmp_path / 'whole' / f'epoch_{k}.pth') for k in (4, 8))
    masks, later = first['lckd_mm']['pruning'], last['lckd_mm']['pruning']
    assert ('terms' in first['lckd_mm']) == (kind == 'distilled')
    for name, mask in masks.items():
        assert torch.equal(mask, first['state_dict'][name] != 0)
        assert not (later[name] & ~mask).any()
        assert (~mask & ~watch.seen[0][name]).sum() == 0
    assert not any('mask' in key or 'orig' in key for key in first['state_dict'])


def test_a_resumed_file_keeps_a_weight_out_that_is_not_zero_in_it(scenes, tmp_path):
    """The masks come from the file's own key, and not from the zeros."""
    run(pruned('mmpretrain', scenes, tmp_path / 'run', iters=8))
    file = students(tmp_path / 'run' / 'iter_4.pth')
    name = next(iter(file['lckd_mm']['pruning']))
    file['state_dict'][name][~file['lckd_mm']['pruning'][name]] = 1.0
    torch.save(file, tmp_path / 'changed.pth')
    cfg = pruned('mmpretrain', scenes, tmp_path / 'again')
    cfg.resume, cfg.load_from = True, str(tmp_path / 'changed.pth')
    watch = Watch()
    run(cfg, watch)
    assert torch.equal(watch.seen[0][name] | file['lckd_mm']['pruning'][name], torch.ones_like(watch.seen[0][name]))


def test_resuming_without_masks_or_with_others_is_refused(scenes, tmp_path):
    plain = pruned('mmpretrain', scenes, tmp_path / 'plain', iters=4)
    plain.custom_hooks = []
    run(plain)
    cfg = pruned('mmpretrain', scenes, tmp_path / 'a')
    cfg.resume, cfg.load_from = True, str(tmp_path / 'plain' / 'iter_4.pth')
    with pytest.raises(ValueError, match=r'PruningHook.*load_from'):
        run(cfg)
    run(pruned('mmpretrain', scenes, tmp_path / 'other'))
    file = students(tmp_path / 'other' / 'iter_4.pth')
    name = next(iter(file['lckd_mm']['pruning']))
    del file['lckd_mm']['pruning'][name]
    torch.save(file, tmp_path / 'other.pth')
    cfg.load_from = str(tmp_path / 'other.pth')
    with pytest.raises(ValueError, match=name):
        run(cfg)


def test_averages_are_sparse_too(scenes, tmp_path):
    hooks = [dict(type='EMAHook', momentum=0.1)]
    cfg = pruned('mmseg', scenes, tmp_path, hooks=hooks)
    cfg.merge_from_dict(validation(scenes))
    cfg.train_cfg.val_interval = 5
    cfg.default_hooks.checkpoint.update(save_best='mIoU', rule='greater')
    watched = []

    class Validated(Hook):
        priority = 'LOWEST'

        def before_val_iter(self, runner, batch_idx, data_batch=None):
            watched.append(zeros(runner.model.state_dict(), convolutions(runner.model)))

    run(cfg, Validated())
    (best,) = tmp_path.glob('best_mIoU_iter_*.pth')
    for path in (tmp_path / 'iter_8.pth', best):
        file = students(path)
        masks = file['lckd_mm']['pruning']
        for name, mask in masks.items():
            assert not file['state_dict'][name][~mask].any(), name
            assert not file['ema_state_dict'][f'module.{name}'][~mask].any(), name
            assert (~mask).float().mean() == pytest.approx(0.75, abs=0.02)
        weight = 'decode_head.conv_seg.weight'
        assert not torch.equal(file['state_dict'][weight], file['ema_state_dict'][f'module.{weight}'])
    assert len(watched) and all(part == pytest.approx(0.75, abs=0.02) for part in watched[0].values())


def test_whole_channels_go_with_their_norm_and_bias(scenes, tmp_path):
    cfg = pruned('mmpretrain', scenes, tmp_path / 'run', kind='structured', sparsity=0.5)
    runner = run(cfg)
    state = runner.model.state_dict()
    for name, layer in convolutions(runner.model).items():
        out = layer.weight.flatten(1).abs().sum(1) == 0
        assert int(out.sum()) == layer.weight.shape[0] // 2, name
        norm = name.replace('conv', 'bn').replace('downsample.0', 'downsample.1').removesuffix('.weight')
        for key in ('weight', 'bias'):
            assert not state[f'{norm}.{key}'][out].any(), norm
            assert state[f'{norm}.weight'][~out].all()
    # By the L1 norm, the smallest.
    first = pruned('mmpretrain', scenes, tmp_path / 'first', iters=2, kind='structured', sparsity=0.5, end=0)
    norms = {}

    class Before(Hook):
        priority = 'HIGHEST'

        def before_train(self, runner):
            norms.update({n: m.weight.abs().flatten(1).sum(1).clone() for n, m in convolutions(runner.model).items()})

    watch = Watch()
    run(first, Before(), watch)
    for name, norm in norms.items():
        out = watch.seen[0][name].flatten(1).all(1)
        assert norm[out].max() <= norm[~out].min(), name


def test_the_norms_of_a_net_without_a_plain_forward_are_found(scope):
    scope('mmseg')
    model, hook = build_model(mask2former()), PruningHook(0.5, 'structured')
    hook._layers = hook._find_layers(model)
    assert 'backbone.layer1.0.bn1.weight' in hook._find_followers(model)


@pytest.mark.parametrize('in_place', [False, True])
def test_a_channel_that_no_norm_reads_alone_leaves_the_others_norm_whole(in_place, scenes, tmp_path, monkeypatch):
    """Pre-activation blocks: the norm after a block reads a sum, perhaps written over the convolution's own output."""

    def forward(self, x):
        activated = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        out += x if self.shortcut is None else self.shortcut(activated)
        return out

    if in_place:
        monkeypatch.setattr(wide_resnet._Block, 'forward', forward)
    model = Config.fromfile(ROOT / 'configs/_base_/models/wrn10-1_digits.py').wrn10_1
    cfg = pruned('mmpretrain', scenes, tmp_path, kind='structured', sparsity=0.5, model=model)
    net = run(cfg).model
    out = net.backbone.block2[0].conv1.weight.flatten(1).abs().sum(1) == 0
    assert int(out.sum()) == 16
    assert not net.backbone.block2[0].bn2.weight[out].any() and not net.backbone.block2[0].bn2.bias[out].any()
    assert (net.backbone.block2[0].conv2.weight.flatten(1).abs().sum(1) == 0).sum() == 16
    assert net.backbone.block3[0].bn1.weight.all() and net.backbone.bn1.weight.all()


@pytest.mark.parametrize(
    ('arguments', 'value'), [(dict(sparsity=80), '80'), (dict(kind='rows'), "'rows'"), (dict(interval=0), '0')]
)
def test_bad_arguments(arguments, value):
    with pytest.raises(ValueError, match=value):
        PruningHook(**{'sparsity': 0.5, **arguments})


def test_a_ramp_as_long_as_the_training_is_refused_before_it(scenes, tmp_path):
    with pytest.raises(ValueError, match='end=8'):
        run(pruned('mmpretrain', scenes, tmp_path, end=8))
    assert not list(tmp_path.glob('*.pth'))


def test_sparsity_zero_leaves_the_training_as_it_was(scenes, tmp_path):
    """Structured, so that the run that finds the norms is there, too."""
    cfg = pruned('mmpretrain', scenes, tmp_path / 'a', sparsity=0.0, kind='structured')
    ours = run(cfg).model.state_dict()
    plain = pruned('mmpretrain', scenes, tmp_path / 'b')
    plain.custom_hooks = []
    theirs = run(plain).model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


@pytest.mark.full
def test_two_processes_prune_the_same(scenes, tmp_path, teacher_file):
    teacher, path = teacher_file('mmpretrain')
    model = distiller('mmpretrain', classifier(4), teacher, path)
    cfg = pruned('mmpretrain', scenes, tmp_path / 'run', 6, model, end=2)
    cfg.default_hooks.checkpoint.interval = 6
    cfg.dump(tmp_path / 'config.py')
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='')
    command = ['tools/dist_train.sh', tmp_path / 'config.py', '2']
    out = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env, cwd=ROOT, timeout=280)
    assert out.returncode == 0, out.stderr[-3000:]
    file = students(tmp_path / 'run' / 'iter_6.pth')
    build_model(classifier(4), 'mmpretrain').load_state_dict(file['state_dict'], strict=True)
    for name, mask in file['lckd_mm']['pruning'].items():
        assert (~mask).float().mean() == pytest.approx(0.75, abs=0.02)
        assert not file['state_dict'][name][~mask].any()

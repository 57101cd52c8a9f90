"""Inheritance and exploration in real runs: what is fitted first, what the gradient reaches, what a resumed run has."""

import math

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from run_helpers import HOOK, HOSTS, config, count, distillation, run, scalars, scenes, teacher_file

from lckd_mm import cli
from lckd_mm.connectors import AutoEncoder
from lckd_mm.distillation.term import Batch
from lckd_mm.hosts import build_model
from lckd_mm.losses import FTLoss

ENCODER = dict(type='lckd_mm.FactorEncoder')


def part(name, connector=None, **more):
    half = dict(type='lckd_mm.ChannelPart', part=name, **more)
    return half if connector is None else [half, connector]


def ie(on='stage3', **auto_encoder):
    """The two terms of the paper."""
    return dict(
        loss_inherit=dict(
            loss=dict(type='lckd_mm.FTLoss'), on=on, connector=part('inherit', ENCODER), weight=50.0,
            teacher_connector=dict(dict(type='lckd_mm.AutoEncoder', batches=4), **auto_encoder),
        ),
        loss_explore=dict(
            loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.FTLoss')), on=on, weight=50.0,
            connector=part('explore', ENCODER), teacher_connector='loss_inherit',
        ),
    )  # fmt: skip


STAGES = ['stage2', 'stage3']
OVER_AT = dict(
    loss_inherit=dict(loss=dict(type='lckd_mm.ATLoss'), on=STAGES, connector=part('inherit'), weight=1000.0),
    loss_explore=dict(
        loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.ATLoss')), on=STAGES, weight=1000.0,
        connector=part('explore'),
    ),
)  # fmt: skip
OVER_OFD = dict(
    loss_inherit=dict(
        loss=dict(type='lckd_mm.OFDLoss'), on=STAGES, connector=part('inherit', dict(type='lckd_mm.ConvBN')),
        teacher_connector=dict(type='lckd_mm.MarginReLU'), weight=1e-3,
    ),
    loss_explore=dict(
        loss=dict(type='lckd_mm.ExploreLoss', loss=dict(type='lckd_mm.OFDLoss'), form='saturating', bound=100.0),
        on=STAGES, connector=part('explore', dict(type='lckd_mm.ConvBN')), teacher_connector='loss_inherit',
        weight=1e-3,
    ),
)  # fmt: skip
ALONG = dict(
    loss_autoencoder=dict(
        loss=dict(type='lckd_mm.ReconstructionLoss'), on='stage3',
        teacher_connector=dict(type='lckd_mm.AutoEncoder', online=True),
    ),
    loss_inherit=dict(ie()['loss_inherit'], teacher_connector='loss_autoencoder'),
    loss_explore=dict(ie()['loss_explore'], teacher_connector='loss_autoencoder'),
)  # fmt: skip


BOTH = [pytest.param(ie(), id='fitted first'), pytest.param(ALONG, id='along', marks=pytest.mark.full)]


class Recorder(Hook):
    def before_train(self, runner):
        self.seen = []
        self.first = {key: value.clone() for key, value in runner.model.distillation_state().items()}
        runner.model.observers.append(lambda *parts: self.seen.append(parts))


CASES = dict(ie=ie(), over_at=OVER_AT, over_ofd=OVER_OFD, along=ALONG)
RUNS = [(host, name) for host in ('mmpretrain', 'mmdet') for name in CASES] + [('mmseg', 'ie')]


@pytest.mark.parametrize(('host', 'name'), count(RUNS, [('mmdet', 'ie'), ('mmpretrain', 'along')]))
def test_it_trains(host, name, scenes, teacher_file, tmp_path):
    model = distillation(host, teacher_file, **CASES[name])
    cfg = config(host, scenes, tmp_path / 'run', model, iters=3)
    cfg.default_hooks.distillation = HOOK
    cfg.default_hooks.logger.interval = 1
    recorder = Recorder()
    runner = run(cfg, recorder)
    steps = [e for e in scalars(tmp_path / 'run') if 'loss' in e]
    assert len(steps) == 3
    assert all(math.isfinite(e['loss']) and e['loss_inherit'] > 0 > e['loss_explore'] for e in steps)
    terms = runner.model.terms
    last = runner.model.distillation_state()
    # (A bias before a BatchNorm has no gradient but rounding.)
    # The student's encoders are trained, the teacher's stays; one trained along learns.
    moved = {k: not torch.equal(recorder.first[k], v) for k, v in last.items()}
    trained = [f'{t}.{n}' for t, term in terms.items() for n, p in term.named_parameters() if p.requires_grad]
    assert all(moved[name] for name in trained if 'weight' in name)
    for key, has in moved.items():
        if ('.teacher_connectors.' in key and name != 'along') or key.endswith('connectors.0.channels'):
            assert not has, key
    if name == 'along':
        assert moved['loss_autoencoder.teacher_connectors.0.encoder.1.weight']
        assert all(e['loss_autoencoder'] > 0 for e in steps)
    assert not any(p.requires_grad or p.grad is not None for p in runner.model.teacher.model.parameters())
    assert not list(terms['loss_explore'].teacher_connectors)


def test_the_terms_are_the_papers(scenes, teacher_file, tmp_path):
    model = distillation('mmpretrain', teacher_file, **ie())
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=2)
    cfg.default_hooks.distillation = HOOK
    recorder = Recorder()
    runner = run(cfg, recorder)
    (auto_encoder,) = runner.model.terms['loss_inherit'].teacher_connectors
    for s, t, connected, losses in recorder.seen:
        factor = auto_encoder.encoder(t['stage3'])
        for name, sign in (('loss_inherit', 1), ('loss_explore', -1)):
            assert s['stage3'].shape[1] == 16 and factor.shape[1] == 16 and t['stage3'].shape[1] == 32
            expected = sign * 50 * FTLoss()(connected[name]['stage3'], factor)
            torch.testing.assert_close(losses[name], expected)


def test_each_parts_gradient_reaches_its_half_of_the_student_alone(teacher_file, scope):
    scope('mmpretrain')
    model = build_model(distillation('mmpretrain', teacher_file, **ie()), 'mmpretrain').train()
    s, t = torch.randn(4, 16, 6, 6, requires_grad=True), torch.randn(4, 32, 6, 6, requires_grad=True)
    done = {}
    for name, half, rest in (('loss_inherit', slice(8), slice(8, 16)), ('loss_explore', slice(8, 16), slice(8))):
        s.grad = None
        term = model.terms[name]
        term(Batch(dict(stage3=s), dict(stage3=t)), done).backward()
        assert s.grad[:, half].abs().max() > 0 and not s.grad[:, rest].any()
        assert all(p.grad is not None for p in term.connectors.parameters())
        assert not any(p.grad is not None for p in term.teacher_connectors.parameters())


def in_order(cfg, epochs):
    """The same batches in each epoch, so that a resumed run sees what the uninterrupted one does."""
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
    cfg.train_dataloader.dataset.pipeline[1] = dict(type='CenterCrop', crop_size=48)
    cfg.train_dataloader.batch_size = 4
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.param_scheduler = []
    cfg.default_hooks.distillation = HOOK
    return cfg


@pytest.mark.parametrize('terms', BOTH)
def test_a_resumed_run_ends_as_the_uninterrupted_one_to_the_bit(terms, scenes, teacher_file, tmp_path, monkeypatch):
    model = distillation('mmpretrain', teacher_file, **terms)
    full = run(in_order(config('mmpretrain', scenes, tmp_path / 'full', model), 2))
    again = in_order(config('mmpretrain', scenes, tmp_path / 'again', model), 2)
    again.resume, again.load_from = True, str(tmp_path / 'full' / 'epoch_1.pth')

    def observe(self, x):
        raise AssertionError('fitted again')

    monkeypatch.setattr(AutoEncoder, 'observe', observe)
    resumed = run(again)
    for a, b in (
        (full.model.state_dict(), resumed.model.state_dict()),
        (full.model.distillation_state(), resumed.model.distillation_state()),
    ):
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize('terms', BOTH)
def test_with_weights_of_0_the_student_is_the_plain_one_to_the_bit(terms, scenes, teacher_file, tmp_path):
    model = distillation('mmpretrain', teacher_file, **{k: dict(v, weight=0.0) for k, v in terms.items()})
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=3)
    cfg.default_hooks.distillation = HOOK
    distilled = run(cfg).model.student.state_dict()
    plain = run(config('mmpretrain', scenes, tmp_path / 'plain', HOSTS['mmpretrain'][0](4), iters=3)).model.state_dict()
    assert all(torch.equal(distilled[key], plain[key]) for key in plain)


def test_sizes_that_differ_are_refused_while_building(teacher_file, scope):
    scope('mmpretrain')
    terms = ie()
    for term in terms.values():
        del term['on']
        term.update(student='stage2', teacher='stage3')
    with pytest.raises(ValueError, match="'loss_inherit': FTLoss"):
        build_model(distillation('mmpretrain', teacher_file, **terms), 'mmpretrain')


# ---- two nets that learn together, each by the factor of the other's auto-encoder


def mutual_run(scenes, work_dir, widths, terms, *hooks):
    nets = [HOSTS['mmpretrain'][0](width) for width in widths]
    model = dict(type='lckd_mm.OnlineDistiller', nets=nets, taps=dict(stage3='backbone.layer3@preact'), terms=terms)
    cfg = config('mmpretrain', scenes, work_dir, model, iters=3)
    cfg.default_hooks.update(distillation=dict(type='lckd_mm.OnlineHook'), logger=dict(type='LoggerHook', interval=1))
    return run(cfg, *hooks)


class FirstTerms(Hook):
    def before_train(self, runner):
        self.state = {key: value.clone() for key, value in runner.model.terms.state_dict().items()}


def test_two_nets_learn_from_each_others_factors(scenes, tmp_path):
    first = FirstTerms()
    runner = mutual_run(scenes, tmp_path, (4, 8), ALONG, first)
    steps = [e for e in scalars(tmp_path) if 'loss' in e]
    assert len(steps) == 3 and all(math.isfinite(e['loss']) for e in steps)
    for net in ('net0', 'net1'):
        for e in steps:
            assert e[f'{net}.loss_inherit'] > 0 > e[f'{net}.loss_explore'] and e[f'{net}.loss_autoencoder'] > 0
    last = runner.model.terms.state_dict()
    assert len(runner.model.terms) == 2
    for pair in runner.model.terms:
        for of in (
            'loss_autoencoder.teacher_connectors.0.encoder.1.weight',
            'loss_autoencoder.teacher_connectors.0.decoder.0.weight',
            'loss_inherit.connectors.0.1.1.weight',
            'loss_explore.connectors.0.1.1.weight',
        ):
            assert not torch.equal(first.state[f'{pair}.{of}'], last[f'{pair}.{of}']), (pair, of)


def test_a_peers_auto_encoder_gives_its_net_no_gradient(scenes, tmp_path):
    terms = {k: dict(v, weight=v.get('weight', 1.0) if k == 'loss_autoencoder' else 0.0) for k, v in ALONG.items()}
    distilled = mutual_run(scenes, tmp_path / 'run', (4, 4), terms).model.student.state_dict()
    plain = run(config('mmpretrain', scenes, tmp_path / 'plain', HOSTS['mmpretrain'][0](4), iters=3)).model.state_dict()
    assert all(torch.equal(distilled[key], plain[key]) for key in plain)


# ---- fitted once, used by several runs


def test_the_tool_fits_once_and_runs_take_it(scenes, teacher_file, tmp_path):
    model = distillation('mmpretrain', teacher_file, **ie(batches=6))
    cfg = in_order(config('mmpretrain', scenes, tmp_path / 'run', model), 1)
    del cfg.default_hooks.distillation
    cfg.log_level, cfg.experiment_name = 'INFO', 'fit'
    cfg.dump(tmp_path / 'config.py')
    path, out = str(tmp_path / 'config.py'), str(tmp_path / 'fitted' / 'auto-encoder.pth')
    cli.fit([path, out])
    stored = torch.load(out)['lckd_mm']['terms']
    assert {key.rsplit('.connectors', 1)[0].split('.0.')[0] for key in stored} == {'loss_inherit.teacher_connectors'}
    assert stored['loss_inherit.teacher_connectors.0.known'] == 1

    option = f'default_hooks.distillation.fitted={out}'
    cli.train([path, '--work-dir', str(tmp_path / 'first'), '--cfg-options', option, 'experiment_name=first'])
    after = torch.load(tmp_path / 'first' / 'epoch_1.pth', weights_only=False)['lckd_mm']['terms']
    assert all(torch.equal(after[key], value) for key, value in stored.items())
    # A checkpoint of a run will do as well.
    again = Config(cfg._cfg_dict.to_dict())
    again.work_dir = str(tmp_path / 'second')
    again.default_hooks.distillation = dict(HOOK, fitted=str(tmp_path / 'first' / 'epoch_1.pth'))
    second = run(again).model.distillation_state()
    assert all(torch.equal(second[key], value) for key, value in stored.items())


WRONG = [
    (lambda held: held.clear(), "'loss_inherit.teacher_connectors.0'"),
    (lambda held: held.pop('loss_inherit.teacher_connectors.0.encoder.1.weight'), 'encoder.1.weight'),
    (lambda held: held['loss_inherit.teacher_connectors.0.known'].zero_(), 'without a fit'),
]


@pytest.mark.parametrize(('change', 'says'), count(WRONG, WRONG[1:2]))
def test_a_file_that_does_not_fit_is_refused(change, says, scenes, teacher_file, tmp_path):
    model = distillation('mmpretrain', teacher_file, **ie())
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=1)
    held = build_model(Config(dict(model=model)).model, 'mmpretrain').distillation_state()
    held['loss_inherit.teacher_connectors.0.known'].fill_(1)
    change(held)
    torch.save(dict(lckd_mm=dict(terms=held)), tmp_path / 'fitted.pth')
    cfg.default_hooks.distillation = dict(HOOK, fitted=str(tmp_path / 'fitted.pth'))
    with pytest.raises(ValueError, match=says):
        run(cfg)


def test_there_must_be_something_to_fit(scenes, teacher_file, tmp_path):
    cfg = config('mmpretrain', scenes, tmp_path / 'run', distillation('mmpretrain', teacher_file, **OVER_AT), iters=1)
    cfg.dump(tmp_path / 'config.py')
    with pytest.raises(ValueError, match='nothing to fit'):
        cli.fit([str(tmp_path / 'config.py'), str(tmp_path / 'out.pth')])

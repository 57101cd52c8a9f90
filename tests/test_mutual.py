"""Inheritance and exploration between two nets that learn together, each by the factor of the other's auto-encoder."""

import math

import torch
from mmengine.hooks import Hook
from run_helpers import HOSTS, STAGES, config, run, scalars, scenes
from test_inheritance import ALONG


class Recorder(Hook):
    def before_train(self, runner):
        self.first = {key: value.clone() for key, value in runner.model.terms.state_dict().items()}
        self.nets = [{k: v.clone() for k, v in net.state_dict().items()} for net in runner.model.nets]


def test_two_nets_learn_from_each_others_factors(scenes, tmp_path):
    model = dict(
        type='lckd_mm.OnlineDistiller', nets=[HOSTS['mmpretrain'][0](4), HOSTS['mmpretrain'][0](8)],
        taps=dict(STAGES), terms=ALONG,
    )  # fmt: skip
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=3)
    cfg.default_hooks.distillation = dict(type='lckd_mm.OnlineHook')
    cfg.default_hooks.logger.interval = 1
    recorder = Recorder()
    runner = run(cfg, recorder)
    steps = [e for e in scalars(tmp_path / 'run') if 'loss' in e]
    assert len(steps) == 3
    for net in ('net0', 'net1'):
        for entry in steps:
            assert math.isfinite(entry['loss'])
            assert entry[f'{net}.loss_inherit'] > 0 > entry[f'{net}.loss_explore']
            assert entry[f'{net}.loss_autoencoder'] > 0
    last = runner.model.terms.state_dict()
    pairs = list(runner.model.terms)
    assert len(pairs) == 2
    for pair in pairs:
        for of in (
            'loss_autoencoder.teacher_connectors.0.encoder.1.weight',
            'loss_autoencoder.teacher_connectors.0.decoder.0.weight',
            'loss_inherit.connectors.0.connector.1.weight',
            'loss_explore.connectors.0.connector.1.weight',
        ):
            assert not torch.equal(recorder.first[f'{pair}.{of}'], last[f'{pair}.{of}']), (pair, of)


def test_an_auto_encoder_gives_its_net_no_gradient(scenes, tmp_path):
    terms = {k: dict(v, weight=v.get('weight', 1.0) if k == 'loss_autoencoder' else 0.0) for k, v in ALONG.items()}
    nets = HOSTS['mmpretrain'][0]
    model = dict(type='lckd_mm.OnlineDistiller', nets=[nets(4), nets(4)], taps=dict(STAGES), terms=terms)
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=3)
    cfg.default_hooks.distillation = dict(type='lckd_mm.OnlineHook')
    distilled = run(cfg).model.student.state_dict()
    plain = run(config('mmpretrain', scenes, tmp_path / 'plain', nets(4), iters=3)).model.state_dict()
    assert all(torch.equal(distilled[key], plain[key]) for key in plain)

"""Every method in a real Runner, on every host where it makes sense; else it is refused with a sentence."""

import math

import pytest
import torch
from mmengine.config import Config
from run_helpers import (
    HOOK,
    HOSTS,
    STAGES,
    classifier,
    config,
    distillation,
    run,
    scalars,
    scenes,
    teacher_file,
)  # fmt: skip

from lckd_mm.functional import bn_margin
from lckd_mm.hosts import build_model, fabricate_samples

CONNECTED = dict(connector=dict(type='lckd_mm.ConvBN'))
STAGE_NAMES = list(STAGES)
METHODS = {
    'loss_ofd': dict(
        loss=dict(type='lckd_mm.OFDLoss'), on=STAGE_NAMES, weight=1e-3,
        teacher_connector=dict(type='lckd_mm.MarginReLU'), **CONNECTED,
    ),
    'loss_fitnets': dict(loss=dict(type='lckd_mm.FitNetsLoss'), on='stage3', **CONNECTED),
    'loss_at': dict(loss=dict(type='lckd_mm.ATLoss'), on=STAGE_NAMES, weight=1000.0),
    'loss_fsp': dict(loss=dict(type='lckd_mm.FSPLoss'), on=STAGE_NAMES, **CONNECTED),
    'loss_ab': dict(loss=dict(type='lckd_mm.ABLoss'), on=STAGE_NAMES, weight=1e-3, **CONNECTED),
    'loss_rkd': dict(loss=dict(type='lckd_mm.RKDLoss'), on='stage4'),
    'loss_dkd': dict(loss=dict(type='lckd_mm.DKDLoss'), on='logits'),
    'loss_dist': dict(loss=dict(type='lckd_mm.DISTLoss'), on='logits'),
    'loss_wsld': dict(loss=dict(type='lckd_mm.WSLDLoss'), on='logits'),
    'loss_sp': dict(loss=dict(type='lckd_mm.SPLoss'), on='stage4', weight=3000.0),
    'loss_vid': dict(loss=dict(type='lckd_mm.VIDLoss'), on=STAGE_NAMES),
    'loss_review': dict(loss=dict(type='lckd_mm.ReviewKDLoss'), on=STAGE_NAMES),
    'loss_crd': dict(loss=dict(type='lckd_mm.CRDLoss', samples=16, negatives=8), on='stage4'),
    'loss_part': dict(loss=dict(type='lckd_mm.PartialKDLoss', kind='sim'), on='logits'),
    'loss_ft': dict(
        loss=dict(type='lckd_mm.FTLoss'), on='stage3', weight=100.0, connector=dict(type='lckd_mm.Translator'),
        teacher_connector=dict(type='lckd_mm.Paraphraser', batches=5),
    ),
    'loss_cwd': dict(loss=dict(type='lckd_mm.CWDLoss'), on=STAGE_NAMES, **CONNECTED),
    'loss_afd': dict(loss=dict(type='lckd_mm.AFDLoss'), on=STAGE_NAMES, **CONNECTED),
    # The relations' weight is far above the authors', so that three steps move what depends on it alone.
    'loss_fgd': dict(loss=dict(type='lckd_mm.FGDLoss', lam=1e-2), on=STAGE_NAMES, **CONNECTED),
    'loss_mgd': dict(
        loss=dict(type='lckd_mm.MGDLoss'), on=STAGE_NAMES, weight=2e-5, connector=dict(type='lckd_mm.MaskedGenerator'),
    ),
    'loss_pkd': dict(loss=dict(type='lckd_mm.PKDLoss'), on=STAGE_NAMES, connector=dict(type='lckd_mm.MLP')),
    # As RTMDet's recipe in mmyolo.
    'loss_rtm': dict(
        loss=dict(type='lckd_mm.CWDLoss', tau=1.0), on=STAGE_NAMES,
        connector=dict(type='lckd_mm.ConvBN', affine=False), teacher_connector=dict(type='lckd_mm.Standardise'),
    ),
    'loss_jacobian': dict(loss=dict(type='lckd_mm.JacobianLoss'), on='logits'),
    'loss_adversarial': dict(
        loss=dict(
            type='lckd_mm.AdversarialLoss', critic=dict(type='lckd_mm.ConvCritic'),
            penalty=dict(type='lckd_mm.GradientPenalty'),
        ),
        on=STAGE_NAMES, **CONNECTED,
    ),
    'loss_noise': dict(loss=dict(type='lckd_mm.JacobianLoss', mode='noise'), on='stage4', **CONNECTED),
    'loss_gradient': dict(loss=dict(type='lckd_mm.JacobianLoss', mode='gradient'), on='logits'),
}  # fmt: skip


@pytest.mark.parametrize('host', HOSTS)
@pytest.mark.parametrize('method', METHODS)
def test_it_trains(host, method, scenes, teacher_file, tmp_path):
    if host == 'mmdet' and method in ('loss_dkd', 'loss_dist', 'loss_wsld', 'loss_part', 'loss_gradient'):
        pytest.skip('refused before training')
    if host != 'mmdet' and method == 'loss_fgd':
        pytest.skip('refused before training')
    if host != 'mmpretrain' and method in ('loss_crd', 'loss_sp', 'loss_review'):
        pytest.skip('the same path as on mmpretrain')
    model = distillation(host, teacher_file, **{method: METHODS[method]})
    cfg = config(host, scenes, tmp_path / 'run', model, iters=3)
    cfg.default_hooks.distillation = HOOK
    cfg.default_hooks.logger.interval = 1
    cfg.train_dataloader.batch_size = 4  # two samples alone have one distance, and no angle
    runner = run(cfg)
    values = [entry[method] for entry in scalars(tmp_path / 'run') if method in entry]
    assert len(values) == 3
    assert all(math.isfinite(v) and v > 0 for v in values)
    # Connectors are trained with the student.
    torch.manual_seed(0)
    fresh = build_model(Config(dict(model=model)).model, host)
    for (name, a), (_, b) in zip(runner.model.terms.named_parameters(), fresh.terms.named_parameters(), strict=True):
        if 'attentions' not in name:  # it begins even, and so without a gradient but for its last layer
            assert not torch.equal(a, b), name


def without_connector(name):
    return {key: value for key, value in METHODS[name].items() if key != 'connector'}


AUXILIARY = {k: v for k, v in METHODS['loss_jacobian'].items() if k != 'on'} | dict(student='aux', teacher='logits')
#: Host, terms, and what the message names.
REFUSED = [
    ('mmdet', dict(loss_dkd=METHODS['loss_dkd']), 'DKDLoss: .* RetinaHead'),
    ('mmdet', dict(loss_dist=METHODS['loss_dist']), 'DISTLoss: .* RetinaHead'),
    (
        'mmdet',
        dict(loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', standardise=True), on='logits')),
        'KDLoss: standardise',
    ),
    ('mmpretrain', dict(loss_vid=dict(METHODS['loss_vid'], **CONNECTED)), 'VIDLoss: .*; leave out the connector'),
    ('mmdet', dict(loss_gradient=METHODS['loss_gradient']), "JacobianLoss with mode='gradient'"),
    ('mmseg', dict(loss_fgd=METHODS['loss_fgd']), "'loss_fgd': .* FGDLoss: .* boxes"),
    ('mmpretrain', dict(loss_fgd=METHODS['loss_fgd']), "'loss_fgd': .* FGDLoss: .* boxes"),
    *(
        ('mmpretrain', {f'loss_{name}': without_connector(f'loss_{name}')}, f"'loss_{name}': .*student")
        for name in ('ofd', 'fitnets', 'fsp', 'ab', 'afd', 'cwd')
    ),
    (
        'mmpretrain',
        dict(loss_ofd=dict(METHODS['loss_ofd'], connector=dict(type='lckd_mm.MarginReLU'))),
        "'loss_ofd': .*MarginReLU .* teacher's",
    ),
    (
        'mmpretrain',
        dict(
            loss_fitnets=dict(METHODS['loss_fitnets'], on='stage4'),
            loss_noise=dict(METHODS['loss_noise'], connector='loss_fitnets'),
        ),
        "'loss_noise': JacobianLoss",
    ),
    # A tap that fires only with the losses: the loss runs the net again without them.
    ('mmseg', dict(loss_jacobian=AUXILIARY), "JacobianLoss .* tap 'aux'"),
]


@pytest.mark.parametrize(('host', 'terms', 'says'), REFUSED)
def test_what_does_not_fit_is_refused_before_training(host, terms, says, teacher_file, scope):
    scope(host)
    model = distillation(host, teacher_file, **terms)
    if terms.get('loss_jacobian') is AUXILIARY:
        model['student_taps'] = dict(aux='auxiliary_head.conv_seg')
    with pytest.raises(ValueError, match=says):
        build_model(model, host)


def test_the_margin_is_that_of_the_loaded_teacher(scenes, teacher_file, tmp_path):
    model = distillation('mmpretrain', teacher_file, loss_ofd=METHODS['loss_ofd'])
    model['terms']['loss_ofd']['weight'] = 0.0
    torch.manual_seed(3)
    _, path = teacher_file('mmpretrain')
    file = torch.load(path)
    for name in file['state_dict']:
        if name.endswith(('bn2.weight', 'bn2.bias')):
            file['state_dict'][name] = torch.randn_like(file['state_dict'][name])
    torch.save(file, path)
    runner = run(config('mmpretrain', scenes, tmp_path / 'run', model, iters=1))
    margins = [connector.margin for connector in runner.model.terms['loss_ofd'].teacher_connectors]
    for i, margin in enumerate(margins, 1):
        weight, bias = (file['state_dict'][f'backbone.layer{i}.1.bn2.{key}'] for key in ('weight', 'bias'))
        torch.testing.assert_close(margin, bn_margin(weight, bias))


# ---- margins from data


def group_normed(width):
    model = classifier(width)
    model['backbone']['norm_cfg'] = dict(type='GN', num_groups=2)
    return model


@pytest.fixture
def without_batch_norm(teacher_file, tmp_path, monkeypatch):
    monkeypatch.setitem(HOSTS, 'mmpretrain', (group_normed, *HOSTS['mmpretrain'][1:]))

    def model(margin, weight):
        term = dict(METHODS['loss_ofd'], weight=weight, teacher_connector=dict(type='lckd_mm.MarginReLU', **margin))
        return distillation('mmpretrain', teacher_file, loss_ofd=term)

    return model


def test_a_margin_from_batch_norm_is_refused_where_there_is_none(without_batch_norm, scope):
    scope('mmpretrain')
    with pytest.raises(ValueError, match=r"'loss_ofd', tap 'stage1': .* GroupNorm"):
        build_model(without_batch_norm(dict(margin='bn'), 1.0), 'mmpretrain')


def test_a_margin_from_data_is_the_mean_negative_response(scenes, without_batch_norm, tmp_path):
    model = without_batch_norm(dict(margin='data', batches=3), 1e-3)
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=2)
    cfg.train_dataloader.dataset.pipeline[1] = dict(type='CenterCrop', crop_size=48)  # the same images once more
    cfg.default_hooks.distillation = HOOK
    runner = run(cfg)
    distilled = runner.model
    loader = runner.build_dataloader(cfg.train_dataloader, seed=3)
    responses = []
    for _, batch in zip(range(3), loader):
        data = distilled.data_preprocessor(batch, True)
        responses.append(distilled.teacher(distilled.teacher_taps, STAGE_NAMES, data['inputs'], data['data_samples']))
    for name, connector in zip(STAGE_NAMES, distilled.terms['loss_ofd'].teacher_connectors):
        channels = torch.cat([r[name].transpose(0, 1).flatten(1) for r in responses], 1)
        for channel, margin in zip(channels, connector.margin):
            negative = channel[channel < 0]
            assert margin.item() == pytest.approx(negative.mean().item() if len(negative) else 0.0, abs=1e-5)
        assert connector.margin.any()
    stored = torch.load(tmp_path / 'run' / 'iter_2.pth', weights_only=False)['lckd_mm']['terms']
    margin = distilled.terms['loss_ofd'].teacher_connectors[0].margin
    assert torch.equal(stored['loss_ofd.teacher_connectors.0.margin'], margin)


def test_estimating_margins_leaves_the_training_as_it_was(scenes, without_batch_norm, tmp_path):
    cfg = config('mmpretrain', scenes, tmp_path / 'run', without_batch_norm(dict(margin='data'), 0.0), iters=4)
    cfg.default_hooks.distillation = HOOK
    distilled = run(cfg).model.student.state_dict()
    plain = run(config('mmpretrain', scenes, tmp_path / 'plain', group_normed(4), iters=4)).model.state_dict()
    assert distilled.keys() == plain.keys()
    assert all(torch.equal(distilled[key], plain[key]) for key in plain)


def test_without_the_hook_a_margin_from_data_stops_at_the_first_iteration(scenes, without_batch_norm, tmp_path):
    cfg = config('mmpretrain', scenes, tmp_path / 'run', without_batch_norm(dict(margin='data'), 1.0), iters=2)
    with pytest.raises(ValueError, match="tap 'stage1': MarginReLU"):
        run(cfg)


# ---- what is trained first, and what runs the nets again


def test_a_paraphraser_is_trained_first_on_training_images_then_frozen(scenes, teacher_file, tmp_path):
    model = distillation('mmpretrain', teacher_file, loss_ft=METHODS['loss_ft'])
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=4)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    cfg.train_dataloader.batch_size = 4  # 16 images: its 5 batches are more than an epoch
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.param_scheduler = []
    cfg.default_hooks.distillation = HOOK
    run(cfg)
    key = 'loss_ft.teacher_connectors.0.'
    first, second = (
        torch.load(tmp_path / 'run' / f'epoch_{k}.pth', weights_only=False)['lckd_mm']['terms'] for k in (1, 2)
    )
    assert first[key + 'known'] == 1
    fresh = build_model(Config(dict(model=model)).model, 'mmpretrain').terms.state_dict()
    for name, value in first.items():
        if name.startswith(key) and value.is_floating_point():
            assert torch.equal(value, second[name]), name
            assert not torch.equal(value, fresh[name]), name
        elif 'connectors.0.0.weight' in name:
            assert not torch.equal(value, second[name]), name


@pytest.mark.parametrize('mode', ['difference', 'noise', 'gradient'])
def test_running_the_nets_again_leaves_the_training_as_it_was(mode, scenes, teacher_file, tmp_path, monkeypatch):
    def dropping(width):
        model = classifier(width)
        model['neck'] = [dict(type='GlobalAveragePooling')]
        model['head'] = dict(
            type='StackedLinearClsHead', num_classes=10, in_channels=8 * width, mid_channels=[12], dropout_rate=0.5
        )
        return model

    monkeypatch.setitem(
        HOSTS, 'mmpretrain', (dropping, HOSTS['mmpretrain'][1], dict(logits='head.layers.1.fc'), HOSTS['mmpretrain'][3])
    )
    term = dict(loss=dict(type='lckd_mm.JacobianLoss', mode=mode), on='logits', weight=0.0)
    model = distillation('mmpretrain', teacher_file, loss_jacobian=term)
    distilled = run(config('mmpretrain', scenes, tmp_path / 'run', model, iters=4)).model.student.state_dict()
    plain = run(config('mmpretrain', scenes, tmp_path / 'plain', dropping(4), iters=4)).model.state_dict()
    assert distilled.keys() == plain.keys()
    assert all(torch.equal(distilled[key], plain[key]) for key in plain)


def test_dropout_drops_the_same_units_again(teacher_file, scope):
    scope('mmpretrain')
    model = distillation('mmpretrain', teacher_file, loss_jacobian=METHODS['loss_jacobian'])
    model['student']['neck'] = [dict(type='GlobalAveragePooling')]
    model['student']['head'] = dict(
        type='StackedLinearClsHead', num_classes=10, in_channels=32, mid_channels=[12], dropout_rate=0.5
    )
    model['student_taps'] = dict(logits='head.layers.1.fc')
    distilled = build_model(model, 'mmpretrain')
    distilled.init_weights()
    distilled.train()
    seen = []

    def look(student, teacher, inputs, replay):
        seen.append((student[0], replay(inputs)[0][0], replay(inputs)[0][0]))
        return student[0].sum()

    distilled.terms['loss_jacobian'].loss.forward = look
    distilled.loss(torch.randn(4, 3, 32, 32), fabricate_samples(distilled.student, 4, (32, 32)))
    first, second, third = seen[0]
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_noise_goes_on_after_a_resume_and_connectors_see_the_clean_batch_alone(scenes, teacher_file, tmp_path):
    model = distillation('mmpretrain', teacher_file, loss_noise=METHODS['loss_noise'])
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=3)
    cfg.default_hooks.distillation = HOOK
    term = run(cfg).model.terms['loss_noise']
    stored = torch.load(tmp_path / 'run' / 'iter_3.pth', weights_only=False)['lckd_mm']['terms']
    assert stored['loss_noise.loss.draws'] == term.loss.draws >= 3
    assert term.connectors[0][1].num_batches_tracked == 3


def test_what_the_contrastive_loss_remembers_is_in_the_checkpoint(scenes, teacher_file, tmp_path):
    model = distillation('mmpretrain', teacher_file, loss_crd=METHODS['loss_crd'])
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=4)
    cfg.default_hooks.distillation = HOOK
    cfg.train_dataloader.batch_size = 4
    loss = run(cfg).model.terms['loss_crd'].loss
    stored = torch.load(tmp_path / 'run' / 'iter_4.pth', weights_only=False)['lckd_mm']['terms']
    assert all(torch.equal(value, stored[f'loss_crd.loss.{key}']) for key, value in loss.state_dict().items())
    # Four batches are all sixteen images, and the rehearsal has left nothing behind.
    assert (loss.classes >= 0).all() and loss.draws < 8
    assert torch.allclose(loss.student_memory.norm(dim=1), torch.ones(16))


def test_samples_without_an_index_are_refused_with_a_way_out_that_works(scenes, teacher_file, tmp_path):
    model = distillation('mmseg', teacher_file, loss_crd=METHODS['loss_crd'])
    cfg = config('mmseg', scenes, tmp_path / 'run', model, iters=1)
    cfg.default_hooks.distillation = HOOK
    with pytest.raises(ValueError, match=r"CRDLoss: .* add 'sample_idx' to the meta_keys of the pipeline's last step"):
        run(cfg)
    cfg.train_dataloader.dataset.pipeline[-1].meta_keys = ('img_path', 'ori_shape', 'img_shape', 'sample_idx')
    run(cfg)


def test_a_data_set_smaller_than_a_batch_is_refused(scenes, without_batch_norm, tmp_path):
    cfg = config('mmpretrain', scenes, tmp_path / 'run', without_batch_norm(dict(margin='data'), 1.0), iters=2)
    cfg.train_dataloader.update(batch_size=32, drop_last=True, sampler=dict(type='DefaultSampler', shuffle=True))
    cfg.default_hooks.distillation = HOOK
    with pytest.raises(ValueError, match='train_dataloader'):
        run(cfg)


def test_what_is_inherited_outlives_load_from(scenes, teacher_file, tmp_path):
    model = distillation('mmpretrain', teacher_file, loss_rkd=METHODS['loss_rkd'])
    model['student'] = classifier(8)
    model['inherit'] = ['head']
    torch.manual_seed(11)
    torch.save(dict(state_dict=build_model(classifier(8), 'mmpretrain').state_dict()), tmp_path / 'before.pth')
    cfg = config('mmpretrain', scenes, tmp_path / 'run', model, iters=1, load_from=str(tmp_path / 'before.pth'))
    cfg.default_hooks.distillation = HOOK
    cfg.optim_wrapper.optimizer.lr = 0.0
    student = run(cfg).model.student.state_dict()
    teacher, before = (torch.load(tmp_path / name)['state_dict'] for name in ('teacher-mmpretrain.pth', 'before.pth'))
    assert torch.equal(student['head.fc.weight'], teacher['head.fc.weight'])
    assert torch.equal(student['backbone.conv1.weight'], before['backbone.conv1.weight'])

"""The methods of dense detectors in whole steps, on small heads of each kind."""

import pytest
import torch
from run_helpers import HOOK, HOSTS, config, detector, distillation, run, scalars, scenes, teacher_file
from test_reuse import batch, built, model

from lckd_mm.hosts import build_model

SCORES = dict(scores='logits')
MATCHED = dict(type='lckd_mm.MatchStatistics')
STRIDES = [4, 8, 16, 32]
ONE = dict(type='AnchorGenerator', octave_base_scale=8, scales_per_octave=1, ratios=[1.0], strides=STRIDES)
TRAIN = dict(assigner=dict(type='ATSSAssigner', topk=4), allowed_border=-1, pos_weight=-1)
COMMON = dict(num_classes=10, in_channels=8, feat_channels=8, stacked_convs=2, norm_cfg=dict(type='BN'))
RTM = dict(
    COMMON, type='RTMDetSepBNHead', anchor_generator=dict(type='MlvlPointGenerator', offset=0, strides=STRIDES),
    bbox_coder=dict(type='DistancePointBBoxCoder'), with_objectness=False, exp_on_reg=True,
    loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
    loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
)  # fmt: skip
SCALES = [f'bbox_head.scales.{i}' for i in range(4)]


def towers(branch, conv=0):
    return {branch: f'bbox_head.{branch}_convs.{conv}.activate@in#*'}


def of_levels(name, addresses):
    return {f'{name}{i}': address for i, address in enumerate(addresses)}


#: Detector, its head, and the taps of its class scores, boxes and towers.
KINDS = {
    'RetinaNet': (
        dict(stacked_convs=2),
        dict(logits='bbox_head.retina_cls#*', boxes='bbox_head.retina_reg#*', **towers('cls'), **towers('reg')),
    ),
    'FCOS': (
        dict(COMMON, type='FCOSHead', strides=STRIDES, centerness_on_reg=True,
             regress_ranges=((-1, 16), (16, 32), (32, 64), (64, 1e8))),
        dict(logits='bbox_head.conv_cls#*', **of_levels('boxes', SCALES), **towers('cls'), **towers('reg')),
    ),
    'ATSS': (
        dict(COMMON, type='ATSSHead', anchor_generator=ONE,
             bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]),
             loss_bbox=dict(type='GIoULoss', loss_weight=2.0)),
        dict(logits='bbox_head.atss_cls#*', **of_levels('boxes', SCALES), **towers('cls'), **towers('reg')),
    ),
    'GFL': (
        dict(COMMON, type='GFLHead', anchor_generator=ONE, reg_max=8,
             loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
             loss_bbox=dict(type='GIoULoss', loss_weight=2.0)),
        dict(logits='bbox_head.gfl_cls#*', **of_levels('boxes', SCALES), **towers('cls'), **towers('reg')),
    ),
    'RTMDet': (
        RTM,
        {
            key: address
            for branch in ('cls', 'reg')
            for key, address in of_levels(
                branch, [f'bbox_head.{branch}_convs.{i}.0.activate@in' for i in range(4)]
            ).items()
        } | of_levels('logits', [f'bbox_head.rtm_cls.{i}' for i in range(4)])
        | of_levels('boxes', [f'bbox_head.rtm_reg.{i}' for i in range(4)]),
    ),
}  # fmt: skip


def net(kind, width, **changes):
    head, _ = KINDS[kind]
    model = detector(width)
    model['type'] = kind
    if kind == 'RetinaNet':
        model['bbox_head'].update(head, **changes)
        return model
    assigner = dict(type='DynamicSoftLabelAssigner', topk=4) if kind == 'RTMDet' else TRAIN['assigner']
    return dict(model, bbox_head={**head, **changes}, train_cfg=dict(TRAIN, assigner=assigner))


def named(taps, kind):
    names = [tap for tap in taps if tap.startswith(kind)]
    return names[0] if len(names) == 1 else names


def crosskd(taps, connector=MATCHED):
    def term(branch, teacher, loss, **extra):
        tower = named(taps, branch)
        return dict(loss=loss, student=tower, reuse=tower, teacher=named(taps, teacher), connector=connector, **extra)

    scores = dict(scores=named(taps, 'logits'))
    return dict(
        loss_cross_cls=term('cls', 'logits', dict(type='lckd_mm.BCKDLoss')),
        loss_cross_reg=term('reg', 'boxes', dict(type='lckd_mm.BCKDBoxLoss', weigh='confidence'), given=scores),
    )


@pytest.mark.parametrize('kind', KINDS)
def test_crosskd_trains_the_student_up_to_its_tower_alone(kind, tmp_path):
    taps = KINDS[kind][1]
    distiller = built(tmp_path, crosskd(taps), taps, net(kind, 4), net(kind, 8)).train()
    losses = distiller.loss(**batch(distiller))
    for name, branch in (('loss_cross_cls', 'cls'), ('loss_cross_reg', 'reg')):
        distiller.zero_grad()
        assert 0 < losses[name] < float('inf')
        losses[name].backward(retain_graph=True)
        reached = {n for n, p in distiller.student.named_parameters() if p.grad is not None and p.grad.any()}
        head = {n for n in reached if n.startswith('bbox_head')}
        tower = f'bbox_head.{branch}_convs.'
        assert head and all(n.startswith(tower) for n in head)
        # The first convolution of a tower, not the second; and all before it.
        assert {n.removeprefix(tower).split('.')[-3] for n in head} <= {'0'}
        assert any(n.startswith('backbone.conv1') for n in reached)
        assert all(p.grad is None for p in distiller.teacher.model.parameters())


@pytest.mark.parametrize('kind', KINDS)
def test_the_teacher_s_own_weights_have_nothing_to_learn(kind, tmp_path):
    """Two equal nets: the student's tower, matched to the statistics of its own values, gives the teacher's output."""
    taps = KINDS[kind][1]
    scores = dict(scores=named(taps, 'logits'))
    boxes = dict(type='lckd_mm.BCKDBoxLoss')
    terms = crosskd(taps) | dict(
        loss_bckd=dict(loss=dict(type='lckd_mm.BCKDLoss'), on=named(taps, 'logits')),
        loss_boxes=dict(loss=boxes, on=named(taps, 'boxes'), given=scores),
    )
    if kind == 'GFL':
        terms['loss_ld'] = dict(loss=dict(type='lckd_mm.LDLoss'), on=named(taps, 'boxes'), given=scores)
    distiller = built(tmp_path, terms, taps, net(kind, 8), net(kind, 8))
    distiller.student.load_state_dict(distiller.teacher.model.state_dict())
    distiller.eval()
    with torch.no_grad():
        losses = distiller.loss(**batch(distiller))
        assert all(losses[name].abs() < 1e-5 for name in terms), losses
        # Another backbone moves all of them.
        distiller.student.backbone.layer2[0].conv1.weight.mul_(-1)
        losses = distiller.loss(**batch(distiller))
        assert all(losses[name] > 0 for name in terms)


def test_a_head_without_towers_is_refused_by_its_tap(tmp_path):
    from mmengine.config import ConfigDict

    model = detector(8)
    model['bbox_head'] = dict(type='SSDHead', num_classes=10, in_channels=[8] * 4, anchor_generator=ConfigDict(
        type='SSDAnchorGenerator', scale_major=False, input_size=64, strides=STRIDES, ratios=[[2]] * 4,
        min_sizes=[8, 16, 32, 48], max_sizes=[16, 32, 48, 60],
    ))  # fmt: skip
    taps = dict(logits='bbox_head.cls_convs.0', cls='bbox_head.cls_convs.0.0.activate@in')
    with pytest.raises(KeyError, match=r"tap 'cls': no module 'bbox_head\.cls_convs\.0\.0\.activate'"):
        built(tmp_path, dict(loss_x=crosskd(KINDS['RetinaNet'][1])['loss_cross_cls']), taps, model, model)


REFUSED = [
    ('GFL', dict(reg_max=6), 'LDLoss', 'reg_max=6'),
    (
        'GFL',
        dict(anchor_generator=dict(ONE, octave_base_scale=4)),
        'BCKDBoxLoss',
        'differ in anchors, points or strides',
    ),
    ('RetinaNet', {}, 'LDLoss', 'RetinaHead predicts no distributions'),
]


@pytest.mark.parametrize(('kind', 'changes', 'loss', 'says'), REFUSED)
def test_boxes_that_cannot_be_compared_are_refused_while_the_model_is_built(kind, changes, loss, says, tmp_path):
    taps = KINDS[kind][1]
    term = dict(loss=dict(type=f'lckd_mm.{loss}'), on=named(taps, 'boxes'), given=SCORES)
    with pytest.raises(ValueError, match=says):
        built(tmp_path, dict(loss_x=term), taps, net(kind, 4, **changes), net(kind, 8))


@pytest.mark.parametrize(
    ('side', 'early'),
    [('on', 'reg'), ('student', ['in0', 'in1', 'in2', 'in3']), ('teacher', ['in0', 'in1', 'in2', 'in3'])],
)
def test_boxes_before_their_scale_are_refused(side, early, tmp_path):
    taps = KINDS['GFL'][1]
    term = dict(dict(loss=dict(type='lckd_mm.LDLoss'), on=named(taps, 'boxes'), given=SCORES), **{side: early})
    taps = dict(taps, reg='bbox_head.gfl_reg#*', **of_levels('in', [f'{scale}@in' for scale in SCALES]))
    who = "teacher's" if side == 'teacher' else "student's"
    with pytest.raises(
        ValueError, match=rf"'loss_x': LDLoss: {who} taps: .* tap all of scales.0 to scales.3, in order"
    ):
        built(tmp_path, dict(loss_x=term), taps, net('GFL', 4), net('GFL', 8))


def test_ld_on_assigned_positions_is_the_loss_of_mmdet_s_head(tmp_path):
    taps = KINDS['GFL'][1]
    loss = dict(type='lckd_mm.LDLoss', weigh='assigned')
    terms = dict(loss_ld=dict(loss=loss, on=named(taps, 'boxes'), given=SCORES, weight=0.25))
    distiller = built(tmp_path, terms, taps, net('GFL', 4), net('GFL', 8)).train()
    head = dict(KINDS['GFL'][0], type='LDHead', train_cfg=TRAIN)
    head['loss_ld'] = dict(type='KnowledgeDistillationKLDivLoss', loss_weight=0.25, T=10)
    theirs = build_model(head, 'mmdet').train()
    theirs.load_state_dict(distiller.student.bbox_head.state_dict())

    data = batch(distiller)
    # An image of several objects, and one of none.
    boxes = torch.tensor([[4.0, 6, 40, 30], [30, 30, 38, 39], [0, 0, 64, 64]])
    truth = data['data_samples'][0].gt_instances
    data['data_samples'][0].gt_instances = type(truth)(bboxes=boxes, labels=torch.tensor([3, 0, 9]))
    data['data_samples'][1].gt_instances = truth[:0]
    value = distiller.loss(**data)['loss_ld']
    teacher = distiller.teacher.model
    with torch.no_grad():
        soft = teacher.bbox_head(teacher.extract_feat(data['inputs']))
    levels = theirs.loss(distiller.student.extract_feat(data['inputs']), soft, data['data_samples'])['loss_ld']
    assert sum(level > 0 for level in levels) > 1
    torch.testing.assert_close(value, sum(levels), rtol=1e-5, atol=0)

    data['data_samples'][0].gt_instances = truth[:0]
    assert distiller.loss(**data)['loss_ld'] == 0


def test_scores_of_a_segmentor_are_refused(tmp_path):
    from run_helpers import segmentor

    term = dict(loss=dict(type='lckd_mm.ScoreWeightedLoss'), on='map', given=dict(scores='logits'))
    taps = dict(map='decode_head.conv_seg@in', logits='decode_head.conv_seg')
    with pytest.raises(
        ValueError, match=r'ScoreWeightedLoss: needs the class scores of one of the dense heads .*FCNHead'
    ):
        built(tmp_path, dict(loss_x=term), taps, segmentor(4), segmentor(4), 'mmseg')


MGD = dict(
    loss_mgd=dict(
        loss=dict(type='lckd_mm.MGDLoss'), on=['stage2', 'stage3'], connector=dict(type='lckd_mm.MaskedGenerator')
    )
)


def mgd_run(scenes, work_dir, teacher_file, weight, epochs=2, **resume):
    model = distillation('mmdet', teacher_file, loss_mgd=dict(MGD['loss_mgd'], weight=weight))
    cfg = config('mmdet', scenes, work_dir, model, **resume)
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
    del cfg.train_dataloader.dataset.pipeline[2]  # the flip
    cfg.train_dataloader.batch_size = 8
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)
    cfg.param_scheduler = []
    cfg.default_hooks.distillation = HOOK
    return cfg


def test_masks_leave_the_training_as_it_was_and_a_resumed_run_draws_on(scenes, teacher_file, tmp_path):
    full = run(mgd_run(scenes, tmp_path / 'full', teacher_file, 2e-5))
    again = mgd_run(scenes, tmp_path / 'again', teacher_file, 2e-5)
    again.resume, again.load_from = True, str(tmp_path / 'full' / 'epoch_1.pth')
    resumed = run(again)
    for state in ('state_dict', 'distillation_state'):
        a, b = (getattr(of.model, state)() for of in (full, resumed))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert any(key.endswith('draws') for key in full.model.distillation_state())

    off = run(mgd_run(scenes, tmp_path / 'off', teacher_file, 0.0)).model.student.state_dict()
    cfg = mgd_run(scenes, tmp_path / 'plain', teacher_file, 0.0)
    cfg.model = HOSTS['mmdet'][0](4)
    del cfg.default_hooks['distillation']
    plain = run(cfg).model.state_dict()
    assert all(torch.equal(off[key], plain[key]) for key in plain)


def every_term(kind):
    """Each method on the neck and on the head."""
    taps = KINDS[kind][1]
    scores, boxes = dict(scores=named(taps, 'logits')), named(taps, 'boxes')
    neck = dict(on=[f'p{i}' for i in range(4)])
    terms = crosskd(taps) | dict(
        loss_pkd=dict(loss=dict(type='lckd_mm.PKDLoss'), weight=0.1, **neck),
        loss_mgd=dict(
            loss=dict(type='lckd_mm.MGDLoss'), weight=1e-4, connector=dict(type='lckd_mm.MaskedGenerator'), **neck
        ),
        loss_swl2=dict(
            loss=dict(type='lckd_mm.ScoreWeightedLoss'), connector=dict(type='lckd_mm.MLP'), given=scores, **neck
        ),
        loss_bckd=dict(loss=dict(type='lckd_mm.BCKDLoss'), on=named(taps, 'logits')),
        loss_boxes=dict(loss=dict(type='lckd_mm.BCKDBoxLoss', weigh='confidence'), on=boxes, given=scores),
    )
    if kind == 'GFL':
        terms['loss_ld'] = dict(loss=dict(type='lckd_mm.LDLoss', tau=1.0), on=boxes, given=scores)
    return terms, taps | of_levels('p', [f'neck[{i}]' for i in range(4)])


@pytest.mark.parametrize(('kind', 'term'), [('FCOS', 'loss_boxes'), ('GFL', 'loss_boxes'), ('GFL', 'loss_ld')])
def test_boxes_are_learnt(kind, term, tmp_path):
    """By this term alone, of one batch."""
    terms, taps = every_term(kind)
    distiller = built(tmp_path, {term: terms[term]}, taps, net(kind, 4), net(kind, 8)).train()
    optimizer, data, values = torch.optim.Adam(distiller.parameters(), 3e-3), batch(distiller), []
    for _ in range(9):
        optimizer.zero_grad()
        value = distiller.loss(**data)[term]
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.95 * values[0]


@pytest.mark.full
@pytest.mark.parametrize('kind', KINDS)
def test_every_loss_falls(kind, scenes, tmp_path):
    """In a run with all of them: the mean of the last 20 values is below that of the first 20."""
    terms, taps = every_term(kind)
    # The labels contradict the boxes of this teacher, which was not trained; CrossKD's pass by the student's own head.
    terms = {name: term for name, term in terms.items() if name not in ('loss_boxes', 'loss_ld')}
    net_model = model(tmp_path, terms, taps, net(kind, 4), net(kind, 8))
    cfg = config('mmdet', scenes, tmp_path / 'run', net_model, iters=80)
    cfg.optim_wrapper.optimizer = dict(type='AdamW', lr=2e-3)
    cfg.default_hooks.distillation = HOOK
    cfg.default_hooks.logger.interval = 1
    run(cfg)
    logged = scalars(tmp_path / 'run')
    for name in terms:
        values = [entry[name] for entry in logged if name in entry]
        first, last = sum(values[:20]) / 20, sum(values[-20:]) / 20
        print(f'{kind} {name}: {first:.4g} to {last:.4g}')
        assert len(values) == 80 and last < first, (name, first, last)

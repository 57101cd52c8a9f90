"""Boxes decoded from maps of mmdet's dense heads: those of the heads' own predictions."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict

from lckd_mm.hosts import build_model
from lckd_mm.hosts.boxes import _KINDS, check_box_layers, check_boxes, check_same_boxes, decoded_boxes

STRIDES = [8, 16]
ANCHORS = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=2, ratios=[0.5, 2.0], strides=STRIDES)
ONE = dict(type='AnchorGenerator', octave_base_scale=8, scales_per_octave=1, ratios=[1.0], strides=STRIDES)
COMMON = dict(num_classes=1, in_channels=8, feat_channels=8)
DELTAS = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
POINTS = dict(type='MlvlPointGenerator', offset=0, strides=STRIDES)
RTM = dict(
    COMMON, stacked_convs=1, anchor_generator=POINTS, bbox_coder=dict(type='DistancePointBBoxCoder'),
    loss_cls=dict(type='QualityFocalLoss', use_sigmoid=True), norm_cfg=dict(type='BN'),
)  # fmt: skip
SSD = dict(
    type='SSDAnchorGenerator', scale_major=False, input_size=64, strides=STRIDES, ratios=[[2], [2, 3]],
    min_sizes=[16, 32], max_sizes=[32, 60],
)  # fmt: skip
TRAIN = dict(assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1)
ATSS = dict(COMMON, stacked_convs=1, anchor_generator=ONE, bbox_coder=DELTAS, norm_cfg=dict(type='BN'))
HEADS = {
    'RetinaHead': dict(COMMON, type='RetinaHead', stacked_convs=1, anchor_generator=ANCHORS, bbox_coder=DELTAS),
    'RPNHead': dict(type='RPNHead', in_channels=8, feat_channels=8, anchor_generator=ANCHORS, bbox_coder=DELTAS),
    'SSDHead': dict(type='lckd_mm.SSDHead', num_classes=1, in_channels=(8, 8), anchor_generator=SSD, bbox_coder=DELTAS),
    'ATSSHead': dict(ATSS, type='ATSSHead'),
    'PAAHead': dict(ATSS, type='PAAHead'),
    'FCOSHead': dict(COMMON, type='FCOSHead', stacked_convs=1, strides=STRIDES, norm_cfg=dict(type='BN')),
    'FCOSHead, normed': dict(
        COMMON, type='FCOSHead', stacked_convs=1, strides=STRIDES, norm_cfg=dict(type='BN'), norm_on_bbox=True
    ),
    'GFLHead': dict(COMMON, type='GFLHead', stacked_convs=1, anchor_generator=ONE, norm_cfg=dict(type='BN'), reg_max=7),
    'LDHead': dict(
        COMMON,
        type='LDHead',
        stacked_convs=1,
        anchor_generator=ONE,
        norm_cfg=dict(type='BN'),
        reg_max=7,
        loss_ld=dict(type='KnowledgeDistillationKLDivLoss', T=10),
    ),
    'RTMDetHead': dict(RTM, type='RTMDetHead', with_objectness=False),
    'RTMDetSepBNHead': dict(RTM, type='RTMDetSepBNHead', exp_on_reg=False),
    'RTMDetSepBNHead, exp': dict(RTM, type='RTMDetSepBNHead', exp_on_reg=True),
}


def built(name, **changes):
    """A head with weights that move its boxes, and scales of its levels that are not 1."""
    config = copy.deepcopy(HEADS[name])
    if name in ('PAAHead', 'ATSSHead', 'GFLHead', 'LDHead'):
        config['train_cfg'] = TRAIN
    torch.manual_seed(0)
    head = build_model({**config, **changes}, 'mmdet').eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return head


def part_of(head):
    names = [kind.__name__ for kind in type(head).__mro__]
    return next(kind.part for name, kind in ((n, _KINDS[n]) for n in names if n in _KINDS))


@torch.no_grad()
def run(head):
    """The head's outputs, and the maps that its part gave."""
    module, maps = getattr(head, part_of(head)), []
    hooks = [
        one.register_forward_hook(lambda *of: maps.append(of[-1]))
        for one in (module if isinstance(module, torch.nn.ModuleList) else [module])
    ]
    torch.manual_seed(1)
    outputs = head(tuple(torch.randn(2, 8, 64 // s, 96 // s) for s in STRIDES))
    for hook in hooks:
        hook.remove()
    return outputs, maps


@pytest.mark.parametrize('name', HEADS)
def test_they_are_what_the_head_predicts(name):
    head = built(name)
    outputs, maps = run(head)
    nms = dict(type='nms', iou_threshold=1.0)
    cfg = ConfigDict(nms_pre=10**6, score_thr=-1.0, min_bbox_size=-1, nms=nms, max_per_img=10**6)
    metas = [dict(img_shape=(10**6, 10**6), scale_factor=(1.0, 1.0))] * 2
    # These two know no other way; their NMS removes nothing.
    with_nms = dict(with_nms=name in ('RPNHead', 'PAAHead'))
    head.with_score_voting = False
    scores = [z.permute(0, 2, 3, 1).reshape(2, -1, head.cls_out_channels) for z in outputs[0]]
    scores = torch.cat(scores, 1)
    scores = (scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1))[..., 0]
    # Centerness would change the order of the scores.
    outputs = [*outputs[:2], *([torch.full_like(x, 30.0) for x in of] for of in outputs[2:])]
    with torch.no_grad():
        predicted = head.predict_by_feat(*outputs, batch_img_metas=metas, cfg=cfg, **with_nms)
        boxes = decoded_boxes(head, maps)
    assert boxes.shape == (*scores.shape, 4) and boxes.std() > 5
    for own, score, of in zip(boxes, scores, predicted):
        # The host clips the boxes at 0.
        expected = of.bboxes[of.scores.argsort()]
        torch.testing.assert_close(own[score.argsort()].clamp(min=0), expected, rtol=1e-5, atol=1e-4)


def test_their_gradient_reaches_the_maps():
    head = built('GFLHead')
    _, maps = run(head)
    maps = [x.requires_grad_() for x in maps]
    decoded_boxes(head, maps).sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in maps)
    assert decoded_boxes(head, [x[:0] for x in maps]).shape[0] == 0


def test_unknown_heads_and_other_taps_are_refused():
    from mmdet.models.dense_heads import RetinaHead

    class Own(RetinaHead):
        def forward_single(self, x):
            return super().forward_single(x)

    for head, says in ((None, 'lies in no head'), (object(), 'how a object decodes them is not known')):
        with pytest.raises(ValueError, match=f'XLoss: .*{says}.* PKDLoss'):
            check_boxes(head, 'XLoss')
    known = built('RetinaHead')
    check_boxes(known, 'XLoss')
    known.__class__ = Own
    with pytest.raises(ValueError, match='how a Own decodes'):
        check_boxes(known, 'XLoss')
    gfl, retina = built('GFLHead'), built('RetinaHead')
    check_box_layers(gfl, list(gfl.scales), 'XLoss')
    check_box_layers(retina, [retina.retina_reg], 'XLoss')
    for head, layers, says in (
        (gfl, [gfl.gfl_reg], r'its scales gives, .* tap all of scales.0 to scales.1, in order'),
        (gfl, [gfl.scales[1], gfl.scales[0]], 'in order'),
        (retina, [retina.retina_cls], r'tap retina_reg#\*'),
    ):
        with pytest.raises(ValueError, match=f'XLoss: .*{says}'):
            check_box_layers(head, layers, 'XLoss')
    _, maps = run(gfl)
    with pytest.raises(ValueError, match='1 maps for its 2 levels'):
        decoded_boxes(gfl, maps[:1])


def test_other_anchors_are_refused():
    gfl, retina = built('GFLHead'), built('RetinaHead')
    check_same_boxes(gfl, built('GFLHead', reg_max=4, feat_channels=4), 'XLoss')
    others = [
        retina,
        built('FCOSHead'),
        built('GFLHead', anchor_generator=dict(ONE, strides=[8, 32])),
        built('GFLHead', anchor_generator=dict(ONE, strides=[8])),
        built('GFLHead', anchor_generator=dict(ONE, octave_base_scale=4)),
    ]
    for other in others:
        with pytest.raises(ValueError, match=r'XLoss: box i of the student belongs to another anchor .* PKDLoss'):
            check_same_boxes(gfl, other, 'XLoss')

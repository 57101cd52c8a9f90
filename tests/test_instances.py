"""Instance segmentation by grid cells, dynamic kernels and prototypes: SOLOv2, RTMDet-Ins, YOLACT."""

import copy

import pytest
import torch
from small_nets import rtmdet_ins, solov2, yolact

from lckd_mm.functional import binary_kd_divergence, kd_divergence
from lckd_mm.hosts import build_model, fabricate_samples, has_sigmoids, load_config, owner_head

NETS = dict(solov2=solov2, rtmdet_ins=rtmdet_ins, yolact=yolact)
LOGITS = dict(
    solov2=['mask_head.conv_cls#*'],
    rtmdet_ins=[f'bbox_head.rtm_cls.{i}' for i in range(3)],
    yolact=['bbox_head.conv_cls#*'],
)


@pytest.mark.parametrize('net', NETS)
def test_class_scores_are_compared_by_the_head_s_own_activation(net, tmp_path):
    """SOLOv2 and RTMDet-Ins have a sigmoid for each class, YOLACT a softmax with background for each anchor."""
    teacher = NETS[net](16)
    torch.manual_seed(1)
    torch.save(dict(state_dict=build_model(teacher, 'mmdet').state_dict()), tmp_path / 'teacher.pth')
    taps = {f'logits{i}': address for i, address in enumerate(LOGITS[net])}
    terms = dict(
        loss_kd=dict(loss=dict(type='lckd_mm.KDLoss', tau=2.0), on=list(taps)),
        loss_pkd=dict(loss=dict(type='lckd_mm.PKDLoss'), on='p3', connector=dict(type='lckd_mm.ConvBN')),
    )
    distiller = build_model(
        dict(
            type='lckd_mm.Distiller', student=NETS[net](8), taps=dict(taps, p3='neck[0]'), terms=terms, dry_run_size=64,
            teacher=dict(model=teacher, checkpoint=str(tmp_path / 'teacher.pth')),
        ),
        'mmdet',
    )  # fmt: skip
    distiller.init_weights()
    # A plain forward of YOLACT runs the head twice, its loss once; the pyramid is read in the same pass.
    assert len(distiller.teacher_taps.passes([*taps, 'p3'])) == 1
    images = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    samples = fabricate_samples(distiller.student, 2, (64, 96))
    data = distiller.train().data_preprocessor(dict(inputs=images, data_samples=samples), True)
    loss = distiller.loss(**copy.deepcopy(data))['loss_kd']  # RTMDet-Ins changes the masks of the samples
    scores = []
    for model, of in ((distiller.student, distiller.student_taps), (distiller.teacher.model, distiller.teacher_taps)):
        with torch.no_grad(), of.record(model, list(taps), stop=True) as features:
            model(**copy.deepcopy(data), mode='loss')
        scores.append([x for f in features.values() for x in (f if isinstance(f, list) else [f])])
    assert len(scores[0]) == (3 if net == 'rtmdet_ins' else 5)
    # Cells of a grid, or positions of a level: the same in both nets.
    assert [x.shape for x in scores[0]] == [x.shape for x in scores[1]]
    if net == 'solov2':
        assert [x.shape[1:] for x in scores[0]] == [(10, n, n) for n in (40, 36, 24, 16, 12)]
    count = 11 if net == 'yolact' else 10
    ours, theirs = (torch.cat([x.movedim(1, -1).reshape(-1, count) for x in of]) for of in scores)
    divergence = kd_divergence if net == 'yolact' else binary_kd_divergence
    torch.testing.assert_close(loss, divergence(ours, theirs, 2.0).mean())
    loss.backward()
    assert sum(p.grad is not None and p.grad.abs().sum() > 0 for p in distiller.student.neck.parameters()) > 4


@pytest.mark.parametrize(
    ('config', 'tap'),
    [
        ('solo/solo_r50_fpn_1x_coco.py', 'mask_head.conv_cls'),
        ('centernet/centernet_r18_8xb16-crop512-140e_coco.py', 'bbox_head.heatmap_head.2'),
        ('cornernet/cornernet_hourglass104_10xb5-crop511-210e-mstest_coco.py', 'bbox_head.tl_heat.0.1.conv'),
    ],
)
def test_cells_and_heatmaps_have_a_sigmoid_for_each_class(config, tap):
    with torch.device('meta'):
        net = build_model(load_config(f'mmdet::{config}').model, 'mmdet')
    assert has_sigmoids(owner_head(net, tap))

# FGD: RetinaNet on ResNet50 teaches the one on ResNet18 the maps of its pyramid, on and around the objects.
# Weights and temperature are those of the authors' RetinaNet on COCO. Their recipe also starts the student's neck and
# head from the teacher's (inherit=['neck', 'bbox_head'] does that) and clips gradients at 35; this one does neither.
_base_ = '../_base_/pairs/retinanet-r50_retinanet-r18_voc0712.py'

model = dict(
    terms=dict(
        loss_fgd=dict(
            loss=dict(type='lckd_mm.FGDLoss', alpha=1e-3, beta=5e-4, gamma=5e-4, lam=5e-6, temperature=0.5),
            on=['p3', 'p4', 'p5', 'p6', 'p7'],
            weight=1.0,
        ),
    ),
)

# DINO on ResNet50 teaches the one on ResNet18 on COCO.
_base_ = ['../../coco/dino-r18_8xb2-12e_coco.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
        # mmdetection's model index: box AP 49.0 on COCO val2017.
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/dino/dino-4scale_r50_8xb2-12e_coco/'
        'dino-4scale_r50_8xb2-12e_coco_20221202_182705-55b2bba2.pth',
    ),
    taps=dict(memory='encoder'),
)

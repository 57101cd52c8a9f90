# RTMDet-l teaches RTMDet-tiny on COCO.
_base_ = ['mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', '../taps/rtmdet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
        # mmdetection's model index: box AP 51.3 on COCO val2017.
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet_l_8xb32-300e_coco/'
        'rtmdet_l_8xb32-300e_coco_20220719_112030-5a0be7c4.pth',
    ),
    taps=_base_.rtmdet_taps,
)

# RTMDet-Ins-l teaches RTMDet-Ins-s on COCO. Its pyramid and class scores are RTMDet's.
_base_ = ['mmdet::rtmdet/rtmdet-ins_s_8xb32-300e_coco.py', '../taps/rtmdet.py']

model = dict(
    _delete_=True,
    type='lckd_mm.Distiller',
    student=_base_.model,
    teacher=dict(
        model='mmdet::rtmdet/rtmdet-ins_l_8xb32-300e_coco.py',
        # mmdetection's model index: mask AP 43.7 on COCO val2017.
        checkpoint='https://download.openmmlab.com/mmdetection/v3.0/rtmdet/rtmdet-ins_l_8xb32-300e_coco/'
        'rtmdet-ins_l_8xb32-300e_coco_20221124_103237-78d1d652.pth',
    ),
    taps=_base_.rtmdet_taps,
)

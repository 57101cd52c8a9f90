# OFD: PSPNet-R101-d8 teaches PSPNet-R18-d8 by its four stages before a ReLU; the weight is OFD's own of segmentation.
_base_ = './kd_pspnet_r101-d8_pspnet_r18-d8_4xb4-20k_voc12aug-512x512.py'

model = dict(
    terms=dict(
        _delete_=True,
        loss_ofd=dict(
            loss=dict(type='lckd_mm.OFDLoss'),
            on=['stage1', 'stage2', 'stage3', 'stage4'],
            connector=dict(type='lckd_mm.ConvBN'),
            teacher_connector=dict(type='lckd_mm.MarginReLU'),
            weight=1e-5,
        ),
    ),
)

# The demo's student with OFD: the four stages before a ReLU, through connectors, to the teacher's with margins.
_base_ = './kd_fcn_r18-w32_fcn_r18-w8_1xb8-digit-scenes-96x96.py'

model = dict(
    terms=dict(
        _delete_=True,
        loss_ofd=dict(
            loss=dict(type='lckd_mm.OFDLoss'),
            on=_base_.stages,
            connector=dict(type='lckd_mm.ConvBN'),
            teacher_connector=dict(type='lckd_mm.MarginReLU'),
            weight=3e-5,
        ),
    ),
)
default_hooks = dict(lipschitz=dict(term='loss_ofd'))  # whose connected maps it looks at, too

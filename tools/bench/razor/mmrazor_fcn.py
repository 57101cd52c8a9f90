# The same distillation with mmrazor 1.0.0: SingleTeacherDistill, a ConfigurableDistiller, recorders and mappings.
_base_ = '../../../configs/demo/fcn_r18-w8_1xb8-digit-scenes-96x96.py'

model = dict(
    _delete_=True,
    _scope_='mmrazor',
    type='SingleTeacherDistill',
    # By default mmrazor takes the top-level one from mmseg's base file, which pads to 512 x 512.
    data_preprocessor=dict(_base_.model.data_preprocessor, _scope_='mmseg'),
    architecture=dict(_base_.model, _scope_='mmseg'),
    # Written out because mmrazor's cfg_path accepts only configs of installed packages ('mmseg::…'), not files.
    teacher=dict(
        _base_.model,
        _scope_='mmseg',
        backbone=dict(_base_.model.backbone, base_channels=32),
        decode_head=dict(_base_.model.decode_head, in_channels=256),
        auxiliary_head=dict(_base_.model.auxiliary_head, in_channels=128),
    ),
    teacher_ckpt='work_dirs/demo/seed0/teacher/iter_800.pth',
    distiller=dict(
        type='ConfigurableDistiller',
        student_recorders=dict(logits=dict(type='ModuleOutputs', source='decode_head.conv_seg')),
        teacher_recorders=dict(logits=dict(type='ModuleOutputs', source='decode_head.conv_seg')),
        distill_losses=dict(
            # 'mean' also divides by the 11 classes: KLDivergence cannot average over positions alone.
            loss_kd=dict(type='KLDivergence', tau=2.0, reduction='mean', loss_weight=11.0),
            loss_cwd=dict(type='ChannelWiseDivergence', tau=4.0, loss_weight=3.0),
        ),
        loss_forward_mappings=dict(
            loss_kd=dict(
                preds_S=dict(from_student=True, recorder='logits'),
                preds_T=dict(from_student=False, recorder='logits'),
            ),
            loss_cwd=dict(
                preds_S=dict(from_student=True, recorder='logits'),
                preds_T=dict(from_student=False, recorder='logits'),
            ),
        ),
    ),
)

# What the recipe of the one line chooses: OFD of the stages' ends.
_base_ = ['../_base_/pairs/deeplabv3plus_m-v2-d16_deeplabv3plus_r18-w8-d16_nuclei.py', '../_base_/terms/nuclei.py']

model = dict(student_taps=None, teacher_taps=None, taps='backbone', terms=dict(loss_ofd=_base_.ofd_term))

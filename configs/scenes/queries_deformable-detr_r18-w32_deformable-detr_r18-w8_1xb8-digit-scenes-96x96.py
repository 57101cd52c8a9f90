# Deformable DETR with what the teacher's decoder makes of the student's memory.
_base_ = ['../_base_/pairs/deformable-detr_r18-w32_deformable-detr_r18-w8_digit-scenes.py', '../_base_/terms/scenes.py']

model = dict(terms=dict(loss_queries=_base_.queries_term))

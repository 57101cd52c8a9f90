# MGD: GFL on ResNet50 teaches the one on ResNet18 its pyramid. A small net generates it
# from about a third of the student's positions.
# The authors also start the student's neck and head from the teacher's (inherit=['neck', 'bbox_head'] does that) and
# clip gradients at 35; this one does neither.
_base_ = ['../_base_/pairs/gfl-r50_gfl-r18_voc0712.py', '../_base_/terms/dense_detectors.py']

model = dict(terms=dict(loss_mgd=_base_.mgd_term))

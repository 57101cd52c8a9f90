# FCN-R101-d8 teaches FCN-R18-d8 on VOC2012 + SBD by LONDON: OFD on the four stages, and Lipschitz matching of the same
# connected stages. The student's own baseline trains alone; this differs from it by the distillation only.
_base_ = './segmentation/lckd_fcn_r101-d8_fcn_r18-d8_4xb4-20k_voc12aug-512x512.py'

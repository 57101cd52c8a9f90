# Terms of real-time segmentors: KD and CWD as in the other pairs, with the teacher's maps resized to the student's.
_base_ = ['./segmentation.py', './cwd.py']

kd_term = dict(teacher_connector=dict(type='lckd_mm.MatchSize'))
cwd_term = dict(teacher_connector=dict(type='lckd_mm.MatchSize'))
cwd_feature_term = dict(teacher_connector=dict(type='lckd_mm.MatchSize'))

# WRN10-1, trained alone, then pruned to a fifth of its weights.
_base_ = ['./wrn10-1_1xb30_digits300.py']

load_from = 'work_dirs/digits/seed0/alone/epoch_40.pth'
custom_hooks = [dict(type='lckd_mm.PruningHook', sparsity=0.8)]

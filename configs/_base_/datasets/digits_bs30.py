# scikit-learn's digits at 16 x 16: 300 scans of the first half to train on, the second half to test on.
data_preprocessor = dict(num_classes=10, mean=[78.0] * 3, std=[96.0] * 3, to_rgb=False)
train_dataloader = dict(
    batch_size=30,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='lckd_mm.Digits', split='train', subset=300, pipeline=[dict(type='PackInputs')]),
)
val_dataloader = dict(
    batch_size=300,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='lckd_mm.Digits', split='test', pipeline=[dict(type='PackInputs')]),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

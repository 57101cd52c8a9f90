# SRRL: the student's pooled feature, through a linear layer, is pulled to the teacher's, and so are the scores that the
# teacher's own classifier gives it. The authors have a convolution, BatchNorm and ReLU before the pooling instead.
_base_ = '../_base_/pairs/wrn16-4_wrn10-1_digits300.py'

_squared = dict(type='lckd_mm.FitNetsLoss')
model = dict(
    taps=dict(pooled='head.fc@in'),
    terms=dict(
        loss_features=dict(loss=_squared, on='pooled', connector=dict(type='lckd_mm.Linear'), weight=1.0),
        loss_srrl=dict(
            loss=_squared, student='pooled', reuse='pooled', teacher='logits', connector='loss_features', weight=1.0
        ),
    ),
)

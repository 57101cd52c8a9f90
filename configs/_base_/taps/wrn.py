# Before a ReLU, OFD's and LONDON's positions: the output of each group of blocks, through the BatchNorm after it.
# The pooled features and the class scores as well.
wrn_taps = dict(
    stage1='backbone.block2.0.bn1',
    stage2='backbone.block3.0.bn1',
    stage3='backbone.bn1',
    embedding='neck[0]',
    logits='head.fc',
)

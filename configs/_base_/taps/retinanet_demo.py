# The three stages before their last ReLU, the levels of the pyramid, and the class scores of all levels.
stages = ['stage1', 'stage2', 'stage3']
levels = ['p2', 'p3', 'p4']
retinanet_taps = dict(
    stage1='backbone.layer1@preact',
    stage2='backbone.layer2@preact',
    stage3='backbone.layer3@preact',
    p2='neck[0]',
    p3='neck[1]',
    p4='neck[2]',
    logits='bbox_head.retina_cls#*',
)

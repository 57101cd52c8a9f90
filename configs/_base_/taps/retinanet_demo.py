# The three stages before their last ReLU, the levels of the pyramid, the class scores and boxes of all levels, and what
# the first of the two convolutions of each tower of the head gives, before its ReLU.
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
    boxes='bbox_head.retina_reg#*',
    cls_tower='bbox_head.cls_convs.0.activate@in#*',
    reg_tower='bbox_head.reg_convs.0.activate@in#*',
)

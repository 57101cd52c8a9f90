# ResNet152, with torchvision's weights, teaches ResNet50 on ImageNet by LONDON's recipe.
_base_ = './imagenet/lckd_resnet152_resnet50_8xb32_in1k.py'

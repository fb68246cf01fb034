# Second stage on VOC 2012: DeepLabV3+, ResNet-101 (ImageNet). Not run yet.
_base_ = './deeplabv3plus_r50_voc.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='open-mmlab://resnet101_v1c')))

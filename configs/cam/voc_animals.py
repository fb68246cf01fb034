# M0 on voc_animals: plain CAM, MobileNetV2 (ImageNet), output stride 16.
_base_ = [
    '../_base_/models/cam_mobilenetv2.py',
    '../_base_/datasets/voc_animals.py',
    '../_base_/schedules/adamw_poly.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        frozen_stages=3,
        norm_eval=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='data/weights/mobilenet_v2_imagenet_mmpretrain.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(num_classes=7),
)

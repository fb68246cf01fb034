# M0 on voc_animals: plain CAM, MobileNetV2 (ImageNet), output stride 16.
_base_ = [
    '../_base_/models/cam_mobilenetv2.py',
    '../_base_/datasets/voc_animals.py',
    '../_base_/schedules/poly.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        # The first stages and the statistics of all normalisations stay as they are.
        frozen_stages=3,
        norm_eval=True,
        # Key names of mmpretrain; trained with the normalisation of the base model. The zoo's
        # 'mmcls://mobilenet_v2' wants mean [123.675, 116.28, 103.53], std [58.395, 57.12, 57.375].
        init_cfg=dict(
            type='Pretrained',
            checkpoint='data/weights/mobilenet_v2_imagenet_mmpretrain.pth',
            prefix='backbone.',
        ),
    ),
    decode_head=dict(num_classes=7),
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-5, weight_decay=1e-2),
    # The head is new, the backbone is not.
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
default_hooks = dict(
    # The mAP of the classifier beside the mIoU of its CAMs.
    image_scores=dict(type='ImageScoresHook', metric=dict(type='MultiLabelMAPMetric')),
    # A step takes three quarters of the time on a CPU.
    layout=dict(type='ChannelsLastHook'),
)

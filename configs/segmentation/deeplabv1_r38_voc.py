# Second stage after SEAM on VOC 2012: DeepLab-v1 on ResNet38d (ImageNet), crop 448, 20,000 steps of
# 10 images on 5 GPUs (with others, set train_dataloader.batch_size), here with real momentum.
# Tested over six scales with flips, then a CRF. Not run yet.
# It follows the released experiment "seamv1-pseudovoc" of SEAM's author. Different from it: the
# stem, the first stage and the normalisations of the backbone are frozen; dropout drops whole
# channels; the jitter is that of SEAM's CAM network; normalisations of the head get weight decay;
# views are merged after the softmax.
_base_ = [
    '../_base_/models/resnet38d.py',
    '../_base_/datasets/voc_pseudo.py',
    '../_base_/schedules/poly_20k.py',
    '../_base_/default_runtime.py',
]
model = dict(
    decode_head=dict(
        type='LargeFOVHead',
        in_channels=4096,
        in_index=2,
        channels=512,
        dropout_ratio=0.5,
        num_classes=21,
        # Small steps of the statistics: a step has few images.
        norm_cfg=dict(type='SyncBN', requires_grad=True, momentum=3e-4),
        align_corners=True,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True),
    ),
)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadCheckedImage'),
            dict(type='LoadCheckedMask'),
            # Half to one and a half times the size of VOC's images.
            dict(type='RandomResize', scale=(500, 500), ratio_range=(0.5, 1.5), keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomColorJitter', brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
            dict(type='RandomCropOrPad', crop_size=(448, 448), pad_value=(103.53, 116.28, 123.675)),
            dict(type='PackSegInputs'),
        ],
    )
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1e-3, momentum=0.9, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
log_processor = dict(by_epoch=False)

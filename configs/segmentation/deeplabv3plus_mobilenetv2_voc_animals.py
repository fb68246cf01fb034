# Second stage on voc_animals: mmseg's DeepLabV3+ head on MobileNetV2 (ImageNet), output stride 16.
_base_ = [
    '../_base_/models/cam_mobilenetv2.py',
    '../_base_/datasets/voc_animals.py',
    '../_base_/schedules/poly.py',
    '../_base_/default_runtime.py',
]
pseudo_labels = 'work_dirs/voc_animals/walk_labels'
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
    decode_head=dict(
        _delete_=True,
        type='DepthwiseSeparableASPPHead',
        in_channels=320,
        in_index=3,
        channels=96,
        dilations=(1, 6, 12),
        c1_in_channels=24,
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=7,
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True),
    ),
)
train_dataloader = dict(
    dataset=dict(
        image_labels=None,
        pseudo_label_folder=pseudo_labels,
        pipeline=[
            dict(type='LoadCheckedImage'),
            dict(type='LoadCheckedMask'),
            dict(type='RandomResize', scale=(320, 320), ratio_range=(0.75, 1.5), keep_ratio=True),
            dict(type='RandomCrop', crop_size=(256, 256), cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackSegInputs'),
        ],
    )
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadCheckedMask'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale_factor=scale, keep_ratio=True)
                for scale in (0.75, 1.0, 1.25)
            ],
            [
                dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='LoadCheckedMask')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
tta_model = dict(type='ProbabilityTTAModel')
# Labels are predicted: nothing is known of the images that are judged.
val_dataloader = dict(dataset=dict(image_labels=None, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(image_labels=None, pipeline=test_pipeline))
val_evaluator = dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoU'])
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-2),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
# Half of it is too short to learn every class (configs/dscnet/README.md).
train_cfg = dict(max_epochs=12, val_interval=12)

# PASCAL VOC 2012: training on train_aug (10,582 images) with the image-level labels of the XML
# annotations, difficult objects included; masks are for judging.
dataset_type = 'VOC2012Dataset'
data_root = 'data/VOCdevkit/VOC2012'
image_labels = 'Annotations'
# The recipe of SEAM: the long side becomes 448 to 768 pixels, and what a crop lacks is zero after
# normalisation (pad_value is the mean of the models' data preprocessor in BGR).
train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='RandomResize', scale=(448, 448), ratio_range=(1.0, 768 / 448), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomColorJitter', brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
    dict(type='RandomCropOrPad', crop_size=(448, 448), pad_value=(103.53, 116.28, 123.675)),
    dict(type='PackWSSSInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadCheckedMask'),
    dict(type='PackWSSSInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale_factor=scale, keep_ratio=True)
                for scale in (0.5, 1.0, 1.5, 2.0)
            ],
            [
                dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='LoadCheckedMask')],
            [dict(type='PackWSSSInputs')],
        ],
    ),
]
tta_model = dict(type='CAMTTAModel')
# 8 images a step on 8 GPUs, the recipe of SEAM; on one GPU give train_dataloader.batch_size=8.
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Segmentation/train_aug.txt',
        image_labels=image_labels,
        pipeline=train_pipeline,
    ),
)
# The threshold is chosen here, on the 1,464 images of train ...
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Segmentation/train.txt',
        image_labels=image_labels,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
# ... and judged here, on the 1,449 of val, with labels given: set image_labels=None for predicted.
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Segmentation/val.txt',
        image_labels=image_labels,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='CAMIoUMetric')
test_evaluator = dict(type='CAMIoUMetric')

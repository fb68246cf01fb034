# Six animal classes of VOC 2012 (or any folder in its layout) with a list of image-level labels.
# Training reads the images and image_labels.json only; masks are for judging.
dataset_type = 'VOCLayoutDataset'
data_root = 'data/voc_animals'
train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='RandomResize', scale=(320, 320), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(256, 256)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackWSSSInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # One scale of 1.5 does here what four scales with flips do (chosen on images of train).
    dict(type='Resize', scale_factor=1.5, keep_ratio=True),
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
                # Twice the size would cost more than the others together.
                for scale in (0.5, 1.0, 1.5)
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
metainfo = dict(classes=('background', 'cat', 'cow', 'dog', 'horse', 'sheep', 'person'))
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Segmentation/mini_train.txt',
        image_labels='image_labels.json',
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
# The threshold is chosen here, on images of train ...
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Segmentation/train.txt',
        image_labels='image_labels.json',
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
# ... and judged here, on val.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Segmentation/val.txt',
        image_labels='image_labels.json',
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='CAMIoUMetric')
test_evaluator = dict(type='CAMIoUMetric')

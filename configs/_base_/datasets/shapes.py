# Generated on first use under data/shapes: 128 x 128 images of five textured classes.
dataset_type = 'ShapesDataset'
data_root = 'data/shapes'
train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='RandomResize', scale=(128, 128), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(128, 128)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackWSSSInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadCheckedMask'),
    dict(type='PackWSSSInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Segmentation/train.txt',
        image_labels='image_labels.json',
        pipeline=train_pipeline,
    ),
)
# The threshold is chosen here, on training images ...
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Segmentation/train.txt',
        image_labels='image_labels.json',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
# ... and judged here.
test_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='ImageSets/Segmentation/val.txt',
        image_labels='image_labels.json',
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_evaluator = dict(type='CAMIoUMetric')
test_evaluator = dict(type='CAMIoUMetric')

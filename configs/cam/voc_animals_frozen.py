# M0 on stored features of a frozen MobileNetV2: minutes on one core. Store them first:
#   python tools/store_features.py configs/cam/voc_animals.py --levels 1 2 --short-side 288 \
#       --split ImageSets/Segmentation/mini_train.txt --out work_dirs/features/mobilenet_v2_short288
#   python tools/store_features.py configs/cam/voc_animals.py --levels 1 2 --scale 1.5 \
#       --split ImageSets/Segmentation/train.txt ImageSets/Segmentation/val.txt \
#       --out work_dirs/features/mobilenet_v2_scale1.5
_base_ = './voc_animals.py'
model = dict(
    data_preprocessor=dict(
        # Features come as they are, and crops in one size.
        _delete_=True,
        type='SegDataPreProcessor',
        size_divisor=1,
    ),
    # The levels are outputs 1 and 2 of MobileNetV2, by which DSCNet groups pixels.
    backbone=dict(_delete_=True, type='FeatureAdaptor', in_channels=320, level_channels=(32, 96)),
    decode_head=dict(in_index=2),
)
train_pipeline = [
    # The features of a training set fit into memory.
    dict(type='LoadStoredFeatures', folder='work_dirs/features/mobilenet_v2_short288', keep=True),
    # Every second cell of output stride 16: what a network of stride 32 sees of 288 pixels.
    dict(type='CropFeatures', size=9, step=2),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackWSSSInputs'),
]
test_pipeline = [
    dict(type='LoadStoredFeatures', folder='work_dirs/features/mobilenet_v2_scale1.5'),
    dict(type='LoadCheckedMask'),
    dict(type='PackWSSSInputs'),
]
# Needs --flip when the features are stored.
tta_pipeline = [
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(
                    type='LoadStoredFeatures',
                    folder='work_dirs/features/mobilenet_v2_scale1.5',
                    flip_prob=flip_prob,
                )
                for flip_prob in (0.0, 1.0)
            ],
            [dict(type='LoadCheckedMask')],
            [dict(type='PackWSSSInputs')],
        ],
    ),
]
# One process reads them fastest.
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline)
)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-2),
)
train_cfg = dict(max_epochs=20, val_interval=20)
default_hooks = dict(
    logger=dict(interval=100),
    checkpoint=dict(interval=20, max_keep_ckpts=1),
)

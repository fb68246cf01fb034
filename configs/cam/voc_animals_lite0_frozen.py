# M0 on stored features of a frozen EfficientNet-Lite0. Store them as voc_animals_frozen.py says,
# with configs/cam/voc_animals_lite0.py, --levels 0 1, and efficientnet_lite0 in the place of
# mobilenet_v2.
_base_ = './voc_animals_frozen.py'
model = dict(backbone=dict(level_channels=(40, 112)))
train_pipeline = _base_.train_pipeline
train_pipeline[0]['folder'] = 'work_dirs/features/efficientnet_lite0_short288'
test_pipeline = _base_.test_pipeline
test_pipeline[0]['folder'] = 'work_dirs/features/efficientnet_lite0_scale1.5'
tta_pipeline = _base_.tta_pipeline
tta_pipeline[0]['transforms'][0] = [
    dict(test_pipeline[0], flip_prob=flip_prob) for flip_prob in (0.0, 1.0)
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))

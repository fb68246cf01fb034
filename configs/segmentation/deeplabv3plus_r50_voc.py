# Second stage on VOC 2012: DeepLabV3+, ResNet-50 (ImageNet), 16 images a step, 20,000 steps.
# Not run yet.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d8.py',
    '../_base_/datasets/voc_pseudo.py',
    '../_base_/schedules/poly_20k.py',
    '../_base_/default_runtime.py',
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=5e-4),
)
log_processor = dict(by_epoch=False)

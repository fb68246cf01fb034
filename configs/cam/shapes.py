# M0 on shapes: plain CAM, a narrow ResNet-18 from scratch.
_base_ = [
    '../_base_/models/cam_r18-small.py',
    '../_base_/datasets/shapes.py',
    '../_base_/schedules/poly.py',
    '../_base_/default_runtime.py',
]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-2))
train_cfg = dict(max_epochs=12, val_interval=12)
# The mAP of the classifier beside the mIoU of its CAMs.
default_hooks = dict(
    image_scores=dict(type='ImageScoresHook', metric=dict(type='MultiLabelMAPMetric'))
)

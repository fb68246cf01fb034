# M0 on VOC 2012: plain CAM, ResNet-50 (ImageNet), output stride 8. Not run yet.
_base_ = [
    '../_base_/models/cam_r50-d8.py',
    '../_base_/datasets/voc.py',
    '../_base_/schedules/poly.py',
    '../_base_/default_runtime.py',
]
# The recipe of SEAM and its descendants. Their optimiser passes the weight decay as momentum, so
# they really run without: SGD(lr=0.01, momentum=0.9) would be steps ten times as large.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.0, weight_decay=5e-4),
    # The head is new, the backbone is not.
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
# The mAP of the classifier beside the mIoU of its CAMs.
default_hooks = dict(
    image_scores=dict(type='ImageScoresHook', metric=dict(type='MultiLabelMAPMetric'))
)

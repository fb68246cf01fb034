# SEAM on VOC 2012: M0 of the paper's ablation. ResNet38d (ImageNet), 448 pixels, 8 images a step, 8
# epochs of train_aug (10,584 steps on 8 GPUs, 10,576 on one). Not run yet.
# The exported CAM is the one after the pixel correlation, as in SEAM.
_base_ = [
    '../_base_/models/seam_r38.py',
    '../_base_/datasets/voc.py',
    '../_base_/schedules/poly.py',
    '../_base_/default_runtime.py',
]
# The optimiser of SEAM's implementation passes the weight decay as momentum, so it really runs
# without: SGD(lr=0.01, momentum=0.9) would be steps ten times as large.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.0, weight_decay=5e-4),
    # Head and pixel correlation are new, the backbone is not.
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0), pcm=dict(lr_mult=10.0))),
)
# The mAP of the classifier beside the mIoU of its CAMs.
default_hooks = dict(
    image_scores=dict(type='ImageScoresHook', metric=dict(type='MultiLabelMAPMetric'))
)

# AffinityNet on VOC 2012, ResNet38d (ImageNet): trains on the labels that
# tools/make_affinity_labels.py writes, and lets exported CAMs walk. Not run yet.
_base_ = [
    '../_base_/models/resnet38d.py',
    '../_base_/datasets/voc.py',
    '../_base_/schedules/poly.py',
    '../_base_/default_runtime.py',
]
affinity_labels = 'work_dirs/voc/affinity_labels'
cams = 'work_dirs/voc/cams'
model = dict(
    decode_head=dict(
        type='AffinityHead',
        in_channels=(512, 1024, 4096),
        in_index=(0, 1, 2),
        channels=(64, 128, 256),
        num_classes=21,
        radius=5,
        power=8.0,
        num_steps=64,
        bg_alpha=6.0,
    ),
)
# As for the CAMs, but at the original scale, and with the label map.
train_dataloader = dict(
    dataset=dict(
        pseudo_label_folder=affinity_labels,
        pipeline=[
            dict(type='LoadCheckedImage'),
            dict(type='LoadCheckedMask'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='RandomColorJitter', brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
            dict(type='RandomCropOrPad', crop_size=(448, 448), pad_value=(103.53, 116.28, 123.675)),
            dict(type='PackWSSSInputs'),
        ],
    )
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadCheckedMask'),
    dict(type='LoadCAMs'),
    dict(type='PackWSSSInputs'),
]
# Exported CAMs walk at the scale of their image only.
tta_model = None
tta_pipeline = None
val_dataloader = dict(dataset=dict(cam_folder=cams, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(cam_folder=cams, pipeline=test_pipeline))
# What walks keeps a background of its own, so there is no threshold to choose.
val_evaluator = dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = dict(_delete_=True, type='IoUMetric', iou_metrics=['mIoU'])
# The recipe of SEAM's implementation; see configs/seam/voc.py for the momentum.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.01, momentum=0.0, weight_decay=5e-4),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)

# M4 on shapes, whose refined CAMs also learn from pseudo labels of their own: every third epoch the
# training images are labelled anew, and the next epochs are trained on these labels.
_base_ = 'shapes.py'
model = dict(decode_head=dict(pseudo_label=dict(type='PseudoLabelLoss', loss_weight=0.1)))
train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='LoadStoredLabels'),
    dict(type='RandomResize', scale=(128, 128), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(128, 128)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackWSSSInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
custom_hooks = [
    dict(type='ContrastWarmupHook', share=0.15),
    dict(type='PseudoLabelHook', target='stored', begin=3, interval=3),
]

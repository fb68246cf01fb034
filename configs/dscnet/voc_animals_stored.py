# M4 on voc_animals, whose pixel-wise term learns from stored labels: every second epoch the
# training images are labelled anew by the refined CAMs, and the next epochs learn from these. Not
# run yet.
_base_ = 'voc_animals.py'
train_pipeline = [
    dict(type='LoadCheckedImage'),
    dict(type='LoadStoredLabels'),
    dict(type='RandomResize', scale=(320, 320), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(256, 256)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackWSSSInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
custom_hooks = [
    dict(type='ContrastWarmupHook', share=0.15),
    # A class that wins with less than fg_thr is left out.
    dict(
        type='PseudoLabelHook',
        target='stored',
        begin=2,
        interval=2,
        labeler=dict(bg_thr=0.5, fg_thr=0.7),
    ),
]

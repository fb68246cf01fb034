# M4 on voc_animals with mmpretrain's DeiT-S, patches of 16 pixels. Not run yet: steps and shapes
# are tested, the weights of the zoo were not at hand.
_base_ = './voc_animals.py'
weights = (
    'https://download.openmmlab.com/mmclassification/v0/deit/'
    'deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
)
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VisionTransformer',
        arch='deit-small',
        # The position embedding is resized to each image.
        img_size=224,
        out_type='featmap',
        out_indices=(3, 7, 11),
        init_cfg=dict(type='Pretrained', checkpoint=weights, prefix='backbone.'),
    ),
    decode_head=dict(in_channels=384, in_index=2),
)

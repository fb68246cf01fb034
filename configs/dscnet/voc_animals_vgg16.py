# M4 on voc_animals with mmpretrain's VGG-16 at output stride 16. Not run yet: steps and shapes are
# tested, the weights of the zoo were not at hand.
_base_ = './voc_animals.py'
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.VGG',
        depth=16,
        out_indices=(2, 3, 4),
        with_last_pool=False,
        init_cfg=dict(type='Pretrained', checkpoint='mmcls://vgg16', prefix='backbone.'),
    ),
    decode_head=dict(in_channels=512, in_index=2),
)

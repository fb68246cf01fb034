# M4 on voc_animals with mmpretrain's ConvNeXt-T at output stride 32. Not run yet: steps and shapes
# are tested, the weights of the zoo were not at hand.
_base_ = './voc_animals.py'
weights = (
    'https://download.openmmlab.com/mmclassification/v0/convnext/'
    'convnext-tiny_32xb128-noema_in1k_20221208-5d4509c7.pth'
)
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch='tiny',
        out_indices=(3,),
        # The head wants the maps, not their average.
        gap_before_final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint=weights, prefix='backbone.'),
    ),
    # Other levels would have normalisations of their own, which nothing would train.
    decode_head=dict(in_channels=768, in_index=0, group_index=(0,)),
)

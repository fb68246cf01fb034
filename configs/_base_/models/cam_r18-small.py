# A plain CAM network on the first three stages of a narrow ResNet-18 at output stride 8, to be
# trained from scratch in minutes on a CPU.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.5, 127.5, 127.5],
        std=[63.75, 63.75, 63.75],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(128, 128),
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=32,
        num_stages=3,
        out_indices=(0, 1, 2),
        strides=(1, 2, 1),
        dilations=(1, 1, 2),
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
    decode_head=dict(type='CAMHead', in_channels=128, in_index=2, num_classes=6),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

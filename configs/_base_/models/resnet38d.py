# ResNet38d at output stride 8, pre-trained on ImageNet (configs/dscnet/README.md says how to
# convert the weights); stem and first stage frozen, as in SEAM. The head is that of the config.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(448, 448),
    ),
    backbone=dict(
        type='ResNet38d',
        frozen_stages=2,
        init_cfg=dict(type='Pretrained', checkpoint='data/weights/resnet38d_imagenet.pth'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

# SEAM on ResNet38d at output stride 8, pre-trained on ImageNet (configs/dscnet/README.md says how
# to convert the weights).
model = dict(
    type='SEAM',
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
    decode_head=dict(
        type='CAMHead',
        in_channels=4096,
        in_index=2,
        num_classes=21,
        dropout_ratio=0.5,
        # The threshold at which SEAM exports labels.
        bg_thr=0.26,
        align_corners=True,
        normalization='min_max',
        init_cfg=dict(type='Xavier', distribution='uniform', layer='Conv2d'),
    ),
    pcm=dict(
        type='PixelCorrelationModule', in_channels=(512, 1024), in_index=(0, 1), channels=(64, 128)
    ),
    equivariance=dict(type='EquivarianceLoss'),
    cross_equivariance=dict(type='EquivariantCrossLoss'),
    min_pooling=dict(type='MinPoolingLoss'),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

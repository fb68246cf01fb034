# SEAM on ResNet38d.
_base_ = './resnet38d.py'
model = dict(
    type='SEAM',
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
)

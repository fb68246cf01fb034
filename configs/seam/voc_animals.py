# SEAM on voc_animals: the network, data and schedule of M0, with every image seen in two views.
_base_ = '../cam/voc_animals.py'
model = dict(
    type='SEAM',
    decode_head=dict(align_corners=True, normalization='min_max'),
    # The pixel correlation sees the last two stages, of 96 and 320 channels at stride 16.
    pcm=dict(
        type='PixelCorrelationModule', in_channels=(96, 320), in_index=(2, 3), channels=(64, 128)
    ),
    equivariance=dict(type='EquivarianceLoss'),
    cross_equivariance=dict(type='EquivariantCrossLoss'),
    min_pooling=dict(type='MinPoolingLoss'),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(pcm=dict(lr_mult=10.0))))

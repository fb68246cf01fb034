"""Backbones of mmpretrain under our heads, in mmseg's own segmentor, by their name in a config."""

import pytest
import torch

# Small members of each family, with the channels that the head gets.
BACKBONES = dict(
    resnet=(dict(type='mmpretrain.ResNet', depth=18, base_channels=8, stem_channels=8), 64),
    vgg16=(dict(type='mmpretrain.VGG', depth=16, with_last_pool=False), 512),
    convnext=(
        dict(
            type='mmpretrain.ConvNeXt',
            arch=dict(depths=[1, 1, 2, 1], channels=[8, 16, 24, 32]),
            gap_before_final_norm=False,
        ),
        32,
    ),
    vit=(
        dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48),
            img_size=64,
            out_type='featmap',
        ),
        24,
    ),
)
HEADS = dict(
    m0=dict(type='CAMHead'),
    m4=dict(
        type='DSCHead',
        embed_channels=8,
        pgcl=dict(type='PGCLLoss'),
        sgcl=dict(type='SGCLLoss'),
    ),
)
IMAGE_LABELS = torch.eye(3)[:2].numpy()


@pytest.fixture(params=BACKBONES)
def backbone(request):
    """A backbone and its channels."""
    return BACKBONES[request.param]


@pytest.fixture(params=HEADS)
def segmentor(request, backbone, build_segmentor):
    """``EncoderDecoder`` of the backbone and a CAM or DSC head."""
    config, channels = backbone
    head = dict(HEADS[request.param], in_channels=channels, in_index=0, num_classes=4)
    return build_segmentor('m0', backbone=config, decode_head=head)


def prepare(segmentor, make_samples, labels, size=(48, 48), training=True):
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(2)]
    batch = dict(inputs=images, data_samples=make_samples(labels, size))
    return segmentor.data_preprocessor(batch, training=training)


def test_every_parameter_gets_a_gradient(segmentor, make_samples):
    """DistributedDataParallel waits for that of every parameter that wants one."""
    segmentor.train()
    losses = segmentor(**prepare(segmentor, make_samples, IMAGE_LABELS), mode='loss')
    loss, _ = segmentor.parse_losses(losses)
    loss.backward()
    assert loss.isfinite()
    wanting = {name: p for name, p in segmentor.named_parameters() if p.requires_grad}
    assert [name for name, parameter in wanting.items() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in wanting.values())


def test_gradient_reaches_the_first_layer(segmentor, make_samples):
    segmentor.train()
    # Several blocks start at zero, and let nothing through in the first step.
    for parameter in segmentor.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    losses = segmentor(**prepare(segmentor, make_samples, IMAGE_LABELS), mode='loss')
    segmentor.parse_losses(losses)[0].backward()
    first = next(p for p in segmentor.backbone.parameters() if p.ndim == 4)
    assert first.grad.abs().sum() > 0


@pytest.mark.parametrize('size', [(48, 48), (43, 61)])
@pytest.mark.parametrize('labels', [IMAGE_LABELS, 2], ids=['given', 'predicted'])
def test_cams_have_the_size_of_the_image(segmentor, make_samples, labels, size):
    segmentor.eval()
    batch = prepare(segmentor, make_samples, labels, size, training=False)
    with torch.no_grad():
        predictions = segmentor(**batch, mode='predict')
    for sample in predictions:
        cams = sample.seg_logits.data[1:]
        assert cams.shape == (3, *size)
        assert cams.min() >= 0
        assert cams.max() <= 1
        assert sample.pred_sem_seg.data.shape == (1, *size)

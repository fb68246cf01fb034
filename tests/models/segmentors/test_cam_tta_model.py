import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.transforms import Compose
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image

IMAGE_SIZE = (40, 52)
LABEL = np.array([1, 0, 1], dtype=np.float32)


@pytest.fixture
def tta_model(build_segmentor):
    """Wrap a segmentor whose classes all have positive evidence somewhere."""
    segmentor = build_segmentor('m0')
    torch.nn.init.normal_(segmentor.decode_head.classifier.weight)
    return MODELS.build(dict(type='CAMTTAModel', module=segmentor)).eval()


@pytest.fixture
def refined_tta_model(build_segmentor):
    """Wrap an M4 segmentor whose refined CAMs differ from its plain ones."""
    segmentor = build_segmentor('m4')
    for parameter in segmentor.decode_head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return MODELS.build(dict(type='CAMTTAModel', module=segmentor)).eval()


@pytest.fixture
def seam_tta_model(build_seam):
    """Wrap a SEAM with the head of an ablation, whose revised CAMs differ from its plain ones."""

    def build(ablation, **kwargs):
        seam = build_seam(ablation, **kwargs)
        for parameter in seam.decode_head.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        return MODELS.build(dict(type='CAMTTAModel', module=seam)).eval()

    return build


@pytest.fixture
def image_info(tmp_path):
    """Write a small picture with a mask."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (*IMAGE_SIZE, 3), np.uint8)).save(tmp_path / 'a.jpg')
    Image.fromarray(rng.integers(0, 4, IMAGE_SIZE, np.uint8)).save(tmp_path / 'a.png')
    return dict(
        img_path=str(tmp_path / 'a.jpg'),
        seg_map_path=str(tmp_path / 'a.png'),
        reduce_zero_label=False,
        seg_fields=[],
        label_map=None,
    )


def load_views(info, scales=(1.0,), flips=(False,)):
    """Run mmseg's own pipeline of views, and collate as a data loader does."""
    transforms = [
        [dict(type='Resize', scale_factor=scale, keep_ratio=True) for scale in scales],
        [dict(type='RandomFlip', prob=float(flip), direction='horizontal') for flip in flips],
        [dict(type='LoadCheckedMask')],
        [dict(type='PackWSSSInputs')],
    ]
    steps = [dict(type='LoadCheckedImage'), dict(type='TestTimeAug', transforms=transforms)]
    return pseudo_collate([Compose([ConfigDict(step) for step in steps])(dict(info))])


def evidence_of(segmentor, inputs):
    """Class evidence of one view, of its own size, from the parts of the segmentor."""
    pixels = (inputs[None].float() - 127.5) / 63.75
    maps = segmentor.decode_head.forward(segmentor.backbone(pixels))
    return F.interpolate(maps, size=inputs.shape[1:], mode='bilinear')


def normalise(evidence, label):
    """Eq. 1 in loops."""
    cams = torch.zeros_like(evidence)
    for k in range(len(evidence)):
        if label[k] and evidence[k].max() > 0:
            cams[k] = evidence[k].clamp(min=0) / evidence[k].max()
    return cams


def stretch(evidence, label):
    """The min-max normalisation of SEAM in loops."""
    cams = torch.zeros_like(evidence)
    for k, of_class in enumerate(evidence.clamp(min=0)):
        if label[k]:
            low, high = of_class.min(), of_class.max()
            cams[k] = (of_class - low - 1e-5).clamp(min=0) / (high - low + 1e-5)
    return cams


def average_views(data, maps_of_view):
    """Mean evidence of all views on the image, of which ``maps_of_view(pixels)`` gives one."""
    total = 0
    for inputs, samples in zip(data['inputs'], data['data_samples'], strict=True):
        maps = maps_of_view((inputs[0][None].float() - 127.5) / 63.75)
        maps = F.interpolate(maps, inputs[0].shape[1:], mode='bilinear', align_corners=True)
        maps = maps.flip(3) if samples[0].flip else maps
        total = total + F.interpolate(maps, IMAGE_SIZE, mode='bilinear', align_corners=False)[0]
    return total / len(data['inputs'])


def make_view(logits, **metainfo):
    view = SegDataSample(metainfo=metainfo)
    view.seg_logits = PixelData(data=logits)
    return view


@pytest.mark.parametrize('labelled', [True, False])
def test_views_are_averaged_then_normalised(tta_model, labelled):
    views = torch.randn(3, 4, 5, 6)
    evidence = views[:, 1:].mean(dim=0)
    evidence -= evidence.mean(dim=(1, 2), keepdim=True) - torch.tensor([1.0, -2, -3])[:, None, None]
    views[:, 1:] += evidence - views[:, 1:].mean(dim=0)
    metainfo = dict(gt_image_label=LABEL) if labelled else {}
    (merged,) = tta_model.merge_preds([[make_view(view, **metainfo) for view in views]])
    # Of the predicted classes only the first is confident.
    expected = normalise(evidence, LABEL if labelled else [1, 0, 0])
    torch.testing.assert_close(merged.seg_logits.data[1:], expected, rtol=1e-4, atol=1e-5)
    assert torch.all(merged.seg_logits.data[0] == tta_model.module.decode_head.bg_thr)
    argmax = merged.seg_logits.data.argmax(dim=0, keepdim=True)
    assert torch.equal(merged.pred_sem_seg.data, argmax)


def test_number_of_views_does_not_make_a_class_more_probable(tta_model):
    tta_model.module.decode_head.score_thr = 0.8
    evidence = torch.tensor([0.0, 1.0, 2.0, -1.0])[:, None, None].expand(4, 3, 3)
    for count in (1, 4):
        (merged,) = tta_model.merge_preds([[make_view(evidence) for _ in range(count)]])
        # The probability of the first class is 0.73.
        assert merged.seg_logits.data[1:].amax(dim=(1, 2)).tolist() == [0.0, 1.0, 0.0]


def test_each_image_is_merged_by_itself(tta_model):
    logits = torch.randn(2, 3, 4, 5, 5)

    def merge(images):
        views = [[make_view(view.clone()) for view in logits[image]] for image in images]
        return [merged.seg_logits.data for merged in tta_model.merge_preds(views)]

    torch.testing.assert_close(merge([0, 1]), merge([0]) + merge([1]))


def test_module_can_be_a_config():
    module = dict(
        type='EncoderDecoder',
        backbone=dict(type='ResNet', depth=18, base_channels=4, norm_cfg=dict(type='BN')),
        decode_head=dict(type='CAMHead', in_channels=32, num_classes=4),
    )
    model = MODELS.build(dict(type='CAMTTAModel', module=module))
    assert model.module.test_cfg == dict(cam_output='logits')


@pytest.mark.parametrize('labelled', [True, False])
def test_pipeline_equals_the_sum_of_views_by_hand(tta_model, image_info, labelled):
    if labelled:
        image_info['gt_image_label'] = LABEL
    data = load_views(image_info, scales=(0.5, 1.0, 1.5), flips=(False, True))
    with torch.no_grad():
        (result,) = tta_model.test_step(data)
        total = torch.zeros(3, *IMAGE_SIZE)
        for inputs, samples in zip(data['inputs'], data['data_samples'], strict=True):
            maps = evidence_of(tta_model.module, inputs[0])
            maps = maps.flip(3) if samples[0].flip else maps
            total += F.interpolate(maps, size=IMAGE_SIZE, mode='bilinear')[0]
    mean = total / 6
    label = LABEL if labelled else mean.mean(dim=(1, 2)).sigmoid() > 0.5
    assert len(data['inputs']) == 6
    assert any(label)
    torch.testing.assert_close(
        result.seg_logits.data[1:], normalise(mean, label), rtol=1e-4, atol=1e-4
    )
    assert ('gt_image_label' in result) is labelled


def test_truth_and_origin_stay_with_the_result(tta_model, image_info):
    (result,) = tta_model.test_step(load_views(image_info, flips=(False, True)))
    truth = np.asarray(Image.open(image_info['seg_map_path']))
    assert np.array_equal(result.gt_sem_seg.data[0].numpy(), truth)
    assert result.img_path == image_info['img_path']
    assert result.pred_sem_seg.data.shape == (1, *IMAGE_SIZE)


def test_flipped_view_alone_lies_on_the_image(tta_model, image_info):
    image_info['gt_image_label'] = LABEL
    data = load_views(image_info, flips=(True,))
    with torch.no_grad():
        (result,) = tta_model.test_step(data)
        flipped = evidence_of(tta_model.module, data['inputs'][0][0]).flip(3)[0]
    torch.testing.assert_close(
        result.seg_logits.data[1:], normalise(flipped, LABEL), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize('labelled', [True, False])
def test_one_plain_view_equals_the_segmentor(tta_model, image_info, labelled):
    if labelled:
        image_info['gt_image_label'] = LABEL
    data = load_views(image_info)
    with torch.no_grad():
        (result,) = tta_model.test_step(data)
        tta_model.module.test_cfg = ConfigDict(mode='whole')
        inner = {key: value[0] for key, value in load_views(image_info).items()}
        (expected,) = tta_model.module.test_step(inner)
    torch.testing.assert_close(result.seg_logits.data, expected.seg_logits.data)


def test_refined_evidence_is_merged_over_scales_and_flips(refined_tta_model, image_info):
    image_info['gt_image_label'] = LABEL
    data = load_views(image_info, scales=(0.5, 1.0), flips=(False, True))
    module, label = refined_tta_model.module, torch.from_numpy(LABEL)[None]
    with torch.no_grad():
        (result,) = refined_tta_model.test_step(data)
        total = torch.zeros(3, *IMAGE_SIZE)
        for inputs, samples in zip(data['inputs'], data['data_samples'], strict=True):
            pixels = (inputs[0][None].float() - 127.5) / 63.75
            maps = module.decode_head.forward(module.backbone(pixels), label)
            maps = F.interpolate(maps, size=inputs[0].shape[1:], mode='bilinear')
            maps = maps.flip(3) if samples[0].flip else maps
            total += F.interpolate(maps, size=IMAGE_SIZE, mode='bilinear')[0]
    expected = normalise(total / 4, LABEL)
    torch.testing.assert_close(result.seg_logits.data[1:], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('labelled', [True, False])
def test_one_plain_view_equals_the_segmentor_that_refines(refined_tta_model, image_info, labelled):
    if labelled:
        image_info['gt_image_label'] = LABEL
    with torch.no_grad():
        (result,) = refined_tta_model.test_step(load_views(image_info))
        refined_tta_model.module.test_cfg = ConfigDict(mode='whole')
        inner = {key: value[0] for key, value in load_views(image_info).items()}
        (expected,) = refined_tta_model.module.test_step(inner)
    torch.testing.assert_close(result.seg_logits.data, expected.seg_logits.data)


def test_all_views_are_refined_under_the_same_predicted_labels(
    refined_tta_model, image_info, monkeypatch
):
    seen = []
    head = refined_tta_model.module.decode_head
    forward = head.forward
    monkeypatch.setattr(
        head, 'forward', lambda feats, labels=None: seen.append(labels) or forward(feats, labels)
    )
    with torch.no_grad():
        views = load_views(image_info, scales=(1.0, 1.5), flips=(False, True))
        (result,) = refined_tta_model.test_step(views)
    assert len(seen) == 4
    assert all(torch.equal(labels, seen[0]) for labels in seen)
    absent = seen[0][0] == 0
    assert result.seg_logits.data[1:][absent].count_nonzero() == 0
    assert 'gt_image_label' not in result


def test_module_is_asked_for_evidence_and_keeps_its_test_config(tta_model):
    assert tta_model.module.test_cfg == dict(mode='whole', cam_output='logits')


# ------------------------------------------------------------------------------------ SEAM inside


@pytest.mark.parametrize('ablation', ['m0', 'm4'])
@pytest.mark.parametrize('labelled', [True, False])
def test_cams_of_seam_equal_the_sum_of_views_by_hand(
    seam_tta_model, image_info, ablation, labelled
):
    if labelled:
        image_info['gt_image_label'] = LABEL
    model = seam_tta_model(ablation)
    seam, head = model.module, model.module.decode_head
    data = load_views(image_info, scales=(0.75, 1.0, 1.5), flips=(False, True))
    assert len(data['inputs']) == 6
    with torch.no_grad():
        (result,) = model.test_step(data)
        plain = average_views(data, lambda pixels: head.plain_evidence(seam.backbone(pixels)))
        image_scores = plain.mean(dim=(1, 2))
        predicted = (image_scores > 0) | (image_scores == image_scores.max())
        assert not predicted.all()
        label = torch.from_numpy(LABEL) if labelled else predicted.float()

        def revised_maps(pixels):
            feats = seam.backbone(pixels)
            return seam.pcm(pixels, feats, head.forward(feats, label[None]))[:, 1:]

        expected = stretch(average_views(data, revised_maps), label)
    torch.testing.assert_close(result.seg_logits.data[1:], expected, rtol=0, atol=1e-4)
    assert torch.all(result.seg_logits.data[0] == head.bg_thr)
    argmax = result.seg_logits.data.argmax(dim=0, keepdim=True)
    assert torch.equal(result.pred_sem_seg.data, argmax)
    assert ('gt_image_label' in result) is labelled


@pytest.mark.parametrize('labelled', [True, False])
def test_plain_cams_of_seam_equal_the_sum_of_views_by_hand(seam_tta_model, image_info, labelled):
    if labelled:
        image_info['gt_image_label'] = LABEL
    model = seam_tta_model('m0', test_cfg=dict(refine=False))
    seam = model.module
    data = load_views(image_info, scales=(1.0, 1.5), flips=(False, True))
    with torch.no_grad():
        (result,) = model.test_step(data)
        plain = average_views(
            data, lambda pixels: seam.decode_head.plain_evidence(seam.backbone(pixels))
        )
    image_scores = plain.mean(dim=(1, 2))
    predicted = (image_scores > 0) | (image_scores == image_scores.max())
    expected = stretch(plain, LABEL if labelled else predicted)
    torch.testing.assert_close(result.seg_logits.data[1:], expected, rtol=0, atol=1e-4)


def test_one_plain_view_equals_seam(seam_tta_model, image_info):
    image_info['gt_image_label'] = LABEL
    model = seam_tta_model('m0')
    with torch.no_grad():
        (result,) = model.test_step(load_views(image_info))
        model.module.test_cfg = ConfigDict(mode='whole')
        inner = {key: value[0] for key, value in load_views(image_info).items()}
        (expected,) = model.module.test_step(inner)
    torch.testing.assert_close(result.seg_logits.data, expected.seg_logits.data)


def test_seam_keeps_its_test_config_when_labels_are_predicted(seam_tta_model, image_info):
    model = seam_tta_model('m0')
    before = dict(model.module.test_cfg)
    with torch.no_grad():
        model.test_step(load_views(image_info))
    assert model.module.test_cfg == before == dict(mode='whole', cam_output='logits')

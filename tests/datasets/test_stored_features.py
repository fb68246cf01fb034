"""Stored features: how they are read, what size they claim, and what a crop of them is."""

import copy
import json

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS, TRANSFORMS

from mmdscnet.datasets import (
    CropFeatures,
    FeatureIndex,
    LoadStoredFeatures,
    VOCLayoutDataset,
    read_feature_index,
    write_feature_index,
)

CHANNELS = 5
# Of the photographs of the folder in VOC's layout.
SIZE = (24, 32)


@pytest.fixture(autouse=True)
def default_scope():
    """Build bare type names as a config with ``default_scope = 'mmseg'`` does."""
    init_default_scope('mmseg')


@pytest.fixture
def folder(tmp_path):
    """Features of three images and of their mirror images, which are no mirrored features."""
    path = tmp_path / 'features'
    path.mkdir()
    rng = np.random.default_rng(0)
    for image_id in ('a_1', 'a_2', 'a_3'):
        for suffix in ('', '_flip'):
            feats = rng.normal(size=(CHANNELS, 6, 8)).astype(np.float16)
            np.save(path / f'{image_id}{suffix}.npy', feats)
    sizes = dict.fromkeys(('a_1', 'a_2', 'a_3'), SIZE)
    write_feature_index(path, FeatureIndex(dict(stride=4), sizes))
    return path


def info(image_id='a_1'):
    return dict(img_path=f'/nowhere/{image_id}.jpg', seg_fields=[])


def load(folder, image_id='a_1', **kwargs):
    step = dict(type='LoadStoredFeatures', folder=str(folder), **kwargs)
    return TRANSFORMS.build(step)(info(image_id))


def stored(folder, name='a_1'):
    return np.load(folder / f'{name}.npy')


# ------------------------------------------------------------------------------------------- index


def test_index_comes_back_as_it_was_written(tmp_path):
    index = FeatureIndex(dict(stride=16, checkpoint='abc'), {'a': (24, 32), 'b': (1, 2)})
    write_feature_index(tmp_path / 'new', index)
    assert read_feature_index(tmp_path / 'new') == index
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['index.json']


def test_missing_index_says_what_writes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'index\.json is missing: .*store_features\.py'):
        read_feature_index(tmp_path)


@pytest.mark.parametrize(
    'text', ['', '{"settings": {}}', '[]', '{"settings": {}, "sizes": {"a": [1]}}', '\x00']
)
def test_damaged_index_is_named(tmp_path, text):
    (tmp_path / 'index.json').write_text(text)
    with pytest.raises(ValueError, match=r'index\.json is no index .*: delete it'):
        read_feature_index(tmp_path)


# ------------------------------------------------------------------------------------------ loader


def test_features_come_as_an_image_of_the_size_of_the_photograph(folder):
    results = load(folder)
    assert results['img'].shape == (6, 8, CHANNELS)
    assert results['img'].dtype == np.float16
    assert (results['img'] == stored(folder).transpose(1, 2, 0)).all()
    assert results['img_shape'] == results['ori_shape'] == SIZE
    assert not results['flip']


def test_packed_features_are_the_stored_ones(folder):
    packed = TRANSFORMS.build(dict(type='PackWSSSInputs'))(load(folder))
    assert packed['inputs'].dtype == torch.float16
    assert (packed['inputs'].numpy() == stored(folder)).all()
    assert packed['data_samples'].ori_shape == SIZE


def test_features_of_the_mirror_image_are_marked_as_flipped(folder):
    results = load(folder, flip_prob=1.0)
    assert (results['img'] == stored(folder, 'a_1_flip').transpose(1, 2, 0)).all()
    assert (results['flip'], results['flip_direction']) == (True, 'horizontal')


def test_share_of_mirror_images_is_flip_prob(folder):
    transform = LoadStoredFeatures(str(folder), flip_prob=0.3)
    flips = [transform(info())['flip'] for _ in range(1000)]
    # Four standard deviations.
    assert abs(np.mean(flips) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1000)


@pytest.mark.parametrize('flip_prob', [0.0, 1.0])
def test_nothing_is_drawn_where_nothing_is_to_be_decided(folder, flip_prob):
    before = np.random.get_state()[2]
    load(folder, flip_prob=flip_prob)
    assert np.random.get_state()[2] == before


def test_kept_features_need_no_file(folder):
    transform = LoadStoredFeatures(str(folder), keep=True)
    first = transform(info())['img']
    for path in folder.iterdir():
        path.unlink()
    assert (transform(info())['img'] == first).all()
    with pytest.raises(FileNotFoundError, match=r'a_2\.npy is missing'):
        transform(info('a_2'))


def test_transforms_leave_kept_features_as_they_are(folder):
    steps = [
        dict(type='LoadStoredFeatures', folder=str(folder), keep=True),
        dict(type='CropFeatures', size=2, step=2),
        dict(type='RandomFlip', prob=1.0),
        dict(type='PackWSSSInputs'),
    ]
    pipeline = Compose([TRANSFORMS.build(step) for step in steps])
    for _ in range(3):
        pipeline(info())['inputs'].zero_()
    assert (pipeline.transforms[0](info())['img'] == stored(folder).transpose(1, 2, 0)).all()


def test_folder_is_not_opened_before_an_image_is_loaded(tmp_path):
    transform = LoadStoredFeatures(str(tmp_path / 'missing'))
    with pytest.raises(FileNotFoundError, match='index.json is missing'):
        transform(info())


def test_image_without_features_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no features of the image 'b': store .*same"):
        load(folder, 'b')


def test_missing_file_is_named(folder):
    (folder / 'a_1_flip.npy').unlink()
    with pytest.raises(FileNotFoundError, match=r'a_1_flip\.npy is missing: .* --flip'):
        load(folder, flip_prob=1.0)


def test_pickled_and_damaged_files_are_refused(folder):
    np.save(folder / 'a_1.npy', np.array([[[print]]]), allow_pickle=True)
    with pytest.raises(ValueError, match=r'a_1\.npy is damaged'):
        load(folder)
    for content in (b'', stored(folder, 'a_2').tobytes()[:50]):
        (folder / 'a_1.npy').write_bytes(content)
        with pytest.raises(ValueError, match=r'a_1\.npy is damaged .*: delete it and store'):
            load(folder)


@pytest.mark.parametrize(
    'feats', [np.zeros((6, 8), np.float16), np.zeros((5, 6, 8), np.uint8), np.zeros((5, 0, 8))]
)
def test_what_are_no_feature_maps_is_refused(folder, feats):
    np.save(folder / 'a_1.npy', feats)
    with pytest.raises(ValueError, match=r'a_1\.npy holds .* features are floats of the shape'):
        load(folder)


@pytest.mark.parametrize('flip_prob', [-0.1, 1.1, float('nan')])
def test_flip_prob_is_a_probability(flip_prob):
    with pytest.raises(ValueError, match='flip_prob=.* must be a probability'):
        LoadStoredFeatures('features', flip_prob=flip_prob)


# -------------------------------------------------------------------------------------------- crop


def crop(feats, size, step=1):
    results = dict(img=feats, img_path='a.jpg', seg_fields=[])
    return CropFeatures(size, step)(results)['img']


def numbered(height, width):
    """A map whose cells say their row and column."""
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing='ij'), axis=-1)


@pytest.mark.parametrize(('size', 'step'), [(3, 1), (3, 2), (2, 3), (1, 1)])
def test_crop_is_a_regular_grid_of_cells(size, step):
    cells = crop(numbered(9, 12), size, step)
    assert cells.shape == (size, size, 2)
    offsets = np.arange(size) * step
    assert (cells[..., 0] - cells[0, 0, 0] == offsets[:, None]).all()
    assert (cells[..., 1] - cells[0, 0, 1] == offsets).all()


def test_every_position_and_phase_comes_up():
    begins = {tuple(crop(numbered(5, 4), 2, 2)[0, 0]) for _ in range(300)}
    assert begins == {(row, column) for row in range(3) for column in range(2)}


def test_map_of_the_size_of_the_window_is_taken_whole():
    feats = numbered(4, 4)
    assert (crop(feats, 4) == feats).all()
    # And with a step only the phase is free.
    assert {tuple(crop(feats, 2, 2)[0, 0]) for _ in range(100)} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_same_seed_gives_the_same_crop():
    draws = []
    for _ in range(2):
        np.random.seed(3)
        draws.append([crop(numbered(20, 20), 3, 2)[0, 0].tolist() for _ in range(5)])
    assert draws[0] == draws[1]


@pytest.mark.parametrize('shape', [(5, 9), (9, 5)])
def test_small_map_is_refused_with_the_mend(shape):
    mend = r'a\.jpg are \dx\d cells, fewer than size \* step = 6 .*--short-side 6'
    with pytest.raises(ValueError, match=mend):
        crop(numbered(*shape), 3, 2)


def test_masks_are_refused():
    results = dict(img=numbered(4, 4), img_path='a.jpg', seg_fields=['gt_seg_map'])
    with pytest.raises(ValueError, match=r"a\.jpg has the masks \['gt_seg_map'\]"):
        CropFeatures(2)(results)


@pytest.mark.parametrize('arguments', [dict(size=0), dict(size=2, step=0), dict(size=2.0)])
def test_sizes_are_positive_integers(arguments):
    with pytest.raises(ValueError, match='must be a positive integer'):
        CropFeatures(**arguments)


# ----------------------------------------------------------------------------- in mmseg's machinery


def frozen_model(head=None):
    return MODELS.build(
        ConfigDict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', size_divisor=1),
            backbone=dict(type='FeatureAdaptor', in_channels=CHANNELS),
            decode_head=dict(type='CAMHead', in_channels=CHANNELS, num_classes=4, in_index=0)
            | (head or {}),
            test_cfg=dict(mode='whole'),
        )
    ).eval()


def predict(model, folder, *steps, **kwargs):
    """Class evidence of ``a_1`` at the size of the photograph."""
    pipeline = [dict(type='LoadStoredFeatures', folder=str(folder), **kwargs), *steps]
    pipeline = Compose(
        [TRANSFORMS.build(step) for step in [*pipeline, dict(type='PackWSSSInputs')]]
    )
    batch = pseudo_collate([pipeline(info() | dict(gt_image_label=np.ones(3, np.float32)))])
    with torch.no_grad():
        (sample,) = model.test_step(batch)
    return sample.seg_logits.data


def logits_of(feats, model):
    """The same by hand: classify each cell, and resize once."""
    maps = model.decode_head.classifier(torch.from_numpy(feats)[None].float())
    return torch.nn.functional.interpolate(maps, SIZE, mode='bilinear', align_corners=False)[0]


def test_cams_are_resized_once_to_the_photograph(folder):
    model = frozen_model()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    model.test_cfg.cam_output = 'logits'
    evidence = predict(model, folder)[1:]
    torch.testing.assert_close(evidence, logits_of(stored(folder), model).detach())


def test_flips_are_undone(folder):
    model = frozen_model()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    model.test_cfg.cam_output = 'logits'
    # Mirrored features are the features again; those of the mirror image are a view of their own.
    mirrored = predict(model, folder, dict(type='RandomFlip', prob=1.0))
    torch.testing.assert_close(mirrored, predict(model, folder))
    view = predict(model, folder, flip_prob=1.0)[1:]
    torch.testing.assert_close(view.flip(2), logits_of(stored(folder, 'a_1_flip'), model).detach())


def test_views_are_merged_at_the_size_of_the_photograph(folder):
    model = frozen_model()
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    loaders = [dict(type='LoadStoredFeatures', folder=str(folder), flip_prob=p) for p in (0.0, 1.0)]
    views = dict(type='TestTimeAug', transforms=[loaders, [dict(type='PackWSSSInputs')]])
    item = TRANSFORMS.build(views)(info() | dict(gt_image_label=np.ones(3, np.float32)))
    with torch.no_grad():
        evidence = logits_of(stored(folder), model)
        evidence = evidence + logits_of(stored(folder, 'a_1_flip'), model).flip(2)
        wrapped = MODELS.build(dict(type='CAMTTAModel', module=copy.deepcopy(model)))
        (sample,) = wrapped.test_step(pseudo_collate([item]))
        expected = model.decode_head.score_maps(evidence[None], torch.ones(1, 3))[0]
    torch.testing.assert_close(sample.seg_logits.data, expected)


def test_training_set_takes_them_in_the_place_of_images(voc_folder, folder):
    dataset = VOCLayoutDataset(
        data_root=str(voc_folder),
        ann_file='ImageSets/train.txt',
        image_labels='image_labels.json',
        pipeline=[
            dict(type='LoadStoredFeatures', folder=str(folder)),
            dict(type='CropFeatures', size=3, step=2),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackWSSSInputs'),
        ],
    )
    model = frozen_model(dict(num_classes=1 + len(dataset.foreground_classes))).train()
    batch = model.data_preprocessor(pseudo_collate([dataset[0], dataset[1]]), training=True)
    assert batch['inputs'].shape == (2, CHANNELS, 3, 3)
    assert batch['inputs'].dtype == torch.float32
    losses = model(**batch, mode='loss')
    model.parse_losses(losses)[0].backward()
    assert model.decode_head.classifier.weight.grad.abs().sum() > 0


def test_masks_of_the_photograph_fit(voc_folder, folder):
    dataset = VOCLayoutDataset(
        data_root=str(voc_folder),
        ann_file='ImageSets/train.txt',
        image_labels='image_labels.json',
        test_mode=True,
        pipeline=[
            dict(type='LoadStoredFeatures', folder=str(folder)),
            dict(type='LoadCheckedMask'),
            dict(type='PackWSSSInputs'),
        ],
    )
    assert dataset[0]['data_samples'].gt_sem_seg.shape == SIZE
    content = json.loads((folder / 'index.json').read_text())
    content['sizes'] = dict.fromkeys(content['sizes'], (24, 33))
    (folder / 'index.json').write_text(json.dumps(content))
    dataset = copy.deepcopy(dataset)
    dataset.pipeline.transforms[0]._sizes = None
    with pytest.raises(ValueError, match='has the shape'):
        dataset[0]

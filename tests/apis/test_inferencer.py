import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mmdscnet.apis import PseudoLabelInferencer
from mmdscnet.apis.inferencer import find_metainfo, make_labeler, read_device
from mmdscnet.datasets import VOC2012Dataset, voc_palette
from mmdscnet.inference import Throughput, stream_cams
from mmdscnet.pseudo_labels import CAMs, PseudoLabeler

IDS = list('abcdefg')
NAMES = [['cat'], ['dog', 'cow'], ['cow'], [], ['cat', 'dog'], ['cat', 'cow'], ['dog']]
QUIET = dict(show_progress=False)
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadCheckedMask'),
    dict(type='PackWSSSInputs'),
]
VIEWS = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=scale, keep_ratio=True) for scale in (0.5, 1.0)],
            [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)],
            [dict(type='LoadCheckedMask')],
            [dict(type='PackWSSSInputs')],
        ],
    ),
]


@pytest.fixture
def cfg(build_config, dataset_config):
    return Config(
        dict(
            default_scope='mmseg',
            model=build_config('cam'),
            tta_pipeline=VIEWS,
            test_dataloader=dict(dataset=dataset_config(pipeline=PIPELINE)),
        )
    )


@pytest.fixture
def weights(build_model, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(build_model('cam').state_dict(), path)
    return path


@pytest.fixture
def inferencer(cfg, weights):
    return PseudoLabelInferencer(cfg, weights, device='cpu')


@pytest.fixture
def folder(voc_folder):
    return voc_folder / 'JPEGImages'


@pytest.fixture
def paths(folder):
    return [folder / f'{image_id}.jpg' for image_id in IDS]


def assert_same(results, expected):
    assert len(results) == len(expected)
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.label_map, other.label_map)
        np.testing.assert_array_equal(result.cams.cams, other.cams.cams)
        assert result.class_names == other.class_names


def test_results_keep_the_order_of_the_inputs(inferencer, paths):
    mixed = [paths[index] for index in (2, 0, 6, 4, 1, 0)]
    results = inferencer(mixed, batch_size=3, **QUIET)
    assert [result.image_path for result in results] == list(map(str, mixed))
    for path, result in zip(mixed, results, strict=True):
        assert result.label_map.shape == Image.open(path).size[::-1]
        assert result.label_map.dtype == np.uint8
        assert result.cams.cams.shape[1:] == result.label_map.shape


def test_one_image_twice_may_have_different_labels(inferencer, paths):
    first, second = inferencer([paths[0]] * 2, [['cat'], ['dog']], batch_size=1, **QUIET)
    assert (first.class_names, second.class_names) == (('cat',), ('dog',))


@pytest.mark.parametrize('labels', [None, NAMES])
def test_folder_paths_and_arrays_give_the_same(inferencer, folder, paths, labels):
    expected = inferencer(folder, labels, **QUIET)
    arrays = [mmcv.imread(str(path)) for path in paths]
    for inputs in (str(folder), paths, [str(path) for path in paths], tuple(arrays)):
        assert_same(inferencer(inputs, labels, **QUIET), expected)
    mixed = [folder / 'a.jpg', *arrays[1:6], str(folder / 'g.jpg')]
    assert_same(inferencer(mixed, labels, **QUIET), expected)
    first = None if labels is None else labels[:1]
    for single in (paths[0], str(paths[0]), arrays[0]):
        [result] = inferencer(single, first, batch_size=1, **QUIET)
        np.testing.assert_allclose(result.cams.cams, expected[0].cams.cams, rtol=0, atol=1e-5)
        assert (result.label_map != expected[0].label_map).mean() < 0.01


@pytest.mark.parametrize('tta', [True, False])
def test_results_are_those_of_data_set_and_labeler(cfg, weights, build_dataset, folder, tta):
    labeler = PseudoLabeler(bg_thr=0.4, fg_thr=0.6)
    inferencer = PseudoLabelInferencer(cfg, weights, 'cpu', labeler, tta)
    dataset = build_dataset(pipeline=VIEWS if tta else PIPELINE)
    images = stream_cams(inferencer.model, dataset, range(7), Throughput(4, 0), False)
    expected = {image.image_id: image.cams for image in images}
    results = inferencer(folder, NAMES, **QUIET)
    assert [result.image_id for result in results] == IDS
    for result in results:
        cams = expected[result.image_id]
        np.testing.assert_array_equal(result.cams.cams, cams.cams)
        np.testing.assert_array_equal(result.cams.class_ids, cams.class_ids)
        np.testing.assert_array_equal(result.label_map, labeler.label(cams))
    assert {255} <= set(np.unique(np.concatenate([r.label_map.ravel() for r in results])))


def test_labels_restrict_the_classes(inferencer, folder):
    results = inferencer(folder, NAMES, **QUIET)
    classes = inferencer.metainfo['classes']
    for names, result in zip(NAMES, results, strict=True):
        assert set(result.class_names) == set(names)
        assert {classes[i] for i in np.unique(result.label_map)} <= {'background', *names}


def test_rule_is_that_of_the_head_or_the_given_one(cfg, weights):
    cfg.model.decode_head.update(bg_thr=0.3, bg_alpha=4.0)
    assert PseudoLabelInferencer(cfg, weights).labeler == PseudoLabeler(0.3, 4.0)
    own = PseudoLabelInferencer(cfg, weights, labeler=dict(bg_thr=0.5))
    assert own.labeler == PseudoLabeler(0.5)
    head = own.model.decode_head
    assert make_labeler(head, bg_thr=0.2) == PseudoLabeler(0.2)
    assert make_labeler(head, bg_alpha=2.0) == PseudoLabeler(0.3, 2.0)


def test_config_may_be_a_file_and_stays_as_it_is(cfg, weights, tmp_path, folder):
    before = cfg.to_dict()
    expected = PseudoLabelInferencer(cfg, weights, 'cpu')(folder, **QUIET)
    assert cfg.to_dict() == before
    cfg.dump(tmp_path / 'config.py')
    inferencer = PseudoLabelInferencer(tmp_path / 'config.py', weights, 'cpu')
    # Whatever was run in between.
    init_default_scope('mmengine')
    assert_same(inferencer(folder, **QUIET), expected)


def test_overlay_is_drawn_over_file_and_array_alike(inferencer, paths):
    [from_file] = inferencer(paths[1], [NAMES[1]], **QUIET)
    [from_array] = inferencer(mmcv.imread(str(paths[1])), [NAMES[1]], **QUIET)
    assert from_file.overlay.shape == (*from_file.label_map.shape, 3)
    assert from_file.overlay.dtype == np.uint8
    # JPEG decoders differ by a little, channel orders by a lot.
    difference = np.abs(from_file.overlay.astype(int) - from_array.overlay.astype(int))
    assert difference.mean() < 3


def test_crf_sees_the_photo(cfg, weights, paths, monkeypatch):
    seen = []

    def refine(image, scores, crf, present):
        seen.append(image)
        return scores

    monkeypatch.setattr('mmdscnet.apis.inferencer.require_dense_crf', lambda: None)
    monkeypatch.setattr('mmdscnet.pseudo_labels.dense_crf.refine', refine)
    inferencer = PseudoLabelInferencer(cfg, weights, 'cpu', dict(crf={}))
    array = mmcv.imread(str(paths[0]))
    inferencer([paths[0], array], **QUIET)
    np.testing.assert_array_equal(seen[1], array[..., ::-1])
    assert np.abs(seen[0].astype(int) - seen[1].astype(int)).mean() < 3


def test_files_are_written(inferencer, folder, tmp_path, capsys):
    results = inferencer(folder, NAMES, out_dir=tmp_path / 'out')
    assert '7/7' in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / 'out').iterdir())
    assert names == sorted([f'{i}.png' for i in IDS] + [f'{i}_overlay.jpg' for i in IDS])
    with Image.open(tmp_path / 'out' / 'b.png') as image:
        assert image.mode == 'P'
        np.testing.assert_array_equal(np.asarray(image), results[1].label_map)
        assert image.getpalette()[:12] == np.ravel(voc_palette(4)).tolist()


def test_progress_bar_is_a_choice(inferencer, paths, capsys):
    inferencer(paths[0], show_progress=False)
    assert capsys.readouterr().err == ''


def test_files_that_would_meet_are_refused(inferencer, own_voc_folder, tmp_path):
    folder = own_voc_folder / 'JPEGImages'
    with pytest.raises(ValueError, match=r"both be 'a' in an export"):
        inferencer([folder / 'a.jpg', folder / 'a.jpg'], out_dir=tmp_path / 'out')
    with pytest.raises(ValueError, match='lies in .*JPEGImages, and its files would be taken'):
        inferencer(folder, out_dir=folder / 'out')
    with pytest.raises(ValueError, match=r'is the folder of the image .*a\.jpg'):
        inferencer(folder / 'a.jpg', out_dir=folder)


def test_wrong_inputs_are_refused(inferencer, tmp_path):
    (tmp_path / 'empty').mkdir()
    for inputs, error, message in [
        ('none.jpg', FileNotFoundError, r'none\.jpg does not exist: give an image file'),
        (tmp_path / 'empty', FileNotFoundError, 'empty has no images'),
        ([], ValueError, 'inputs are empty'),
        (3, TypeError, 'inputs is a int: give a path'),
        ([3], TypeError, 'an input is a int: give paths'),
        (np.zeros((8, 8, 3)), TypeError, 'array0000 is of float64: give .* uint8'),
        (np.zeros((8, 8), np.uint8), ValueError, r'array0000 has the shape \(8, 8\)'),
        (np.zeros((3, 8, 8), np.uint8), ValueError, r'\(3, 8, 8\).* channels last'),
        (np.zeros((0, 8, 3), np.uint8), ValueError, r'shape \(0, 8, 3\)'),
    ]:
        with pytest.raises(error, match=message):
            inferencer(inputs)


def test_wrong_labels_are_refused(inferencer, paths):
    for labels, error, message in [
        ([['dgo'], []], ValueError, r"a\.jpg: .*unknown class 'dgo'.* Did you mean 'dog'"),
        ([['dog']], ValueError, 'image_labels are 1 for 2 images'),
        (['dog', 'cat'], TypeError, r"a\.jpg are the text 'dog': give a list"),
        (dict(a=['dog'], b=[]), TypeError, 'image_labels is a dict: give a list'),
    ]:
        with pytest.raises(error, match=message):
            inferencer(paths[:2], labels)


@pytest.mark.parametrize('content', [b'no image', None])
def test_unreadable_image_is_named(inferencer, own_voc_folder, content):
    path = own_voc_folder / 'JPEGImages' / 'c.jpg'
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(ValueError, match=r'c\.jpg cannot be read: '):
        inferencer(own_voc_folder / 'JPEGImages', **QUIET)


def test_wrong_devices_are_refused(cfg, weights):
    for device in ('gpu', 'cuda:99'):
        with pytest.raises(ValueError, match=f"device='{device}' cannot be used: .*Give 'cpu'"):
            PseudoLabelInferencer(cfg, weights, device)
    expected = 'cuda' if torch.cuda.is_available() else 'cpu'
    assert read_device(None).type == expected
    assert read_device(torch.device('cpu')) == torch.device('cpu')


def test_wrong_networks_are_refused(cfg, weights, build_config, build_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="config 'none.py' is not a file"):
        PseudoLabelInferencer('none.py', weights)
    with pytest.raises(FileNotFoundError, match="checkpoint 'none.pth' is not a file"):
        PseudoLabelInferencer(cfg, 'none.pth')
    cfg.test_dataloader.dataset.metainfo.classes = ('background', 'cat', 'dog')
    with pytest.raises(ValueError, match='data set has 3 classes .* network 4'):
        PseudoLabelInferencer(cfg, weights)
    cfg.model = build_config('fcn')
    torch.save(build_model('fcn').state_dict(), tmp_path / 'fcn.pth')
    with pytest.raises(ValueError, match='the head of the network is FCNHead'):
        PseudoLabelInferencer(cfg, tmp_path / 'fcn.pth')


def test_classes_and_colours_are_those_of_the_data_set():
    def find(**dataset):
        return find_metainfo(Config(dict(test_dataloader=dict(dataset=dataset))))

    voc = VOC2012Dataset.METAINFO
    assert find(type='VOC2012Dataset') == voc
    some = find(type='VOC2012Dataset', metainfo=dict(classes=['background', 'dog']))
    assert some['palette'] == [voc['palette'][0], voc['palette'][12]]
    other = find(type='VOC2012Dataset', metainfo=dict(classes=['background', 'fox']))
    assert other == dict(classes=('background', 'fox'), palette=voc_palette(2))
    colours = [[0, 0, 0], [9, 9, 9]]
    own = dict(classes=['background', 'fox'], palette=colours)
    assert find(type='VOCLayoutDataset', metainfo=own)['palette'] == colours


@pytest.mark.parametrize('metainfo', [None, dict(classes=['cat', 'dog'])])
def test_data_set_without_background_or_classes_is_refused(metainfo):
    dataset = dict(type='VOCLayoutDataset', metainfo=metainfo)
    with pytest.raises(ValueError, match=r"must be 'background', .* set metainfo"):
        find_metainfo(Config(dict(test_dataloader=dict(dataset=dataset))))
    with pytest.raises(ValueError, match='must be'):
        find_metainfo(Config({}))


def test_an_image_without_class_is_background(inferencer, paths):
    [result] = inferencer(paths[3], [[]], **QUIET)
    assert isinstance(result.cams, CAMs)
    assert result.cams.cams.shape == (0, 40, 56)
    assert result.class_names == ()
    assert not result.label_map.any()


def test_published_model_labels_by_its_address(cache):
    inferencer = PseudoLabelInferencer('mmdscnet://dscnet_shapes', device='cpu')
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    (result,) = inferencer(image, image_labels=[['dots', 'cross']], **QUIET)
    assert result.label_map.shape == (48, 64)
    assert result.class_names == ('cross', 'dots')


def test_config_without_weights_is_refused(cfg):
    with pytest.raises(ValueError, match='weights=None for .*give a checkpoint, or, in place'):
        PseudoLabelInferencer(cfg, device='cpu')

import os
import sys

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmseg.registry import MODELS
from PIL import Image

from mmdscnet.apis import export_labels, label_export
from mmdscnet.datasets.read_rgb import read_rgb
from mmdscnet.pseudo_labels import DenseCRF, dense_crf

IDS = list('abcdefg')
SETTINGS = dict(kind='test')
NETWORKS = ['fcn', 'cam', 'fcn_tta', 'cam_tta']
TTA = dict(fcn_tta='ProbabilityTTAModel', cam_tta='CAMTTAModel')


@pytest.fixture
def build(build_model, build_dataset):
    """Build a network, alone or over its views, and the images as it wants them."""

    def build_both(name):
        model = build_model(name.removesuffix('_tta'))
        if name not in TTA:
            return model, build_dataset()
        tta = MODELS.build(dict(type=TTA[name], module=model))
        return tta, build_dataset(views=dict(scales=(0.5, 1.0)))

    return build_both


def predict_naively(model, dataset):
    """The sample of every image, and its file."""
    samples = []
    for index in range(len(dataset)):
        with torch.inference_mode():
            samples += model.test_step(pseudo_collate([dataset[index]]))
    return dict(zip(IDS, samples, strict=True))


def read_label(path):
    with Image.open(path) as image:
        assert image.mode == 'P'
        assert image.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
        return np.array(image)


@pytest.mark.parametrize('network', NETWORKS)
def test_files_are_what_the_model_predicts(build, tmp_path, network):
    model, dataset = build(network)
    assert export_labels(model, dataset, tmp_path, SETTINGS, num_workers=0) == len(IDS)
    assert sorted(os.listdir(tmp_path)) == sorted([*(f'{i}.png' for i in IDS), 'export.json'])
    found = set()
    for image_id, sample in predict_naively(model, dataset).items():
        labels = read_label(tmp_path / f'{image_id}.png')
        np.testing.assert_array_equal(labels, sample.pred_sem_seg.data[0])
        found |= set(np.unique(labels))
    assert len(found) > 2


@pytest.mark.parametrize('network', NETWORKS)
def test_crf_gets_the_probabilities_of_all_classes_that_win(build, tmp_path, network):
    pytest.importorskip('pydensecrf')
    model, dataset = build(network)
    crf = DenseCRF(bilateral_sxy=10, num_steps=3)
    export_labels(model, dataset, tmp_path, SETTINGS, crf, num_workers=0)
    changed = 0
    for image_id, sample in predict_naively(model, dataset).items():
        scores = sample.seg_logits.data
        scores = scores.softmax(dim=0) if network == 'fcn' else scores
        plain = sample.pred_sem_seg.data[0].numpy()
        present = np.isin(np.arange(4), plain)
        present[0] = True
        expected = dense_crf.label(
            read_rgb(sample.img_path), scores.numpy().astype(np.float16), crf, present
        )
        labels = read_label(tmp_path / f'{image_id}.png')
        np.testing.assert_array_equal(labels, expected)
        changed += (labels != plain).sum()
    assert changed > 0


@pytest.mark.slow
def test_processes_change_nothing(build, tmp_path):
    pytest.importorskip('pydensecrf')
    model, dataset = build('cam')
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        export_labels(model, dataset, folder, SETTINGS, DenseCRF(), processes, processes)
    for path in (tmp_path / '1').iterdir():
        assert path.read_bytes() == (tmp_path / '2' / path.name).read_bytes()


def test_interrupted_export_goes_on(build, tmp_path, read_files):
    model, dataset = build('cam')
    export_labels(model, dataset, tmp_path, SETTINGS, num_workers=0)
    before = read_files(tmp_path)
    for name in ('a.png', 'd.png'):
        (tmp_path / name).unlink()
    assert export_labels(model, dataset, tmp_path, SETTINGS, num_workers=0) == 2
    after = read_files(tmp_path)
    assert {name: content for name, (content, _) in after.items()} == {
        name: content for name, (content, _) in before.items()
    }
    assert all(after[name] == before[name] for name in before.keys() - {'a.png', 'd.png'})
    assert export_labels(model, dataset, tmp_path, SETTINGS, num_workers=0) == 0


def test_labels_of_another_kind_are_not_mixed(build, tmp_path, read_files):
    model, dataset = build('cam')
    export_labels(model, dataset, tmp_path, SETTINGS, num_workers=0)
    before = read_files(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(kind: 'test' there, 'new' now\)"):
        export_labels(model, dataset, tmp_path, dict(kind='new'), num_workers=0)
    assert read_files(tmp_path) == before


def test_settings_of_the_crf_count(build, tmp_path):
    pytest.importorskip('pydensecrf')
    model, dataset = build('cam')
    export_labels(model, dataset, tmp_path / 'plain', SETTINGS, num_workers=0)
    with pytest.raises(ValueError, match=r"other settings \(crf: None there, \{.*'num_steps'"):
        export_labels(model, dataset, tmp_path / 'plain', SETTINGS, DenseCRF(), num_workers=0)
    export_labels(model, dataset, tmp_path / 'crf', SETTINGS, DenseCRF(), num_workers=0)
    few = DenseCRF(num_steps=2)
    with pytest.raises(ValueError, match=r"other settings \(crf: .*'num_steps': 2\} now\)"):
        export_labels(model, dataset, tmp_path / 'crf', SETTINGS, few, num_workers=0)


def test_missing_crf_is_found_before_the_folder_is_made(build, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydensecrf', None)
    model, dataset = build('cam')
    with pytest.raises(ImportError, match='pip install pydensecrf2'):
        export_labels(model, dataset, tmp_path / 'out', SETTINGS, DenseCRF(), num_workers=0)
    assert not (tmp_path / 'out').exists()


def test_image_that_vanishes_is_named_and_the_files_before_it_stay(
    build, build_dataset, own_voc_folder, tmp_path
):
    model, _ = build('cam')
    dataset = build_dataset(own_voc_folder)
    (own_voc_folder / 'JPEGImages' / 'e.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'e\.jpg'):
        export_labels(model, dataset, tmp_path / 'out', SETTINGS, num_workers=0)
    written = sorted(path.stem for path in (tmp_path / 'out').glob('*.png'))
    assert written == list('abcd')


def test_error_of_a_writer_names_the_image(build, tmp_path, monkeypatch):
    model, dataset = build('cam')
    original = label_export.write_palette_png

    def write(path, *args):
        if path.stem == 'c':
            raise OSError(28, 'No space left on device')
        original(path, *args)

    monkeypatch.setattr(label_export, 'write_palette_png', write)
    with pytest.raises(RuntimeError, match=r'^c: OSError: .*No space left on device'):
        export_labels(model, dataset, tmp_path, SETTINGS, num_workers=0)
    assert sorted(path.stem for path in tmp_path.glob('*.png')) == ['a', 'b']


def test_ranks_share_the_missing_images(build, tmp_path, monkeypatch):
    model, dataset = build('cam')
    export_labels(model, dataset, tmp_path / 'one', SETTINGS, num_workers=0)
    monkeypatch.setattr(
        label_export,
        'start_export',
        lambda *args: (label_export.ExportFolder(*args[:3]), [0, 2, 5]),
    )
    counts = []
    for rank in range(2):
        monkeypatch.setattr(label_export, 'get_dist_info', lambda rank=rank: (rank, 2))
        counts.append(export_labels(model, dataset, tmp_path / 'two', SETTINGS, num_workers=0))
    assert counts == [2, 1]
    assert sorted(path.stem for path in (tmp_path / 'two').glob('*.png')) == ['a', 'c', 'f']
    for path in (tmp_path / 'two').glob('*.png'):
        assert path.read_bytes() == (tmp_path / 'one' / path.name).read_bytes()


def test_images_need_no_masks(build, build_dataset, tmp_path):
    model, dataset = build('fcn')
    export_labels(model, dataset, tmp_path / 'with', SETTINGS, num_workers=0)
    without = build_dataset(data_prefix=dict(img_path='JPEGImages'))
    export_labels(model, without, tmp_path / 'without', SETTINGS, num_workers=0)
    for path in (tmp_path / 'with').iterdir():
        assert path.read_bytes() == (tmp_path / 'without' / path.name).read_bytes()


def test_model_of_more_classes_than_colours_is_named_by_the_file(
    build_model, build_dataset, tmp_path
):
    head = dict(type='CAMHead', in_channels=32, num_classes=8)
    model = build_model('cam', decode_head=head)
    with pytest.raises(ValueError, match=r'^[a-g]: .*\.png: ids \[.*have no colour'):
        export_labels(model, build_dataset(image_labels=None), tmp_path, SETTINGS, num_workers=0)


def test_only_what_a_crf_needs_is_kept(build):
    model, dataset = build('fcn')
    loader = torch.utils.data.DataLoader(dataset, collate_fn=pseudo_collate)
    for keep in (False, True):
        for prediction in label_export.predict(model, loader, keep_scores=keep):
            assert isinstance(prediction, label_export.Prediction)
            winners = sorted({0, *np.unique(prediction.label_map).tolist()})
            assert prediction.class_ids.tolist() == (winners if keep else [])
            assert prediction.scores.dtype == np.float16
            assert len(prediction.scores) == len(prediction.class_ids)

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdscnet.inference import ImageCAMs, Throughput, Unreadable, stream_cams
from mmdscnet.inference import cam_stream as module

HERE = Throughput(3, num_workers=0)


def by_id(images):
    return {image.image_id: image.cams for image in images}


def assert_same(result, expected, atol=0.0):
    assert result.keys() == expected.keys()
    for image_id, (cams, class_ids) in expected.items():
        np.testing.assert_array_equal(result[image_id][1], class_ids)
        np.testing.assert_allclose(result[image_id][0], cams, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (dict(batch_size=0), 'batch_size=0 must be at least 1 image'),
        (dict(batch_size=-2), 'batch_size=-2 must be at least 1 image'),
        (dict(num_workers=-1), 'num_workers=-1 must be at least 0 processes'),
        (dict(precision='int8'), r"precision='int8' is none of \['float32', 'bfloat16', 'float16'"),
    ],
)
def test_throughput_out_of_its_range_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Throughput(**values)


@pytest.mark.parametrize('mode', [dict(), dict(image_labels=None)], ids=['given', 'predicted'])
def test_stream_gives_the_cams_of_mmseg_by_size(build_model, build_dataset, cams_of_mmseg, mode):
    model, dataset = build_model('dscnet'), build_dataset(views={}, **mode)
    images = list(stream_cams(model, dataset, range(7), HERE))
    assert [image.image_id for image in images] == list('eabdfcg')
    assert all(isinstance(image, ImageCAMs) for image in images)
    assert Path(images[0].image_path).name == 'e.jpg'
    assert_same(by_id(images), cams_of_mmseg(model, dataset), 1e-5)


def test_only_the_images_that_are_asked_for_are_read(build_model, build_dataset):
    model, dataset = build_model('cam'), build_dataset(views={})
    assert by_id(stream_cams(model, dataset, [6, 1], HERE)).keys() == {'b', 'g'}
    assert list(stream_cams(model, dataset, [], HERE)) == []


@pytest.mark.parametrize('network', ['cam', 'dscnet_on_seam'])
def test_pipeline_of_a_single_view_is_one_scale_without_a_flip(build_model, build_dataset, network):
    model = build_model(network)
    single = by_id(stream_cams(model, build_dataset(), range(7), HERE))
    views = build_dataset(views=dict(scales=(1.0,), directions=()))
    assert len(single) == 7
    assert_same(single, by_id(stream_cams(model, views, range(7), HERE)))


@pytest.mark.parametrize('num_workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_no_random_number_of_the_caller_is_used_up(build_model, build_dataset, num_workers):
    model, dataset = build_model('cam'), build_dataset(views={})
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    stream = stream_cams(model, dataset, range(7), Throughput(2, num_workers))
    next(stream)
    drawn = np.random.random()
    assert len(list(stream)) == 6
    # What the caller draws in between counts.
    assert np.random.random() != drawn
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[2])
    np.random.set_state(before[1])
    list(stream_cams(model, dataset, range(7), Throughput(2, num_workers)))
    assert np.random.random() == drawn


def test_low_precision_is_passed_on(build_model, build_dataset):
    model, dataset = build_model('cam'), build_dataset(views={})
    exact = by_id(stream_cams(model, dataset, range(7), HERE))
    close = by_id(stream_cams(model, dataset, range(7), Throughput(3, 0, 'bfloat16')))
    assert_same(close, exact, 0.1)
    assert any((close[image_id][0] != exact[image_id][0]).any() for image_id in exact)


def test_damaged_images_come_first_and_the_others_follow(
    build_model, build_dataset, own_voc_folder
):
    model, dataset = build_model('cam'), build_dataset(own_voc_folder, views={})
    expected = by_id(stream_cams(model, dataset, range(7), HERE))
    path = own_voc_folder / 'JPEGImages' / 'a.jpg'
    path.write_bytes(path.read_bytes()[:-100])
    first, *others = stream_cams(model, dataset, range(7), HERE)
    assert isinstance(first, Unreadable)
    assert first.image_path == str(path)
    assert 'is truncated' in first.reason
    del expected['a']
    assert_same(by_id(others), expected, 1e-5)


@pytest.mark.parametrize('num_workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_image_that_vanishes_on_the_way_is_unreadable(
    build_model, build_dataset, own_voc_folder, monkeypatch, num_workers
):
    model, dataset = build_model('cam'), build_dataset(own_voc_folder, views={})
    original = module.batch_by_size

    def batch_then_remove(*args):
        batches = original(*args)
        # One that shares its batch, and one that is alone in it.
        for image_id in 'bg':
            (own_voc_folder / 'JPEGImages' / f'{image_id}.jpg').unlink()
        return batches

    monkeypatch.setattr(module, 'batch_by_size', batch_then_remove)
    images = list(stream_cams(model, dataset, range(7), Throughput(3, num_workers)))
    faults = [image for image in images if isinstance(image, Unreadable)]
    assert [fault.image_id for fault in faults] == ['b', 'g']
    assert all('No such file' in fault.reason for fault in faults)
    assert [image.image_id for image in images if isinstance(image, ImageCAMs)] == list('eadfc')


def test_progress_is_shown_on_standard_error_or_not(build_model, build_dataset, capsys):
    model, dataset = build_model('cam'), build_dataset(views={})
    list(stream_cams(model, dataset, range(7), HERE, show_progress=False))
    assert capsys.readouterr() == ('', '')
    list(stream_cams(model, dataset, range(7), HERE))
    out, err = capsys.readouterr()
    assert out == ''
    assert '7/7' in err


@pytest.mark.parametrize('rank', [0, 1, 2])
def test_ranks_share_images_and_faults(
    build_model, build_dataset, own_voc_folder, monkeypatch, rank
):
    model, dataset = build_model('cam'), build_dataset(own_voc_folder, views={})
    for image_id in 'acg':
        (own_voc_folder / 'JPEGImages' / f'{image_id}.jpg').unlink()
    monkeypatch.setattr(module, 'get_dist_info', lambda: (rank, 3))
    images = list(stream_cams(model, dataset, range(7), Throughput(2, 0)))
    ids = [image.image_id for image in images]
    assert ids == [['a', 'e'], ['c', 'b', 'd'], ['g', 'f']][rank]


def test_pipeline_that_loses_the_labels_is_refused(build_model, build_dataset):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    model, dataset = build_model('cam'), build_dataset(pipeline=pipeline)
    with pytest.raises(ValueError, match='loses them: end it with PackWSSSInputs'):
        list(stream_cams(model, dataset, range(7), HERE))

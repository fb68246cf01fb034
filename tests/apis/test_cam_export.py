"""The fast export against mmseg's own way: one image and one view at a time."""

import importlib
import io
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from mmdscnet.apis import cam_export
from mmdscnet.apis.cam_export import export_cams
from mmdscnet.inference import Throughput, cam_stream
from mmdscnet.pseudo_labels import read_cams, write_cams

IDS = list('abcdefg')
SETTINGS = dict(kind='test')
CAM_NETWORKS = ['cam', 'dscnet', 'seam', 'dscnet_on_seam']
MODES = [dict(), dict(image_labels=None)]
LABELS = ['given', 'predicted']
RANKS = 2
HERE = Throughput(num_workers=0)
ONE_BY_ONE = Throughput(1, num_workers=0)


def check_folder(folder, expected, atol=1e-3):
    assert sorted(path.stem for path in folder.glob('*.npz')) == sorted(expected)
    for image_id, (cams, class_ids) in expected.items():
        exported = read_cams(folder / f'{image_id}.npz')
        np.testing.assert_array_equal(exported.class_ids, class_ids)
        np.testing.assert_allclose(exported.cams, cams, rtol=0, atol=atol)


@pytest.mark.parametrize('mode', MODES, ids=LABELS)
@pytest.mark.parametrize('network', CAM_NETWORKS)
def test_files_equal_the_cams_of_mmseg(
    build_model, build_dataset, tmp_path, network, mode, cams_of_mmseg
):
    model, dataset = build_model(network), build_dataset(views={}, **mode)
    expected = cams_of_mmseg(model, dataset)
    assert len({tuple(ids) for _, ids in expected.values()}) > 1
    assert sum(cams.any() for cams, _ in expected.values()) > 4
    written = export_cams(model, dataset, tmp_path, SETTINGS, Throughput(3, num_workers=0))
    assert written == len(IDS)
    check_folder(tmp_path, expected)


def test_image_with_no_class_has_a_file_of_its_size(build_model, build_dataset, tmp_path):
    dataset = build_dataset(views={}, indices=[3])
    export_cams(build_model('dscnet'), dataset, tmp_path, SETTINGS, HERE)
    assert read_cams(tmp_path / 'd.npz').cams.shape == (0, 40, 56)


@pytest.mark.parametrize('directions', [('vertical',), ('horizontal', 'vertical'), ()])
def test_views_may_be_flipped_in_any_direction_or_none(
    build_model, build_dataset, tmp_path, directions, cams_of_mmseg
):
    model = build_model('cam')
    dataset = build_dataset(views=dict(scales=(1.0,), directions=directions))
    expected = cams_of_mmseg(model, dataset)
    export_cams(model, dataset, tmp_path, SETTINGS, HERE)
    check_folder(tmp_path, expected)


def test_plain_cams_are_exported_where_the_config_asks_for_them(
    build_model, build_dataset, tmp_path, cams_of_mmseg
):
    model, dataset = (
        build_model('seam', test_cfg=dict(mode='whole', refine=False)),
        build_dataset(views={}),
    )
    expected = cams_of_mmseg(model, dataset)
    export_cams(model, dataset, tmp_path, SETTINGS, HERE)
    check_folder(tmp_path, expected)


def test_rotated_image_is_exported_as_it_is_shown(
    build_model, build_dataset, own_voc_folder, tmp_path, cams_of_mmseg
):
    path = own_voc_folder / 'JPEGImages' / 'c.jpg'
    image = Image.open(path).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    model, dataset = build_model('cam'), build_dataset(own_voc_folder, views={})
    export_cams(model, dataset, tmp_path / 'out', SETTINGS, HERE)
    assert read_cams(tmp_path / 'out' / 'c.npz').cams.shape[1:] == (56, 40)
    check_folder(tmp_path / 'out', cams_of_mmseg(model, dataset))


@pytest.mark.slow
def test_reading_processes_change_nothing(build_model, build_dataset, tmp_path):
    model, dataset = build_model('cam'), build_dataset(views={})
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        export_cams(model, dataset, folder, SETTINGS, Throughput(num_workers=workers))
    for path in (tmp_path / '0').iterdir():
        assert path.read_bytes() == (tmp_path / '2' / path.name).read_bytes()


def test_export_goes_on_with_the_missing_images(
    build_model, build_dataset, tmp_path, read_files, cams_of_mmseg
):
    model, dataset = build_model('cam'), build_dataset(views={})
    export_cams(model, dataset, tmp_path, SETTINGS, HERE)
    before = read_files(tmp_path)
    for image_id in 'be':
        (tmp_path / f'{image_id}.npz').unlink()
    assert export_cams(model, dataset, tmp_path, SETTINGS, HERE) == 2
    after = read_files(tmp_path)
    for name in before.keys() - {'b.npz', 'e.npz'}:
        assert after[name] == before[name]
    assert export_cams(model, dataset, tmp_path, SETTINGS, HERE) == 0
    assert read_files(tmp_path) == after
    check_folder(tmp_path, cams_of_mmseg(model, dataset))


def test_other_settings_are_refused_before_anything_is_written(
    build_model, build_dataset, tmp_path, read_files
):
    model, dataset = build_model('cam'), build_dataset(views={})
    export_cams(model, dataset, tmp_path, SETTINGS, HERE)
    before = read_files(tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(kind: 'test' there, 'new' now\)"):
        export_cams(model, dataset, tmp_path, dict(kind='new'), HERE)
    assert read_files(tmp_path) == before


def test_classes_that_the_network_does_not_have_are_refused(build_model, build_dataset, tmp_path):
    model = build_model('cam', decode_head=dict(type='CAMHead', in_channels=32, num_classes=3))
    for mode in MODES:
        with pytest.raises(
            ValueError, match=r"has 4 classes .*'cow'.* the network 3.*give the config"
        ):
            export_cams(model, build_dataset(views={}, **mode), tmp_path, SETTINGS, HERE)
    assert os.listdir(tmp_path) == []


def test_padding_is_refused(build_model, build_dataset, tmp_path):
    model = build_model('cam')
    model.data_preprocessor.test_cfg = dict(size_divisor=32)
    with pytest.raises(ValueError, match=r'data_preprocessor\.test_cfg'):
        export_cams(model, build_dataset(views={}), tmp_path, SETTINGS, HERE)


def test_windows_are_refused(build_model, build_dataset, tmp_path):
    test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
    with pytest.raises(ValueError, match=r"test_cfg\.mode='slide'.*use mode='whole'"):
        export_cams(
            build_model('cam', test_cfg=test_cfg), build_dataset(views={}), tmp_path, SETTINGS, HERE
        )


def test_pipeline_that_loses_the_labels_is_refused(
    build_model, build_dataset, tmp_path, cams_of_mmseg
):
    views = dict(type='TestTimeAug', transforms=[[dict(type='PackSegInputs')]])
    pipeline = [dict(type='LoadImageFromFile'), views]
    model, dataset = build_model('cam'), build_dataset(pipeline=pipeline)
    with pytest.raises(
        ValueError, match=r'loses them: end it with PackWSSSInputs, or set image_la'
    ):
        export_cams(model, dataset, tmp_path / 'out', SETTINGS, HERE)
    assert list((tmp_path / 'out').glob('*.npz')) == []
    # Without labels there are none to lose.
    dataset = build_dataset(pipeline=pipeline, image_labels=None)
    assert export_cams(model, dataset, tmp_path / 'out', SETTINGS, HERE) == len(IDS)
    dataset = build_dataset(views=dict(scales=(1.0,), directions=()), image_labels=None)
    check_folder(tmp_path / 'out', cams_of_mmseg(model, dataset))


def test_unreadable_image_is_found_before_the_first_file(
    build_model, build_dataset, own_voc_folder, tmp_path
):
    dataset = build_dataset(own_voc_folder, views={})
    path = own_voc_folder / 'JPEGImages' / 'g.jpg'
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r'g\.jpg cannot be read: image .*g\.jpg is truncated'):
        export_cams(build_model('cam'), dataset, tmp_path / 'out', SETTINGS, HERE)
    assert list((tmp_path / 'out').glob('*.npz')) == []


def test_image_that_vanishes_is_named_and_the_files_before_it_stay(
    build_model, build_dataset, own_voc_folder, tmp_path, monkeypatch, cams_of_mmseg
):
    model, dataset = build_model('cam'), build_dataset(own_voc_folder, views={})
    expected = cams_of_mmseg(model, dataset)
    original = cam_stream.batch_by_size

    def batch_then_remove(*args):
        batches = original(*args)
        # Of the smallest size, hence the last.
        (own_voc_folder / 'JPEGImages' / 'g.jpg').unlink()
        return batches

    monkeypatch.setattr(cam_stream, 'batch_by_size', batch_then_remove)
    with pytest.raises(ValueError, match=r'g\.jpg cannot be read: .*No such file'):
        export_cams(model, dataset, tmp_path / 'out', SETTINGS, HERE)
    check_folder(tmp_path / 'out', {image_id: expected[image_id] for image_id in 'abcdef'})


@pytest.mark.parametrize('broken', ['a', 'g'])
def test_error_of_a_writer_comes_through_and_other_files_stay(
    build_model, build_dataset, tmp_path, monkeypatch, broken, cams_of_mmseg
):
    model, dataset = build_model('cam'), build_dataset(views={})

    def write(path, *args):
        if path.stem == broken:
            raise OSError(28, 'No space left on device', str(path))
        write_cams(path, *args)

    monkeypatch.setattr(cam_export, 'write_cams', write)
    with pytest.raises(OSError, match=rf'No space left on device.*{broken}\.npz'):
        export_cams(model, dataset, tmp_path, SETTINGS, ONE_BY_ONE)
    written = {path.stem for path in tmp_path.glob('*.npz')}
    assert written
    assert broken not in written
    monkeypatch.undo()
    assert export_cams(model, dataset, tmp_path, SETTINGS, HERE) == 7 - len(written)
    check_folder(tmp_path, cams_of_mmseg(model, dataset))


def test_diverged_network_is_named_by_the_file(build_model, build_dataset, tmp_path):
    model = build_model('cam')
    torch.nn.init.constant_(model.decode_head.classifier.weight, float('nan'))
    with pytest.raises(ValueError, match=r'\.npz: cams run from nan .*diverged'):
        export_cams(model, build_dataset(views={}), tmp_path, SETTINGS, HERE)


def test_images_of_one_name_are_refused(build_model, build_dataset, own_voc_folder, tmp_path):
    images = own_voc_folder / 'JPEGImages'
    (images / 'more').mkdir()
    (images / 'more' / 'a.jpg').write_bytes((images / 'b.jpg').read_bytes())
    (own_voc_folder / 'split.txt').write_text('a\nmore/a\n')
    dataset = build_dataset(
        own_voc_folder,
        views={},
        ann_file='split.txt',
        image_labels=None,
        data_prefix=dict(img_path='JPEGImages'),
    )
    with pytest.raises(ValueError, match=r"a\.jpg and .*more.a\.jpg would both be 'a'"):
        export_cams(build_model('cam'), dataset, tmp_path / 'out', SETTINGS, HERE)


def save_in_two_halves(file, **arrays):
    """As ``np.savez``, slowly enough to be killed at half of the file."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    half = len(content.getvalue()) // 2
    file.write(content.getvalue()[:half])
    file.flush()
    time.sleep(0.2)
    file.write(content.getvalue()[half:])


def export_slowly(model, dataset, folder):
    """Body of the process that is killed."""
    torch.set_num_threads(1)
    np.savez = save_in_two_halves
    export_cams(model, dataset, folder, SETTINGS, ONE_BY_ONE)


def export_as_rank(rank, model, dataset, folder):
    """Body of one rank: export, and write which files it wrote."""
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/init', rank=rank, world_size=RANKS
    )
    names = []

    def write(path, *args):
        names.append(path.stem)
        write_cams(path, *args)

    cam_export.write_cams = write
    written = export_cams(model, dataset, folder / 'out', SETTINGS, Throughput(2, num_workers=0))
    # After the end every rank finds the files of all.
    total = len(list((folder / 'out').glob('*.npz')))
    (folder / f'rank{rank}.txt').write_text(f'{written} {total} {"".join(sorted(names))}')
    dist.destroy_process_group()


@pytest.fixture
def here():
    """This module as a process that is started can import it; see tests/functional."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module(Path(__file__).stem)


@pytest.mark.slow
def test_killed_export_is_whole_where_it_is_and_goes_on(
    build_model, build_dataset, tmp_path, read_files, here, cams_of_mmseg
):
    model, dataset = build_model('dscnet'), build_dataset(views=dict(scales=(1.0,)))
    expected = cams_of_mmseg(model, dataset)
    before = {}
    for files in (1, 4):
        process = multiprocessing.get_context('spawn').Process(
            target=here.export_slowly, args=(model, dataset, tmp_path)
        )
        process.start()
        while process.is_alive() and len(list(tmp_path.glob('*.npz'))) < files:
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found = read_files(tmp_path, '*.npz')
        assert files <= len(found) < len(IDS)
        assert before.items() <= found.items()
        check_folder(tmp_path, {name[0]: expected[name[0]] for name in found})
        before = found
    missing = len(IDS) - len(before)
    assert export_cams(model, dataset, tmp_path, SETTINGS, HERE) == missing
    assert before.items() <= read_files(tmp_path).items()
    check_folder(tmp_path, expected)


@pytest.mark.slow
def test_ranks_write_every_missing_file_once(
    build_model, build_dataset, tmp_path, read_files, here, cams_of_mmseg
):
    model, dataset = build_model('dscnet'), build_dataset(views={})
    expected = cams_of_mmseg(model, dataset)
    export_cams(model, dataset, tmp_path / 'out', SETTINGS, HERE)
    for image_id in 'abdeg':
        (tmp_path / 'out' / f'{image_id}.npz').unlink()
    before = read_files(tmp_path / 'out')
    torch.multiprocessing.spawn(here.export_as_rank, args=(model, dataset, tmp_path), nprocs=RANKS)
    assert before.items() <= read_files(tmp_path / 'out').items()
    ranks = [(tmp_path / f'rank{rank}.txt').read_text().split() for rank in range(RANKS)]
    assert sorted(''.join(names for *_, names in ranks)) == list('abdeg')
    assert [int(written) for written, *_ in ranks] == [len(names) for *_, names in ranks]
    assert [int(total) for _, total, _ in ranks] == [len(IDS)] * RANKS
    check_folder(tmp_path / 'out', expected)

import importlib
import json
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

from mmdscnet.datasets.read_rgb import read_rgb
from mmdscnet.inference import Finishing, Throughput, label_images, list_image_ids, stream_cams
from mmdscnet.inference import labeling as module
from mmdscnet.pseudo_labels import (
    DenseCRF,
    PseudoLabeler,
    PseudoLabelStore,
    read_cams,
    write_palette_png,
)

IDS = list('abcdefg')
SETTINGS = dict(kind='test')
HERE = Throughput(num_workers=0)
ONE_BY_ONE = Throughput(1, num_workers=0)
LABELER = PseudoLabeler(bg_thr=0.3, fg_thr=0.5)
MODES = [dict(), dict(image_labels=None)]
# Two images have no file in the end.
DAMAGED = ['b', 'g']
RANKS = 2


@pytest.fixture
def store(tmp_path):
    return PseudoLabelStore(tmp_path / 'store')


@pytest.fixture
def model(build_model):
    return build_model('cam')


@pytest.fixture
def dataset(build_dataset):
    return build_dataset()


@pytest.fixture
def own_dataset(build_dataset, own_voc_folder):
    """The seven images, for tests that damage their files."""
    return build_dataset(own_voc_folder)


def run(model, dataset, store, labeler=LABELER, throughput=HERE, skip_unreadable=False, **kwargs):
    finishing = Finishing(labeler, **kwargs)
    return label_images(
        model, dataset, store, SETTINGS, throughput, finishing, skip_unreadable, False
    )


def label_by_hand(model, dataset, labeler=LABELER, throughput=HERE, walk=None):
    """Label maps by image id."""
    result = {}
    for image in stream_cams(model, dataset, range(len(dataset)), throughput, False):
        pixels = read_rgb(image.image_path)
        result[image.image_id] = labeler.label(image.cams, pixels, walk)
    return result


def check_version(version, expected):
    assert sorted(path.stem for path in version.folder.glob('*.png')) == sorted(expected)
    for image_id, label_map in expected.items():
        found = np.array(Image.open(version.folder / f'{image_id}.png'))
        np.testing.assert_array_equal(found, label_map)
    version.verify()


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def break_at(monkeypatch, image_id):
    """Let the label map of an image fail."""

    def write(path, *args):
        if path.stem == image_id:
            raise RuntimeError('the power is gone')
        write_palette_png(path, *args)

    monkeypatch.setattr(module, 'write_palette_png', write)


@pytest.mark.parametrize('views', [None, {}], ids=['single', 'views'])
@pytest.mark.parametrize('mode', MODES, ids=['given', 'predicted'])
def test_every_image_gets_the_label_of_its_cams(model, build_dataset, store, views, mode):
    dataset = build_dataset(views=views, **mode)
    expected = label_by_hand(model, dataset)
    ids = set().union(*(np.unique(label_map).tolist() for label_map in expected.values()))
    assert {0, 255} < ids <= {0, 1, 2, 3, 255}
    version = run(model, dataset, store)
    assert store.current() == version
    check_version(version, expected)
    manifest = version.manifest
    assert manifest['classes'] == ['background', 'cat', 'dog', 'cow']
    assert manifest['settings']['kind'] == 'test'
    assert manifest['settings']['labeler'] == LABELER.settings()
    assert manifest['settings']['images']['number'] == 7
    assert manifest['skipped'] == {}


def test_second_run_makes_nothing_and_other_settings_make_a_version(
    model, dataset, store, read_files
):
    first = run(model, dataset, store)
    before = read_files(first.folder)
    assert run(model, dataset, store) == first
    assert read_files(first.folder) == before
    labeler = PseudoLabeler(bg_thr=0.1)
    second = run(model, dataset, store, labeler)
    assert second.number == 2
    assert store.current() == second
    check_version(second, label_by_hand(model, dataset, labeler))
    assert read_files(first.folder) == before


def test_other_images_are_another_version(model, build_dataset, store):
    run(model, build_dataset(), store)
    version = run(model, build_dataset(indices=[0, 3]), store)
    assert version.number == 2
    assert version.manifest['files'].keys() == {'a', 'd'}


def test_interrupted_run_goes_on_with_the_missing_images(
    model, dataset, store, read_files, monkeypatch
):
    labels = label_by_hand(model, dataset, throughput=ONE_BY_ONE)
    old = run(model, dataset, store, PseudoLabeler(bg_thr=0.1))
    with monkeypatch.context() as patch:
        break_at(patch, 'd')
        with pytest.raises(RuntimeError, match='d: RuntimeError: the power is gone'):
            run(model, dataset, store, throughput=ONE_BY_ONE)
    assert store.current() == old
    draft = store.version_folder(2)
    before = read_files(draft, '*.png')
    assert before.keys() == {'e.png', 'a.png', 'b.png'}
    version = run(model, dataset, store, throughput=ONE_BY_ONE)
    assert version.number == 2
    assert store.current() == version
    check_version(version, labels)
    assert before.items() <= read_files(draft).items()


def test_cams_are_kept_where_they_are_wanted(model, dataset, store, tmp_path):
    run(model, dataset, store, cam_folder=tmp_path / 'cams')
    images = list(stream_cams(model, dataset, range(7), HERE, False))
    assert sorted(path.stem for path in (tmp_path / 'cams').glob('*.npz')) == IDS
    for image in images:
        cams, class_ids = read_cams(tmp_path / 'cams' / f'{image.image_id}.npz')
        assert cams.dtype == np.float16
        np.testing.assert_array_equal(class_ids, image.cams.class_ids)
        np.testing.assert_array_equal(cams, image.cams.cams.astype(np.float16))
    assert 'labeler' not in json.loads((tmp_path / 'cams' / 'export.json').read_text())
    # They do not depend on the labels.
    run(model, dataset, store, PseudoLabeler(bg_thr=0.1), cam_folder=tmp_path / 'cams')


def test_only_missing_cams_are_made_and_label_maps_stay(
    model, dataset, store, tmp_path, read_files, monkeypatch
):
    cams = tmp_path / 'cams'
    version = run(model, dataset, store, cam_folder=cams)
    labels, before = read_files(version.folder), read_files(cams)
    (cams / 'b.npz').unlink()
    drawn = []
    monkeypatch.setattr(
        module, 'stream_cams', lambda *args: drawn.extend(args[2]) or stream_cams(*args)
    )
    assert run(model, dataset, store, cam_folder=cams) == version
    assert drawn == [1]
    after = read_files(cams)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before.keys() - {'b.npz'})
    # A version that is complete may be in use.
    assert read_files(version.folder) == labels


def test_folder_of_other_cams_is_refused(model, dataset, store, tmp_path):
    run(model, dataset, store, cam_folder=tmp_path / 'cams')
    finishing = Finishing(LABELER, cam_folder=tmp_path / 'cams')
    with pytest.raises(ValueError, match=r"other settings \(kind: 'test' there, 'new' now\)"):
        label_images(model, dataset, store, dict(kind='new'), HERE, finishing)
    assert store.current().number == 1


def test_unreadable_image_ends_a_run_and_what_is_there_stays(
    model, own_dataset, own_voc_folder, store, read_files, monkeypatch
):
    expected = label_by_hand(model, own_dataset, throughput=ONE_BY_ONE)
    old = run(model, own_dataset, store, PseudoLabeler(bg_thr=0.1))
    with monkeypatch.context() as patch:
        break_at(patch, 'c')
        with pytest.raises(RuntimeError, match='the power is gone'):
            run(model, own_dataset, store, throughput=ONE_BY_ONE)
    before = read_files(store.version_folder(2))
    whole = (own_voc_folder / 'JPEGImages' / 'g.jpg').read_bytes()
    cut(own_voc_folder / 'JPEGImages' / 'g.jpg')
    with pytest.raises(
        ValueError, match=r'g\.jpg cannot be read: .* is truncated.*stays: .*--skip-unreadable'
    ):
        run(model, own_dataset, store, throughput=ONE_BY_ONE)
    assert store.current() == old
    old.verify()
    assert read_files(store.version_folder(2)) == before
    (own_voc_folder / 'JPEGImages' / 'g.jpg').write_bytes(whole)
    check_version(run(model, own_dataset, store, throughput=ONE_BY_ONE), expected)


@pytest.mark.parametrize('num_workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_unreadable_images_are_left_out_and_listed(
    model, own_dataset, own_voc_folder, store, monkeypatch, num_workers
):
    expected = label_by_hand(model, own_dataset, throughput=ONE_BY_ONE)
    images = own_voc_folder / 'JPEGImages'
    cut(images / 'b.jpg')

    def stream_then_remove(*args):
        stream = stream_cams(*args)
        # The one that is cut is known before the batches begin, and the last one not yet read.
        yield next(stream)
        (images / 'g.jpg').unlink()
        yield from stream

    monkeypatch.setattr(module, 'stream_cams', stream_then_remove)
    throughput = Throughput(1, num_workers)
    version = run(model, own_dataset, store, throughput=throughput, skip_unreadable=True)
    assert store.current() == version
    skipped = version.manifest['skipped']
    assert skipped.keys() == {'b', 'g'}
    assert 'b.jpg is truncated' in skipped['b']
    assert 'No such file' in skipped['g']
    check_version(version, {key: expected[key] for key in 'acdef'})


def test_complete_version_stays_when_an_image_that_it_left_out_is_mended(
    model, own_dataset, own_voc_folder, store, tmp_path, read_files
):
    path = own_voc_folder / 'JPEGImages' / 'g.jpg'
    whole = path.read_bytes()
    cut(path)
    cams = tmp_path / 'cams'
    version = run(model, own_dataset, store, skip_unreadable=True, cam_folder=cams)
    before = read_files(version.folder)
    path.write_bytes(whole)
    assert run(model, own_dataset, store, cam_folder=cams) == version
    assert read_files(version.folder) == before
    version.verify()


def test_image_that_lost_only_its_cams_is_not_listed(
    model, own_dataset, own_voc_folder, store, tmp_path, monkeypatch
):
    cams = tmp_path / 'cams'
    with monkeypatch.context() as patch:
        break_at(patch, 'g')
        with pytest.raises(RuntimeError, match='the power is gone'):
            run(model, own_dataset, store, cam_folder=cams)
    (cams / 'b.npz').unlink()
    for image_id in DAMAGED:
        cut(own_voc_folder / 'JPEGImages' / f'{image_id}.jpg')
    version = run(model, own_dataset, store, skip_unreadable=True, cam_folder=cams)
    assert version.manifest['skipped'].keys() == {'g'}
    version.verify()


def test_version_of_no_image_is_refused(model, own_dataset, own_voc_folder, store):
    for path in (own_voc_folder / 'JPEGImages').iterdir():
        cut(path)
    with pytest.raises(ValueError, match=r'none of the 7 images can be read. .*a\.jpg is trunc'):
        run(model, own_dataset, store, skip_unreadable=True)
    assert store.current() is None


def test_other_classes_are_refused(model, build_dataset, store, read_files):
    version = run(model, build_dataset(), store)
    before = read_files(store.folder, '*/*')
    other = build_dataset(image_labels=None, metainfo=dict(classes=('background', *'xyz')))
    with pytest.raises(ValueError, match=r"the classes \['background', 'cat'.* used for .*'x'"):
        run(model, other, store)
    other = build_dataset(
        image_labels=None, check_files=False, metainfo=dict(classes=('background', 'x'))
    )
    with pytest.raises(ValueError, match='has 2 classes .* the network 4'):
        run(model, other, store)
    assert store.current() == version
    assert read_files(store.folder, '*/*') == before


def test_images_of_one_name_are_refused(build_dataset, own_voc_folder):
    images = own_voc_folder / 'JPEGImages'
    (images / 'more').mkdir()
    (images / 'more' / 'a.jpg').write_bytes((images / 'b.jpg').read_bytes())
    (own_voc_folder / 'split.txt').write_text('a\nmore/a\n')
    dataset = build_dataset(
        own_voc_folder,
        ann_file='split.txt',
        image_labels=None,
        data_prefix=dict(img_path='JPEGImages'),
    )
    with pytest.raises(ValueError, match=r"a\.jpg and .*more.a\.jpg would both be 'a'"):
        list_image_ids(dataset)


def test_images_are_listed_in_the_order_of_the_data_set(build_dataset):
    assert list_image_ids(build_dataset()) == IDS


def test_cams_walk_before_they_are_labelled(model, dataset, store):
    seen = {}

    def walk(image, cams):
        seen[image.shape[:2]] = cams.cams.dtype
        # Where the image is bright, the first class; else the background.
        bright = image.mean(axis=2) > 127
        scores = np.zeros((1 + len(cams.cams), *bright.shape), np.float32)
        scores[0] = 0.6
        scores[1:2] = np.where(bright, 0.9, 0.1)
        return scores

    version = run(model, dataset, store, walk=walk)
    expected = label_by_hand(model, dataset, walk=walk)
    check_version(version, expected)
    assert seen.keys() == {(40, 56), (56, 40), (48, 48), (33, 47)}
    bright = read_rgb(dataset.get_data_info(2)['img_path']).mean(axis=2) > 127
    np.testing.assert_array_equal(expected['c'], np.where(bright, 3, 0))


def test_crf_that_is_not_installed_is_named_before_anything_is_written(
    model, dataset, store, monkeypatch
):
    def refuse():
        raise ImportError('the dense CRF needs an optional package')

    monkeypatch.setattr(module, 'require_dense_crf', refuse)
    with pytest.raises(ImportError, match='optional package'):
        run(model, dataset, store, PseudoLabeler(crf=DenseCRF()))
    assert not store.folder.exists()


def test_crf_moves_the_edges_of_every_label_map(model, dataset, store):
    pytest.importorskip('pydensecrf')
    labeler = PseudoLabeler(bg_thr=0.3, crf=DenseCRF(num_steps=3))
    expected = label_by_hand(model, dataset, labeler)
    plain = label_by_hand(model, dataset, PseudoLabeler(bg_thr=0.3))
    assert any((expected[key] != plain[key]).any() for key in IDS)
    check_version(run(model, dataset, store, labeler), expected)


@pytest.mark.slow
def test_labelling_processes_change_nothing(model, dataset, tmp_path):
    labeler = PseudoLabeler(bg_thr=0.3, crf=DenseCRF(num_steps=3))
    if importlib.util.find_spec('pydensecrf') is None:
        labeler = LABELER
    versions = [
        run(
            model,
            dataset,
            PseudoLabelStore(tmp_path / f'store{number}'),
            labeler,
            num_processes=number,
            cam_folder=tmp_path / f'cams{number}',
        )
        for number in (0, 2)
    ]
    assert versions[0].manifest['files'] == versions[1].manifest['files']
    for image_id in IDS:
        paths = [tmp_path / f'cams{number}' / f'{image_id}.npz' for number in (0, 2)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def label_slowly(model, dataset, folder):
    """Body of the process that is killed."""
    torch.set_num_threads(1)

    def write(path, label_map, palette):
        time.sleep(0.2)
        write_palette_png(path, label_map, palette)

    module.write_palette_png = write
    run(model, dataset, PseudoLabelStore(folder / 'store'), throughput=ONE_BY_ONE)


def label_as_rank(rank, model, dataset, folder):
    """Body of one rank: label, and write what it got and what it wrote."""
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/init', rank=rank, world_size=RANKS
    )
    names = []

    def write(path, *args):
        names.append(path.stem)
        write_palette_png(path, *args)

    module.write_palette_png = write
    store = PseudoLabelStore(folder / 'ranks')
    version = run(model, dataset, store, throughput=ONE_BY_ONE, skip_unreadable=True)
    report = dict(names=names, skipped=version.manifest['skipped'], digest=version.digest())
    (folder / f'rank{rank}.json').write_text(json.dumps(report))
    dist.destroy_process_group()


@pytest.fixture
def here():
    """This module as a process that is started can import it; see tests/functional."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module(Path(__file__).stem)


@pytest.mark.slow
def test_killed_run_leaves_the_current_version_and_goes_on(
    model, dataset, store, tmp_path, read_files, here
):
    expected = label_by_hand(model, dataset, throughput=ONE_BY_ONE)
    old = run(model, dataset, store, PseudoLabeler(bg_thr=0.1))
    draft = store.version_folder(2)
    process = multiprocessing.get_context('spawn').Process(
        target=here.label_slowly, args=(model, dataset, tmp_path)
    )
    process.start()
    while process.is_alive() and len(list(draft.glob('*.png'))) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert store.current() == old
    before = read_files(draft, '*.png')
    assert 2 <= len(before) < len(IDS)
    version = run(model, dataset, store, throughput=ONE_BY_ONE)
    assert version.number == 2
    assert store.current() == version
    check_version(version, expected)
    assert before.items() <= read_files(draft).items()


@pytest.mark.slow
def test_ranks_write_what_one_process_writes(
    model, own_dataset, own_voc_folder, store, tmp_path, here
):
    for image_id in DAMAGED:
        cut(own_voc_folder / 'JPEGImages' / f'{image_id}.jpg')
    alone = run(model, own_dataset, store, throughput=ONE_BY_ONE, skip_unreadable=True)
    torch.multiprocessing.spawn(
        here.label_as_rank, args=(model, own_dataset, tmp_path), nprocs=RANKS
    )
    version = PseudoLabelStore(tmp_path / 'ranks').current()
    version.verify()
    assert version.manifest['files'] == alone.manifest['files']
    assert version.manifest['skipped'] == alone.manifest['skipped']
    assert version.manifest['skipped'].keys() == set(DAMAGED)
    reports = [json.loads((tmp_path / f'rank{rank}.json').read_text()) for rank in range(RANKS)]
    assert all(report['names'] for report in reports)
    assert sorted(reports[0]['names'] + reports[1]['names']) == list('acdef')
    for report in reports:
        assert report['digest'] == version.digest()
        assert report['skipped'] == version.manifest['skipped']

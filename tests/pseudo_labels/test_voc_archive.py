import os
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from mmdscnet.datasets.voc import voc_palette
from mmdscnet.pseudo_labels.palette_png import write_palette_png
from mmdscnet.pseudo_labels.voc_archive import write_voc_archive

PALETTE = voc_palette(21)
IDS = ['2008_000006', '2008_000002']


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for image_id in [*IDS, 'not_asked_for']:
        labels = rng.integers(0, 21, (6, 8), dtype=np.uint8)
        write_palette_png(tmp_path / 'maps' / f'{image_id}.png', labels, PALETTE)
    return tmp_path / 'maps'


def test_archive_has_the_layout_of_the_server(folder, tmp_path):
    write_voc_archive(tmp_path / 'out' / 'a.tar.gz', folder, IDS, PALETTE)
    assert os.listdir(tmp_path / 'out') == ['a.tar.gz']
    with tarfile.open(tmp_path / 'out' / 'a.tar.gz', 'r:gz') as archive:
        inside = 'results/VOC2012/Segmentation/comp6_test_cls'
        assert archive.getnames() == [f'{inside}/{image_id}.png' for image_id in sorted(IDS)]
        for member in archive.getmembers():
            assert member.isfile()
            packed = archive.extractfile(member).read()
            assert packed == (folder / os.path.basename(member.name)).read_bytes()


def test_competition_names_the_folder(folder, tmp_path):
    write_voc_archive(tmp_path / 'a.tar.gz', folder, IDS, PALETTE, competition='comp5')
    with tarfile.open(tmp_path / 'a.tar.gz') as archive:
        assert all('/comp5_test_cls/' in name for name in archive.getnames())


def test_same_maps_make_the_same_bytes(folder, tmp_path, monkeypatch):
    write_voc_archive(tmp_path / 'a.tar.gz', folder, IDS, PALETTE)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    now = time.time()
    monkeypatch.setattr(time, 'time', lambda: now + 1000)
    write_voc_archive(tmp_path / 'b.tar.gz', folder, IDS[::-1], PALETTE)
    assert (tmp_path / 'a.tar.gz').read_bytes() == (tmp_path / 'b.tar.gz').read_bytes()


def refusal_of(folder, message, kind=ValueError, ids=IDS, **arguments):
    target = folder.parent / 'out' / 'a.tar.gz'
    with pytest.raises(kind, match=message):
        write_voc_archive(target, folder, ids, **{'palette': PALETTE, **arguments})
    assert not target.parent.exists() or os.listdir(target.parent) == []


def test_missing_map_is_named_and_nothing_written(folder):
    message = r'1 of 3 images .* is 2010_000001\.png: predict the whole test split'
    refusal_of(folder, message, FileNotFoundError, ids=[*IDS, '2010_000001'])


@pytest.mark.parametrize('wrong', [21, 255])
def test_id_that_is_no_class_is_named_and_nothing_written(folder, wrong):
    labels = np.array([[0, wrong]], dtype=np.uint8)
    write_palette_png(folder / f'{IDS[0]}.png', labels, voc_palette(22))
    refusal_of(folder, rf'{IDS[0]}\.png has the ids \[{wrong}\].* 0\.\.20 and no void')


def test_grey_map_is_refused(folder):
    Image.new('L', (8, 6)).save(folder / f'{IDS[0]}.png')
    refusal_of(folder, rf"{IDS[0]}\.png has no palette of VOC's colours \(mode L\)")


@pytest.mark.parametrize('palette', [PALETTE[::-1], PALETTE[:20]])
def test_other_colours_are_refused(folder, palette):
    write_palette_png(folder / f'{IDS[0]}.png', np.zeros((6, 8), np.uint8), palette)
    refusal_of(folder, rf"{IDS[0]}\.png has no palette of VOC's colours \(mode P\)")


def test_whole_colormap_is_accepted(folder, tmp_path):
    labels = np.full((6, 8), 20, np.uint8)
    write_palette_png(folder / f'{IDS[0]}.png', labels, voc_palette(256))
    write_voc_archive(tmp_path / 'a.tar.gz', folder, IDS, PALETTE)


def test_arguments_are_checked(folder):
    refusal_of(folder, r"competition='comp4' must be one of", competition='comp4')
    refusal_of(folder, r'palette has shape \(2, 3\), not \(21, 3\)', palette=PALETTE[:2])
    refusal_of(folder, 'image_ids names 0 images', ids=[])

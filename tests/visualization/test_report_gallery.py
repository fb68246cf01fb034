import base64
import io
import re
import weakref
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mmdscnet.pseudo_labels.palette_png import fill_palette
from mmdscnet.visualization.report_gallery import SIDE, GalleryItem, draw_gallery


class Reader(HTMLParser):
    """Collects the tags and text of each item."""

    def __init__(self, html):
        super().__init__()
        self.items, self.texts, self.tags = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == 'article':
            self.items.append({'data': attrs, 'images': [], 'text': []})
        elif tag == 'img':
            self.items[-1]['images'].append(attrs)

    def handle_data(self, data):
        self.texts.append(data)
        if self.items:
            self.items[-1]['text'].append(data)


@pytest.fixture
def read_gallery(palette, classes):
    def read(*items, classes=classes):
        return Reader(''.join(draw_gallery(items, fill_palette(palette), classes)))

    return read


def headers(item):
    return [image['alt'].split(', ')[1] for image in item['images']]


def test_worst_comes_first_and_unknown_last(make_row, read_gallery):
    ious = [50, np.nan, 0, 100, 12.5]
    items = [GalleryItem(make_row(title=f'{iou}.jpg'), iou) for iou in ious]
    gallery = read_gallery(*items)
    titles = [item['text'][3] for item in gallery.items if item['text']]
    assert titles == ['0.jpg', '12.5.jpg', '50.jpg', '100.jpg', 'nan.jpg']
    assert [item['data']['data-iou'] for item in gallery.items][-2:] == ['100.0000', '']
    assert 'IoU unknown' in ''.join(gallery.items[-1]['text'])
    assert 'IoU 12.5 %' in ''.join(gallery.items[1]['text'])


def test_equal_images_keep_their_order(make_row, read_gallery):
    items = [GalleryItem(make_row(title=f'{name}.jpg'), 50) for name in 'cab']
    assert [i['text'][3] for i in read_gallery(*items).items] == ['c.jpg', 'a.jpg', 'b.jpg']


def test_pictures_are_jpegs_of_the_stated_size(make_row, read_gallery):
    row = make_row(375, 500, groups=np.ones((375, 500), np.uint8))
    (item,) = read_gallery(GalleryItem(row, 10)).items
    assert headers(item) == [
        'image',
        'CAM of cat',
        'refined CAM of cat',
        'groups: cat',
        'pseudo label: cat',
        'truth: cat',
    ]
    for image in item['images']:
        kind, data = image['src'].split(',')
        assert kind == 'data:image/jpeg;base64'
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (int(image['width']), int(image['height'])) == (SIDE, 165)


def test_column_that_no_image_fills_is_left_out(make_row, read_gallery):
    bare = GalleryItem(make_row(refined_cams=None, truth=None), 1)
    (item,) = read_gallery(bare).items
    assert headers(item) == ['image', 'CAM of cat', 'pseudo label: cat']
    assert 'not given' not in item['text']
    first, second = read_gallery(bare, GalleryItem(make_row(), 2)).items
    assert len(second['images']) == 5
    assert first['text'].count('not given') == 2


def test_classes_that_differ_are_told(make_row, read_gallery):
    truth = np.full((30, 40), 2, np.uint8)
    truth[0] = 255
    (item,) = read_gallery(GalleryItem(make_row(truth=truth), 0)).items
    text = ''.join(item['text'])
    assert 'missed: dog' in text
    assert 'not in truth: cat' in text
    assert item['data']['data-classes'] == '1 2'
    (item,) = read_gallery(GalleryItem(make_row(), 0)).items
    assert 'missed' not in ''.join(item['text'])


def test_choice_names_the_classes_of_the_gallery(make_row, read_gallery):
    gallery = read_gallery(GalleryItem(make_row(), 0), GalleryItem(make_row(), 1))
    options = [attrs['value'] for tag, attrs in gallery.tags if tag == 'option']
    assert options == ['', '1', 'worst', 'best']
    assert 'cat (2)' in gallery.texts
    # Without the script there is nothing to choose with.
    (controls,) = [attrs for _, attrs in gallery.tags if attrs.get('id') == 'controls']
    assert 'hidden' in controls


def test_legend_has_the_colours_of_the_classes(make_row, read_gallery):
    gallery = read_gallery(GalleryItem(make_row(), 0))
    styles = [attrs['style'] for tag, attrs in gallery.tags if attrs.get('class') == 'key']
    assert styles == ['background:#c80000', 'background:#0000c8', 'background:#e0e0c0']
    assert {'cat', 'dog', 'void', 'CAM, 0 to 1'} <= set(gallery.texts)


def test_names_are_escaped(make_row, read_gallery):
    name = '<script src="x">&\'.jpg'
    row = make_row(title=name, truth=np.zeros((30, 40), np.uint8))
    gallery = read_gallery(GalleryItem(row, 0), classes=('background', '<b onload="x">', 'dog'))
    assert {tag for tag, _ in gallery.tags}.isdisjoint({'script'})
    assert not any('onload' in attrs for _, attrs in gallery.tags)
    (item,) = gallery.items
    assert item['text'][3] == name
    assert ' · not in truth: <b onload="x">' in ''.join(item['text'])
    assert item['images'][1]['alt'] == f'{name}, CAM of <b onload="x">'


def test_no_item_is_said(read_gallery):
    assert read_gallery().texts[0] == 'No image was given.'


def test_items_are_not_kept(make_row, palette, classes):
    images = []

    def items():
        for number in range(5):
            row = make_row()
            images.append(weakref.ref(row.image))
            yield GalleryItem(row, number)
            # The caller may still hold the one it was given, and this loop its own.
            assert sum(image() is not None for image in images) <= 2

    draw_gallery(items(), fill_palette(palette), classes)
    assert len(images) == 5


@pytest.mark.parametrize('iou', [-1, 100.5, np.inf])
def test_iou_that_is_no_per_cent_is_named(make_row, read_gallery, iou):
    with pytest.raises(ValueError, match=rf'cow\.jpg: iou is {re.escape(str(iou))}; give per cent'):
        read_gallery(GalleryItem(make_row(), iou))


def test_map_that_does_not_fit_is_named(make_row, read_gallery):
    with pytest.raises(ValueError, match=r'cow\.jpg: groups has ids \[7\]'):
        read_gallery(GalleryItem(make_row(groups=np.full((30, 40), 7)), 0))

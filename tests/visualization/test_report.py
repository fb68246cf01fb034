import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from mmdscnet.visualization import CAMGridRow
from mmdscnet.visualization.report import MAX_POINTS, MINUS, UNKNOWN, write_report
from mmdscnet.visualization.report_gallery import GalleryItem

VOID_TAGS = {'meta', 'img', 'path', 'polyline', 'circle', 'rect'}


class Reader(HTMLParser):
    """Collects tags and texts by section, and fails where tags do not nest."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts = [], [], {}
        self.section = 'header'
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == 'section':
            self.section = attrs['id']
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.section, []).append(data)

    def text(self, section):
        return ' '.join(self.texts[section])

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.tags if name in attrs]


@pytest.fixture
def read_report(tmp_path, classes, palette):
    def read(*runs, gallery=(), title='A run', classes=classes, palette=palette, **options):
        path = tmp_path / 'report.html'
        write_report(path, title, runs, gallery, classes, palette, **options)
        return Reader(path.read_text(encoding='utf-8'))

    return read


def test_page_asks_for_nothing_outside(make_row, read_report, make_run, errors):
    gallery = [GalleryItem(make_row(), 5)]
    page = read_report(make_run(**errors), make_run('M0'), gallery=gallery)
    links = [*page.attributes('src'), *page.attributes('href')]
    assert len(links) == 5 + 5
    assert all(link.startswith(('data:image/jpeg;base64,', '#')) for link in links)
    for name in ('srcset', 'action', 'poster', 'data', 'xlink:href'):
        assert page.attributes(name) == []
    assert not any('url(' in style for style in page.attributes('style'))
    assert {tag for tag, _ in page.tags}.isdisjoint({'link', 'iframe', 'object', 'embed', 'base'})


def test_anchors_have_their_targets(read_report, make_run):
    page = read_report(make_run())
    assert {link[1:] for link in page.attributes('href')} <= set(page.attributes('id'))


def test_every_image_is_there_worst_first(make_row, read_report, make_run):
    ious = np.random.default_rng(0).permutation(20)
    gallery = (GalleryItem(make_row(title=f'{iou}.jpg'), float(iou)) for iou in ious)
    page = read_report(make_run(), gallery=gallery, num_left_out=7)
    titles = re.findall(r'(\d+)\.jpg', page.text('gallery'))
    assert titles == [str(iou) for iou in range(20)]
    assert '7 more judged images are not shown' in page.text('gallery')
    assert page.attributes('alt').count('0.jpg, image') == 1


def test_summary_compares_the_means(read_report, make_run):
    text = read_report(make_run(), make_run('M0', iou=[60, np.nan, 4])).text('header')
    assert '41.67' in text
    assert '32.00' in text
    assert '+9.67' in text
    assert 'M0' not in read_report(make_run()).text('header')


def test_facts_of_both_runs_share_a_table(read_report, make_run):
    other = make_run('M0', facts={'labels': 'predicted', 'seed': 3})
    text = read_report(make_run(), other).text('facts')
    assert re.findall(r'config|labels|seed', text.replace('configs/', '')) == [
        'config',
        'labels',
        'seed',
    ]
    assert {'given', 'predicted', '3'} <= set(text.split())
    assert 'None were given' in read_report(make_run(facts={})).text('facts')


def test_curve_names_chosen_and_best(read_report, make_run):
    text = read_report(make_run(), make_run('M0', chosen_thr=0.4)).text('threshold')
    assert 'M4: 44.74 at 0.3, chosen' in text
    assert 'M0: 50.00 at 0.4, chosen' in text
    assert text.count('best 50.00 at 0.4') == 2


def test_each_run_has_its_own_curve_and_losses(read_report, make_run):
    one, two = make_run(), make_run('M0')
    page = read_report(one, two)
    for run in ('run0', 'run1'):
        assert page.attributes('class').count(f'line {run}') == 2
        assert page.attributes('class').count(f'square {run}') == 1
    lines = read_report(one, two._replace(losses={})).attributes('class')
    assert (lines.count('line run0'), lines.count('line run1')) == (2, 1)
    assert 'No losses were given' in read_report(one._replace(losses={})).text('losses')


def test_bars_are_as_long_as_their_shares(read_report, make_run, errors):
    page = read_report(make_run(**errors), make_run('M0', iou=[60.5, np.nan, 100]))
    widths = [attrs['style'] for tag, attrs in page.tags if tag == 'i']
    shares = [80, 10, 60.5, 40, 30, 5, 0, 100]
    assert widths == [f'width:{share:.2f}%' for share in shares]


def test_table_has_the_numbers(read_report, make_run, errors):
    other = make_run('M0', iou=[80.001, 38.75, np.nan])
    page = read_report(make_run(**errors), other)
    lines = ''.join(page.texts['classes']).split('\n')
    table = lines[lines.index('IoUFPFNIoUIoU') :]
    assert [line for line in table if line] == [
        'IoUFPFNIoUIoU',
        # A difference that rounds to zero has no sign.
        'background80.0010.0010.0080.000.00',
        'cat40.0030.0030.0038.75+1.25',
        f'dog5.000.0095.00{UNKNOWN}{UNKNOWN}',
        f'mean41.6713.3345.0059.38{MINUS}17.71',
    ]


def test_table_leaves_out_shares_that_are_not_given(read_report, make_run, errors):
    assert 'FP' not in read_report(make_run()).text('classes')
    assert 'FP' in read_report(make_run(), make_run('M0', **errors)).text('classes')


def test_long_losses_are_averaged(read_report, monkeypatch, make_run):
    values = np.ones(10_000)
    values[2_000:4_000] = np.nan
    values[7_000] = -np.inf
    loss = {'loss': (np.arange(10_000), values), 'up': ([1, 1, 2], [1, 2, 3])}
    page = read_report(make_run(losses=loss))
    lines = [
        attrs['points'].split()
        for tag, attrs in page.tags
        if tag == 'polyline' and len(attrs['points'].split()) not in (3, 100)
    ]
    assert len(lines) == 3
    assert 0.7 * MAX_POINTS < sum(map(len, lines)) < 0.85 * MAX_POINTS
    assert len({point.split(',')[1] for line in lines for point in line}) == 1


def test_names_are_escaped(make_row, read_report, make_run):
    evil = '<script>alert("&")</script>'
    run = make_run(evil, facts={evil: evil}, losses={evil: ([1, 2], [1, 2])})
    gallery = [GalleryItem(make_row(title=evil), 0)]
    page = read_report(
        run,
        make_run(evil + '2'),
        gallery=gallery,
        title=evil,
        classes=('background', evil, 'dog'),
    )
    assert [tag for tag, _ in page.tags].count('script') == 1
    for section in ('facts', 'threshold', 'classes', 'losses', 'gallery'):
        assert evil in page.text(section)


def test_file_name_that_is_no_text_is_spelled_out(make_row, read_report, make_run):
    gallery = [GalleryItem(make_row(title=os.fsdecode(b'\xff.jpg')), 0)]
    assert r'\udcff.jpg' in read_report(make_run(), gallery=gallery).text('gallery')


def test_equal_input_gives_equal_bytes(tmp_path, make_row, classes, palette, make_run):
    for name in ('a.html', 'b.html'):
        gallery = [GalleryItem(make_row(), 3.0), GalleryItem(make_row(), np.nan)]
        write_report(tmp_path / name, 'A', [make_run(), make_run('M0')], gallery, classes, palette)
    assert (tmp_path / 'a.html').read_bytes() == (tmp_path / 'b.html').read_bytes()


def test_sixty_noisy_photos_stay_far_below_ten_megabytes(tmp_path, classes, palette, make_run):
    rng = np.random.default_rng(0)

    def noise():
        for number in range(60):
            cams = rng.random((2, 375, 500), dtype=np.float32)
            label_map = rng.integers(0, 3, (15, 20), dtype=np.uint8).repeat(25, 0).repeat(25, 1)
            image = rng.integers(0, 256, (375, 500, 3), dtype=np.uint8)
            row = CAMGridRow(image, cams, cams, label_map, label_map, f'{number}.jpg', label_map)
            yield GalleryItem(row, number)

    write_report(tmp_path / 'a.html', 'Noise', [make_run()], noise(), classes, palette)
    assert 1e6 < (tmp_path / 'a.html').stat().st_size < 7e6


def test_report_that_fails_leaves_the_old_one(tmp_path, make_row, classes, palette, make_run):
    path = tmp_path / 'folder' / 'report.html'
    write_report(path, 'old', [make_run()], [], classes, palette)
    before = path.read_bytes()
    bad = [GalleryItem(make_row(), 1), GalleryItem(make_row(), 101)]
    with pytest.raises(ValueError, match='iou is 101'):
        write_report(path, 'new', [make_run()], bad, classes, palette)
    assert path.read_bytes() == before
    write_report(path, 'new', [make_run()], bad[:1], classes, palette)
    assert path.read_bytes() != before
    assert os.listdir(path.parent) == ['report.html']


def test_run_that_does_not_fit_writes_nothing(tmp_path, read_report, make_run):
    with pytest.raises(ValueError, match=r'M4: iou has shape \(2,\)'):
        read_report(make_run(iou=[1, 2]))
    assert os.listdir(tmp_path) == []


def test_class_that_does_not_occur_has_no_shares(read_report, make_run, errors):
    nothing = {name: [shares[0], np.nan, shares[2]] for name, shares in errors.items()}
    page = read_report(make_run(iou=[80, np.nan, 5], **nothing))
    assert 'nan' not in page.text('classes')
    read_report(make_run(iou=[np.nan] * 3))


def test_palette_and_number_left_out_are_checked(read_report, palette, make_run):
    with pytest.raises(ValueError, match='palette has 2 colours for 3 classes'):
        read_report(make_run(), palette=palette[:2])
    with pytest.raises(ValueError, match='num_left_out is -1'):
        read_report(make_run(), num_left_out=-1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('chromium') is None, reason='no chromium')
def test_browser_runs_the_script_under_the_policy(tmp_path, make_row, classes, palette, make_run):
    path = tmp_path / 'report.html'
    gallery = [GalleryItem(make_row(), iou) for iou in (2.0, 1.0)]
    write_report(path, 'A', [make_run()], gallery, classes, palette)
    assert '<output class="note"></output>' in path.read_text()
    options = [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        f'--user-data-dir={tmp_path / "user"}',
    ]
    dom = subprocess.run(
        ['chromium', *options, '--dump-dom', path.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert '<output class="note">2 of 2 images</output>' in dom

"""The tool that turns a checkpoint into a store of pseudo labels, on a network of three images."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mmdscnet.pseudo_labels import read_cams, read_version

TOOL = 'export_pseudo_labels.py'


@pytest.fixture
def export(run_tool):
    def run(project, *args, out='store'):
        files = project / 'config.py', project / 'weights.pth'
        run_tool(TOOL, *files, '--out', project / out, '--num-workers', 0, *args)
        return read_version(project / out / 'current')

    return run


def test_split_becomes_the_current_version(export_project, export, capsys):
    project = export_project()
    version = export(project)
    assert sorted(version.manifest['files']) == ['a', 'b', 'c']
    version.verify()
    settings = version.manifest['settings']
    assert settings['labels'] == 'given'
    assert settings['labeler'] == dict(bg_thr=0.25, bg_alpha=None, fg_thr=None, crf=None)
    assert {'checkpoint', 'config', 'code', 'images'} <= settings.keys()
    image = Image.open(version.folder / 'a.png')
    assert image.mode == 'P'
    assert image.size == (40, 32)
    assert set(np.unique(np.asarray(image))) <= {0, 2}
    output = capsys.readouterr().out
    assert 'store/v0001: 3 images, 100.00 % of the pixels not void' in output
    assert 'over 3 images with masks (labels given)' in output


def test_second_run_changes_nothing_and_other_rules_make_a_new_version(export_project, export):
    project = export_project()
    first = export(project)
    manifest = (first.folder / 'manifest.json').read_bytes()
    assert export(project).number == 1
    assert (first.folder / 'manifest.json').read_bytes() == manifest
    other = export(project, '--bg-thr', 0.5, '--fg-thr', 0.7)
    assert other.number == 2
    assert other.manifest['pixels']['void'] > 0
    assert export(project, '--bg-alpha', 4).manifest['settings']['labeler']['bg_alpha'] == 4


def test_cams_are_kept_on_demand(export_project, export):
    project = export_project()
    export(project, '--keep-cams', project / 'cams')
    cams = read_cams(project / 'cams' / 'b.npz')
    assert cams.cams.dtype == np.float16
    assert cams.class_ids.tolist() == [1, 2]
    assert len(read_cams(project / 'cams' / 'c.npz').cams) == 0


def test_single_view_and_predicted_labels(export_project, export):
    project = export_project()
    version = export(project, '--single-view', '--labels', 'predicted')
    assert version.manifest['settings']['labels'] == 'predicted'
    assert version.manifest['settings']['label_source'] is None


def test_dense_crf_runs_in_processes(export_project, export):
    pytest.importorskip('pydensecrf')
    project = export_project()
    version = export(project, '--crf', 'num_steps=2')
    assert version.manifest['settings']['labeler']['crf']['num_steps'] == 2


class TestUnreadableImage:
    @pytest.fixture
    def project(self, export_project):
        project = export_project()
        path = project / 'data' / 'JPEGImages' / 'b.jpg'
        path.write_bytes(path.read_bytes()[:-200])
        return project

    def test_it_is_an_error_and_the_current_version_stays(self, export_project, export):
        project = export_project(name='fine')
        before = export(project)
        path = project / 'data' / 'JPEGImages' / 'b.jpg'
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ValueError, match=r'b\.jpg is truncated or no image'):
            export(project, '--bg-thr', 0.4)
        current = read_version(project / 'store' / 'current')
        assert current.manifest == before.manifest
        current.verify()

    def test_it_is_skipped_on_demand_and_listed(self, export, project, capsys):
        version = export(project, '--skip-unreadable')
        assert sorted(version.manifest['files']) == ['a', 'c']
        assert 'truncated' in version.manifest['skipped']['b']
        assert 'skipped b: image' in capsys.readouterr().out


def test_store_of_other_classes_is_refused(export_project, export):
    store = export(export_project()).folder.parent
    other = export_project(('bird', 'cow', 'dog', 'cat'), 'other')
    with pytest.raises(ValueError, match='was written for the classes'):
        export(other, out=store)


def test_config_without_views_asks_for_them(export_project, export):
    project = export_project()
    text = (project / 'config.py').read_text().replace('tta_pipeline =', 'other_pipeline =')
    (project / 'config.py').write_text(text)
    with pytest.raises(ValueError, match='no tta_pipeline.*--single-view'):
        export(project)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(export_project, export, repository, free_port):
    project = export_project()
    one = export(project)
    script = repository / 'tools' / 'dist_export_pseudo_labels.sh'
    files = project / 'config.py', project / 'weights.pth'
    subprocess.run(
        ['bash', script, *files, '2', '--out', project / 'two', '--num-workers', '0'],
        env=os.environ | dict(PYTHON=sys.executable, PORT=free_port),
        check=True,
        timeout=240,
    )
    two = read_version(project / 'two' / 'current')
    assert two.manifest['files'] == one.manifest['files']


STOCK = """
_base_ = []
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[63.75] * 3, bgr_to_rgb=True,
        size=(32, 32), seg_pad_val=255,
    ),
    backbone=dict(
        type='ResNet', depth=18, base_channels=4, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
        norm_cfg=dict(type='BN'),
    ),
    decode_head=dict(
        type='FCNHead', in_channels=32, in_index=3, channels=8, num_convs=1, concat_input=False,
        num_classes=21, norm_cfg=dict(type='BN'), loss_decode=dict(type='CrossEntropyLoss'),
    ),
    train_cfg=dict(), test_cfg=dict(mode='whole'),
)
train_dataloader = dict(
    batch_size=3, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='PascalVOCDataset', data_root={root!r},
        ann_file='ImageSets/Segmentation/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path={labels!r}),
        pipeline=[
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
            dict(type='RandomCrop', crop_size=(32, 32)), dict(type='PackSegInputs'),
        ],
    ),
)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=3)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False))
log_processor = dict(by_epoch=False)
log_level = 'WARNING'
work_dir = {work_dir!r}
"""


def test_stock_network_of_mmseg_trains_on_the_labels(export_project, export, tmp_path):
    from mmdscnet.datasets import VOC2012Dataset

    project = export_project(VOC2012Dataset.METAINFO['classes'][1:])
    folder = export(project).folder.parent / 'current'
    text = STOCK.format(
        root=str(project / 'data'), labels=str(folder), work_dir=str(tmp_path / 'stock')
    )
    (tmp_path / 'stock.py').write_text(text)
    runner = Runner.from_cfg(Config.fromfile(tmp_path / 'stock.py'))
    runner.train()
    (path,) = (tmp_path / 'stock').glob('*/vis_data/scalars.json')
    losses = [json.loads(line)['loss'] for line in path.read_text().splitlines()]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    # The labels came in: their classes are those of the store.
    (item, *_) = [runner.train_dataloader.dataset[index] for index in range(3)]
    ids = set(np.unique(item['data_samples'].gt_sem_seg.data))
    assert ids <= {0, 12}

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image

from mmdscnet.datasets.shapes import CLASSES, generate_shapes

SPLITS = 'ImageSets/Segmentation'


@pytest.fixture
def tool(load_tool):
    return load_tool('demo.py')


@pytest.fixture
def folder(tmp_path):
    """Folder of 16 + 3 tiny images in VOC's layout, in a folder of data sets."""
    path = tmp_path / 'data' / 'tiny'
    generate_shapes(path, splits=dict(train=16, val=3), image_size=48, seed=0)
    return path


@pytest.fixture
def cfg(repository):
    return Config.fromfile(repository / 'configs' / 'dscnet' / 'voc_animals.py')


@pytest.fixture
def runner():
    """Untrained M4 whose two classifiers disagree; all that the demo takes from its runner."""
    init_default_scope('mmseg')
    model = MODELS.build(
        ConfigDict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.5] * 3, std=[64.0] * 3),
            backbone=dict(type='ResNet', depth=18, base_channels=4, norm_cfg=dict(type='BN')),
            decode_head=dict(type='DSCHead', in_channels=32, num_classes=4, embed_channels=8),
            test_cfg=dict(mode='whole'),
        )
    )
    torch.nn.init.normal_(model.decode_head.classifier.weight)
    torch.nn.init.normal_(model.decode_head.refined_classifier.weight)
    return SimpleNamespace(model=model.eval())


@pytest.fixture
def item():
    sample = SegDataSample(metainfo=dict(img_path='folder/a.jpg', img_shape=(64, 48)))
    sample.set_metainfo(dict(ori_shape=(64, 48), gt_image_label=np.ones(3, dtype=np.float32)))
    truth = torch.randint(0, 4, (1, 64, 48), dtype=torch.uint8)
    sample.gt_sem_seg = PixelData(data=truth)
    image = torch.randint(0, 256, (3, 64, 48), dtype=torch.uint8)
    return dict(inputs=image, data_samples=sample)


# ------------------------------------------------------------------------------------ command line


@pytest.mark.parametrize(
    ('options', 'work_dir'),
    [
        ([], 'work_dirs/demo'),
        (['--data', 'sets/pets/'], 'work_dirs/demo/pets'),
        (['--data', '.'], 'work_dirs/demo/here'),
        (['--data', 'pets', '--work-dir', 'own'], 'own'),
    ],
)
def test_each_folder_of_images_has_its_own_work_dir(tool, tmp_path, monkeypatch, options, work_dir):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    monkeypatch.setattr(tool.sys, 'argv', ['demo.py', *options])
    assert tool.parse_args().work_dir == Path(work_dir)


# ------------------------------------------------------------------------------ a folder of images


def test_config_points_to_folder_and_classes(tool, cfg, folder):
    tool.use_folder(cfg, folder)
    loaders = [cfg[f'{loop}_dataloader'].dataset for loop in ('train', 'val', 'test')]
    assert [dataset.ann_file for dataset in loaders] == [
        f'{SPLITS}/train.txt',
        f'{SPLITS}/train.txt',
        f'{SPLITS}/val.txt',
    ]
    assert {dataset.data_root for dataset in loaders} == {str(folder)}
    assert all(dataset.metainfo.classes == ('background', *CLASSES) for dataset in loaders)
    assert cfg.model.decode_head.num_classes == 1 + len(CLASSES)


def test_mini_train_is_for_training_only(tool, cfg, folder):
    (folder / SPLITS / 'mini_train.txt').write_text('train_00000\n')
    tool.use_folder(cfg, folder)
    assert cfg.train_dataloader.dataset.ann_file == f'{SPLITS}/mini_train.txt'
    assert cfg.val_dataloader.dataset.ann_file == f'{SPLITS}/train.txt'


@pytest.mark.parametrize('name', ['image_labels.json', f'{SPLITS}/train.txt', f'{SPLITS}/val.txt'])
def test_missing_file_error_names_folder_and_file(tool, cfg, folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf'--data .*tiny has no {name}: README\.md'):
        tool.use_folder(cfg, folder)


def test_missing_folder_error_names_it(tool, cfg, tmp_path):
    with pytest.raises(FileNotFoundError, match='--data .*nowhere has no image_labels.json'):
        tool.use_folder(cfg, tmp_path / 'nowhere')


def test_label_list_without_classes_is_refused(tool, cfg, folder):
    path = folder / 'image_labels.json'
    path.write_text(json.dumps(json.loads(path.read_text())['labels']))
    with pytest.raises(ValueError, match='image_labels.json has no "classes": write'):
        tool.use_folder(cfg, folder)


# ------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize('place', ['data/weights', 'weights'])
def test_weights_are_found_beside_the_data(tool, folder, tmp_path, place):
    path = tmp_path / place / 'mobilenet_v2_imagenet.pth'
    path.parent.mkdir()
    path.touch()
    assert tool.find_weights(folder) == str(path)


def test_other_weights_are_not_taken(tool, folder, tmp_path):
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights' / 'resnet50.pth').touch()
    assert tool.find_weights(folder) is None


def test_missing_weights_error_names_them(tool, cfg):
    with pytest.raises(FileNotFoundError, match=r'--weights no\.pth is not a file: give a \.pth'):
        tool.use_weights(cfg, 'no.pth')


def test_weights_of_the_model_zoo_come_with_their_normalisation(tool, cfg, tmp_path):
    before = cfg.model.data_preprocessor.mean
    (tmp_path / 'own.pth').touch()
    tool.use_weights(cfg, str(tmp_path / 'own.pth'))
    assert cfg.model.backbone.init_cfg.checkpoint == str(tmp_path / 'own.pth')
    assert cfg.model.data_preprocessor.mean == before
    tool.use_weights(cfg, None)
    assert cfg.model.backbone.init_cfg.checkpoint == 'mmcls://mobilenet_v2'
    assert cfg.model.data_preprocessor.mean != before


# ------------------------------------------------------------------------------------------ configs


@pytest.mark.parametrize(('method', 'head'), [('M0', 'CAMHead'), ('M4', 'DSCHead')])
def test_without_a_folder_the_demo_takes_shapes(tool, tmp_path, method, head):
    args = SimpleNamespace(data=None, weights=None, work_dir=tmp_path)
    cfg = tool.make_config(args, method)
    assert cfg.train_dataloader.dataset.type == 'ShapesDataset'
    assert cfg.model.decode_head.type == head
    assert cfg.work_dir == str(tmp_path / method)
    assert cfg.custom_hooks[-1] == dict(type='ProgressHook', name=method)


def test_both_methods_train_for_the_same_steps(tool, tmp_path, folder):
    (tmp_path / 'own.pth').touch()
    for data in (None, folder):
        args = SimpleNamespace(data=data, weights=str(tmp_path / 'own.pth'), work_dir=tmp_path)
        plain, refined = (tool.make_config(args, method) for method in ('M0', 'M4'))
        assert plain.train_cfg == refined.train_cfg
        assert plain.param_scheduler == refined.param_scheduler
        assert plain.train_dataloader.batch_size == refined.train_dataloader.batch_size


# ----------------------------------------------------------------------------------------- pictures


def test_row_shows_the_plain_and_the_refined_cams(tool, runner, item):
    row = tool.grid_row(runner, item)
    head, inputs = runner.model.decode_head, item['inputs'][None].float()
    for maps, classifier in (
        (row.cams, head.classifier),
        (row.refined_cams, lambda feat: head([feat], torch.ones(1, 3))),
    ):
        with torch.no_grad():
            evidence = classifier(runner.model.backbone((inputs - 127.5) / 64)[-1])
        resized = torch.nn.functional.interpolate(evidence, (64, 48), mode='bilinear')[0].relu()
        peaks = resized.amax(dim=(1, 2), keepdim=True)
        np.testing.assert_allclose(maps, resized / peaks.clamp_min(1e-5), atol=1e-4)
    assert not np.allclose(row.cams, row.refined_cams, atol=1e-2)


def test_row_carries_image_truth_and_pseudo_label(tool, runner, item):
    row = tool.grid_row(runner, item)
    # The network takes BGR, pictures are RGB.
    assert np.array_equal(row.image[..., 0], item['inputs'][2].numpy())
    assert np.array_equal(row.truth, item['data_samples'].gt_sem_seg.data[0].numpy())
    background = np.full((1, 64, 48), runner.model.decode_head.bg_thr, dtype=np.float32)
    scores = np.concatenate([background, row.refined_cams])
    assert np.array_equal(row.pseudo_label, scores.argmax(axis=0))
    assert row.title == 'a.jpg'


def test_row_has_the_size_of_the_image_and_not_of_what_the_network_saw(tool, runner, item):
    item['inputs'] = torch.full((3, 96, 72), 100, dtype=torch.uint8)
    item['data_samples'].set_metainfo(dict(img_shape=(96, 72)))
    row = tool.grid_row(runner, item)
    assert np.array_equal(row.image, np.full((64, 48, 3), 100))
    assert row.cams.shape == row.refined_cams.shape == (3, 64, 48)
    assert row.pseudo_label.shape == row.truth.shape == (64, 48)


def test_model_refines_again_after_a_row(tool, runner, item):
    tool.grid_row(runner, item)
    assert runner.model.test_cfg.refine


# ---------------------------------------------------------------------------------------- the whole


@pytest.fixture
def weights(tmp_path):
    """Weights of an untrained MobileNetV2, named as mmpretrain names them."""
    init_default_scope('mmseg')
    backbone = MODELS.build(dict(type='MobileNetV2', norm_cfg=dict(type='BN')))
    state = {f'backbone.{name}': value for name, value in backbone.state_dict().items()}
    path = tmp_path / 'weights' / 'mobilenet_v2_untrained.pth'
    path.parent.mkdir()
    torch.save(dict(state_dict=state), path)


@pytest.mark.slow
@pytest.mark.usefixtures('weights')
def test_demo_runs_on_a_folder(tool, folder, tmp_path, monkeypatch, capsys):
    work_dir = tmp_path / 'demo'
    monkeypatch.setattr(tool, 'REAL_EPOCHS', 1)
    arguments = ['demo.py', '--data', str(folder), '--work-dir', str(work_dir)]
    monkeypatch.setattr(tool.sys, 'argv', arguments)
    tool.main()
    summary = json.loads((work_dir / 'summary.json').read_text())
    output = capsys.readouterr()
    assert list(summary) == ['M0', 'M4']
    for method, judgement in summary.items():
        assert 0 <= judgement['judged'] <= judgement['best'] <= 100
        assert judgement['labels'] == 'labels_given'
        assert f'  {method}: {judgement["judged"]:.2f} at bg_thr=' in output.out
        assert f'{method} [####################] 1/1 steps' in output.err
    for name in ('grid.png', 'threshold_curve.png'):
        assert min(Image.open(work_dir / name).size) > 100
    ids = {path.stem for path in (work_dir / 'pseudo_labels').glob('*.png')}
    assert ids == set((folder / SPLITS / 'train.txt').read_text().split())
    assert Image.open(work_dir / 'pseudo_labels' / 'train_00000.png').mode == 'P'

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmdscnet.datasets import VOC2012Dataset

VOC_CLASSES = VOC2012Dataset.METAINFO['classes'][1:]


@pytest.fixture
def tool(load_tool):
    return load_tool('analysis_tools/benchmark_export.py')


@pytest.fixture
def make_config(export_project):
    """Write a config with a data set of its own classes, or of those of VOC."""

    def make(classes=('cat', 'dog', 'cow')):
        folder = export_project(classes, name=f'classes{len(classes)}')
        kind = 'VOC2012Dataset' if classes == VOC_CLASSES else 'VOCLayoutDataset'
        text = (folder / 'config.py').read_text() + f'\ndataset_type = {kind!r}\n'
        if classes == VOC_CLASSES:
            text += "test_dataloader['dataset'].pop('metainfo')\n"
            text += 'test_dataloader["dataset"].update(type=dataset_type)\n'
        (folder / 'config.py').write_text(text)
        return folder / 'config.py'

    return make


@pytest.fixture
def run(tool, monkeypatch):
    def main(config, *args):
        options = ['--images', 3, '--size', 32, 40, '--repeats', 1, '--device', 'cpu', *args]
        argv = ['benchmark_export.py', *map(str, (config, *options))]
        monkeypatch.setattr(tool.sys, 'argv', argv)
        tool.main()

    return main


@pytest.fixture
def setting(tool, make_config, tmp_path):
    """A segmentor, the same in its ``tta_model``, and five items of random images."""
    path = make_config()
    cfg = tool.read_run_config(str(path))
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model).eval()
    model.load_state_dict(torch.load(path.parent / 'weights.pth'))
    args = tool.argparse.Namespace(images=5, size=(32, 40), classes_an_image=2)
    (tmp_path / 'images').mkdir()
    tool.write_images(tmp_path / 'images', args, ('cat', 'dog', 'cow'))
    plain = MODELS.build(dict(cfg.tta_model, module=model)).eval()
    return model, plain, tool.load_items(cfg, tmp_path / 'images')


def rows_of(table):
    """Cells of the rows below the header."""
    rows = [line.strip('| ').split(' | ') for line in table.splitlines() if line.startswith('| ')]
    return {row[0]: row[1:] for row in rows[1:]}


@pytest.mark.parametrize('batch_size', [1, 2, 5, 8])
def test_both_ways_give_the_same_cams(tool, setting, batch_size):
    model, plain, items = setting
    one_by_one = tool.export_plainly(plain, items)
    together = tool.export_in_batches(model, items, batch_size, torch.float32)
    assert [maps.shape for maps in one_by_one] == [(2, 32, 40)] * 5
    assert sum(maps.any() for maps in one_by_one) > 1
    for expected, maps in zip(one_by_one, together, strict=True):
        np.testing.assert_allclose(maps, expected, rtol=0, atol=1e-5)


def test_images_have_the_size_and_number_of_classes_and_come_in_all_views(setting):
    items = setting[2]
    assert [item['inputs'][2].shape for item in items] == [(3, 32, 40)] * 5
    assert [len(item['inputs']) for item in items] == [4] * 5
    labels = np.stack([item['data_samples'][0].gt_image_label for item in items])
    assert labels.sum(axis=1).tolist() == [2] * 5
    assert len(np.unique(labels, axis=0)) > 1


def test_report_has_a_row_a_way_with_speed_and_differences(tool, monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(tool.time, 'perf_counter', lambda: clock[0])

    def make_way(seconds, maps):
        def way():
            clock[0] += seconds
            return maps

        return way

    maps = [np.zeros((1, 2, 2)), np.zeros((2, 1, 2))]
    changed = [maps[0], maps[1] + [[[0.5, 0.25]]]]
    ways = {
        'plain': make_way(4.0, maps),
        'fast': make_way(1.0, changed),
        'same': make_way(8.0, maps),
    }
    args = tool.argparse.Namespace(config='a/b.py', images=2, size=(2, 4), repeats=3)
    tool.report(ways, args)
    out = capsys.readouterr().out
    assert out.startswith('a_b: 2 images of 2 x 4 in all views of the config, 3 rounds, torch ')
    assert rows_of(out) == {
        'plain': ['0.500', '1.00', '0.0e+00', '0.0e+00'],
        'fast': ['2.000', '4.00', '5.0e-01', '1.9e-01'],
        'same': ['0.250', '0.50', '0.0e+00', '0.0e+00'],
    }


def test_every_precision_is_a_way(make_config, run, capsys):
    run(make_config(), '--batch-size', 2, '--precisions', 'float32', 'bfloat16')
    rows = rows_of(capsys.readouterr().out)
    first = 'one image and view at a time, float32'
    assert list(rows) == [first, 'batches of 2, float32', 'batches of 2, bfloat16']
    assert float(rows['batches of 2, float32'][2]) < 1e-5
    assert float(rows['batches of 2, bfloat16'][2]) > 1e-5


def test_classes_may_be_those_of_voc(make_config, run, capsys):
    run(make_config(VOC_CLASSES), '--classes-an-image', 3)
    assert len(rows_of(capsys.readouterr().out)) == 2


def test_missing_config_is_named(run):
    with pytest.raises(FileNotFoundError, match=r"config 'no\.py' is not a file"):
        run('no.py')

import json
import sys

import numpy as np
import pytest
from PIL import Image

from mmdscnet.datasets import voc_palette
from mmdscnet.evaluation import judge_label_folder, sweep_cam_folder
from mmdscnet.pseudo_labels import PseudoLabelStore, write_cams, write_palette_png

TOOL = 'analysis_tools/eval_pseudo_labels.py'
CLASSES = ['background', 'cat', 'dog']
IDS = ['a', 'b', 'c', 'd']
PALETTE = voc_palette(3)


@pytest.fixture
def tool(load_tool):
    return load_tool(TOOL)


@pytest.fixture
def folder(tmp_path):
    """Four images with truth, label maps and CAMs, and a label map ``e`` without truth."""
    rng = np.random.default_rng(0)
    for index, image_id in enumerate([*IDS, 'e']):
        size = (6, 7 + index)
        truth = rng.choice([0, 1, 2, 255], size).astype(np.uint8)
        labels = np.where(rng.random(size) < 0.5, truth, rng.choice([0, 1, 255], size))
        write_palette_png(tmp_path / f'labels/{image_id}.png', labels.astype(np.uint8), PALETTE)
        if image_id != 'e':
            write_palette_png(tmp_path / f'truth/{image_id}.png', truth, PALETTE)
        cams = np.where(rng.random(size) < 0.7, truth == 1, rng.random(size))
        write_cams(tmp_path / f'cams/{image_id}.npz', cams[None], np.array([1]))
    for name, text in (('first', 'a\nb\n'), ('second', ' c \n\nd\n'), ('both', 'c\nb\n')):
        (tmp_path / f'{name}.txt').write_text(text)
    return tmp_path


@pytest.fixture
def evaluate(run_tool, folder, capsys):
    """Run the tool; give what it prints and what it writes."""

    def run(job, source, *args, classes=('--classes', *CLASSES)):
        out = folder / 'results' / 'scores.json'
        truth = ('--truth', folder / 'truth', '--jobs', 1)
        run_tool(TOOL, job, folder / source, *truth, '--out', out, *classes, *args)
        text = out.read_text()
        # As other languages read it: without NaN.
        return capsys.readouterr().out, json.loads(text, parse_constant=pytest.fail)

    return run


@pytest.fixture
def evaluate_cams(evaluate, folder):
    def run(*args, first='first', second='second', **kwargs):
        splits = ('--choose-on', folder / f'{first}.txt', '--apply-to', folder / f'{second}.txt')
        return evaluate('cams', 'cams', *splits, *args, **kwargs)

    return run


def row_of(text, name, number=0):
    """Cells of a row in one of the tables."""
    rows = [line for line in text.splitlines() if line.startswith(f'| {name} ')]
    return [cell.strip() for cell in rows[number].strip('|').split('|')][1:]


def test_label_maps_are_judged_with_void_and_without(evaluate, folder):
    text, scores = evaluate('labels', 'labels', '--split', folder / 'first.txt')
    expected = judge_label_folder(folder / 'labels', folder / 'truth', ['a', 'b'], CLASSES)
    counted, left_out = scores['void_counted'], scores['void_left_out']
    assert counted['mean']['iou'] == expected.mean_iou
    assert counted['mean']['recall'] == expected.mean_recall
    assert counted['per_class']['cat']['false_negative'] == expected.false_negative[1]
    assert counted['per_class']['cat']['precision'] == left_out['per_class']['cat']['precision']
    assert counted['mean']['iou'] < left_out['mean']['iou']
    assert scores['coverage'] == expected.coverage < 1
    assert scores['num_images'] == 2
    assert scores['split'] == str(folder / 'first.txt')
    cat = counted['per_class']['cat']
    columns = ('iou', 'precision', 'recall', 'false_positive', 'false_negative')
    assert row_of(text, 'cat') == [f'{cat[name]:.2f}' for name in columns]
    assert row_of(text, 'mean', 1) == [f'{left_out["mean"][name]:.2f}' for name in columns]
    assert f'2 images, {100 * expected.coverage:.2f} % of the judged pixels' in text


def test_without_split_all_label_maps_with_truth_are_judged(evaluate):
    text, scores = evaluate('labels', 'labels')
    assert scores['num_images'] == 4
    assert scores['num_without_truth'] == 1
    assert scores['split'] is None
    assert '1 label maps have no truth' in text


def test_scores_by_hand(evaluate, folder):
    write_palette_png(folder / 'truth/a.png', np.array([[0, 0, 1, 1]], np.uint8), PALETTE)
    write_palette_png(folder / 'labels/a.png', np.array([[0, 1, 1, 255]], np.uint8), PALETTE)
    (folder / 'first.txt').write_text('a')
    text, scores = evaluate('labels', 'labels', '--split', folder / 'first.txt')
    assert row_of(text, 'background') == ['50.00', '100.00', '50.00', '0.00', '50.00']
    assert row_of(text, 'cat') == ['33.33', '50.00', '50.00', '33.33', '33.33']
    # Nowhere.
    assert row_of(text, 'dog') == ['-'] * 5
    assert row_of(text, 'cat', 1) == ['50.00', '50.00', '100.00', '50.00', '0.00']
    assert scores['void_counted']['per_class']['dog']['iou'] is None
    assert scores['coverage'] == 0.75


def test_jobs_change_nothing(evaluate, evaluate_cams):
    for run in (lambda *args: evaluate('labels', 'labels', *args), evaluate_cams):
        assert run() == run('--jobs', 2)


def test_default_is_a_process_a_core(tool, monkeypatch):
    monkeypatch.setattr(tool.os, 'cpu_count', lambda: 7)
    monkeypatch.setattr(sys, 'argv', ['', 'labels', 'x', '--truth', 'y'])
    assert tool.parse_args().jobs == 7


def test_store_says_its_classes(evaluate, folder):
    draft = PseudoLabelStore(folder / 'store').begin({'any': 1}, CLASSES, PALETTE)
    for image_id in ('a', 'b'):
        draft.write(image_id, np.array(Image.open(folder / f'labels/{image_id}.png')))
    draft.publish(['a', 'b'])
    _, expected = evaluate('labels', 'labels', '--split', folder / 'first.txt')
    _, scores = evaluate('labels', 'store/current', classes=())
    assert scores['void_counted'] == expected['void_counted']
    with pytest.raises(ValueError, match=r"written for the classes \['background', 'cat', 'dog'\]"):
        evaluate('labels', 'store/current', classes=('--classes', 'background', 'dog', 'cat'))


@pytest.mark.parametrize('job', ['labels', 'cams'])
def test_export_says_its_classes(evaluate, evaluate_cams, folder, job):
    (folder / job / 'export.json').write_text(json.dumps(dict(classes=CLASSES)))
    run = evaluate_cams if job == 'cams' else lambda **kwargs: evaluate('labels', job, **kwargs)
    assert run(classes=()) == run()


@pytest.mark.parametrize('dataset', ["metainfo=dict(classes=('background', 'cat', 'dog'))", None])
def test_config_says_the_classes(evaluate, folder, dataset):
    dataset = dataset or "type='VOC2012Dataset'"
    config = folder / 'config.py'
    config.write_text(f'test_dataloader = dict(dataset=dict({dataset}))')
    _, scores = evaluate('labels', 'labels', classes=('--config', config))
    names = list(scores['void_counted']['per_class'])
    assert names == CLASSES or (len(names), names[:2]) == (21, ['background', 'aeroplane'])


def test_threshold_is_chosen_on_one_split_and_applied_to_another(evaluate_cams, folder):
    text, scores = evaluate_cams()
    first, second = (
        sweep_cam_folder(folder / 'cams', folder / 'truth', ids, 3)
        for ids in (['a', 'b'], ['c', 'd'])
    )
    assert scores['bg_thr'] == pytest.approx(first.best / 100)
    assert scores['thresholds'] == [index / 100 for index in range(100)]
    assert scores['chosen_on']['mIoU'] == float(first.mean_iou.max())
    assert scores['chosen_on']['curve'] == first.mean_iou.tolist()
    judged = scores['judged']
    assert judged['mIoU'] == float(second.mean_iou[first.best])
    assert judged['mean']['iou'] == pytest.approx(judged['mIoU'])
    assert judged['upper_bound_mIoU'] == float(second.mean_iou.max())
    assert judged['upper_bound_bg_thr'] == second.best / 100
    assert judged['num_images'] == 2
    # Or this would not tell one split's threshold from the other's.
    assert judged['mIoU'] < judged['upper_bound_mIoU']
    assert judged['per_class']['cat']['iou'] == second.scores_at(first.best).iou[1]
    assert f'bg_thr {scores["bg_thr"]:.2f}, chosen on first (2 images)' in text
    assert f'mIoU {judged["mIoU"]:.2f} on second (2 images) at this threshold' in text
    assert f'upper bound, not a result: mIoU {judged["upper_bound_mIoU"]:.2f} on second' in text
    assert row_of(text, 'cat')[0] == f'{judged["per_class"]["cat"]["iou"]:.2f}'


def test_curve_has_both_splits_and_the_chosen_threshold(evaluate_cams, folder):
    evaluate_cams('--curve', folder / 'figures' / 'curve.png')
    with Image.open(folder / 'figures' / 'curve.png') as image:
        assert image.format == 'PNG'
        assert min(image.size) > 400


def test_splits_of_one_name_are_told_apart(tool, folder):
    paths = folder / 'x' / 'train.txt', folder / 'y' / 'train.txt'
    assert tool.name_splits(*paths) == tuple(map(str, paths))
    assert tool.name_splits(folder / 'train.txt', folder / 'val.txt') == ('train', 'val')


def test_images_in_both_splits_are_told(evaluate_cams):
    text, scores = evaluate_cams(second='both')
    assert '1 of 2 judged images had a part in choosing the threshold' in text
    assert scores['num_shared_images'] == 1


def test_split_does_not_judge_its_own_threshold(evaluate_cams):
    with pytest.raises(ValueError, match=r'first\.txt are the same images: .*give two splits'):
        evaluate_cams(second='first')


def test_ids_without_meaning_are_refused(evaluate):
    with pytest.raises(ValueError, match=r'labels does not say what .*give --classes'):
        evaluate('labels', 'labels', classes=())


def test_config_without_classes_is_refused(evaluate, folder):
    config = folder / 'config.py'
    for dataset in ("type='VOCLayoutDataset'", "type='Unknown'", ''):
        config.write_text(f'test_dataloader = dict(dataset=dict({dataset}))')
        with pytest.raises(ValueError, match=r'config\.py names no classes.*give --classes'):
            evaluate('labels', 'labels', classes=('--config', config))


def test_damaged_settings_are_named(evaluate, folder):
    (folder / 'labels' / 'manifest.json').write_text('{')
    with pytest.raises(ValueError, match=r'manifest\.json is no JSON'):
        evaluate('labels', 'labels')


def test_missing_or_empty_files_are_named(evaluate, folder):
    with pytest.raises(FileNotFoundError, match=r'folder .*nowhere does not exist'):
        evaluate('labels', 'nowhere')
    with pytest.raises(FileNotFoundError, match=r'split .*no\.txt is not a file'):
        evaluate('labels', 'labels', '--split', folder / 'no.txt')
    (folder / 'first.txt').write_text('\n')
    with pytest.raises(ValueError, match=r'first\.txt is empty'):
        evaluate('labels', 'labels', '--split', folder / 'first.txt')


def test_label_maps_without_any_truth_are_refused(evaluate, folder):
    for path in (folder / 'truth').iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r'none of the 5 label maps in .*labels has a truth'):
        evaluate('labels', 'labels')


@pytest.mark.parametrize('missing', ['job', '--truth', '--choose-on'])
def test_incomplete_command_lines_are_refused(run_tool, folder, capsys, missing):
    args = {
        'job': [],
        '--truth': ['labels', folder],
        '--choose-on': ['cams', folder, '--truth', folder, '--apply-to', folder],
    }
    with pytest.raises(SystemExit) as caught:
        run_tool(TOOL, *args[missing])
    assert caught.value.code == 2
    assert missing in capsys.readouterr().err

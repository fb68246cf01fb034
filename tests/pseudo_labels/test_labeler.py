import json
import pickle
import sys

import numpy as np
import pytest
import torch

from mmdscnet.functional.pseudo_label import make_pseudo_labels
from mmdscnet.pseudo_labels import CAMs, DenseCRF, PseudoLabeler, dense_crf

HEIGHT, WIDTH = 12, 16
RULES = [
    dict(bg_thr=0.3),
    dict(bg_thr=0.0),
    dict(bg_thr=0.2, fg_thr=0.6),
    dict(bg_alpha=4.0),
    dict(bg_alpha=2.0, fg_thr=0.5),
]
# Without pairwise terms the probabilities of a CRF are its scores over their sum.
NO_PAIRS = dict(gaussian_compat=0, bilateral_compat=0)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def make_cams(values, class_ids, dtype=np.float32):
    return CAMs(np.asarray(values, dtype=dtype), np.asarray(class_ids, dtype=np.uint8))


def random_cams(class_ids, dtype=np.float32):
    rng = np.random.default_rng(1)
    return make_cams(rng.random((len(class_ids), HEIGHT, WIDTH)) ** 2, class_ids, dtype)


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('class_ids', [[1], [7, 3], [20, 1, 254]])
@pytest.mark.parametrize('rule', RULES)
def test_equals_the_labels_of_training(rule, class_ids, dtype):
    cams = random_cams(class_ids, dtype)
    labels = PseudoLabeler(**rule).label(cams)
    assert labels.dtype == np.uint8
    # As a network has them: all classes, and zero for those that the image does not have.
    everything = torch.zeros(1, 254, HEIGHT, WIDTH)
    everything[0, np.array(class_ids) - 1] = torch.from_numpy(cams.cams.astype(np.float32))
    expected = make_pseudo_labels(everything, **{'bg_thr': 0.25, **rule})[0]
    np.testing.assert_array_equal(labels, expected)
    assert set(np.unique(labels)) <= {0, 255, *class_ids}
    assert (255 in labels) == ('fg_thr' in rule)


def test_constant_rule_by_hand():
    cams = make_cams([[[0.1, 0.4, 0.9, 0.2]], [[0.1, 0.3, 0.1, 0.7]]], [5, 2])
    assert PseudoLabeler(bg_thr=0.2).label(cams).tolist() == [[0, 5, 5, 2]]
    assert PseudoLabeler(bg_thr=0.2, fg_thr=0.6).label(cams).tolist() == [[0, 255, 5, 2]]


def test_power_rule_by_hand():
    # (1 - 0.3)^2 = 0.49, (1 - 0.5)^2 = 0.25 and (1 - 0.9)^2 = 0.01.
    cams = make_cams([[[0.3, 0.5, 0.9]]], [5])
    assert PseudoLabeler(bg_alpha=2).label(cams).tolist() == [[0, 5, 5]]
    assert PseudoLabeler(bg_alpha=2, fg_thr=0.6).label(cams).tolist() == [[0, 255, 5]]


def test_background_wins_ties_and_then_the_first_class():
    cams = make_cams([[[0.25, 0.5]], [[0.25, 0.5]]], [9, 4])
    assert PseudoLabeler(bg_thr=0.25).label(cams).tolist() == [[0, 9]]
    # 1 - 0.5 = 0.5.
    assert PseudoLabeler(bg_alpha=1).label(cams).tolist() == [[0, 0]]


def test_score_at_the_upper_threshold_is_no_void():
    cams = make_cams([[[0.5, 0.4990234375]]], [3], np.float16)
    assert PseudoLabeler(bg_thr=0.25, fg_thr=0.5).label(cams).tolist() == [[3, 255]]


@pytest.mark.parametrize('rule', [*RULES, dict(crf=DenseCRF()), dict(bg_thr=0, fg_thr=1)])
def test_image_with_no_class_is_background(image, rule, monkeypatch):
    # A single class needs no CRF, whether it is installed or not.
    monkeypatch.setitem(sys.modules, 'pydensecrf', None)
    labels = PseudoLabeler(**rule).label(make_cams(np.zeros((0, HEIGHT, WIDTH)), []), image)
    assert labels.dtype == np.uint8
    assert labels.shape == (HEIGHT, WIDTH)
    assert not labels.any()


def test_scores_are_the_background_and_the_cams():
    cams = random_cams([3, 8], np.float16)
    for labeler in (PseudoLabeler(bg_thr=0.4), PseudoLabeler(bg_alpha=3)):
        scores = labeler.score(cams)
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(scores[1:], cams.cams)
        background = 0.4 if labeler.bg_alpha is None else (1 - scores[1:].max(axis=0)) ** 3
        np.testing.assert_allclose(scores[0], np.broadcast_to(background, scores[0].shape), 1e-6)


def test_cams_are_left_as_they_were():
    cams = random_cams([3, 8])
    before = cams.cams.copy()
    PseudoLabeler(fg_thr=0.5).label(cams)
    np.testing.assert_array_equal(cams.cams, before)


@pytest.mark.parametrize('rule', [dict(bg_thr=0.3), dict(bg_alpha=4.0)])
@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_crf_sees_the_background_and_every_class(image, rule, dtype):
    pytest.importorskip('pydensecrf')
    cams = random_cams([20, 3], dtype)
    labeler = PseudoLabeler(crf=DenseCRF(num_steps=4), **rule)
    scores = PseudoLabeler(**rule).score(cams)
    expected = dense_crf.label(image, scores, labeler.crf, np.ones(3, bool))
    labels = labeler.label(cams, image)
    np.testing.assert_array_equal(labels, np.array([0, 20, 3], np.uint8)[expected])
    assert (labels != PseudoLabeler(**rule).label(cams)).any()


def test_ignore_band_follows_the_crf(image):
    pytest.importorskip('pydensecrf')
    # 0.9 / 1.2 = 0.75 and 0.5 / 0.8 = 0.625: the threshold is one of probabilities.
    values = np.full((1, HEIGHT, WIDTH), 0.9)
    values[:, :, 8:] = 0.5
    labeler = PseudoLabeler(bg_thr=0.3, fg_thr=0.7, crf=NO_PAIRS)
    labels = labeler.label(make_cams(values, [6]), image)
    assert (labels[:, :8] == 6).all()
    assert (labels[:, 8:] == 255).all()
    scores = PseudoLabeler(bg_thr=0.3).score(random_cams([6, 9]))
    labeler = PseudoLabeler(bg_thr=0.3, fg_thr=0.7, crf=DenseCRF(num_steps=2))
    refined = dense_crf.refine(image, scores, labeler.crf, np.ones(3, bool))
    expected = np.array([0, 6, 9])[refined.argmax(axis=0)]
    expected[(expected > 0) & (refined.max(axis=0) < 0.7)] = 255
    np.testing.assert_array_equal(labeler.label(random_cams([6, 9]), image), expected)


def test_class_that_wins_nowhere_takes_part_in_the_crf(image):
    pytest.importorskip('pydensecrf')
    # With it 0.9 has a probability of 0.9 / 1.5 = 0.6, without it one of 0.75.
    cams = make_cams(np.full((2, HEIGHT, WIDTH), [[[0.9]], [[0.3]]]), [6, 2])
    assert (PseudoLabeler(0.3, fg_thr=0.65, crf=NO_PAIRS).label(cams, image) == 255).all()
    assert (PseudoLabeler(0.3, fg_thr=0.55, crf=NO_PAIRS).label(cams, image) == 6).all()


def test_crf_may_be_a_mapping():
    labeler = PseudoLabeler(crf=dict(num_steps=3))
    assert labeler.crf == DenseCRF(num_steps=3)
    assert labeler == PseudoLabeler(crf=DenseCRF(num_steps=3))
    assert PseudoLabeler(crf={}).crf == DenseCRF()
    with pytest.raises(ValueError, match='stride'):
        PseudoLabeler(crf=dict(stride=3))


def test_missing_crf_is_named(image, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydensecrf', None)
    with pytest.raises(ImportError, match='pip install pydensecrf2'):
        PseudoLabeler(crf={}).label(random_cams([1]), image)


def test_walk_takes_the_place_of_the_background(image):
    cams = random_cams([9, 4])
    walked = np.zeros((3, HEIGHT, WIDTH), np.float32)
    walked[0], walked[1, :, :8], walked[2, 4:] = 0.3, 0.9, 0.5
    seen = []

    def walk(*given):
        seen.append(given)
        return walked

    labels = PseudoLabeler(bg_thr=0.99, fg_thr=None).label(cams, image, walk)
    assert seen[0][0] is image
    assert seen[0][1] is cams
    expected = np.zeros((HEIGHT, WIDTH))
    expected[4:], expected[:, :8] = 4, 9
    np.testing.assert_array_equal(labels, expected)
    banded = PseudoLabeler(bg_thr=0.2, fg_thr=0.6).label(cams, image, walk)
    np.testing.assert_array_equal(banded, np.where(expected == 4, 255, expected))
    scored = PseudoLabeler().label_scores(walked, cams.class_ids)
    np.testing.assert_array_equal(scored, expected)


def test_walk_and_crf_follow_each_other(image):
    pytest.importorskip('pydensecrf')
    walked = np.random.default_rng(2).random((2, HEIGHT, WIDTH), dtype=np.float32)
    labels = PseudoLabeler(crf={}).label(random_cams([7]), image, lambda *_: walked)
    expected = dense_crf.label(image, walked, DenseCRF(), np.ones(2, bool))
    np.testing.assert_array_equal(labels, 7 * expected)


def test_all_ids_of_a_byte_can_be_labelled():
    values = np.zeros((254, 1, 254), np.float16)
    values[np.arange(254), 0, np.arange(254)] = 1
    labels = PseudoLabeler().label(make_cams(values, np.arange(254, 0, -1), np.float16))
    assert labels[0].tolist() == list(range(254, 0, -1))


@pytest.mark.parametrize('crf', [None, {}])
def test_image_is_wanted_where_it_is_needed(crf):
    labeler = PseudoLabeler(crf=crf)
    assert labeler.needs_image == (crf is not None)
    walk = None if labeler.needs_image else lambda *_: pytest.fail('walked without an image')
    with pytest.raises(ValueError, match=r'needs the image beside its CAMs: give image='):
        labeler.label(random_cams([1]), walk=walk)
    with pytest.raises(ValueError, match=r'size \(12, 16\) and the image \(16, 12\).*very images'):
        labeler.label(random_cams([1]), np.zeros((WIDTH, HEIGHT, 3), np.uint8), walk)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(bg_thr=-0.1), r'bg_thr=-0\.1 must lie in \[0, 1\)'),
        (dict(bg_thr=1), r'bg_thr=1 must lie'),
        (dict(bg_thr=float('nan')), r'bg_thr=nan must lie'),
        (dict(bg_alpha=0), r'bg_alpha=0 must be positive and finite, or None'),
        (dict(bg_alpha=-2.0), r'bg_alpha=-2\.0 must be positive'),
        (dict(bg_alpha=float('nan')), r'bg_alpha=nan must be positive'),
        (dict(bg_alpha=float('inf')), r'bg_alpha=inf must be positive and finite'),
        (dict(bg_thr=0.5, fg_thr=0.4), r'fg_thr=0\.4 must lie in \[0\.5, 1\].*None for no ignore'),
        (dict(fg_thr=1.1), r'fg_thr=1\.1 must lie in \[0\.25, 1\]'),
        (dict(fg_thr=float('nan')), r'fg_thr=nan must lie'),
        (dict(bg_alpha=4, fg_thr=-0.1), r'fg_thr=-0\.1 must lie in \[0, 1\]'),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabeler(**settings)


def test_band_of_the_power_rule_has_no_lower_end():
    assert PseudoLabeler(bg_thr=0.5, bg_alpha=4, fg_thr=0.1).fg_thr == 0.1


@pytest.mark.parametrize('labeler', [PseudoLabeler(), PseudoLabeler(0.1, 4.0, 0.5, DenseCRF())])
def test_goes_to_other_processes_and_into_a_manifest(labeler):
    assert pickle.loads(pickle.dumps(labeler)) == labeler
    settings = json.loads(json.dumps(labeler.settings(), allow_nan=False))
    assert settings == labeler.settings()
    assert PseudoLabeler(**settings) == labeler


def test_settings_tell_different_labelers_apart():
    labelers = [PseudoLabeler(**rule) for rule in RULES]
    labelers += [PseudoLabeler(crf={}), PseudoLabeler(crf=dict(num_steps=2))]
    described = {json.dumps(labeler.settings(), sort_keys=True) for labeler in labelers}
    assert len(described) == len(labelers)

import numpy as np
import pytest

from mmdscnet.pseudo_labels import CAMs, DenseCRF, dense_crf, label_for_affinity

# Without pairwise terms a CRF is the argmax of its scores.
NO_CRF = DenseCRF(gaussian_compat=0, bilateral_compat=0)
ALPHAS = (4.0, 24.0)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def make_cams(values, class_ids):
    return CAMs(np.asarray(values, dtype=np.float16), np.asarray(class_ids, dtype=np.uint8))


def label_naively(image, cams, alphas, settings):
    """The labels of all 21 classes by the formula."""
    maps = []
    for alpha in alphas:
        scores = np.zeros((21, *image.shape[:2]), dtype=np.float32)
        scores[cams.class_ids] = cams.cams
        scores[0] = (1 - scores[1:].max(axis=0)) ** alpha
        present = np.isin(np.arange(21), [0, *cams.class_ids])
        maps.append(dense_crf.label(image, scores, settings, present))
    bold, timid = maps
    return np.where(bold == timid, bold, 255)


def test_values_by_hand():
    pytest.importorskip('pydensecrf')
    # (1 - cam)^4 and (1 - cam)^24 against the cam: background in both, in the first, in none.
    cams = make_cams([[[0.01, 0.15, 0.6]]], [7])
    image = np.zeros((1, 3, 3), np.uint8)
    np.testing.assert_array_equal(label_for_affinity(image, cams, ALPHAS, NO_CRF), [[0, 255, 7]])


@pytest.mark.parametrize('settings', [NO_CRF, DenseCRF()])
def test_labels_equal_the_formula(image, settings):
    pytest.importorskip('pydensecrf')
    cams = np.random.default_rng(1).random((2, 12, 16)) ** 4
    cams = make_cams(cams, [3, 20])
    labels = label_for_affinity(image, cams, ALPHAS, settings)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, label_naively(image, cams, ALPHAS, settings))
    if settings is NO_CRF:
        assert set(np.unique(labels)) == {0, 3, 20, 255}


def test_class_that_wins_nowhere_may_win_by_the_crf(image):
    taking_part = []

    def spy(image, scores, settings, present=None):
        taking_part.append(None if present is None else present.tolist())
        return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_crf, 'refine', spy)
        weak = np.stack([np.full((12, 16), 0.9), np.full((12, 16), 0.1)])
        label_for_affinity(image, make_cams(weak, [1, 2]), ALPHAS, NO_CRF)
    assert taking_part == [[True] * 3] * 2


def test_classes_may_come_in_any_order(image):
    pytest.importorskip('pydensecrf')
    values = np.random.default_rng(1).random((3, 12, 16)) ** 3
    expected = label_for_affinity(image, make_cams(values, [2, 5, 9]), ALPHAS, DenseCRF())
    shuffled = make_cams(values[[2, 0, 1]], [9, 2, 5])
    labels = label_for_affinity(image, shuffled, ALPHAS, DenseCRF())
    # The CRF sums in the order of the classes.
    assert (labels == expected).mean() > 0.99


def test_image_with_no_class_is_background(image):
    labels = label_for_affinity(image, make_cams(np.zeros((0, 12, 16)), []), ALPHAS, DenseCRF())
    assert labels.dtype == np.uint8
    assert labels.shape == (12, 16)
    assert not labels.any()


@pytest.mark.parametrize(('value', 'label'), [(0.0, 0), (1.0, 4)])
def test_cam_without_doubt_has_no_void(image, value, label):
    pytest.importorskip('pydensecrf')
    cams = make_cams(np.full((1, 12, 16), value), [4])
    assert (label_for_affinity(image, cams, ALPHAS, DenseCRF()) == label).all()


def test_equal_exponents_leave_no_doubt(image):
    pytest.importorskip('pydensecrf')
    cams = make_cams(np.random.default_rng(1).random((2, 12, 16)), [1, 2])
    assert 255 not in label_for_affinity(image, cams, (8.0, 8.0), NO_CRF)


def test_cams_of_another_size_are_refused(image):
    cams = make_cams(np.zeros((1, 16, 12)), [1])
    with pytest.raises(ValueError, match=r'size \(16, 12\) and the image \(12, 16\).*very images'):
        label_for_affinity(image, cams, ALPHAS, DenseCRF())

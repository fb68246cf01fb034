import sys

import numpy as np
import pytest

from mmdscnet.pseudo_labels import dense_crf
from mmdscnet.pseudo_labels.dense_crf import DenseCRF, label, refine, require_dense_crf

HEIGHT, WIDTH, EDGE = 24, 36, 18
SETTINGS = DenseCRF()


@pytest.fixture
def crf():
    return pytest.importorskip('pydensecrf.densecrf')


@pytest.fixture
def image():
    """Blue on the left of EDGE, yellow on the right, with a little noise."""
    image = np.full((HEIGHT, WIDTH, 3), (30, 40, 180), dtype=np.uint8)
    image[:, EDGE:] = (220, 200, 40)
    return image + np.random.default_rng(0).integers(0, 8, image.shape, dtype=np.uint8)


def scores_with_edge(column, num_classes=2):
    """Background on the left of a column and class 1 on the right, both unsure."""
    scores = np.zeros((num_classes, HEIGHT, WIDTH), dtype=np.float32)
    scores[0], scores[1] = 0.6, 0.4
    scores[:2, :, column:] = scores[1::-1, :, column:]
    return scores


@pytest.mark.usefixtures('crf')
@pytest.mark.parametrize('column', [EDGE - 4, EDGE + 4])
def test_edge_of_the_labels_moves_to_the_edge_of_the_image(image, column):
    scores = scores_with_edge(column)
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    expected[:, EDGE:] = 1
    assert not np.array_equal(scores.argmax(axis=0), expected)
    labels = label(image, scores, SETTINGS)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.usefixtures('crf')
def test_rows_and_columns_are_not_exchanged(image):
    upright = refine(image, scores_with_edge(EDGE + 4), SETTINGS)
    scores = np.ascontiguousarray(scores_with_edge(EDGE + 4).transpose(0, 2, 1))
    lying = refine(np.ascontiguousarray(image.transpose(1, 0, 2)), scores, SETTINGS)
    np.testing.assert_allclose(lying.transpose(0, 2, 1), upright, atol=1e-4)


@pytest.mark.usefixtures('crf')
def test_probabilities_sum_to_one_over_the_present_classes(image):
    scores = np.random.default_rng(0).random((5, HEIGHT, WIDTH), dtype=np.float32)
    present = np.array([True, False, True, True, False])
    refined = refine(image, scores, SETTINGS, present)
    assert refined.dtype == np.float32
    assert refined.flags.c_contiguous
    assert refined.shape == scores.shape
    assert refined.min() >= 0
    np.testing.assert_allclose(refined.sum(axis=0), 1, atol=1e-5)
    assert np.count_nonzero(refined[~present]) == 0
    assert set(np.unique(label(image, scores, SETTINGS, present))) <= {0, 2, 3}


@pytest.mark.usefixtures('crf')
def test_classes_that_win_nowhere_are_left_out_by_default(image):
    scores = scores_with_edge(EDGE, num_classes=4)
    scores[2] = 0.3
    refined = refine(image, scores, SETTINGS)
    present = np.array([True, True, False, False])
    np.testing.assert_array_equal(refined, refine(image, scores, SETTINGS, present))


@pytest.mark.usefixtures('crf')
def test_background_takes_part_even_if_it_wins_nowhere(image):
    scores = scores_with_edge(EDGE + 4, num_classes=3)[[2, 0, 1]]
    scores[0] = 0.1
    assert refine(image, scores, SETTINGS)[0].max() > 0


@pytest.mark.usefixtures('crf')
def test_leaving_out_hopeless_classes_changes_no_label(image):
    scores = scores_with_edge(EDGE + 3, num_classes=6)
    everything = label(image, scores, SETTINGS, np.ones(6, dtype=bool))
    np.testing.assert_array_equal(label(image, scores, SETTINGS), everything)


@pytest.mark.usefixtures('crf')
def test_label_is_the_argmax_of_the_probabilities(image):
    scores = np.random.default_rng(0).random((5, HEIGHT, WIDTH))
    present = np.array([False, True, False, True, True])
    expected = refine(image, scores, SETTINGS, present).argmax(axis=0)
    np.testing.assert_array_equal(label(image, scores, SETTINGS, present), expected)


@pytest.mark.usefixtures('crf')
def test_equals_the_library_called_as_its_manual_says(crf, image):
    utils = pytest.importorskip('pydensecrf.utils')
    scores = np.random.default_rng(0).random((3, HEIGHT, WIDTH), dtype=np.float32)
    settings = DenseCRF(2, 4, 30, 9, 5, num_steps=3)
    model = crf.DenseCRF2D(WIDTH, HEIGHT, 3)
    model.setUnaryEnergy(utils.unary_from_softmax(scores / scores.sum(axis=0)))
    model.addPairwiseGaussian(sxy=2, compat=4)
    model.addPairwiseBilateral(sxy=30, srgb=9, rgbim=image, compat=5)
    expected = np.array(model.inference(3)).reshape(scores.shape)
    np.testing.assert_allclose(refine(image, scores, settings), expected, atol=1e-5)


@pytest.mark.usefixtures('crf')
def test_same_input_gives_same_bits(image):
    scores = np.random.default_rng(0).random((4, HEIGHT, WIDTH), dtype=np.float32)
    first = refine(image, scores, SETTINGS)
    np.testing.assert_array_equal(refine(image, scores, SETTINGS), first)


@pytest.mark.usefixtures('crf')
def test_unit_of_the_scores_does_not_matter(image):
    scores = scores_with_edge(EDGE + 4)
    expected = refine(image, scores, SETTINGS)
    np.testing.assert_allclose(refine(image, 512 * scores, SETTINGS), expected, atol=1e-6)


@pytest.mark.usefixtures('crf')
def test_arguments_are_left_as_they_were(image):
    scores = scores_with_edge(EDGE + 4).astype(np.float16)
    image.flags.writeable = scores.flags.writeable = False
    assert np.isfinite(refine(image, scores, SETTINGS)).all()
    assert np.isfinite(refine(image[:, ::-1], scores[:, :, ::-1], SETTINGS)).all()


@pytest.mark.usefixtures('crf')
def test_pixels_without_any_score_follow_the_others(image):
    scores = scores_with_edge(EDGE)
    scores[:, 5:15, 5:15] = 0
    labels = label(image, scores, SETTINGS)
    assert np.count_nonzero(labels[:, :EDGE]) == 0


@pytest.mark.usefixtures('crf')
def test_one_pixel_is_an_image():
    refined = refine(
        np.zeros((1, 1, 3), np.uint8), np.full((2, 1, 1), 0.5), SETTINGS, np.ones(2, bool)
    )
    np.testing.assert_allclose(refined, 0.5)


def test_a_single_class_needs_no_crf(image, monkeypatch):
    monkeypatch.setattr(dense_crf, 'require_dense_crf', lambda: pytest.fail('CRF was asked for'))
    scores = np.full((3, HEIGHT, WIDTH), 0.1)
    scores[0] = 0.8
    refined = refine(image, scores, SETTINGS)
    assert np.all(refined[0] == 1)
    assert np.count_nonzero(refined[1:]) == 0
    only_last = np.array([False, False, True])
    assert np.all(label(image, scores, SETTINGS, only_last) == 2)


def test_missing_package_is_named_with_its_command(image, monkeypatch):
    # None in sys.modules makes an import fail as if the package were not there.
    monkeypatch.setitem(sys.modules, 'pydensecrf', None)
    with pytest.raises(ImportError, match=r'pip install pydensecrf2==1\.1.*C\+\+ compiler'):
        require_dense_crf()
    with pytest.raises(ImportError, match=r'pip install pydensecrf2==1\.1'):
        refine(image, scores_with_edge(EDGE), SETTINGS)


@pytest.mark.parametrize('value', [-1, 0, float('nan'), float('inf')])
@pytest.mark.parametrize('name', ['gaussian_sxy', 'bilateral_sxy', 'bilateral_srgb'])
def test_reach_that_is_not_positive_is_refused(name, value):
    with pytest.raises(ValueError, match=f'{name}={value} must be finite and above 0'):
        DenseCRF(**{name: value})


def test_weight_may_be_zero_but_not_negative():
    assert DenseCRF(gaussian_compat=0, bilateral_compat=0).gaussian_compat == 0
    with pytest.raises(ValueError, match='bilateral_compat=-1 must be finite and at least 0'):
        DenseCRF(bilateral_compat=-1)


def test_number_of_steps_is_a_positive_integer():
    with pytest.raises(ValueError, match='num_steps=0 must be finite and above 0'):
        DenseCRF(num_steps=0)
    with pytest.raises(TypeError, match=r'num_steps=1\.5 is not an integer'):
        DenseCRF(num_steps=1.5)


@pytest.mark.parametrize('value', [np.nan, np.inf, -0.1])
def test_scores_that_are_no_scores_are_refused(image, value):
    scores = scores_with_edge(EDGE)
    scores[1, 3, 4] = value
    with pytest.raises(ValueError, match=r'scores run from .* must be finite and at least 0'):
        refine(image, scores, SETTINGS)


@pytest.mark.parametrize(
    ('change', 'kind', 'message'),
    [
        (dict(image=np.zeros((HEIGHT, WIDTH, 3))), TypeError, 'image is float64, not uint8'),
        (dict(image=np.zeros((HEIGHT, WIDTH), np.uint8)), ValueError, r'not \(H, W, 3\)'),
        (dict(scores=np.zeros((2, HEIGHT, WIDTH), int)), TypeError, 'scores is int64, not float'),
        (dict(scores=np.zeros((2, WIDTH, HEIGHT))), ValueError, r'resize .*\(C, 24, 36\)'),
        (dict(scores=np.zeros((HEIGHT, WIDTH))), ValueError, 'does not fit an image'),
        (dict(scores=np.zeros((0, HEIGHT, WIDTH))), ValueError, 'does not fit an image'),
        (dict(present=np.ones(2, int)), TypeError, 'present is int64, not bool'),
        (dict(present=np.ones(3, bool)), ValueError, 'but scores has 2 channels'),
        (dict(present=np.zeros(2, bool)), ValueError, 'present has no class at all'),
    ],
)
def test_argument_of_another_kind_is_refused(image, change, kind, message):
    arguments = dict(image=image, scores=scores_with_edge(EDGE), present=None) | change
    with pytest.raises(kind, match=message):
        refine(settings=SETTINGS, **arguments)


def test_more_classes_than_a_label_map_holds_are_refused(image):
    scores = np.zeros((256, HEIGHT, WIDTH), np.float16)
    with pytest.raises(ValueError, match='scores has 256 channels, .* 255 classes'):
        label(image, scores, SETTINGS)

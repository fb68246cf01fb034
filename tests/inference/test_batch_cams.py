"""The CAMs of a batch against mmseg's own way: one image and one view at a time."""

import numpy as np
import pytest
import torch

from mmdscnet.inference.batch_cams import check_labels, check_model, compute_cams
from mmdscnet.inference.view_batches import batch_by_size, collate_views
from mmdscnet.pseudo_labels import CAMs

CAM_NETWORKS = ['cam', 'dscnet', 'seam', 'dscnet_on_seam']
MODES = [dict(), dict(image_labels=None)]
LABELS = ['given', 'predicted']


@pytest.mark.parametrize('mode', MODES, ids=LABELS)
@pytest.mark.parametrize('network', CAM_NETWORKS)
def test_batch_gives_every_image_what_it_gets_alone(
    build_model, build_dataset, network, mode, cams_of_mmseg
):
    model, dataset = build_model(network), build_dataset(views={}, **mode)
    expected = cams_of_mmseg(model, dataset)
    batches, _ = batch_by_size(dataset, range(7), 8)
    (indices,) = [batch for batch in batches if len(batch) > 1]
    batch = collate_views([dataset[index] for index in indices])
    assert batch.image_ids == ['a', 'b', 'd', 'f']
    result = compute_cams(model, batch, torch.float32)
    assert all(isinstance(cams, CAMs) for cams in result)
    for image_id, (cams, class_ids) in zip(batch.image_ids, result, strict=True):
        assert (cams.dtype, class_ids.dtype) == (np.float32, np.uint8)
        np.testing.assert_array_equal(class_ids, expected[image_id][1])
        np.testing.assert_allclose(cams, expected[image_id][0], rtol=0, atol=1e-5)


# The pixel correlation of random weights enlarges what is rounded.
@pytest.mark.parametrize(('network', 'atol'), [('cam', 0.1), ('seam', 0.2)])
def test_low_precision_is_close(build_model, build_dataset, network, atol):
    model, dataset = build_model(network), build_dataset(views={})
    batch = collate_views([dataset[index] for index in (0, 1, 3, 5)])
    exact = compute_cams(model, batch, torch.float32)
    close = compute_cams(model, batch, torch.bfloat16)
    for (cams, class_ids), (close_cams, close_ids) in zip(exact, close, strict=True):
        np.testing.assert_array_equal(close_ids, class_ids)
        assert close_cams.dtype == np.float32
        np.testing.assert_allclose(close_cams, cams, rtol=0, atol=atol)
        assert cams.size == 0 or 0 < np.abs(close_cams - cams).mean() < atol / 5


def test_model_of_other_classes_or_with_windows_or_padding_is_refused(build_model, build_dataset):
    dataset = build_dataset(views={})
    model = build_model('cam', decode_head=dict(type='CAMHead', in_channels=32, num_classes=3))
    with pytest.raises(ValueError, match=r"has 4 classes .*'cow'.* the network 3.*give the config"):
        check_model(model, dataset)
    test_cfg = dict(mode='slide', crop_size=(32, 32), stride=(16, 16))
    with pytest.raises(ValueError, match=r"test_cfg\.mode='slide'.*use mode='whole'"):
        check_model(build_model('cam', test_cfg=test_cfg), dataset)
    model = build_model('cam')
    check_model(model, dataset)
    model.data_preprocessor.test_cfg = dict(size_divisor=32)
    with pytest.raises(ValueError, match=r'data_preprocessor\.test_cfg'):
        check_model(model, dataset)


def test_labels_may_be_absent_but_not_lost(build_dataset):
    with_labels, without = build_dataset(views={}), build_dataset(views={}, image_labels=None)
    batches = [collate_views([dataset[0]]) for dataset in (with_labels, without)]
    check_labels(with_labels, batches[0])
    check_labels(without, batches[1])
    # A data set of mmseg has no such attribute.
    check_labels(object(), batches[1])
    with pytest.raises(ValueError, match='its pipeline loses them'):
        check_labels(with_labels, batches[1])

import numpy as np
import pytest
import torch

from mmdscnet.evaluation.refinement_diagnosis import (
    correlate_masked,
    count_changes,
    locate_evidence,
    measure_evidence_parts,
    paint_changes,
    sum_scores,
)


def test_parts_are_measured_for_labelled_classes_alone():
    feature, enriched = torch.randn(2, 2, 3, 4, 5)
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    truth = torch.randint(0, 4, (2, 4, 5)).byte()
    truth[0, 0] = 255
    parts = measure_evidence_parts(feature, enriched, labels)
    located = {
        'feature': locate_evidence(feature, labels, truth, 255),
        'enriched': locate_evidence(enriched, labels, truth, 255),
    }
    for row, (image, channel) in enumerate([(0, 0), (0, 2), (1, 1)]):
        judged = truth[image] != 255
        hits = (truth[image] == channel + 1)[judged].numpy()
        for name, part in (('feature', feature), ('enriched', enriched)):
            values = part[image, channel].double()
            std, mean = (float(getattr(parts, f'{name}_{key}')[row]) for key in ('std', 'mean'))
            assert std == pytest.approx(values.numpy().std())
            assert mean == pytest.approx(values.numpy().mean())
            expected = np.corrcoef(values[judged].numpy(), hits)[0, 1]
            assert float(located[name][row]) == pytest.approx(expected)
    assert all(len(values) == 3 for values in parts)


def test_bias_locates_nothing():
    labels, truth = torch.ones(1, 1), torch.tensor([[[0, 1], [1, 1]]])
    feature = truth[:, None].float()
    bias = torch.full_like(feature, 3.3)
    parts = measure_evidence_parts(feature, bias, labels)
    assert parts.enriched_std == pytest.approx(0, abs=1e-12)
    assert parts.enriched_mean == pytest.approx(3.3)
    assert locate_evidence(bias, labels, truth, 255).isnan()
    assert locate_evidence(feature, labels, truth, 255) == pytest.approx(1)


def test_images_without_labels_give_no_part():
    evidence, truth = torch.randn(2, 3, 2, 2), torch.zeros(2, 2, 2).long()
    parts = measure_evidence_parts(evidence, evidence, torch.zeros(2, 3))
    assert [len(values) for values in parts] == [0] * 4
    assert len(locate_evidence(evidence, torch.zeros(2, 3), truth, 255)) == 0


@pytest.mark.parametrize('values', [[0.1, 0.1, 0.1, 7], [1e30, 1e30, 1e30, 0]])
def test_row_that_is_constant_where_it_counts_correlates_with_nothing(values):
    row = torch.tensor([values]).double()
    other = torch.tensor([[0.0, 1, 0, 1]]).double()
    mask = torch.tensor([[True, True, True, False]])
    assert correlate_masked(row, other, mask).isnan()
    assert correlate_masked(row, other, torch.zeros_like(mask)).isnan()


def test_changes_by_hand():
    # One pixel each: kept, 0 -> 1 right, 0 -> 1 wrong, 2 -> 0 right, 1 -> 2 both wrong, void.
    plain = torch.tensor([[[1, 0, 0, 2, 1, 0]]])
    refined = torch.tensor([[[1, 1, 1, 0, 2, 1]]])
    truth = torch.tensor([[[0, 1, 0, 0, 0, 255]]])
    changes = count_changes(plain.byte(), refined.byte(), truth.byte(), 3, 255)
    # Gained rightly, gained wrongly, lost rightly, lost wrongly.
    assert changes.tolist() == [[1, 0, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0]]
    assert paint_changes(plain, refined, truth).tolist() == [[[0, 1, 2, 1, 3, 0]]]


def test_changes_balance_the_pixels_of_each_class():
    plain, refined, truth = torch.randint(0, 4, (3, 2, 8, 9))
    changes = count_changes(plain, refined, truth, 4, 255)
    for k in range(4):
        gained, lost = changes[k, :2].sum(), changes[k, 2:].sum()
        assert (refined == k).sum() - (plain == k).sum() == gained - lost
        hits = ((refined == k) & (truth == k)).sum() - ((plain == k) & (truth == k)).sum()
        assert hits == changes[k, 0] - changes[k, 3]
    painted = paint_changes(plain, refined, truth)
    assert (painted == 1).sum() == changes[:, 0].sum()
    assert (painted == 2).sum() == changes[:, 3].sum()


def test_labels_of_two_sizes_are_refused():
    small, large = torch.zeros(1, 2, 2).long(), torch.zeros(1, 4, 4).long()
    with pytest.raises(ValueError, match=r'refined_labels \(1, 4, 4\).*resize the maps'):
        count_changes(small, large, small, 3, 255)


def test_scores_are_summed_by_what_is_there_and_what_was_told():
    logits = torch.arange(6.0).view(2, 3, 1, 1).expand(2, 3, 2, 2)
    present = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    told = torch.tensor([[1.0, 0, 1], [1, 0, 0]])
    sums, counts = sum_scores(logits, present, told)
    assert sums.tolist() == [[4 + 5, 2 + 3], [1, 0]]
    assert counts.tolist() == [[2, 2], [1, 1]]

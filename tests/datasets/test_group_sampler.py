"""Tests of mmdscnet/datasets/group_sampler.py."""

import itertools
import pickle
import time

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmseg.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler

from mmdscnet.datasets import group_sampler
from mmdscnet.datasets.group_sampler import GroupSampler, build_class_index, draw_partners


class LabelledImages:
    """Stand-in for a data set: its items are the indices."""

    def __init__(self, image_labels):
        self.image_labels = np.asarray(image_labels, dtype=np.float32)

    def __len__(self):
        return len(self.image_labels)

    def __getitem__(self, index):
        return index

    def get_image_labels(self):
        return self.image_labels


def voc_like(num_images, num_classes=20, seed=0):
    """Rare and frequent classes, about 1.5 an image, no image without one."""
    rng = np.random.default_rng(seed)
    labels = rng.random((num_images, num_classes)) < np.linspace(0.01, 0.05, num_classes)
    labels[np.arange(num_images), rng.integers(num_classes, size=num_images)] = True
    return LabelledImages(labels)


def sequence(dataset, epoch=0, rank=0, world_size=1, monkeypatch=None, **kwargs):
    if monkeypatch is not None:
        monkeypatch.setattr(group_sampler, 'get_dist_info', lambda: (rank, world_size))
    sampler = GroupSampler(dataset, **{'seed': 0, **kwargs})
    sampler.set_epoch(epoch)
    indices = list(sampler)
    assert len(indices) == len(sampler)
    return indices


@pytest.mark.parametrize('group_size', [2, 3, 4])
def test_every_group_shares_a_class(group_size):
    dataset = voc_like(240)
    groups = np.reshape(sequence(dataset, group_size=group_size), (-1, group_size))
    common = dataset.image_labels[groups].prod(axis=1)
    assert common.any(axis=1).all()
    assert (groups[:, 1:] != groups[:, :1]).all()


@pytest.mark.parametrize(('num_images', 'group_size'), [(60, 2), (60, 3), (8, 4)])
def test_every_image_is_anchor_exactly_once_in_group_size_epochs(num_images, group_size):
    dataset = voc_like(num_images)
    for cycle in range(2):
        epochs = range(cycle * group_size, (cycle + 1) * group_size)
        served = [sequence(dataset, epoch, group_size=group_size) for epoch in epochs]
        anchors = np.concatenate(served)[::group_size]
        np.testing.assert_array_equal(np.sort(anchors), np.arange(num_images))


@pytest.mark.parametrize('num_images', [1, 2, 5, 7, 61])
@pytest.mark.parametrize('group_size', [2, 3, 4])
def test_every_image_is_anchor_when_groups_do_not_divide_the_images(num_images, group_size):
    dataset = voc_like(num_images)
    served = [sequence(dataset, epoch, group_size=group_size) for epoch in range(group_size)]
    assert set(np.concatenate(served)[::group_size]) == set(range(num_images))
    assert {len(indices) for indices in served} == {-(-num_images // group_size) * group_size}


@pytest.mark.parametrize('num_images', [64, 61])
@pytest.mark.parametrize('group_size', [2, 4])
def test_global_batches_do_not_depend_on_the_number_of_ranks(monkeypatch, num_images, group_size):
    dataset, total_batch = voc_like(num_images), 8
    for epoch in range(3):
        batches = {}
        for world_size in (1, 2, 4):
            ranks = [
                sequence(dataset, epoch, rank, world_size, monkeypatch, group_size=group_size)
                for rank in range(world_size)
            ]
            assert len({len(indices) for indices in ranks}) == 1
            per_rank = total_batch // world_size
            steps = len(ranks[0]) // per_rank
            batches[world_size] = [
                sorted(i for r in ranks for i in r[b * per_rank : (b + 1) * per_rank])
                for b in range(steps)
            ]
        whole = num_images // total_batch
        assert whole > 0
        assert batches[1][:whole] == batches[2][:whole] == batches[4][:whole]


def test_epoch_holds_as_many_images_as_the_data_set_rounded_up(monkeypatch):
    for world_size, expected in [(1, 62), (2, 62), (4, 64), (3, 66)]:
        total = sum(
            len(sequence(voc_like(61), 0, rank, world_size, monkeypatch))
            for rank in range(world_size)
        )
        assert total == expected


def test_order_is_a_function_of_seed_and_epoch():
    dataset = voc_like(100)
    assert sequence(dataset, epoch=3) == sequence(dataset, epoch=3)
    orders = [sequence(dataset, epoch, seed=seed) for epoch in range(4) for seed in range(2)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_skipping_gives_the_same_remainder_as_an_uninterrupted_epoch():
    sampler = GroupSampler(voc_like(100), seed=5)
    list(sampler)
    sampler.set_epoch(1)
    uninterrupted = list(sampler)
    resumed = GroupSampler(voc_like(100), seed=5)
    resumed.set_epoch(1)
    assert list(itertools.islice(resumed, 38, None)) == uninterrupted[38:]


def test_pickled_sampler_serves_the_same_order():
    sampler = GroupSampler(voc_like(50), seed=1)
    sampler.set_epoch(2)
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)


def test_partner_is_uniform_over_the_other_images_of_the_class():
    labels = np.zeros((40, 2))
    labels[:11, 0] = labels[11:, 1] = 1
    rng = np.random.default_rng(0)
    draws = 20_000
    partners = draw_partners(build_class_index(labels), np.full(draws, 4), 1, rng)
    counts = np.bincount(partners.ravel(), minlength=40)
    assert counts[4] == 0
    assert counts[11:].sum() == 0
    expected = draws / 10
    chi_square = (((counts[:11] - expected) ** 2)[np.arange(11) != 4] / expected).sum()
    assert chi_square < 30  # 9 degrees of freedom: exceeded with probability 4e-4


def test_class_is_uniform_over_the_classes_of_the_anchor():
    labels = np.zeros((100, 3))
    labels[0] = 1
    labels[1:3, 0] = labels[3:20, 1] = labels[20:, 2] = 1
    rng = np.random.default_rng(0)
    partners = draw_partners(build_class_index(labels), np.zeros(30_000, dtype=int), 1, rng)
    shares = labels[partners.ravel()].mean(axis=0)
    np.testing.assert_allclose(shares, 1 / 3, atol=0.02)


def test_class_of_one_image_is_not_drawn():
    labels = [[1, 1], [0, 1], [0, 1]]  # image 0 alone has class 0
    dataset = LabelledImages(labels)
    for epoch in range(20):
        groups = np.reshape(sequence(dataset, epoch), (-1, 2))
        assert (groups[:, 0] != groups[:, 1]).all()


def test_image_without_a_class_is_followed_by_random_other_images():
    labels = np.zeros((6, 2))
    labels[:3, 0] = 1
    labels[5, 1] = 1  # image 3 and 4 have no class, image 5 one of its own
    partners = {image: set() for image in range(6)}
    for epoch in range(200):
        for anchor, partner in np.reshape(sequence(LabelledImages(labels), epoch), (-1, 2)):
            partners[anchor].add(partner)
    for image in range(6):
        everyone = range(3) if image < 3 else range(6)
        assert partners[image] == set(everyone) - {image}


def test_single_image_is_its_own_partner():
    assert sequence(LabelledImages([[1, 0]])) == [0, 0]


def test_batches_of_eight_hold_far_more_partners_than_random_ones():
    dataset = voc_like(2000)

    def share_with_partner(indices):
        labels = dataset.image_labels[np.reshape(indices, (-1, 8))]
        others = labels.sum(axis=1, keepdims=True) - labels
        return ((labels * others).sum(axis=2) > 0).mean()

    random_order = np.random.default_rng(0).permutation(2000)
    assert share_with_partner(random_order) < 0.75
    assert share_with_partner(sequence(dataset)) == 1


def test_index_matches_a_naive_inverted_index():
    labels = voc_like(200).image_labels
    labels[:20] = 0
    index = build_class_index(labels)
    for k in range(20):
        images = index.class_images[index.class_offsets[k] : index.class_offsets[k + 1]]
        assert images.tolist() == [i for i in range(200) if labels[i, k]]
    for image in range(200):
        entries = slice(index.image_offsets[image], index.image_offsets[image + 1])
        classes = index.image_classes[entries]
        assert classes.tolist() == ([k for k in range(20) if labels[image, k]] or [20])
        positions = index.class_offsets[classes] + index.image_ranks[entries]
        assert (index.class_images[positions] == image).all()


def test_an_epoch_of_voc_size_is_drawn_in_milliseconds():
    sampler = GroupSampler(voc_like(10_582), seed=0)
    times = []
    for epoch in range(5):
        sampler.set_epoch(epoch)
        begin = time.perf_counter()
        list(sampler)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.1


class RecordingModel(BaseModel):
    """Remembers the batches that a loop hands it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = []

    def forward(self, batch, mode):
        self.batches.append(batch.tolist())
        return dict(loss=self.weight.sum())

    def train_step(self, data, optim_wrapper):
        return self(data, mode='loss')


@pytest.mark.parametrize(
    'loop', [dict(by_epoch=True, max_epochs=3), dict(type='IterBasedTrainLoop', max_iters=9)]
)
def test_loops_of_mmengine_advance_the_epoch(monkeypatch, tmp_path, loop):
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda _: None)
    dataset, model = voc_like(12), RecordingModel()
    Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=dataset,
            batch_size=4,
            sampler=dict(type='GroupSampler'),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=loop,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(logger=None, checkpoint=None),
        randomness=dict(seed=7),
        default_scope='mmseg',
        experiment_name=f'sampler_{len(loop)}_{"type" in loop}',
    ).train()
    served = list(itertools.chain(*model.batches))
    expected = [sequence(dataset, epoch, seed=7) for epoch in range(3)]
    assert served == list(itertools.chain(*expected))


def test_builds_from_a_config_and_feeds_a_batch_sampler():
    dataset = voc_like(240)
    config = dict(type='GroupSampler', group_size=4)
    sampler = DATA_SAMPLERS.build(config, default_args=dict(dataset=dataset, seed=0))
    batches = list(BatchSampler(sampler, batch_size=4, drop_last=False))
    assert all(dataset.image_labels[batch].prod(axis=0).any() for batch in batches)


def test_seed_defaults_to_one_shared_by_all_ranks(monkeypatch):
    monkeypatch.setattr(group_sampler, 'sync_random_seed', lambda: 77)
    assert GroupSampler(voc_like(4)).seed == 77


@pytest.mark.parametrize('group_size', [1, 0, -2, 2.0, '2', True, None])
def test_group_size_error_names_the_value(group_size):
    with pytest.raises(ValueError, match=f'group_size .*at least 2, got {group_size!r}'):
        GroupSampler(voc_like(4), group_size=group_size)


def test_empty_data_set_error_names_the_mend():
    with pytest.raises(ValueError, match=r'LabelledImages is empty.*ann_file'):
        GroupSampler(LabelledImages(np.zeros((0, 3))))


def test_wrapped_data_set_error_names_the_wrapper_and_the_mend():
    class RepeatDataset(list):
        pass

    with pytest.raises(TypeError, match='RepeatDataset has none; give it VOCLayoutDataset itself'):
        GroupSampler(RepeatDataset([1, 2]))


@pytest.mark.parametrize('shape', [(3,), (2, 5)])
def test_labels_of_a_wrong_shape_are_refused(shape):
    class WrongLabels(LabelledImages):
        def __len__(self):
            return 3

    with pytest.raises(ValueError, match=r'shape \(3, K\), one row an image, got shape'):
        GroupSampler(WrongLabels(np.zeros(shape)))

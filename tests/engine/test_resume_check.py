import pytest
import torch
from mmengine.config import Config

from mmdscnet.engine.resume_check import compare_batches, compare_runs, describe_run, shorten


def make_config(**options):
    cfg = Config(
        dict(
            model=dict(type='A', depth=1, backbone=dict(init_cfg=dict(checkpoint='a.pth'))),
            train_dataloader=dict(
                batch_size=4,
                num_workers=2,
                dataset=dict(data_root='here', pipeline=[dict(type='Load'), dict(type='Flip')]),
            ),
            optim_wrapper=dict(optimizer=dict(lr=0.1, betas=(0.9, 0.999))),
            randomness=dict(seed=0),
            train_cfg=dict(max_epochs=3),
            custom_hooks=[dict(type='EMAHook')],
            val_dataloader=dict(batch_size=1),
            work_dir='run',
        )
    )
    cfg.merge_from_dict(options)
    return cfg


def changes_of(**options):
    return compare_runs(describe_run(make_config(), 1), describe_run(make_config(**options), 1))


@pytest.mark.parametrize(
    ('key', 'value', 'text'),
    [
        ('model.depth', 2, 'model.depth was 1 and is 2'),
        ('model.width', 3, 'model.width was not there and is 3'),
        ('optim_wrapper.optimizer.betas', (0.8, 0.99), 'optim_wrapper.optimizer.betas was (0.9'),
        ('randomness.seed', 1, 'randomness.seed was 0 and is 1'),
        ('train_dataloader.dataset.pipeline.1.type', 'Crop', 'pipeline.1.type was'),
    ],
)
def test_other_model_data_optimizer_or_seed_is_another_training(key, value, text):
    decisive, steering = changes_of(**{key: value})
    assert len(decisive) == 1
    assert text in decisive[0]
    assert not steering


@pytest.mark.parametrize(
    ('key', 'value'), [('train_cfg.max_epochs', 9), ('custom_hooks.0.type', 'Other')]
)
def test_other_schedule_or_hooks_change_the_course(key, value):
    decisive, steering = changes_of(**{key: value})
    assert not decisive
    assert steering[0].startswith(f'{key} was ')


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('work_dir', 'elsewhere'),
        ('train_dataloader.num_workers', 8),
        ('train_dataloader.dataset.data_root', 'there'),
        ('model.backbone.init_cfg.checkpoint', 'b.pth'),
        ('val_dataloader.batch_size', 2),
    ],
)
def test_where_and_how_a_training_runs_is_no_change(key, value):
    assert changes_of(**{key: value}) == ([], [])


def test_description_loads_without_running_code(tmp_path):
    torch.save(describe_run(make_config(), 2), tmp_path / 'run.pth')
    assert torch.load(tmp_path / 'run.pth', weights_only=True)['world_size'] == 2


def test_ranks_that_share_the_same_batch_are_told_what_stays():
    saved = describe_run(make_config(), 2)
    now = describe_run(make_config(**{'train_dataloader.batch_size': 2}), 4)
    text = compare_batches(saved, now)
    assert text.startswith('the checkpoint was trained by 2 processes with 4 images each, and goes')
    assert 'The global batch, its images and their augmentation stay the same' in text
    assert compare_batches(saved, saved) is None


def test_other_global_batch_is_told_what_changes():
    saved, now = describe_run(make_config(), 2), describe_run(make_config(), 4)
    text = compare_batches(saved, now)
    assert 'another size: the learning rate is not scaled' in text
    assert text.endswith('. train_dataloader.batch_size=2 keeps the size')
    odd = describe_run(make_config(), 3)
    assert 'keeps the size' not in compare_batches(saved, odd)


def test_many_changes_are_shortened():
    assert shorten(['a', 'b']) == 'a; b'
    assert shorten(list('abcdefg')) == 'a; b; c; d; e and 2 more'

"""A training small enough to be run many times, with everything that a resume could forget."""

import pytest
from mmengine.config import Config

SIZE = (32, 32)


@pytest.fixture(scope='session')
def resume_data(tmp_path_factory):
    return str(tmp_path_factory.mktemp('resume_data') / 'shapes')


@pytest.fixture
def resumable_config(repository, resume_data, tmp_path, forget_instances, monkeypatch):
    """Make the config: dropout, augmentation, EMA, class memory; three steps an epoch."""
    # mmengine formats the whole config for every checkpoint, which takes longer than a step.
    monkeypatch.setattr(Config, 'pretty_text', '')

    def make(work_dir='run', epochs=3, iterations=None, sampler=None, exact=True, **options):
        forget_instances()
        cfg = Config.fromfile(repository / 'configs' / 'dscnet' / 'shapes.py')
        for split in ('train', 'val', 'test'):
            loader = cfg[f'{split}_dataloader']
            loader.update(batch_size=4, num_workers=0, persistent_workers=False, drop_last=False)
            loader.dataset.update(data_root=resume_data, splits=dict(train=12, val=2))
            loader.dataset.image_size = 32
            for step in loader.dataset.pipeline:
                step.update({key: SIZE for key in ('scale', 'crop_size') if key in step})
        cfg.train_dataloader.sampler = sampler or dict(type='GroupSampler', group_size=2)
        cfg.model.data_preprocessor.size = SIZE
        cfg.model.backbone.base_channels = 4
        cfg.model.decode_head.update(in_channels=16, embed_channels=8, dropout_ratio=0.2)
        cfg.train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=100)
        if iterations:
            cfg.train_cfg = dict(by_epoch=False, max_iters=iterations, val_interval=100)
            cfg.param_scheduler = [dict(type='PolyLR', power=0.9, by_epoch=False)]
        checkpoint = dict(type='AtomicCheckpointHook', by_epoch=False, interval=100)
        cfg.default_hooks.checkpoint = checkpoint
        if not exact:
            del cfg.default_hooks['resume']
        cfg.custom_hooks = [
            dict(type='ContrastWarmupHook', share=0.1),
            dict(type='EMAHook', momentum=0.1),
        ]
        cfg.work_dir = str(tmp_path / work_dir)
        cfg.log_level = 'WARNING'
        cfg.merge_from_dict(options)
        return cfg

    return make

import os
from pathlib import Path

import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.runner import Runner

from mmdscnet.engine import AtomicCheckpointHook
from mmdscnet.engine.atomic_checkpoint_hook import AtomicLocalBackend


def names(work_dir, pattern='*.pth'):
    return {path.name for path in Path(work_dir).glob(pattern)}


def train(cfg, **checkpoint):
    cfg.default_hooks.checkpoint.update(dict(interval=1, max_keep_ckpts=1), **checkpoint)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_outdated_checkpoints_are_removed(resumable_config):
    cfg = resumable_config(epochs=1)
    train(cfg, max_keep_ckpts=2)
    assert names(cfg.work_dir) == {'iter_2.pth', 'iter_3.pth'}
    assert Path(cfg.work_dir, 'last_checkpoint').read_text().endswith('/run/iter_3.pth')
    assert not names(cfg.work_dir, '.*.tmp')


def test_epochs_can_be_counted(resumable_config):
    cfg = resumable_config(epochs=2)
    train(cfg, by_epoch=True)
    assert names(cfg.work_dir) == {'epoch_2.pth'}


def test_there_is_a_whole_checkpoint_before_every_change_of_a_file(resumable_config, monkeypatch):
    """Whatever the moment at which a training is killed, it can be resumed."""
    cfg = resumable_config(epochs=1)
    seen = []

    def check(call):
        def checked(*args, **kwargs):
            work_dir = Path(cfg.work_dir)
            for path in work_dir.glob('*.pth'):
                torch.load(path, weights_only=True)
            pointer = work_dir / 'last_checkpoint'
            if pointer.is_file():
                seen.append(torch.load(pointer.read_text(), weights_only=True)['meta']['iter'])
            return call(*args, **kwargs)

        return checked

    for name in ('replace', 'remove'):
        monkeypatch.setattr(os, name, check(getattr(os, name)))
    train(cfg)
    # Two renames a checkpoint and the removal of the one before; nothing at first.
    assert seen == [1, 1, 2, 2, 2, 3]


def test_what_a_killed_training_did_not_remove_is_removed_when_it_resumes(
    resumable_config, monkeypatch
):
    cfg = resumable_config('run', epochs=1)
    monkeypatch.setattr(AtomicCheckpointHook, '_remove', lambda self, path: None)
    train(cfg)
    assert names(cfg.work_dir) == {'iter_1.pth', 'iter_2.pth', 'iter_3.pth'}
    monkeypatch.undo()
    train(resumable_config('run', epochs=2, resume=True))
    assert 'iter_6.pth' in names(cfg.work_dir)
    assert 'iter_2.pth' not in names(cfg.work_dir)
    assert 'iter_3.pth' not in names(cfg.work_dir)


def test_best_checkpoint_is_kept_too(resumable_config):
    cfg = resumable_config(epochs=2)
    cfg.train_cfg.val_interval = 1
    options = dict(by_epoch=True, save_best='labels_given/best_mIoU', rule='greater')
    train(cfg, **options)
    assert any(name.startswith('best_labels_given') for name in names(cfg.work_dir))
    assert 'epoch_2.pth' in names(cfg.work_dir)


def test_full_disk_leaves_the_file_as_it_was_and_names_the_mend(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'old')

    def fail(self, data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, 'write_bytes', fail)
    with pytest.raises(OSError, match=r'a\.pth cannot be written: No space left.*Free space'):
        AtomicLocalBackend().put(b'new', path)
    assert path.read_bytes() == b'old'
    assert names(tmp_path, '*') == {'a.pth'}


def test_backend_is_known_by_name(tmp_path):
    backend = get_file_backend(backend_args=dict(backend='atomic_local'))
    backend.put(b'content', tmp_path / 'folder' / 'a.bin')
    assert (tmp_path / 'folder' / 'a.bin').read_bytes() == b'content'


@pytest.mark.parametrize(
    'storage',
    [dict(backend_args=dict(backend='local')), dict(file_client_args=dict(backend='disk'))],
)
def test_other_storage_is_left_to_itself(storage):
    hook = AtomicCheckpointHook(**storage)
    assert hook.backend_args == storage.get('backend_args')


def test_what_a_killed_training_was_writing_is_removed(resumable_config):
    cfg = resumable_config(epochs=1)
    work_dir = Path(cfg.work_dir)
    work_dir.mkdir()
    for name in ('.iter_1.pth.abc.tmp', '.last_checkpoint.abc.tmp', 'notes.tmp'):
        (work_dir / name).touch()
    train(cfg)
    assert names(work_dir, '*.tmp') == {'notes.tmp'}

"""Checkpoints that are whole or not there, with one to resume from at every moment."""

from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from mmdscnet.atomic_write import atomic_path


@register_backend('atomic_local')
class AtomicLocalBackend(LocalBackend):
    """Files of this machine, each written under a temporary name and renamed when it is whole."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file.

        Args:
            obj: Its content.
            filepath: Its path. Missing parent folders are made.

        Raises:
            OSError: If it cannot be written, with the mend.
        """
        with atomic_path(filepath) as temporary:
            temporary.write_bytes(obj)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """Save checkpoints so that a training killed at any moment can be resumed.

    mmengine writes a checkpoint under its own name, writes ``last_checkpoint`` in place, and
    removes an outdated checkpoint before the new one is there. A process that is killed in between
    leaves half a file, or nothing to resume from when ``max_keep_ckpts=1``. Here files are renamed
    when they are whole, and removed after what replaces them is written; only of the best
    checkpoint mmengine removes the old one first. A resumed training removes what a killed one left
    unfinished. A loss of power is another matter: nothing is forced to the disk.

    Checkpoints that go to other storage (``backend_args``, ``file_client_args``, or an ``out_dir``
    with ``://``) are left to it, and those of mmengine's ``FlexibleRunner`` are written in place by
    its strategy; there too ``last_checkpoint`` names a new one only when it is complete, and the
    one before stays until then.

    Args:
        kwargs: As for mmengine's ``CheckpointHook``.
    """

    backend_args: dict[str, Any] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        is_local = '://' not in str(self.out_dir)
        if is_local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='atomic_local')

    def before_train(self, runner: Runner) -> None:
        """Find out where checkpoints go, and remove what a killed training left unfinished there.

        Args:
            runner: The runner.
        """
        super().before_train(runner)
        if is_main_process() and isinstance(self.file_backend, AtomicLocalBackend):
            for folder in {Path(self.out_dir), Path(runner.work_dir)}:
                for pattern in ('.*.pth.*.tmp', '.last_checkpoint.*.tmp'):
                    for leftover in folder.glob(pattern):
                        leftover.unlink(missing_ok=True)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = self._keep(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            with atomic_path(Path(runner.work_dir, 'last_checkpoint')) as temporary:
                temporary.write_text(self.last_ckpt)
            for path in outdated:
                self._remove(path)

    def _keep(self, runner: Runner, step: int) -> list[str]:
        """Note that a step has a checkpoint, and list those that it replaces."""
        if self.max_keep_ckpts <= 0 or step in self.keep_ckpt_ids:
            return []
        steps = [*self.keep_ckpt_ids, step]
        self.keep_ckpt_ids.append(step)
        # With those to be removed: a training killed before that does so when it resumes.
        runner.message_hub.update_info('keep_ckpt_ids', steps)
        names = map(self.filename_tmpl.format, steps[: -self.max_keep_ckpts])
        return [self.file_backend.join_path(self.out_dir, name) for name in names]

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            # Those of DeepSpeed are folders.
            self.file_backend.rmtree(path)

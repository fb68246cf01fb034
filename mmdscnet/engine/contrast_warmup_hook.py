"""The contrasts start after a warm-up."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from mmdscnet.models.decode_heads import DSCHead


@HOOKS.register_module()
class ContrastWarmupHook(Hook):
    """Keep the contrasts off for the first share of the training steps.

    At first CAMs are noise, and so are the groups and pseudo labels made from them. The step is
    read from the runner, so a resumed training needs no state of this hook.

    Args:
        share: Share of the steps without contrast, in [0, 1].

    Raises:
        ValueError: If ``share`` lies outside [0, 1].
    """

    def __init__(self, share: float = 0.15) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f'share={share} is a share of the training steps: choose 0 to 1')
        self.share = share
        self.heads: list[DSCHead] = []

    def before_train(self, runner: Runner) -> None:
        """Find the heads whose contrasts to switch.

        Args:
            runner: The runner.

        Raises:
            ValueError: If the model has no ``DSCHead``.
        """
        self.heads = [m for m in runner.model.modules() if isinstance(m, DSCHead)]
        if not self.heads:
            raise ValueError(
                'ContrastWarmupHook finds no DSCHead in the model: remove the hook from '
                'custom_hooks, or use type="DSCHead" as decode_head'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Switch the contrasts on once the warm-up is over.

        Args:
            runner: The runner.
            batch_idx: Not used.
            data_batch: Not used.
        """
        scale = float(runner.iter >= self.share * runner.max_iters)
        for head in self.heads:
            head.contrast_scale = scale

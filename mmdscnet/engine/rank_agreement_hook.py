"""Processes that were not started alike are told so, instead of waiting for each other."""

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS

from mmdscnet.datasets.image_descriptions import describe_images
from mmdscnet.launch import check_same_config
from mmdscnet.ranks import check_ranks_agree


@HOOKS.register_module()
class RankAgreementHook(Hook):
    """Check at the start that all ranks have the same config and the same list of images.

    A node with an old copy of the code, another split file or other image-level labels would train
    on something else without a word, or wait for ever where lengths differ. Paths are compared
    from ``data_root`` on, so that each node may have its own copy of the images. Costs less than a
    second for 10,000 images, and nothing on a single process.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Compare the ranks.

        Args:
            runner: The runner.

        Raises:
            ValueError: On every rank, if two differ.
        """
        if get_world_size() == 1:
            return
        check_same_config(runner.cfg)
        check_ranks_agree('training images', describe_images(runner.train_dataloader.dataset))

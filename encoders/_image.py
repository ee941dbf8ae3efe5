"""Reading images: one place for every image encoder."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from multifsl.archive import Member
from multifsl.errors import BadFile, BadItem, MultifslError


def load_image(item: Any, mode: Literal["L", "RGB"]) -> Image.Image:
    """An image, upright, without transparency, as grey ("L") or colour ("RGB").

    item: a path, a `Member` of an archive, a PIL image, or an array [H, W] or [H, W, C] (or [C, H, W] with C in 1, 3, 4) of
    uint8, or of floats from 0 to 1. Raises BadItem, naming it.

    >>> load_image(np.zeros((4, 6, 3), dtype=np.uint8), "L").size
    (6, 4)
    """
    if isinstance(item, Image.Image):
        return _convert(item, mode, "the image")
    if isinstance(item, str | Path | Member):
        try:
            source = io.BytesIO(item.read_bytes()) if isinstance(item, Member) else item
            with Image.open(source) as image:
                return _convert(image, mode, str(item))
        except FileNotFoundError:
            raise BadItem(f"no image file {item}") from None
        except IsADirectoryError:
            raise BadItem(f"{item} is a folder; an image file was expected") from None
        except UnidentifiedImageError:
            raise BadItem(f"{item} is not an image that Pillow can read") from None
        except (OSError, SyntaxError, BadFile, Image.DecompressionBombError) as error:
            raise BadItem(f"cannot read image {item}: {error}") from error
    if hasattr(item, "__array__") or isinstance(item, np.ndarray):
        return _convert(_from_array(np.asarray(item)), mode, "the image")
    raise BadItem(f"an image must be a path, a PIL image or an array, not {type(item).__name__}")


def load_square(item: Any, side: int, channels: int) -> np.ndarray:
    """An image as uint8 [side, side, channels]: its shorter side scaled to `side`, the middle cut out; channels: 1 or 3."""
    image = load_image(item, "L" if channels == 1 else "RGB")
    if image.size != (side, side):
        w, h = image.size
        scale = side / min(w, h)
        image = image.resize((max(side, round(w * scale)), max(side, round(h * scale))), Image.Resampling.BILINEAR)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image, dtype=np.uint8).reshape(side, side, channels)


def stack_images(loaded: Sequence[np.ndarray]) -> Tensor:
    """Images uint8 [H, W, C] as one batch [B, C, H, W]."""
    return torch.from_numpy(np.stack(loaded)).permute(0, 3, 1, 2).contiguous()


def image_channels(channels: int | None, name: str) -> int:
    """1 or 3; 3 where nobody says. Raises MultifslError."""
    if channels not in (None, 1, 3):
        raise MultifslError(f"{name} takes images of 1 or 3 channels, not {channels}")
    return channels or 3


def check_halved_four_times(image_size: int, name: str) -> None:
    """Raises MultifslError where four halvings would leave no pixel."""
    if image_size < 16:
        raise MultifslError(f"{name} halves the image four times: image_size must be at least 16, not {image_size}")


def _from_array(array: np.ndarray) -> Image.Image:
    shape = array.shape
    if array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in shape:
        raise BadItem(f"an image array must be [H, W], [H, W, C] or [C, H, W] with C in 1, 3, 4; got shape {shape}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise BadItem("the image array has NaN or infinite values")
        if array.min() < 0 or array.max() > 1:
            raise BadItem(f"a float image must run from 0 to 1; got {array.min():.3g} to {array.max():.3g}")
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise BadItem(f"an image array must be uint8, bool or float, not {array.dtype}")
    return Image.fromarray(array)


def _convert(image: Image.Image, mode: Literal["L", "RGB"], name: str) -> Image.Image:
    if 0 in image.size:
        raise BadItem(f"{name} has no pixels: {image.size[0]} x {image.size[1]}")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):  # deeper than 8 bits: scale, Pillow would clip
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1e-12)
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)

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


def resized(processor: Any, image: Image.Image) -> np.ndarray:
    """An RGB image as a transformers image processor resizes and crops it, before it scales: uint8 [3, H, W]."""
    return _processed(processor, image, do_rescale=False, do_normalize=False)


def scaling(processor: Any, name: str) -> tuple[Tensor, Tensor]:
    """What an image processor multiplies pixels by, and then adds: [3, 1, 1] each.

    Found with black and white, so that it holds for whatever kinds of scaling there are, and tried out on noise.

    Raises:
        BadFile: the processor of the model `name` cannot be run. MultifslError: it does more than resizing and cropping every
            image to one size, and scaling.

    >>> import transformers
    >>> scale, shift = scaling(transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}), "a model")
    >>> (127.5 * scale + shift).flatten().tolist()
    [0.0, 0.0, 0.0]
    """
    wide = noise_image()
    try:
        pixels, tall = resized(processor, wide), resized(processor, wide.transpose(Image.Transpose.TRANSPOSE))
        fits = pixels.dtype == np.uint8 and pixels.ndim == 3 and len(pixels) == 3 and pixels.shape == tall.shape
        if fits:
            black, white = (_processed(processor, Image.new("RGB", (64, 64), colour)) for colour in ("black", "white"))
            h, w = pixels.shape[1] // 2, pixels.shape[2] // 2
            shift = black[:, h, w][:, None, None]
            scale = (white[:, h, w][:, None, None] - shift) / 255
            fits = np.allclose(pixels * scale + shift, _processed(processor, wide), atol=1e-4)
    except Exception as error:  # the library raises a dozen kinds; each means that the configuration will not do
        raise BadFile(f"the preprocessing of {name} cannot be used: {type(error).__name__}: {error}") from error
    if not fits:
        raise MultifslError(
            f"{name} cannot be used: its preprocessing, {type(processor).__name__}, does not bring every image to one size by "
            "resizing and cropping, and scale its pixels"
        )
    return torch.from_numpy(scale).float(), torch.from_numpy(shift).float()


def noise_image() -> Image.Image:
    """An image to try things out with, the same every time.

    >>> noise_image().size
    (64, 48)
    """
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def _processed(processor: Any, image: Image.Image, **steps: bool) -> np.ndarray:
    pixels: np.ndarray = processor(images=image, return_tensors="np", **steps)["pixel_values"][0]
    return pixels


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

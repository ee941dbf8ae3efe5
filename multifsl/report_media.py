"""Items as a page shows them: pictures, playable clips and texts, each inside the page (data URIs).

A medium is a dict with some of: `image`, the address of a picture; `sound`, that of a clip; `text`; and `alt`, in words.
"""

from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from multifsl.archive import Member
from multifsl.errors import BadItem, MultifslError

SAMPLE_RATE = 16_000  # hertz
SECONDS = 3.0  # of a clip, at most
WINDOW, HOP, ROWS = 512, 160, 64  # samples; and the height of a spectrogram in pixels
LETTERS = 400  # of a text, at most

Medium = dict[str, str]


def medium(item: Any, modality: str, *, side: int = 64, sound: bool = False) -> Medium:
    """One item of a task. side: pixels of an image, at most; a clip's has twice as many. sound: let a clip be played, too.

    Raises BadItem where it cannot be read.

    >>> medium("where is my card?", "text")
    {'text': 'where is my card?'}
    >>> medium(np.zeros((8, 8), dtype=np.uint8), "image")["image"][:22]
    'data:image/png;base64,'
    """
    if modality == "image":
        return {"image": _picture_uri(picture(item), side), "alt": "the image"}
    if modality == "speech":
        clip = waveform(item)[: round(SECONDS * SAMPLE_RATE)]
        image = Image.fromarray(spectrogram(clip))
        image = image.resize((min(image.width, 2 * side), ROWS), Image.Resampling.BOX)
        shown = {"image": _uri(image, "webp"), "alt": "spectrogram of the clip"}
        return {**shown, "sound": _flac(clip)} if sound else shown
    text = str(item)
    return {"text": text if len(text) <= LETTERS else f"{text[:LETTERS]}…"}


def picture(item: Any) -> Image.Image:
    """An image, upright, on white: of a path, a `Member`, a PIL image, or an array [H, W], [H, W, C] or [C, H, W].

    Arrays are uint8, or floats from 0 to 1. Raises BadItem.

    >>> picture(np.zeros((4, 6), dtype=np.uint8)).size
    (6, 4)
    """
    try:
        if isinstance(item, Image.Image):
            image = item
        elif isinstance(item, str | Path | Member):
            image = Image.open(BytesIO((Path(item) if isinstance(item, str) else item).read_bytes()))
        else:
            array = np.asarray(item)
            if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
                array = array.transpose(1, 2, 0)  # [H, W, C]
            array = array.squeeze(-1) if array.ndim == 3 and array.shape[-1] == 1 else array
            image = Image.fromarray(array if array.dtype == np.uint8 else (array * 255).astype(np.uint8))
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return image.convert("L" if image.mode in ("1", "L") else "RGB")
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise BadItem(f"cannot show the image {str(item)[:80]}: {error}") from error


def waveform(item: Any) -> np.ndarray:
    """A clip's first seconds, float32 [n] in -1..1, 16 kHz. item: a path, a `Member`, or a pair (waveform, sample_rate).

    Raises BadItem.

    >>> waveform((np.zeros(800, dtype=np.int16), 8000)).shape
    (1600,)
    """
    import soundfile
    from torchaudio.functional import resample

    try:
        if isinstance(item, str | Path | Member):
            content = (Path(item) if isinstance(item, str) else item).read_bytes()
            samples, rate = soundfile.read(BytesIO(content), dtype="float32", always_2d=True)
        else:
            samples, rate = np.asarray(item[0]), item[1]
            full = np.iinfo(samples.dtype).max + 1 if samples.dtype.kind == "i" else 1
            samples = samples.astype(np.float32) / full
        if samples.ndim == 2:
            samples = samples.mean(int(np.argmin(samples.shape)))
        wave = torch.from_numpy(np.ascontiguousarray(samples[: int(SECONDS * rate) + 1]))
        found: np.ndarray = resample(wave, round(rate), SAMPLE_RATE).clamp(-1, 1).numpy()
        return found
    except (OSError, MultifslError, soundfile.SoundFileError, TypeError, ValueError, IndexError) as error:
        raise BadItem(f"cannot show the clip {str(item)[:80]}: {error}") from error


def spectrogram(clip: np.ndarray) -> np.ndarray:
    """uint8 [ROWS, frames]: time to the right, 0 to 8 kHz upwards, the louder the darker, over 70 dB.

    >>> spectrogram(np.sin(np.arange(16000)).astype(np.float32)).shape
    (64, 100)
    """
    padded = np.pad(clip, (0, WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: max(len(clip), 1) : HOP]  # [frames, WINDOW]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), axis=1))[:, 1:] ** 2  # [frames, WINDOW / 2]
    level = 10 * np.log10(power.reshape(len(power), ROWS, -1).mean(2) + 1e-10)  # [frames, ROWS], dB
    level = np.clip((level.max() - level) / 70, 0, 1)
    return np.ascontiguousarray((255 * level).astype(np.uint8).T[::-1])


def _picture_uri(image: Image.Image, side: int) -> str:
    scale = side / max(image.size)
    if scale < 1:
        size = tuple(max(1, round(scale * n)) for n in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.BOX)
    return _uri(image, "png" if image.mode == "L" else "webp")


def _uri(image: Image.Image, kind: str) -> str:
    file = BytesIO()
    image.save(file, kind, **({"quality": 60} if kind == "webp" else {"optimize": True}))
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}"


def _flac(clip: np.ndarray) -> str:
    import soundfile

    file = BytesIO()
    soundfile.write(
        file, clip, SAMPLE_RATE, format="FLAC", subtype="PCM_16"
    )  # half of a WAV, and every browser plays it
    return f"data:audio/flac;base64,{b64encode(file.getvalue()).decode()}"

"""Random changes to training items that leave their class as it is. Off unless asked for: published protocols have none.

    "photos": moved by up to an eighth of the side, mirrored, and of other brightness, contrast and saturation, each by up to
        40 %. Not for characters, which mirrored are others.
    "drawings": turned by up to 10 degrees, slanted as far, larger or smaller by up to 15 % along each side, and moved by up to a
        fourteenth of the side; what comes into view repeats the edge. For characters and sketches.
    "speech": louder or softer by up to 6 dB; noise from 10 to 30 dB below the voice; in every second clip nothing above some
        frequency from 2 kHz on; and one band of up to 1 kHz and one stretch of up to an eighth of the clip left out, which is
        SpecAugment's masking (Park et al. 2019, https://arxiv.org/abs/1904.08779), here on the wave, so that any front-end is
        served. (Other speeds are other speakers: see `speech_commands(speeds=...)`.)

All of it works on whole batches, on their device, by torch's random numbers.

Shape letters: B items, C channels, H and W height and width, L samples.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multifsl.episode import Batch, Episode, Inputs, map_inputs
from multifsl.errors import MultifslError

Augmentation = Literal["photos", "drawings", "speech"]
MODALITIES: dict[Augmentation, str] = {"photos": "image", "drawings": "image", "speech": "speech"}
JITTER = 0.4  # brightness, contrast and saturation by a factor from 0.6 to 1.4
TURN, STRETCHED, MOVED = 10.0, 0.15, 1 / 14  # degrees, and shares of the side
GAIN, NOISE = 6.0, (10.0, 30.0)  # dB
SAMPLE_RATE = 16_000  # Hz, of all prepared clips
CUT, BAND = (2_000.0, 8_000.0), 1_000.0  # Hz
STRETCH = 1 / 8  # of a clip


def check_augment(kind: Augmentation | None, modality: str) -> None:
    """Raises MultifslError where an augmentation is for items of another modality."""
    if kind is not None and MODALITIES[kind] != modality:
        raise MultifslError(f"augment={kind!r} is for {MODALITIES[kind]} items, not for {modality}")


def augmented(episodes: Episode, kind: Augmentation) -> Episode:
    """A meta-batch with other items in the place of its own."""

    def change(batch: Batch) -> Batch:
        if not batch.y.numel():
            return batch
        flat = map_inputs(lambda leaf: leaf.flatten(0, 1), batch.x)
        made = CHANGES[kind](flat)
        return Batch(map_inputs(lambda leaf: leaf.unflatten(0, batch.y.shape), made), batch.y)

    return episodes._replace(support=change(episodes.support), query=change(episodes.query))


def photos(x: Inputs) -> Tensor:
    """Images uint8 [B, C, H, W] -> the same, changed.

    >>> photos(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([2, 3, 32, 32])
    """
    assert isinstance(x, Tensor)
    b, _, h, w = x.shape
    far = max(1, min(h, w) // 8)  # pixels
    down, right = min(far, h - 1), min(far, w - 1)  # along a side of one pixel there is nowhere to go
    padded = F.pad(x.float(), (right, right, down, down), mode="reflect").permute(0, 2, 3, 1)
    rows, columns = (
        torch.randint(0, 2 * most + 1, (b, 1), device=x.device) + torch.arange(n, device=x.device)
        for n, most in ((h, down), (w, right))
    )
    mirrored = torch.rand(b, 1, device=x.device) < 0.5
    columns = columns.where(~mirrored, columns.flip(1))
    image = torch.arange(b, device=x.device)[:, None, None]
    moved = padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # [B, C, H, W]
    bright, contrast, colour = (1 + JITTER * (2 * torch.rand(b, 1, 1, 1, device=x.device) - 1) for _ in range(3))
    moved = moved * bright
    moved = (moved - (mean := moved.mean((1, 2, 3), keepdim=True))) * contrast + mean
    moved = (moved - (grey := moved.mean(1, keepdim=True))) * colour + grey
    return moved.round().clamp(0, 255).to(x.dtype)


def drawings(x: Inputs) -> Tensor:
    """Images uint8 [B, C, H, W] -> the same, changed.

    >>> drawings(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape
    torch.Size([2, 1, 28, 28])
    """
    assert isinstance(x, Tensor)
    turn, slant, wide, high, right, down = 2 * torch.rand(6, len(x), device=x.device) - 1
    turn, slant = (angle * math.radians(TURN) for angle in (turn, slant))
    wide, high = 1 + STRETCHED * wide, 1 + STRETCHED * high
    # From a place in the new image, -1 to 1 along each side, to one in the old: a turn, after a slant, after a stretch.
    rows = (
        (turn.cos() * wide, (turn.cos() * slant.tan() - turn.sin()) * high, 2 * MOVED * right),
        (turn.sin() * wide, (turn.sin() * slant.tan() + turn.cos()) * high, 2 * MOVED * down),
    )
    maps = torch.stack([torch.stack(row, 1) for row in rows], 1)  # [B, 2, 3]
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    moved = F.grid_sample(x.float(), grid, padding_mode="border", align_corners=False)
    return moved.round().clamp(0, 255).to(x.dtype)


def speech(x: Inputs) -> dict[str, Tensor]:
    """Clips {"wave": int16 [B, L], "length": int64 [B]} -> the same, changed within their lengths.

    >>> clips = {"wave": torch.ones(2, 800, dtype=torch.int16), "length": torch.tensor([800, 400])}
    >>> speech(clips)["wave"].shape
    torch.Size([2, 800])
    """
    assert isinstance(x, dict)
    wave, length = x["wave"].float(), x["length"].unsqueeze(1)  # [B, L], [B, 1]
    b, samples = wave.shape

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(b, 1, device=wave.device)

    place = torch.arange(samples, device=wave.device)
    valid = place < length  # [B, L]
    loudness = (wave.square().sum(1, keepdim=True) / length.clamp(min=1)).sqrt()  # [B, 1]
    wave = wave + torch.randn_like(wave) * loudness * 10 ** (-between(*NOISE) / 20) * valid
    spectrum = torch.fft.rfft(wave)
    hertz = torch.linspace(0, SAMPLE_RATE / 2, spectrum.shape[1], device=wave.device)
    top = between(*CUT).where(torch.rand(b, 1, device=wave.device) < 0.5, CUT[1])
    low = between(0, SAMPLE_RATE / 2 - BAND)
    left_out = (hertz > top) | ((hertz > low) & (hertz < low + between(0, BAND)))
    wave = torch.fft.irfft(spectrum.masked_fill(left_out, 0), n=samples)
    start = between(0, 1) * length
    silent = (place > start) & (place < start + between(0, STRETCH) * length)
    wave = wave * 10 ** (between(-GAIN, GAIN) / 20) * (valid & ~silent)
    if x["wave"].is_floating_point():
        return {**x, "wave": wave.to(x["wave"].dtype)}
    return {**x, "wave": wave.round().clamp(-32768, 32767).to(x["wave"].dtype)}


CHANGES: dict[Augmentation, Callable[[Inputs], Inputs]] = {"photos": photos, "drawings": drawings, "speech": speech}

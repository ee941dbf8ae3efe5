"""Augmentation. Oracles: every crop and mirror image by hand; levels and spectra measured by numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import multifsl
from multifsl import augment
from multifsl.augment import Augmentation, augmented, drawings, photos, speech
from multifsl.checkpoint import read_tensors
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError


def test_photos_are_moved_and_mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jitter each is one of the crops of the image with its reflected margin, or the mirror image of one; all differ."""
    monkeypatch.setattr(augment, "JITTER", 0.0)
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8)
    wide = np.pad(image.numpy(), ((0, 0), (2, 2), (2, 2)), mode="reflect")
    crops = [wide[:, i : i + 16, j : j + 24] for i in range(5) for j in range(5)]
    known = {crop.tobytes() for crop in crops} | {np.ascontiguousarray(crop[:, :, ::-1]).tobytes() for crop in crops}
    made = photos(image.expand(400, -1, -1, -1)).numpy()
    seen = {np.ascontiguousarray(one).tobytes() for one in made}
    assert made.dtype == np.uint8 and seen <= known and len(seen) == len(known) == 50


@pytest.mark.parametrize("size", [(1, 1), (1, 24), (16, 1)])
def test_photos_one_pixel_high_or_wide(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]) -> None:
    """Along the side of one pixel nothing is moved; along the other each is a crop of the reflected image, or its mirror image."""
    monkeypatch.setattr(augment, "JITTER", 0.0)
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    h, w = size
    wide = np.pad(image.numpy(), ((0, 0), (int(h > 1),) * 2, (int(w > 1),) * 2), mode="reflect")
    crops = [wide[:, i : i + h, j : j + w] for i in range(wide.shape[1] - h + 1) for j in range(wide.shape[2] - w + 1)]
    known = {crop.tobytes() for crop in crops} | {np.ascontiguousarray(crop[:, :, ::-1]).tobytes() for crop in crops}
    made = photos(image.expand(200, -1, -1, -1)).numpy()
    assert {np.ascontiguousarray(one).tobytes() for one in made} == known


def test_photos_get_other_light_and_colour() -> None:
    """Of an image of one colour: grey times brightness; distance from grey times brightness, contrast and saturation."""
    torch.manual_seed(0)
    colour = torch.tensor([120.0, 90.0, 60.0])  # grey 90
    made = photos(colour.view(1, 3, 1, 1).expand(500, -1, 32, 32).to(torch.uint8)).float()
    assert float(made.std((2, 3)).max()) == 0
    values = made[:, :, 0, 0]
    bright, colourful = values.mean(1) / 90, (values[:, 0] - values[:, 2]) / 60 / (values.mean(1) / 90)
    assert 0.58 < float(bright.min()) < 0.65 and 1.35 < float(bright.max()) < 1.42
    assert 0.34 < float(colourful.min()) < 0.45 and 1.7 < float(colourful.max()) < 2.0  # 0.6 * 0.6 to 1.4 * 1.4
    assert abs(float(np.corrcoef(bright, colourful)[0, 1])) < 0.15


def test_drawings_are_turned_slanted_stretched_and_moved() -> None:
    """The same numbers, put together by numpy as a turn after a slant after a stretch, and carried out by scipy."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (5, 1, 20, 30), dtype=torch.uint8)
    image = torch.nn.functional.avg_pool2d(image.float(), 5, 1, 2).round().to(torch.uint8)
    torch.manual_seed(1)
    made = drawings(image).numpy()
    torch.manual_seed(1)
    numbers = (2 * torch.rand(6, 5) - 1).double().numpy()
    for i, (turn, slant, wide, high, right, down) in enumerate(numbers.T):
        a, b = np.radians(10) * turn, np.radians(10) * slant
        turned = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        linear = turned @ np.array([[1, np.tan(b)], [0, 1]]) @ np.diag([1 + 0.15 * wide, 1 + 0.15 * high])
        shift = np.array([right, down]) / 7
        size = np.array([30, 20])  # x, y; a place p in pixels is (2 p + 1) / size - 1
        scale = np.diag(2 / size)
        inside = np.linalg.inv(scale) @ linear @ scale
        offset = np.linalg.inv(scale) @ (linear @ (1 / size - 1) + shift - (1 / size - 1))
        flip = np.eye(2)[::-1]  # scipy counts rows first
        expected = ndimage.affine_transform(
            image[i, 0].double().numpy(), flip @ inside @ flip, flip @ offset, order=1, mode="nearest"
        )
        assert np.abs(made[i, 0] - expected).max() < 0.51
    one = torch.full((3, 2, 8, 8), 7, dtype=torch.uint8)
    assert torch.equal(drawings(one), one)
    assert drawings(image.to("meta")).is_meta


def voice(seconds: float) -> np.ndarray:
    t = np.arange(int(16_000 * seconds)) / 16_000
    return np.sum([np.sin(2 * np.pi * f * t + f) for f in range(200, 7_900, 100)], axis=0) * 300


def test_clips_stay_within_their_length_and_levels() -> None:
    """Louder or softer by no more than 6 dB and what was left out; nothing behind a clip's end; integers stay integers."""
    torch.manual_seed(0)
    wave = torch.zeros(200, 16_000, dtype=torch.int16)
    wave[:, :12_000] = torch.from_numpy(voice(0.75)).round().to(torch.int16)
    made = speech({"wave": wave, "length": torch.full((200,), 12_000)})
    assert made["wave"].dtype == torch.int16 and not made["wave"][:, 12_000:].any()
    level = 20 * np.log10(made["wave"][:, :12_000].float().std(1).numpy() / wave[0, :12_000].float().std().item())
    assert -14 < level.min() < -5 and 4 < level.max() < 6.5
    assert len({row.numpy().tobytes() for row in made["wave"]}) == 200


def test_what_is_left_out_and_what_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spectra by numpy: nothing above some frequency in half of the clips, a band that is missing, noise of 10 to 30 dB below."""
    torch.manual_seed(1)
    clip = torch.from_numpy(voice(1.0)).float()
    clips = {"wave": clip.expand(300, -1), "length": torch.full((300,), 16_000)}
    monkeypatch.setattr(augment, "GAIN", 0.0)
    monkeypatch.setattr(augment, "STRETCH", 0.0)
    monkeypatch.setattr(augment, "NOISE", (200.0, 200.0))
    spectra = np.abs(np.fft.rfft(speech(clips)["wave"].numpy()))[:, 200:7_900:100]  # the tones, 1 Hz a bin
    there = spectra > 0.5 * np.abs(np.fft.rfft(clip.numpy()))[200:7_900:100]
    tops = np.array([200 + 100 * np.flatnonzero(row)[-1] for row in there])
    assert tops.min() >= 1_000 and 0.35 < np.mean(tops < 7_000) < 0.6  # less a band that may stand at the top
    holes = (~there & (np.arange(200, 7_900, 100) < tops[:, None])).sum(1)
    assert holes.max() <= 10 and np.mean(holes > 0) > 0.5
    monkeypatch.setattr(augment, "NOISE", (10.0, 30.0))
    monkeypatch.setattr(augment, "BAND", 0.0)
    monkeypatch.setattr(augment, "CUT", (8_000.0, 8_000.0))
    noise = speech(clips)["wave"] - clip
    below = -20 * np.log10((noise.std(1) / clip.std()).numpy())
    assert 9.8 < below.min() < 12 and 28 < below.max() < 30.2


def test_a_meta_batch_keeps_its_form() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 256, (2, 6, 3, 16, 16), dtype=torch.uint8)
    y = torch.arange(6).expand(2, 6)
    batch = Episode(Batch(x[:, :0], y[:, :0]), Batch(x, y), torch.ones(2, 6, dtype=torch.bool), False)
    made = augmented(batch, "photos")
    assert isinstance(made.query.x, torch.Tensor) and made.query.x.shape == x.shape and made.query.x.dtype == x.dtype
    assert made.support.x is batch.support.x and torch.equal(made.query.y, y) and made.padded is False
    assert not torch.equal(made.query.x, x)
    meta = photos(x.flatten(0, 1).to("meta"))  # nothing is made elsewhere, nothing waits
    assert meta.is_meta


def test_a_run_with_augmentation_repeats_and_differs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for label in range(12):
        (tmp_path / "photos" / f"c{label}").mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"c{label}" / f"{i}.png")
    task, encoder = f"images({str(tmp_path / 'photos')!r})", "conv4(width=4, channels=3, image_size=16)"
    shape: dict[str, Any] = {"way": 2, "shot": 1, "query": 2, "steps": 6}
    found = []
    kinds: dict[str, Augmentation | None] = {"a": "photos", "b": "photos", "c": None}
    for name, kind in kinds.items():
        done = multifsl.train(task, encoder, "prototypical", out=tmp_path / name, augment=kind, **shape)
        assert done.info["augment"] == kind
        found.append(read_tensors(tmp_path / name / "model.safetensors")[0]["encoder.convs.0.weight"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    for options, message in (
        ({"augment": "mixup"}, "no augment 'mixup'; known: 'photos', 'drawings', 'speech'"),
        ({"augment": "speech"}, "augment='speech' is for speech items, not for image"),
        ({"augment": "photos", "freeze_encoder": True}, "embeddings are made once, so that items cannot change"),
    ):
        with pytest.raises(MultifslError, match=message):
            multifsl.train(task, encoder, "ridge", out=tmp_path / "d", **shape, **options)

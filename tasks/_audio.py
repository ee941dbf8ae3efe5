"""What the speaker tasks share: decoding, and speakers at other speeds."""

from collections.abc import Sequence
from functools import lru_cache, partial
from io import BytesIO
from typing import Any

import numpy as np

from multifsl.errors import BadFile, BadItem, MultifslError
from multifsl.task import Items
from multifsl.tasks._files import File, Lazy

Clip = tuple[np.ndarray, float]  # waveform int16 [n], sample_rate in hertz


@lru_cache(maxsize=8)  # the chunks of an utterance follow each other: decode it once
def decode(file: File) -> tuple[np.ndarray, int]:
    """The first channel, int16 [n], and the sample rate."""
    import soundfile  # only where audio is asked for

    try:
        wave, sample_rate = soundfile.read(BytesIO(file.read_bytes()), dtype="int16", always_2d=True)
    except (soundfile.SoundFileError, BadFile) as error:
        raise BadItem(f"cannot read the recording {file}: {error}") from error
    return wave[:, 0], sample_rate


def check_speeds(speeds: Sequence[float]) -> tuple[float, ...]:
    """The speeds, if they are some."""
    if (
        isinstance(speeds, int | float)
        or not speeds
        or any(not 0.5 <= s <= 2 for s in speeds)
        or len(set(speeds)) < len(speeds)
    ):
        raise MultifslError(f"speeds must be different numbers from 0.5 to 2, such as (0.9, 1.0, 1.1), not {speeds!r}")
    return tuple(speeds)


def at_speeds(items: Items, speeds: Sequence[float], split: str) -> Items:
    """In the train split, each speaker at each speed as a class of its own; a faster clip is a shorter and higher voice.

    Yamamoto, Lee, Okabe and Koshinaka, "Speaker Augmentation and Bandwidth Extension for Deep Speaker Embedding",
    Interspeech 2019. Items of speed 1 stay as they are.
    """
    if split != "train" or tuple(speeds) == (1.0,):
        return items
    count, classes = len(items.labels), len(items.class_names)
    keys = [(position, speed) for speed in speeds for position in range(count)]
    groups = None if items.groups is None else np.tile(items.groups, len(speeds))  # a recording stays one, at any speed
    return Items(
        Lazy(keys, partial(_at_speed, items.items)),
        np.concatenate([items.labels + i * classes for i in range(len(speeds))]),
        [name if speed == 1 else f"{name} x{speed:g}" for speed in speeds for name in items.class_names],
        groups,
    )


def _at_speed(items: Sequence[Any], key: tuple[int, float]) -> Any:
    position, speed = key
    item = items[position]
    if speed == 1:
        return item
    wave, sample_rate = item if isinstance(item, tuple) else decode(item)
    return wave, sample_rate * speed  # resampled from this rate, it is that much faster

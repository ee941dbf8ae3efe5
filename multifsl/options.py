"""Checks of options: what was asked, what came, what is allowed. Each raises MultifslError."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from multifsl.errors import MultifslError


def check_choice(name: str, value: Any, known: tuple[Any, ...]) -> None:
    """An option must be one of the known ones."""
    if value not in known:
        raise MultifslError(f"no {name} {value!r}; known: {', '.join(map(repr, known))}")


def check_flags(**flags: Any) -> None:
    """Each must be True or False."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise MultifslError(f"{name} must be True or False, not {value!r}")


def check_counts(least: int = 1, **counts: Any) -> None:
    """Each must be a whole number from `least`."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise MultifslError(f"{name} must be a whole number from {least}, not {value!r}")


def check_positive(**numbers: Any) -> None:
    """Each must be a number above 0."""
    for name, value in numbers.items():
        if not (_is_number(value) and 0 < value < math.inf):
            raise MultifslError(f"{name} must be a number above 0, not {value!r}")


def check_not_negative(**numbers: Any) -> None:
    """Each must be a number of at least 0."""
    for name, value in numbers.items():
        if not (_is_number(value) and 0 <= value < math.inf):
            raise MultifslError(f"{name} must be a number of at least 0, not {value!r}")


def check_below_one(**numbers: Any) -> None:
    """Each must be a number from 0 and below 1."""
    for name, value in numbers.items():
        if not (_is_number(value) and 0 <= value < 1):
            raise MultifslError(f"{name} must be a number from 0 and below 1, not {value!r}")


def check_inside_one(**numbers: Any) -> None:
    """Each must be a number above 0 and below 1."""
    for name, value in numbers.items():
        if not (_is_number(value) and 0 < value < 1):
            raise MultifslError(f"{name} must be a number above 0 and below 1, not {value!r}")


def check_up_to_one(**numbers: Any) -> None:
    """Each must be a number from 0 to 1."""
    for name, value in numbers.items():
        if not (_is_number(value) and 0 <= value <= 1):
            raise MultifslError(f"{name} must be a number from 0 to 1, not {value!r}")


def check_ranges(least: int = 1, **ranges: Any) -> None:
    """Each must be a whole number from `least`, or a pair (low, high) of such."""
    for name, value in ranges.items():
        low, high = (value, value) if isinstance(value, int) else value
        if not least <= low <= high:
            order = "" if isinstance(value, int) else ", and a range from low to high"
            raise MultifslError(f"{name} must be at least {least}{order}, not {value!r}")


def check_number_or_learned(name: str, value: Any) -> None:
    """An option must be a number above 0, or "learned"."""
    if value != "learned" and not (_is_number(value) and 0 < value < math.inf):
        raise MultifslError(f"{name} must be a number above 0 or 'learned', not {value!r}")


def _check_episodes(episodes: int) -> None:
    if episodes < 2:
        raise MultifslError(f"an interval needs at least 2 episodes, not {episodes}")


def _check_seed(seed: int) -> None:
    check_counts(0, seed=seed)
    if seed >= 2**63:
        raise MultifslError(f"seed must be below 2**63, which is what torch takes, not {seed}")


BOUNDS: dict[str, Callable[..., None]] = {  # of the arguments of `train` and `evaluate` that are numbers
    "way": partial(check_ranges, 2),  # with one class there is nothing to tell apart
    "shot": check_ranges,
    **dict.fromkeys(("query", "episodes_per_step", "steps", "accumulate", "patience", "batch_size"), check_counts),
    "episodes": _check_episodes,
    **dict.fromkeys(("unknown", "outside"), partial(check_counts, 0)),
    "seed": _check_seed,
    **dict.fromkeys(("minutes", "lr", "clip"), check_positive),
    **dict.fromkeys(("weight_decay", "imbalance"), check_not_negative),
    "warmup": check_below_one,
    "ema": check_inside_one,
}
WORDS = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a text", Path: "a path",
    tuple: "a pair of whole numbers", Callable: "a function", Sequence: "a list",
}  # fmt: skip


def check_arguments(function: Callable[..., Any], given: dict[str, Any]) -> None:
    """Each must be what the function's annotations say, and within its BOUNDS. Lists pass as pairs, whole numbers as numbers.

    >>> def draw(*, way: int | tuple[int, int] = 5, lr: float = 0.1) -> None: ...
    >>> check_arguments(draw, {"way": [2, 5], "lr": 1})
    >>> check_arguments(draw, {"way": "3"})
    Traceback (most recent call last):
    multifsl.errors.MultifslError: way must be a whole number or a pair of whole numbers, not '3'
    """
    hints = get_type_hints(function)
    for name, value in given.items():
        hint = hints[name]
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if value is None and NoneType in parts:
            continue
        choices = [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]
        others = [part for part in parts if get_origin(part) is not Literal and part is not NoneType]
        if isinstance(value, str) and value in choices:
            continue
        if choices and not others:
            check_choice(name, value, tuple(choices))
        elif not any(_is(value, part) for part in others):
            kinds = [get_origin(part) or part for part in others]
            words = " or ".join([WORDS.get(kind, f"a built {kind.__name__}") for kind in kinds] + [*map(repr, choices)])
            raise MultifslError(f"{name} must be {words}, not {value!r}")
        elif name in BOUNDS:
            BOUNDS[name](**{name: value})


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation's type."""
    if kind is Any:
        return True
    if kind is float:
        return _is_number(value)
    if get_origin(kind) in (Union, UnionType):
        return any(_is(value, part) for part in get_args(kind))
    if get_origin(kind) is Sequence:  # a text is one too, of letters
        return isinstance(value, list | tuple) and all(_is(one, get_args(kind)[0]) for one in value)
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        return isinstance(value, list | tuple) and len(value) == len(parts) and all(map(_is, value, parts))
    return isinstance(value, get_origin(kind) or kind) and (kind is bool or not isinstance(value, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Checks of options: what was asked, what came, what is allowed. Each raises MultifslError."""

import math
from typing import Any

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


def check_up_to_one(**numbers: Any) -> None:
    """Each must be a number from 0 to 1."""
    for name, value in numbers.items():
        if not (_is_number(value) and 0 <= value <= 1):
            raise MultifslError(f"{name} must be a number from 0 to 1, not {value!r}")


def check_number_or_learned(name: str, value: Any) -> None:
    """An option must be a number above 0, or "learned"."""
    if value != "learned" and not (_is_number(value) and 0 < value < math.inf):
        raise MultifslError(f"{name} must be a number above 0 or 'learned', not {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""Checks of options: what was asked, what came, what is allowed. Each raises MultifslError."""

import math
from typing import Any

from multifsl.errors import MultifslError


def check_choice(name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Raises MultifslError where an option is none of the known ones."""
    if value not in known:
        raise MultifslError(f"no {name} {value!r}; known: {', '.join(map(repr, known))}")


def check_counts(least: int = 1, **counts: Any) -> None:
    """Raises MultifslError where one of some options is no whole number from `least`."""
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise MultifslError(f"{name} must be a whole number from {least}, not {value!r}")


def check_rate(lr: Any, name: str = "lr") -> None:
    """Raises MultifslError where a learning rate is no number above 0."""
    if not isinstance(lr, int | float) or isinstance(lr, bool) or not 0 < lr < math.inf:
        raise MultifslError(f"{name} must be a number above 0, not {lr!r}")


def check_descent(*, momentum: float, dampening: float, weight_decay: float) -> None:
    """Raises MultifslError where one of the options of gradient descent with momentum is out of its range."""
    if not 0 <= momentum < 1:
        raise MultifslError(f"momentum must be a number from 0 to below 1, not {momentum!r}")
    if not 0 <= dampening <= 1:
        raise MultifslError(f"dampening must be a number from 0 to 1, not {dampening!r}")
    if not 0 <= weight_decay < math.inf:
        raise MultifslError(f"weight_decay must be a number of 0 or more, not {weight_decay!r}")

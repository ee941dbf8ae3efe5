"""The errors that a user can cause, and their tree:

MultifslError(ValueError)      what was asked, what came, what is allowed, what to do
├── BadItem                    one image, clip or text that cannot be used; names it
├── DataNotFound               a data set or one of its files that is not there; says where it was looked for
└── BadFile                    a run, model or data file that is damaged or not what its name says
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class MultifslError(ValueError):
    """Something that the user asked for cannot be done; the message says why and what to do."""


class BadItem(MultifslError):
    """One item (image, clip, text) cannot be read or used."""


class DataNotFound(MultifslError):
    """A data set, or a file of it, is not where it was looked for."""


class BadFile(MultifslError):
    """A file is damaged, or is not what its name says."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the known one that is most like it, or nothing.

    >>> nearest("prototypcal", ["matching", "prototypical"])
    "; did you mean 'prototypical'?"
    """
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def some(names: Sequence[str]) -> str:
    """The first five of many names, and the count of the others.

    >>> some(list("abcdefg"))
    'a, b, c, d, e and 2 more'
    """
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

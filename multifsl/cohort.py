"""Cohorts that come with the package: embeddings of items of many classes, by the encoder that made them.

They stand in for what is unknown where a user gives no `background` of his own (`multifsl.rejection`). Each is a file of
`multifsl/cohorts/`, made by `scripts/cohorts.py`, and belongs to the encoder whose weights have the same checksum.
"""

import json
from functools import cache
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from multifsl.encoder import Encoder
from multifsl.functional import digest

FOLDER = Path(__file__).parent / "cohorts"


def cohort_of(encoder: Encoder) -> Tensor | None:
    """The embeddings [B, D] that come with the package for an encoder, in float32; None where there are none.

    >>> from multifsl.encoder import Features
    >>> cohort_of(Features(64)) is None
    True
    """
    known = {checksum: name for name, dim, checksum in _known() if dim == encoder.dim}
    name = known.get(digest(encoder.state_dict())) if known else None
    if name is None:
        return None
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return file.get_tensor("cohort").float()  # type: ignore[no-any-return]


@cache
def _known() -> list[tuple[str, int, str]]:
    """Name, width and the checksum of the encoder's weights of each cohort."""
    found = []
    for path in sorted(FOLDER.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        found.append((path.stem, header["cohort"]["shape"][1], header["__metadata__"]["digest"]))
    return found

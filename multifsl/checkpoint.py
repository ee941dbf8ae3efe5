"""Runs on disk: safetensors and JSON, written so that a crash leaves the old file or the new one, never half of one.

A run is a folder: `model.safetensors` (encoder and method) and `run.json` (schema version, resolved specs, settings,
package versions, metrics, and the checksum of the weights); `checkpoint.safetensors` while it trains. Nothing is
unpickled, and no code, name or path in a file is followed.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as bytes_to_tensors
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from multifsl.encoder import Encoder, no_downloads
from multifsl.errors import BadFile, MultifslError
from multifsl.functional import digest
from multifsl.lock import locked
from multifsl.method import Method
from multifsl.options import check_choice
from multifsl.registry import build, filled_in, find, names, parse, resolved
from multifsl.shipped import SHIPPED, is_shipped, model_names, run_folder

SCHEMA = 1
MAX_JSON_BYTES = 64 * 2**20
ATTEMPTS = 100  # at reading a folder that is replaced meanwhile


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file by new content, at once or not at all, also over a power cut."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # a temporary file is its owner's alone
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_folder(path: Path, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Make a folder whole: written beside its place, then moved into it; the old one goes last. Under the folder's lock."""
    given, path = path, Path(os.path.realpath(path))  # a link stays, what it leads to is replaced
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MultifslError(f"cannot write {given}: {error.strerror}: {error.filename}") from error
    with locked(path):
        recover(path)
        if path.exists() and not overwrite:
            raise MultifslError(f"{given} exists already; choose another place, or overwrite it")
        _replace(path, write, given)


def _replace(path: Path, write: Callable[[Path], None], given: Path) -> None:
    try:
        fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.new."))
    except OSError as error:
        raise MultifslError(f"cannot write {given}: {error.strerror}: {error.filename}") from error
    try:
        os.chmod(fresh, 0o777 & ~_umask())
        write(fresh)
        for other in path.iterdir() if path.exists() else ():  # what somebody put beside our files stays
            if not (fresh / other.name).exists():
                if other.is_dir() and not other.is_symlink():
                    shutil.copytree(other, fresh / other.name, symlinks=True)
                else:
                    shutil.copy2(other, fresh / other.name, follow_symlinks=False)
        old = backup_of(path)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        os.rename(fresh, path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        recover(path)
        if isinstance(error, OSError):
            raise MultifslError(f"cannot write {given}: {error.strerror}") from error
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def backup_of(path: Path) -> Path:
    """Where the old folder stands while a new one takes its place."""
    return path.parent / f".{path.name}.old"


def recover(path: Path) -> None:
    """Undo a replacement that was cut off, and remove what it left. For who holds the folder's lock."""
    if not path.exists() and backup_of(path).is_dir():
        os.rename(backup_of(path), path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.new.*"):
        shutil.rmtree(left, ignore_errors=True)


def to_bytes(tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> bytes:
    """Tensors as the content of a safetensors file."""
    return tensors_to_bytes({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata=header)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header strings of a safetensors file. Raises BadFile, with the reason, where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise BadFile(f"{path.parent} lacks {path.name}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise BadFile(f"{path} is damaged or is no safetensors file: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size, from a regular file, as no pipe or device is. Raises BadFile."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # asked before: to open a pipe is to wait
            raise BadFile(f"{path} is no file")
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise BadFile(f"{path} has more than {MAX_JSON_BYTES} bytes, the most that are read")
        content = json.loads(data.decode())
    except FileNotFoundError:
        raise BadFile(f"{path.parent} lacks {path.name}") from None
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, MultifslError):
            raise
        raise BadFile(f"{path} is damaged or is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise BadFile(f"{path} holds a {type(content).__name__}; an object was expected")
    return content


def read_pair(folder: Path, json_name: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A JSON file and the `model.safetensors` beside it, checked against each other.

    Nothing is moved or written. Of a folder that is replaced meanwhile, it is the old pair or the new one.
    """
    old = backup_of(Path(os.path.realpath(folder)))
    for _ in range(ATTEMPTS):
        before = _mark(folder), _mark(old)
        between = (
            before[0] is None and before[1] is not None
        )  # the two moves of a replacement, or where one was cut off
        try:
            return _read_pair(old if between else folder, json_name, what)
        except MultifslError:
            if (_mark(folder), _mark(old)) == before:
                raise
    raise MultifslError(f"{folder} is replaced all the time; try again when less is written to it")


def _mark(folder: Path) -> tuple[int, int, int] | None:
    """What differs between a folder and the one that takes its place."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _read_pair(folder: Path, json_name: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not folder.is_dir():
        raise MultifslError(f"there is no {what} at {folder}")
    if not (folder / json_name).exists():
        hint = ""
        if what == "model" and (folder / "run.json").exists():
            hint = "; it is a run: `multifsl fit DATA MODEL --run` makes a model with it"
        raise MultifslError(f"{folder} is no {what}: it has no {json_name}{hint}")
    info = read_json(folder / json_name)
    schema = info.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise BadFile(f"{folder / json_name} has no schema version")
    if schema > SCHEMA:
        raise MultifslError(
            f"{folder} was written by a newer multifsl (schema {schema}, this one reads up to {SCHEMA}); upgrade multifsl"
        )
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise BadFile(f"{folder} lacks {weights.name}")
    if not weights.is_file():
        raise BadFile(f"{weights} is no file")
    try:
        data = weights.read_bytes()  # at once: what is checked is what is read
        if checksum(data) != info.get("sha256"):
            raise BadFile(f"{weights} is damaged: its checksum is not the one in {json_name}")
        return info, bytes_to_tensors(data)
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
    ) as error:  # a type of number that torch has not
        if isinstance(error, MultifslError):
            raise
        raise BadFile(f"{weights} is damaged or is no safetensors file: {error}") from error


def checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_pair(folder: Path, json_name: str, info: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The pair that `read_pair` reads, weights first."""
    data = to_bytes(tensors)
    content = json.dumps({"schema": SCHEMA, **info, "sha256": checksum(data)}, indent=2, ensure_ascii=False) + "\n"
    try:
        page = content.encode()
    except UnicodeEncodeError as error:
        near = content[max(0, error.start - 40) : error.end + 40]
        raise MultifslError(
            f"{json_name} is written as UTF-8, which cannot write {near!r}: rename what it names"
        ) from None
    write_atomically(folder / "model.safetensors", data)
    write_atomically(folder / json_name, page)


def versions() -> dict[str, str]:
    """The versions of the packages that a result depends on."""
    found = {}
    for name in ("multifsl", "torch", "torchaudio", "transformers", "scikit-learn", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def made_here() -> dict[str, Any]:
    """When and with which versions a result was made, as its file says: now."""
    return {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "versions": versions()}


def load_weights(module: torch.nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load a state dict, whole and of the right shapes. Raises BadFile naming what does not fit."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [
        f"{k} is {list(tensors[k].shape)}, not {list(own[k].shape)}"
        for k in own.keys() & tensors.keys()
        if tensors[k].shape != own[k].shape
    ]
    if missing or extra or shapes:
        parts = [
            f"missing {missing[:3]}" if missing else "",
            f"unknown {extra[:3]}" if extra else "",
            "; ".join(shapes[:3]),
        ]
        raise BadFile(f"the weights in {source} do not fit: {', '.join(p for p in parts if p)}")
    changed = [k for k, v in own.items() if k.endswith("lora_base") and not torch.equal(v, tensors[k])]
    if changed:
        raise BadFile(
            f"the adapters in {source} were trained beside other published weights than those that are found now"
        )
    module.load_state_dict(tensors)
    for part in module.modules():
        if isinstance(part, Encoder):
            part.published = False


def encoder_note(encoder: Encoder) -> dict[str, Any]:
    """What a file says of an encoder's weights: that they are inside, or, where they are published ones, their digest."""
    published = encoder.published
    return {
        "encoder_weights": "published" if published else "inside",
        "encoder_digest": digest(encoder.state_dict()) if published else None,
    }


def own_weights(method: Method) -> dict[str, Tensor]:
    """Weights of a method and its encoder, without those that somebody else published."""
    published = method.encoder.published
    return {k: v for k, v in method.state_dict().items() if not (published and k.startswith("encoder."))}


def load_own(method: Method, tensors: dict[str, Tensor], info: dict[str, Any], source: Path, weights: Path) -> None:
    """Put back `own_weights`, beside published ones that were found elsewhere.

    source, weights: the files that `info` and `tensors` are from. Raises BadFile where the published weights are not the same.
    """
    published, name = info.get("encoder_weights") == "published", info.get("encoder")
    if info.get("encoder_weights") not in ("published", "inside") or (published and not method.encoder.published):
        raise BadFile(f"{source}: encoder_weights is {info.get('encoder_weights')!r}, but no published ones were found")
    if info.get("encoder_digest") != (digest(method.encoder.state_dict()) if published else None):
        raise BadFile(f"{source}: the weights of {name!r} are not those that it was made with; make it anew")
    if published:
        tensors = tensors | {f"encoder.{k}": v for k, v in method.encoder.state_dict().items()}
    load_weights(method, tensors, weights)
    method.encoder.published = published


LAST = "last.safetensors"  # beside a run's best weights, where those are not the last
CHECKPOINTS = ("checkpoint.safetensors", "checkpoint.previous.safetensors")  # of a run that trains; the newest first


def has_checkpoint(out: Path) -> bool:
    """Whether there is something that a training can go on from."""
    return any((out / name).exists() for name in CHECKPOINTS)


@dataclass(frozen=True)
class Run:
    """A trained method with its encoder, and what is known of how it came about (the content of `run.json`)."""

    path: Path
    method: Method
    info: dict[str, Any]


def specs_of(method: Method) -> dict[str, str]:
    """The specs that a file names a method and its encoder by. Raises MultifslError for one that no spec would find."""
    for kind, thing in (("encoders", method.encoder), ("methods", method)):
        name = parse(resolved(thing))[0].name
        if name not in names(kind) or find(kind, name) is not type(thing):  # type: ignore[arg-type]
            raise MultifslError(
                f"the {kind[:-1]} {type(thing).__name__} cannot be saved, since no name leads to it; put it into a plug-in file "
                "of its own and add that with multifsl.registry.add_plugin, or --plugin"
            )
    return {"encoder": resolved(method.encoder), "method": resolved(method)}


def run_of(path: Path, method: Method, info: dict[str, Any]) -> Run:
    """A run as it will be in its folder."""
    full = {
        **info, **specs_of(method), **encoder_note(method.encoder), "transductive": method.transductive,
        "versions": versions(),
    }  # fmt: skip
    return Run(path, method, full)


def save_run(path: Path, method: Method, info: dict[str, Any], *, last: dict[str, Tensor] | None = None) -> Run:
    """Write a run's final files into its folder; an encoder that was not trained and whose weights are published is named.

    last: the weights that the training ended with, in the form of `own_weights`, where they are not the method's.
    """
    if last is not None:
        data = to_bytes(last)
        write_atomically(path / LAST, data)
        info = {**info, "last_sha256": checksum(data)}
    run = run_of(path, method, info)
    write_pair(path, "run.json", run.info, own_weights(method))
    return run


def load_run(
    path: Path | str,
    *,
    method: str | None = None,
    way: int | None = None,
    weights: str = "best",
    device: str | torch.device = "cpu",
    allow_download: bool = False,
) -> Run:
    """A finished run: its folder, or "model:NAME", one that comes with the package.

    weights: "best", those that did best on validation episodes, or "last", those that the training ended with, where it
        has others (a "model:NAME" has none).
    method: take this instead of the run's own. Of the same name, it takes over all weights, and the options that it leaves open,
    such as MAML with other steps; of another, the encoder's weights alone, for `way` classes.

    Raises:
        MultifslError: no run there, or one that is still training. BadFile: a damaged one, with the reason.
    """
    check_choice("weights", weights, ("best", "last"))
    allow_download = allow_download or is_shipped(path)  # what they name was chosen by us
    given, path = path, run_folder(path)
    if not path.exists() and str(given) in model_names():
        raise MultifslError(f"there is no run at {given}; did you mean '{SHIPPED}{given}', a model that comes along?")
    if has_checkpoint(path) and not (path / "run.json").exists():
        raise MultifslError(f"the run {path} is not finished; go on with it by --resume")
    info, tensors = read_pair(path, "run.json", "run")
    source = path / "model.safetensors"
    done = info.get("metrics", {})
    best_is_last = done.get("val_step", done.get("steps_done")) == done.get("steps_done")
    if weights == "last" and not best_is_last:
        if info.get("last_sha256") is None:
            raise MultifslError(f"of {path.name} the best weights alone are here, not the last; take weights='best'")
        source = path / LAST
        if not source.is_file() or checksum(source.read_bytes()) != info["last_sha256"]:
            raise BadFile(f"{source} is damaged or missing: its checksum is not the one in run.json")
        tensors = read_tensors(source)[0]
    built = build_pair(info, path, allow_download=allow_download)
    info = {"encoder_weights": "inside", **info}  # what older runs, which held all, do not say
    load_own(built, tensors, info, path / "run.json", source)
    built.calibration = done.get("calibration")
    if method is not None:
        tensors, published = built.state_dict(), built.encoder.published
        same = find("methods", parse(method)[0].name) is type(built)
        method = filled_in(method, info["method"]) if same else method
        other: Method = build("methods", method, encoder=built.encoder, way=way)
        if same:
            own = other.state_dict()
            # A number that was learned may be given, and one that was given, learned: it starts anew.
            kept = {k: v for k, v in tensors.items() if k in own or not k.startswith("log_")}
            kept |= {k: v for k, v in own.items() if k.startswith("log_") and k not in kept}
            try:
                load_weights(other, kept, source)
            except BadFile as error:
                raise MultifslError(
                    f"the run's method, {info['method']}, has not the weights for {method}: {error}"
                ) from error
        else:
            other.warn_of_random_weights()
        other.encoder.published = published
        built, info = other, {**info, "method": method}
    return Run(path, built.to(device).eval(), info)


def build_pair(info: dict[str, Any], source: Path, *, allow_download: bool) -> Method:
    """The method on its encoder, weights not yet loaded, that a JSON file names."""
    for key in ("encoder", "method"):
        if not isinstance(info.get(key), str):
            raise BadFile(f"{source} names no {key}")
    with contextlib.nullcontext() if allow_download else no_downloads():
        encoder = build("encoders", info["encoder"])
    method: Method = build("methods", info["method"], encoder=encoder)
    return method

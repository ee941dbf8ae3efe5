"""Finding a data set of the `datasets` library (a folder, the Hugging Face hub, or what was kept of it), and its columns."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multifsl.download import PATIENCE, within
from multifsl.errors import BadFile, DataNotFound, MultifslError
from multifsl.task import data_roots

MODALITIES = {"Image": "image", "Audio": "speech", "string": "text", "large_string": "text"}


def load(path: str | Path, config: str | None, revision: str | None, data_root: Path | None) -> dict[str, Any]:
    """Part -> its table: from the folder of that name, or else from the hub or what was kept of it."""
    given = Path(path).expanduser()
    folders = [given] if given.is_absolute() else [given, *(root / given for root in data_roots(data_root))]
    folder = next((f for f in folders if f.is_dir()), None)
    if folder is not None:
        return _from_folder(folder, config, revision)
    tried = [f"the folder {folder}: not there" for folder in folders]
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", str(path)) or given.is_absolute():
        raise DataNotFound(
            f"no data set {str(path)!r}; tried {'; '.join(tried)}; a name on the hub is 'owner/name' or 'name'"
        )
    return _from_hub(str(path), config, revision, tried)


def _from_folder(folder: Path, config: str | None, revision: str | None) -> dict[str, Any]:
    import datasets

    on_disk = (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()
    if revision is not None:
        raise MultifslError(f"revision={revision!r} is of a name on the hub, and {folder} is a folder; leave it out")
    if config is not None and on_disk:
        raise MultifslError(
            f"config={config!r} chooses between the sets under one name, and {folder}, which save_to_disk wrote, is one set; "
            "leave it out"
        )
    try:
        loaded = datasets.load_from_disk(str(folder)) if on_disk else datasets.load_dataset(str(folder), config)
    except Exception as error:
        raise BadFile(f"datasets cannot read the folder {folder}: {_said(error)}") from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "all"): loaded}


def _from_hub(name: str, config: str | None, revision: str | None, tried: list[str]) -> dict[str, Any]:
    import datasets
    from huggingface_hub import HfApi, constants

    unreachable = "HF_DATASETS_OFFLINE or HF_HUB_OFFLINE is set" if datasets.config.HF_HUB_OFFLINE else ""
    if not unreachable:
        try:  # one short question first, with a limit that holds: `datasets` itself would ask for minutes
            within(PATIENCE, lambda: HfApi().dataset_info(name, revision=revision, timeout=PATIENCE))
        except Exception as error:  # noqa: BLE001  # gated, private, not there, no network: the library says it well
            unreachable = _said(error)
    try:
        with _offline(bool(unreachable)):
            return dict(datasets.load_dataset(name, config, revision=revision))
    except Exception as error:
        if "scripts are no longer supported" in str(error):
            raise MultifslError(
                f"the data set {name!r} is made by a Python script, and datasets {datasets.__version__} runs none "
                '(nor do we). Many have a converted copy on the hub: try revision="refs/convert/parquet"'
            ) from error
        if not unreachable:
            raise DataNotFound(f"cannot load the data set {name!r} from the hub: {_said(error)}") from error
    tried = [
        *tried,
        f"the hub ({constants.ENDPOINT}): {unreachable}",
        f"what datasets kept ({datasets.config.HF_DATASETS_CACHE}): not there",
    ]
    raise DataNotFound(
        f"no data set {name!r}; tried {'; '.join(tried)}. Where there is a network, run: "
        f"hf download {name} --repo-type dataset --local-dir FOLDER; bring the folder here and name it: "
        'dataset("FOLDER")'
    )


@contextmanager
def _offline(off: bool) -> Iterator[None]:
    """Where the hub is known to be out of reach, have `datasets` look at what it kept without asking there again."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = off or before
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _said(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


# ---- its columns ----


def columns(
    features: Mapping[str, Any], item: str | None, label: str | None, group: str | None, path: str | Path
) -> tuple[str, str, str]:
    """The item's column, the label's, and the modality: as given, or else the only ones of their type."""
    kinds = {name: _kind(feature) for name, feature in features.items()}
    there = f"{path} has the columns {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}"

    for role, given in (("item", item), ("label", label), ("group", group)):
        if given is not None and given not in kinds:
            raise MultifslError(f"no column {given!r} for {role}=; {there}")
    if item is not None and item == label:
        raise MultifslError(f"item= and label= are both the column {item!r}; give each its own; {there}")

    def only(role: str, candidates: list[str]) -> str:
        if len(candidates) != 1:
            which = f"could be any of {', '.join(map(repr, candidates))}" if candidates else "is none of the columns"
            raise MultifslError(f"say which column the {role} is in, with {role}=: it {which} by their types; {there}")
        return candidates[0]

    free = [name for name in kinds if name not in (item, label, group)]
    labels = [name for name in free if kinds[name] == "ClassLabel"]
    if label is None and len(labels) == 1:
        label = labels[0]
        free.remove(label)
    if item is None:
        media = [name for name in free if kinds[name] in ("Image", "Audio")]
        item = only("item", media or [name for name in free if kinds[name] in MODALITIES])
        free.remove(item)
    if label is None:
        label = only("label", labels or [name for name in free if _names_by(kinds[name])])
    if kinds[item] not in MODALITIES:
        raise MultifslError(f"the items' column {item!r} must be of images, of audio or of strings; {there}")
    for role, column in (("labels", label), ("groups", group)):
        if column is not None and not _names_by(kinds[column]):
            raise MultifslError(
                f"the {role}' column {column!r} must be of class labels, strings or whole numbers; {there}"
            )
    return item, label, MODALITIES[kinds[item]]


def _names_by(kind: str) -> bool:
    return kind in ("ClassLabel", "string", "large_string") or kind.startswith(("int", "uint"))


def _kind(feature: Any) -> str:
    """ "Image", "Audio", "ClassLabel" and other features by their class, plain values by their type: "string", "int64"."""
    name = type(feature).__name__
    return str(feature.dtype) if name == "Value" else name

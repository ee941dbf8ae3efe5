"""Folders or zip archives that have one folder for each class."""

from collections.abc import Collection
from pathlib import Path

from multifsl.errors import DataNotFound, MultifslError, some
from multifsl.tasks._files import File, Parts, contents, folder_or_zip

Entry = tuple[Parts, File | None]


def class_folders(path: Path, suffixes: Collection[str]) -> dict[str, dict[File, str]]:
    """Class -> its files of those suffixes (at any depth), each with its path inside the class folder.

    Folders that hold one folder and no usable file are taken for wrappers, and opened.
    Raises MultifslError for a class without any usable file.
    """
    entries = contents(path)
    while True:
        classes: dict[str, list[Entry]] = {}
        for parts, file in entries:
            if len(parts) > 1:
                classes.setdefault(parts[0], []).append((parts[1:], file))
            elif file is None:
                classes.setdefault(parts[0], [])
        inside = next(iter(classes.values()), [])
        has_folder = any(len(parts) > 1 or file is None for parts, file in inside)
        has_file = any(len(parts) == 1 and file is not None and _suffix(file) in suffixes for parts, file in inside)
        if len(classes) != 1 or not has_folder or has_file:
            break
        entries = inside

    accepted = f"files are taken by suffix: {', '.join(sorted(suffixes))}"
    if not classes:
        raise MultifslError(f"{path} has no class folders: expected one for each class, with its files; {accepted}")
    found = {
        name: {file: "/".join(parts) for parts, file in inside if file is not None and _suffix(file) in suffixes}
        for name, inside in classes.items()
    }
    empty = [repr(name) for name, files in found.items() if not files]
    if empty:
        raise MultifslError(
            f"no usable file in class {some(empty)} of {path}; {accepted}. Add files to the class, or remove its folder"
        )
    return found


def _suffix(file: File) -> str:
    return file.suffix.lower()


def clips(folder: Path) -> dict[str, dict[File, str]]:
    """Speaker -> clips, from `clips.zip` of a data folder, or from `clips/` or the folder itself where unpacked."""
    path = folder_or_zip(folder, "clips") or folder
    if path == folder and not any(child.is_dir() for child in folder.iterdir()):
        raise DataNotFound(f"{folder} has neither clips.zip nor folders of speakers")
    return class_folders(path, (".flac", ".wav"))

"""Your own recordings: a folder or zip archive with one folder for each speaker (or any other class of sound)."""

import re
from pathlib import Path

from multifsl.errors import MultifslError
from multifsl.task import Items, Task
from multifsl.tasks._files import File, build, resolve
from multifsl.tasks._folders import class_folders
from multifsl.tasks._splits import check_own, select

ALIASES = {".aif", ".aifc", ".oga", ".opus", ".snd", ".sph"}  # usual suffixes that are no format's name


class Speakers(Task):
    """Audio files of a folder or zip archive that has one folder for each speaker.

    path: the folder or archive; a relative path is looked for as it is, then under the data root. Folders around the
        speakers' are opened as long as each holds one folder only; inside a speaker's folder, files count at any depth.
    splits: which speakers train, validate and test: a JSON file of {"train": [...], "val": [...], "test": [...]}, or a
        folder of train.txt, val.txt and test.txt with one speaker a line. Without, 64, 16 and 20 % of them by `seed`.
    group_by: a regular expression, searched for in the file's path inside the speaker's folder (its name, in a flat
        folder); what its first group matches names the recording or session. Equal names are one group, across speakers
        too: a recording may hold several. Test on other sessions than you enrol on, or you measure the microphone.

    An item is a `Path`, or a `Member` of the archive, which is read in place; files are taken by the suffixes of the
    formats that soundfile reads.

        Speakers("voices", group_by=r"(session\\d+)").items("test").groups    # array([0, 0, 1, ...])

    Raises:
        DataNotFound: there is nothing at `path`.
        MultifslError: `path` is neither folder nor archive; a speaker without any audio file; a split that names a
            speaker who is not there, or one that another split names too; a file that `group_by` does not match.
    """

    modality = "speech"

    def __init__(
        self, path: str | Path, *, splits: str | Path | None = None, seed: int = 0, group_by: str | None = None
    ) -> None:
        check_own("speakers", path, seed)
        self.path, self.splits, self.seed, self.group_by = path, splits, seed, group_by
        try:
            groups = 1 if group_by is None else re.compile(group_by).groups
        except re.error as error:
            raise MultifslError(f"group_by {group_by!r} is not a regular expression: {error}") from error
        if not groups:
            raise MultifslError(f"group_by {group_by!r} has no group: put what names the recording in parentheses")

    @staticmethod
    def suffixes() -> tuple[str, ...]:
        """The endings of the files that it takes."""
        import soundfile  # a tenth of a second, and libsndfile: only where audio is asked for

        # raw: no header
        return tuple(sorted({f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | ALIASES))

    def items(self, split: str) -> Items:
        classes = class_folders(resolve(self.path, self.data_root), self.suffixes())
        names = select(split, classes, splits=self.splits, seed=self.seed, data_root=self.data_root)
        chosen = {name: classes[name] for name in names}
        if self.group_by is None:
            return build(chosen)
        pattern = re.compile(self.group_by)
        return build(chosen, lambda name, file: _recording(pattern, chosen[name][file], file))


def _recording(pattern: re.Pattern[str], inside: str, file: File) -> str:
    match = pattern.search(inside)
    if match is None or match[1] is None:
        raise MultifslError(f"group_by {pattern.pattern!r} finds no group in {inside!r} ({file})")
    return match[1]

"""Arabic Speech Commands: 30 people saying 40 keywords in two rounds, 2,400 clips of one second.

Ghandoura, Hjabo and Al Dakkak, "Building and benchmarking an Arabic Speech Commands dataset for small-footprint keyword
spotting", Engineering Applications of Artificial Intelligence, 2021. Licence: CC BY 4.0.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from multifsl.download import Get, archived
from multifsl.errors import BadFile, MultifslError
from multifsl.task import Items, Source, Task, check_split
from multifsl.tasks._audio import at_speeds, check_speeds
from multifsl.tasks._files import File, build, data_file
from multifsl.tasks._folders import clips
from multifsl.tasks._official import as_flac, write_clips
from multifsl.tasks._splits import select

OFFICIAL = "speaker_split_official.json"
ARCHIVE = "https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset/archive/master.zip"
VAL, TEST = (2, 7, 8, 12, 21, 25), (3, 4, 10, 14, 26, 28)  # of the official split; the other 18 are for train
ROUNDS = ("01", "06")  # of the ten recordings that a person made of a keyword


class ArabicSpeechCommands(Task):
    """Arabic Speech Commands: who speaks, or which keyword is said.

    by="speaker": 30 speakers as classes, the official split of 18, 6 and 6 for train, val and test. Groups are the
        rounds of a speaker: with disjoint groups, a test enrols on one session and asks about the other.
    by="keyword": 40 keywords as classes, 64, 16 and 20 % of them by a fixed seed. Groups are the speakers: with
        disjoint groups, a test asks about voices that it has not heard. All 30 speakers stand in every split.

    An item is a clip, a `Member` of `clips.zip` (or a `Path` where that was unpacked): FLAC, 16 kHz. Looked for in the
    folder `speakers_arabic`: `<speaker>/<keyword>_<round>.flac` and `speaker_split_official.json`.

        len(ArabicSpeechCommands(by="keyword").items("train").class_names)    # 26
    """

    modality = "speech"
    source = Source(
        folder="speakers_arabic",
        page="https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset",
        licence="CC BY 4.0",
        megabytes=384,  # unpacked; the server does not announce how long the archive is
    )

    def __init__(self, *, by: str = "speaker", two_parts: bool = False, speeds: Sequence[float] = (1.0,)) -> None:
        if by not in ("speaker", "keyword"):
            raise MultifslError(f"by must be 'speaker' or 'keyword', not {by!r}")
        self.by, self.two_parts, self.speeds = by, two_parts, check_speeds(speeds)
        if by == "keyword" and (two_parts or self.speeds != (1.0,)):
            raise MultifslError("two_parts and speeds are about speakers; with by='keyword', leave them out")

    def items(self, split: str) -> Items:
        check_split(split)
        folder = self.folder("speakers_arabic")
        by_speaker = self.by == "speaker"
        if self.two_parts and split == "val":
            raise MultifslError("split 'val' has no class: with two_parts, its speakers are in the test split")
        classes: dict[str, list[File]] = {}
        groups: dict[File, tuple[str, ...]] = {}
        for speaker, files in clips(folder).items():
            for file, name in files.items():
                keyword, mark, number = name.rpartition(".")[0].rpartition("_")
                if not mark or not keyword:
                    raise BadFile(f"{file} is not named <keyword>_<round>")
                classes.setdefault(speaker if by_speaker else keyword, []).append(file)
                groups[file] = (speaker, number) if by_speaker else (speaker,)
        official = data_file(folder, OFFICIAL) if by_speaker else None
        parts = ("val", "test") if self.two_parts and split == "test" else (split,)
        names = sorted(name for part in parts for name in select(part, classes, splits=official))
        items = build({name: classes[name] for name in names}, lambda _, file: groups[file])
        return at_speeds(items, self.speeds, split)

    @classmethod
    def download(cls, folder: Path, get: Get) -> None:
        speakers: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        clip = rf"[^/]+/dataset/([^/]+)/(\d+)_NO_({'|'.join(ROUNDS)})\.wav"
        for match, recording in archived(get(ARCHIVE), clip):
            keyword, speaker, number = match.groups()
            speakers[speaker][f"{keyword}_{number}"] = as_flac(recording)
        write_clips(folder, speakers)
        parts = {
            name: "val" if int(name) in VAL else "test" if int(name) in TEST else "train" for name in sorted(speakers)
        }
        lists = {part: [name for name in parts if parts[name] == part] for part in ("train", "val", "test")}
        (folder / OFFICIAL).write_text(json.dumps(lists), encoding="utf-8")

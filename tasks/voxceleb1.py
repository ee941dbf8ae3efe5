"""VoxCeleb1: 1,251 celebrities in interviews, some 150,000 clips of 22,496 videos.

Nagrani, Chung and Zisserman, "VoxCeleb: a large-scale speaker identification dataset", Interspeech 2017,
https://arxiv.org/abs/1706.08612, https://www.robots.ox.ac.uk/~vgg/data/voxceleb/.
"""

import re
from pathlib import Path

from multifsl.errors import BadFile, DataNotFound
from multifsl.task import Items, Source, Task, split_classes
from multifsl.tasks._files import File, build, contents
from multifsl.tasks._splits import check_seed, listed

TEST = [f"id{number}" for number in range(10270, 10310)]  # the names that begin with E
DEV = [f"id{number}" for number in range(10001, 11252) if f"id{number}" not in TEST]
ARCHIVES = ("vox1_dev_wav.zip", "vox1_test_wav.zip")


class VoxCeleb1(Task):
    """Speakers of VoxCeleb1: 1,090, 121 and 40 of them for train, val and test.

    seed: which of the 1,211 official development speakers are for val. Test is the official verification set, the
        speakers whose names begin with E.

    Groups are the videos: with disjoint groups, a test enrols on one interview and asks about another. Without, it measures
    the room and the microphone as well. A video in which two of the speakers talk is one group.

    An item is a clip, a `Path` or `Member`: WAV, 16 kHz, from 4 seconds. A class is named by the corpus's id, `id10001`.
    Looked for in the folder `voxceleb1`: `wav/<speaker>/<video>/<clip>.wav`, development and test set together, or else
    `vox1_dev_wav.zip` and `vox1_test_wav.zip`, read in place. A split needs its own speakers only.

        len(VoxCeleb1().items("test").class_names)    # 40
    """

    modality = "speech"
    source = Source(
        folder="voxceleb1",
        page="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/",
        licence="see its page",
        by_hand="fill in the form there, and put vox1_dev_wav.zip and vox1_test_wav.zip into the folder voxceleb1",
    )

    def __init__(self, *, seed: int = 0) -> None:
        check_seed("voxceleb1", seed)
        self.seed = seed

    def items(self, split: str) -> Items:
        folder = self.folder("voxceleb1")
        speakers, videos = _clips(folder)
        dealt = split_classes(DEV, self.seed, (0.9, 0.1))
        lists = {"train": dealt["train"], "val": dealt["val"], "test": TEST}
        return build(
            {name: speakers[name] for name in listed(split, lists, speakers, folder)}, lambda _, file: videos[file]
        )


def _clips(folder: Path) -> tuple[dict[str, list[File]], dict[File, str]]:
    """Speaker -> clips, and clip -> video."""
    unpacked = (folder / "wav").is_dir()
    paths = [folder / "wav"] if unpacked else [folder / name for name in ARCHIVES if (folder / name).is_file()]
    if not paths:
        raise DataNotFound(f"the data folder {folder} has neither the folder wav nor {' nor '.join(ARCHIVES)}")
    speakers: dict[str, list[File]] = {}
    videos: dict[File, str] = {}
    for path in paths:
        for parts, file in contents(path):
            if file is None or file.suffix.lower() != ".wav":
                continue
            if len(parts) < 3 or not re.fullmatch(r"id\d{5}", parts[-3]):
                raise BadFile(f"{file} is not at <speaker>/<video>/<clip>.wav with a speaker such as id10001")
            speakers.setdefault(parts[-3], []).append(file)
            videos[file] = parts[-2]
    return speakers, videos

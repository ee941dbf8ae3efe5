"""VCTK: 110 speakers of English with various accents, each reading some 400 sentences in a studio.

Yamagishi, Veaux and MacDonald, "CSTR VCTK Corpus: English Multi-speaker Corpus for CSTR Voice Cloning Toolkit", version
0.92, 2019, https://doi.org/10.7488/ds/2645. Licence: CC BY 4.0 (version 0.80: ODC-By 1.0).
"""

import re
from pathlib import Path

from multifsl.download import Get, archived
from multifsl.errors import BadFile, DataNotFound, MultifslError
from multifsl.task import Items, Source, Task
from multifsl.tasks._files import File, build
from multifsl.tasks._folders import class_folders
from multifsl.tasks._splits import check_seed, select

PLACES = [
    f"{wrapper}{name}"
    for name in ("wav48_silence_trimmed", "wav48")
    for wrapper in ("", "VCTK-Corpus-0.92/", "VCTK-Corpus/")
]
OFFICIAL = "https://datashare.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip"
# as torchaudio's VCTK_092 holds it
CHECKSUM = "sha256:f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c"
NAME = re.compile(r"[a-z]\d+_(\d+)(?:_mic([12]))?")  # p225_001, p225_001_mic1


class Vctk(Task):
    """Speakers of VCTK, 80, 10 and 10 % of them for train, val and test by `seed`.

    microphone: 1, an omni-directional DPA 4035, or 2, a Sennheiser MKH 800, which recorded the same readings. Version
        0.80 has the first one only. Speakers without any recording of it (of 2: p280 and p315) are left out; the others
        stay in their splits.

    Groups are the numbers of the sentences. All speakers read the same elicitation paragraph and rainbow passage, under the
    first numbers: with disjoint groups, no query repeats a sentence of the support set. Each speaker is one session in one
    studio: there is no second one to test on.

    An item is a `Path`, FLAC (0.92) or WAV (0.80), 48 kHz. A class is named by the corpus's id, `p225`. Looked for in the
    folder `vctk`, or in `VCTK-Corpus-0.92` or `VCTK-Corpus` inside it:
    `wav48_silence_trimmed/<speaker>/<speaker>_<sentence>_mic<1 or 2>.flac`, else `wav48/<speaker>/<speaker>_<sentence>.wav`.

        len(Vctk().items("train").class_names)    # 88
    """

    modality = "speech"
    source = Source("vctk", "https://doi.org/10.7488/ds/2645", "CC BY 4.0", 11747)

    def __init__(self, *, microphone: int = 1, seed: int = 0) -> None:
        if microphone not in (1, 2):
            raise MultifslError(f"vctk has the microphones 1 and 2, not {microphone!r}")
        check_seed("vctk", seed)
        self.microphone, self.seed = microphone, seed

    def items(self, split: str) -> Items:
        folder = self.folder("vctk")
        path = next((folder / place for place in PLACES if (folder / place).is_dir()), None)
        if path is None:
            raise DataNotFound(f"the data folder {folder} has none of the folders {', '.join(PLACES)}")
        speakers = class_folders(path, (".flac", ".wav"))
        sentences = {name: self._sentences(files) for name, files in speakers.items()}
        if not any(sentences.values()):
            raise MultifslError(
                f"{path} has no recording of microphone {self.microphone}; version 0.92 of VCTK has both"
            )
        names = [name for name in select(split, speakers, seed=self.seed, shares=(0.8, 0.1, 0.1)) if sentences[name]]
        return build({name: sentences[name] for name in names}, lambda name, file: sentences[name][file])

    def _sentences(self, files: dict[File, str]) -> dict[File, int]:
        """The microphone's files, each with the number of its sentence."""
        found: dict[File, int] = {}
        for file, inside in files.items():
            match = NAME.fullmatch(Path(inside).stem)
            if match is None:
                raise BadFile(f"{file} is not named <speaker>_<sentence>, or <speaker>_<sentence>_mic<1 or 2>")
            if int(match[2] or 1) == self.microphone:
                found[file] = int(match[1])
        return found

    @classmethod
    def download(cls, folder: Path, get: Get) -> None:
        clip = r"(?:VCTK-Corpus-0\.92/)?wav48_silence_trimmed/([ps]\d+)/(\w+\.flac)"
        for match, recording in archived(get(OFFICIAL, checksum=CHECKSUM), clip):
            speaker = folder / "wav48_silence_trimmed" / match[1]
            speaker.mkdir(parents=True, exist_ok=True)
            (speaker / match[2]).write_bytes(recording)

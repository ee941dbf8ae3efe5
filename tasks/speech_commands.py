"""Speech Commands, by speaker: 520 people, each with 4 to 9 clips of one word and at most one second.

Warden, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", 2018, https://arxiv.org/abs/1804.03209;
version 0.01, the words bed, cat and happy. Licence: CC BY 4.0.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from multifsl.download import Get, archived
from multifsl.task import Items, Source, Task
from multifsl.tasks._audio import at_speeds, check_speeds
from multifsl.tasks._files import build
from multifsl.tasks._folders import clips
from multifsl.tasks._official import as_flac, write_clips
from multifsl.tasks._splits import check_seed, select

OFFICIAL = "http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz"
# as torchaudio's SPEECHCOMMANDS holds it
CHECKSUM = "sha256:743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d"
FEWEST, MOST = 4, 9  # clips of a speaker


class SpeechCommands(Task):
    """Speakers of Speech Commands, 80, 10 and 10 % of them for train, val and test by `seed`.

    speeds: for the train split, each speaker at each of these speeds is a class of its own.

    Many speakers with few clips each: for training. A speaker is also one microphone and one room, so episodes stay
    within this corpus; there are no sessions to tell apart, hence no groups.

    An item is a clip, a `Member` of `clips.zip` (or a `Path` where that was unpacked): FLAC, 16 kHz. A class is named
    by the corpus's id of the speaker. Looked for in the folder `speakers_speech_commands`: `<speaker>/<word>_<n>.flac`.

        len(SpeechCommands().items("train").class_names)    # 416
    """

    modality = "speech"
    source = Source("speakers_speech_commands", "https://arxiv.org/abs/1804.03209", "CC BY 4.0", 1489)

    def __init__(self, *, speeds: Sequence[float] = (1.0,), seed: int = 0) -> None:
        check_seed("speech_commands", seed)
        self.speeds, self.seed = check_speeds(speeds), seed

    def items(self, split: str) -> Items:
        speakers = clips(self.folder("speakers_speech_commands"))
        names = select(split, speakers, seed=self.seed, shares=(0.8, 0.1, 0.1))
        return at_speeds(build({name: speakers[name] for name in names}), self.speeds, split)

    @classmethod
    def download(cls, folder: Path, get: Get) -> None:
        speakers: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
        clip = r"(bed|cat|happy)/([0-9a-f]+)_nohash_(\d+)\.wav"
        for match, recording in archived(get(OFFICIAL, checksum=CHECKSUM), clip):
            word, speaker, number = match.groups()
            speakers[speaker][f"{word}_{number}"] = as_flac(recording)
        write_clips(folder, {name: found for name, found in speakers.items() if FEWEST <= len(found) <= MOST})

"""Speech Commands, by speaker: 520 people, each with 4 to 9 clips of one word and at most one second.

Warden, "Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", 2018, https://arxiv.org/abs/1804.03209;
version 0.01, the words bed, cat and happy. Licence: CC BY 4.0.
"""

from collections.abc import Sequence

from multifsl.task import Items, Task
from multifsl.tasks._audio import at_speeds, check_speeds
from multifsl.tasks._files import build
from multifsl.tasks._folders import clips
from multifsl.tasks._splits import check_seed, select


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

    def __init__(self, *, speeds: Sequence[float] = (1.0,), seed: int = 0) -> None:
        check_seed("speech_commands", seed)
        self.speeds, self.seed = check_speeds(speeds), seed

    def items(self, split: str) -> Items:
        speakers = clips(self.folder("speakers_speech_commands"))
        names = select(split, speakers, seed=self.seed, shares=(0.8, 0.1, 0.1))
        return at_speeds(build({name: speakers[name] for name in names}), self.speeds, split)

"""LibriSpeech, by speaker: one utterance of each of 251 people reading, cut into chunks.

Panayotov, Chen, Povey and Khudanpur, "LibriSpeech: an ASR corpus based on public domain audio books", ICASSP 2015,
https://www.openslr.org/12; train-clean-100, the first 9 seconds of an utterance. Licence: CC BY 4.0.
"""

import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from multifsl.download import Get, archived
from multifsl.errors import BadFile, MultifslError
from multifsl.task import Items, Source, Task
from multifsl.tasks._audio import at_speeds, check_speeds, decode
from multifsl.tasks._files import File, Lazy, build
from multifsl.tasks._folders import clips
from multifsl.tasks._official import as_flac, write_clips
from multifsl.tasks._splits import check_seed, select

OFFICIAL = "https://www.openslr.org/resources/12/train-clean-100.tar.gz"
CHECKSUM = "md5:2a93770f6d5c6c964bc36631d331a522"  # as https://www.openslr.org/resources/12/md5sum.txt has it
SECONDS = 9.0  # of a speaker's first utterance


class Chunk(NamedTuple):
    """Samples start to stop of an utterance."""

    file: File
    start: int
    stop: int


class LibriSpeech(Task):
    """Speakers of LibriSpeech, 80, 10 and 10 % of them for train, val and test by `seed`.

    chunk_seconds: each utterance is cut into consecutive chunks of that length; what is left at its end is dropped. 1.5
        makes up to six of nine seconds.
    speeds: for the train split, each speaker at each of these speeds is a class of its own.

    Chunks of one utterance are easier to match than a person's recordings of two days: fit for training, and for
    unknown speakers, but no measure of recognition. With one utterance a speaker, no episode has disjoint groups.

    An item is (waveform int16 [n], sample_rate in hertz), decoded when asked for. Groups are the utterances. A class is
    named by the corpus's id of the speaker. Looked for in the folder `speakers_librispeech`: `clips.zip` (or unpacked),
    `<speaker>/<file>.flac`.

        LibriSpeech(chunk_seconds=1.5).items("train").items[0][0].shape    # (24000,)

    Raises:
        MultifslError: a speaker without any utterance of `chunk_seconds`.
    """

    modality = "speech"
    source = Source("speakers_librispeech", "https://www.openslr.org/12", "CC BY 4.0", 6387)

    def __init__(self, *, chunk_seconds: float = 1.5, speeds: Sequence[float] = (1.0,), seed: int = 0) -> None:
        if not 0 < chunk_seconds < float("inf"):
            raise MultifslError(f"chunk_seconds must be a number above 0, not {chunk_seconds}")
        check_seed("librispeech", seed)
        self.chunk_seconds, self.speeds, self.seed = chunk_seconds, check_speeds(speeds), seed

    def items(self, split: str) -> Items:
        speakers = clips(self.folder("speakers_librispeech"))
        names = select(split, speakers, seed=self.seed, shares=(0.8, 0.1, 0.1))
        bad: list[str] = []
        chunks = {name: [chunk for file in speakers[name] for chunk in self._chunks(file, bad)] for name in names}
        if bad:
            more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
            warnings.warn(f"left out {len(bad)} recordings: {'; '.join(bad[:5])}{more}", stacklevel=2)
        short = [name for name in names if not chunks[name]]
        if short:
            raise MultifslError(
                f"{len(short)} of {len(names)} speakers, such as {short[0]!r}, have no utterance of "
                f"{self.chunk_seconds} seconds; ask for shorter chunks"
            )
        items = build(chunks, lambda _, chunk: chunk.file)
        items = Items(Lazy(items.items, _open), items.labels, items.class_names, items.groups)
        return at_speeds(items, self.speeds, split)

    def _chunks(self, file: File, bad: list[str]) -> list[Chunk]:
        import soundfile  # only where audio is asked for

        try:
            header = soundfile.info(BytesIO(file.read_bytes()))
        except (soundfile.SoundFileError, BadFile) as error:
            bad.append(f"cannot read the recording {file}: {error}")
            return []
        size = max(1, round(self.chunk_seconds * header.samplerate))
        return [Chunk(file, start, start + size) for start in range(0, header.frames - size + 1, size)]

    @classmethod
    def download(cls, folder: Path, get: Get) -> None:
        first: dict[str, tuple[int, str, bytes]] = {}  # of each speaker: chapter, utterance, recording
        opening = r"LibriSpeech/train-clean-100/(\d+)/(\d+)/(\1-\2-0000)\.flac"
        for match, recording in archived(get(OFFICIAL, checksum=CHECKSUM), opening):
            speaker, chapter, name = match[1], int(match[2]), match[3]
            if speaker not in first or chapter < first[speaker][0]:
                first[speaker] = (chapter, name, as_flac(recording, SECONDS))
        write_clips(folder, {speaker: {name: clip} for speaker, (_, name, clip) in first.items()})


def _open(chunk: Chunk) -> tuple[np.ndarray, int]:
    wave, sample_rate = decode(chunk.file)
    return wave[chunk.start : chunk.stop].copy(), sample_rate

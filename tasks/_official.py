"""From the official files of a data set to the layout that its task reads: what the tasks' `download` share."""

import json
import zipfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path

from multifsl.download import Get, archived

# The class splits of Dopierre, Gravier and Logerais, "ProtAugment", ACL 2021.
PROTAUGMENT = "https://raw.githubusercontent.com/tdopierre/ProtAugment/main/data"
# The checksum is listed at https://www.cs.toronto.edu/~kriz/cifar.html.
CIFAR100 = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
CIFAR100_MD5 = "md5:03b5dce01913d631647c71ecec9e9cb8"


def write_clips(folder: Path, speakers: Mapping[str, Mapping[str, bytes]]) -> None:
    """`clips.zip` of `<speaker>/<name>.flac`, in the order of the names; FLAC does not get smaller by zipping."""
    with zipfile.ZipFile(folder / "clips.zip", "w", zipfile.ZIP_STORED) as archive:
        for speaker in sorted(speakers):
            for name in sorted(speakers[speaker]):
                archive.writestr(f"{speaker}/{name}.flac", speakers[speaker][name])


def as_flac(recording: bytes, seconds: float | None = None) -> bytes:
    """A recording as 16-bit FLAC, its first seconds or all of it; 16-bit samples stay as they are."""
    import soundfile  # only where audio is asked for

    with soundfile.SoundFile(BytesIO(recording)) as sound:
        rate = sound.samplerate
        wave = sound.read(-1 if seconds is None else round(seconds * rate), dtype="int16")
    out = BytesIO()
    soundfile.write(out, wave, rate, format="FLAC", subtype="PCM_16")
    return out.getvalue()


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_protaugment_splits(folder: Path, get: Get, name: str) -> None:
    """`splits/split_01.json` to `split_05.json` from ProtAugment's lists of a data set, such as "BANKING77"."""
    (folder / "splits").mkdir()
    for fold in range(1, 6):
        lists = {
            part: get(f"{PROTAUGMENT}/{name}/few_shot/0{fold}/labels.{part}.txt").read_text("utf-8").split()
            for part in ("train", "valid", "test")
        }
        text = json.dumps(lists, indent=0, ensure_ascii=False)
        (folder / "splits" / f"split_0{fold}.json").write_text(text + "\n", encoding="utf-8")


def write_cifar100(folder: Path, get: Get) -> None:
    """The binary version of CIFAR-100, in `cifar-100-binary`."""
    (folder / "cifar-100-binary").mkdir()
    files = r"cifar-100-binary/(train\.bin|test\.bin|fine_label_names\.txt|coarse_label_names\.txt)"
    for match, content in archived(get(CIFAR100, checksum=CIFAR100_MD5), files):
        (folder / "cifar-100-binary" / match[1]).write_bytes(content)

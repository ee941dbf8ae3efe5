"""From nothing to the first answer: each round is a fresh process, timed from its start to its end.

The peer is a process that imports what every user of torch and scikit-learn waits for, and does nothing with it.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import Case, Run, Setting

TITLE = "Start-up: import, --help, the first prediction from a saved model"
COMMAND = ("-c", "from multifsl.cli import main; main()")  # what the `multifsl` script does
BARE = "import torch, sklearn"


def cases(setting: Setting) -> Iterator[Case]:
    peers = {BARE: lambda: process("-c", setting.pick(BARE, "pass"))}
    ours = {"import multifsl": ("-c", "import multifsl"), "multifsl --help": (*COMMAND, "--help")}
    for (name, arguments), most in zip(ours.items(), (0.3, 0.5), strict=True):
        yield Case(name, lambda arguments=arguments: process(*arguments), peers, aim=0, most=most, unit="process")  # type: ignore[misc]
    yield Case("multifsl predict, one image, Conv4", predict, peers, aim=1 / 1.5, unit="process")


def process(*arguments: str) -> Run:
    """A round that runs Python with these arguments."""

    def once() -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    return once


def predict() -> Run:
    home = Path(models().name)
    return process(*COMMAND, "predict", str(home / "model"), str(home / "0.png"), "--device", "cpu")


@cache
def models() -> tempfile.TemporaryDirectory[str]:
    """A folder with a model of five classes of drawings, two examples each, and the drawings; removed at the end."""
    from multifsl import FewShotClassifier

    folder = tempfile.TemporaryDirectory()
    files = [str(Path(folder.name) / f"{i}.png") for i in range(10)]
    pixels = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    classifier = FewShotClassifier.from_pretrained("omniglot-prototypical", device="cpu")
    classifier.fit(files, [*"abcde"] * 2).save(Path(folder.name) / "model")
    return folder

"""Every example of the README runs as it stands there, in a folder with the data that it names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.needs import needs_efficientnet_lite0, needs_minilm

OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}
ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def run_section(title: str, cwd: Path) -> list[str]:
    """Run a section's Python blocks and `multifsl` lines in order; their outputs."""
    outputs = []
    for language, block in re.findall(r"```(python|sh)\n(.*?)```", section(title), re.DOTALL):
        commands = [[sys.executable, "-c", block]]
        if language == "sh":
            lines = [line for line in block.splitlines() if line.startswith("multifsl ")]
            commands = [[sys.executable, "-m", "multifsl.cli", *_words(line)] for line in lines]
        for command in commands:
            done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=OFFLINE)
            assert done.returncode == 0, (command, done.stderr)
            outputs.append(done.stdout)
    return outputs


def _words(line: str) -> list[str]:
    import shlex

    return shlex.split(line)[1:]


def digits(folder: Path, names: range, count: int) -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    for name in names:
        (folder / f"digit{name}").mkdir(parents=True)
        for i in np.flatnonzero(data.target == name % 10)[:count]:
            pixels = Image.fromarray((data.images[i] * 15.9).astype(np.uint8)).resize((32, 32))
            pixels = pixels.rotate(90 * (name // 10))  # turned digits are classes of their own
            pixels.save(folder / f"digit{name}" / f"{i}.png")


@pytest.mark.xdist_group("readme")
def test_texts(tmp_path: Path) -> None:
    needs_minilm()
    shutil.copy(ROOT / "multifsl" / "demo_data" / "texts.jsonl", tmp_path / "tickets.jsonl")
    outputs = run_section("Texts", tmp_path)
    assert "['lost card' 'close account']" in outputs[0]
    assert json.loads(outputs[2])["results"][0]["label"] == "reset_password"


def world(folder: Path) -> None:
    """Images and voices of classes to train on, and of others."""
    digits(folder / "photos", range(5, 25), 12)
    digits(folder / "new", range(3), 5)
    voices = ROOT / "multifsl" / "demo_data" / "voices"
    shutil.copytree(voices, folder / "voices")
    for voice in sorted(voices.iterdir())[:3]:
        shutil.copytree(voice, folder / "staff" / voice.name)


@pytest.mark.xdist_group("readme")
def test_images_and_voices(tmp_path: Path) -> None:
    needs_efficientnet_lite0()
    world(tmp_path)
    pictures, voices, answer = run_section("Images and voices", tmp_path)
    assert "3 classes from 15 examples" in pictures and "3 classes" in voices and "synthetic_02" in answer


@pytest.mark.xdist_group("readme")
def test_training(tmp_path: Path) -> None:
    world(tmp_path)
    outputs = run_section("Train your own", tmp_path)
    assert "accuracy" in outputs[1]
    assert outputs[2].split("'")[1::2] == ["digit0"] * 3
    assert "synthetic_02" in outputs[5]
    _, adapted, other = run_section("Methods", tmp_path)  # goes on with the same photos and their run
    assert "test_steps=10" in adapted and "logistic(" in other


def test_the_commands_listed_are_the_commands() -> None:
    from multifsl.cli import app

    listed = {line.split()[1] for line in section("Command line").splitlines() if line.startswith("multifsl ")}
    commands = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert listed == commands | {group.name for group in app.registered_groups}


@pytest.mark.parametrize("target", ["demo", "test"])
def test_its_make_commands_exist(target: str) -> None:
    assert f"make {target}" in section("Start")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)

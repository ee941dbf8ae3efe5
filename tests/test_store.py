"""Models on disk. Oracles: the model from before the save; a folder as it was written before it had a format; what had been told to
be written when a process was killed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multifsl import store
from multifsl.checkpoint import write_pair
from multifsl.classifier import FewShotClassifier
from multifsl.encoder import Features
from multifsl.errors import BadFile, MultifslError
from multifsl.learned import learn
from multifsl.registry import build
from multifsl.store import FORMAT, SETTINGS, load_model, save_model, sealed

SUPPORT = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
TENSORS = {"support": SUPPORT, "labels": torch.tensor([0, 1, 1, 0])}
VERSION_0: dict[str, Any] = {
    "encoder": None, "method": "prototypical(distance='euclidean', temperature=1.0)", "dim": 3, "modality": "features",
    "encoder_weights": "inside", "encoder_digest": None, "classes": ["a", "b"], "n_features": 3, "false_accept": 0.1,
    "unknown_label": "none of them", "batch_size": 7, "versions": {"multifsl": "0.1.0"},
}  # fmt: skip
VERSION_1 = {**VERSION_0, "format": 1, "reject": None, "reject_by": "mixed", "calibration": None}
VERSION_2 = sealed({**VERSION_1, "format": 2})


@pytest.mark.parametrize("page", [VERSION_0, VERSION_1])
def test_a_folder_of_an_older_version_still_loads(page: dict[str, Any], tmp_path: Path) -> None:
    write_pair(tmp_path, "model.json", page, TENSORS)
    model = FewShotClassifier.load(tmp_path)
    assert model.counts_ == {"a": 2, "b": 2}
    assert (model.reject, model.reject_by, model.false_accept, model.unknown_label, model.batch_size) == (
        None, "mixed", 0.1, "none of them", 7,
    )  # fmt: skip
    model.enroll("c", [[0.0, 0.0, 1.0]]).save(tmp_path, overwrite=True)
    assert json.loads((tmp_path / "model.json").read_text())["format"] == FORMAT == 2
    assert FewShotClassifier.load(tmp_path).predict([[0.0, 0.0, 2.0], [0.0, 2.0, 0.0]]).tolist() == ["c", "a"]


def test_settings_and_background_come_back(tmp_path: Path) -> None:
    background = torch.arange(60.0).reshape(20, 3)
    method = build("methods", "prototypical", encoder=Features(3))
    learned = learn(method, SUPPORT, np.array([1, 2, 2, 1]), background=background)
    asked = {"reject": 0.25, "false_accept": 0.01, "reject_by": "cosine", "unknown_label": -1, "batch_size": 9}
    save_model(tmp_path / "model", learned, asked)
    again = load_model(tmp_path / "model")
    assert again.settings == asked
    assert asked.keys() == SETTINGS.keys()
    torch.testing.assert_close(again.learned.background, background)
    assert again.learned.counts == {1: 2, 2: 2}
    learned = replace(learned, background=None)
    save_model(tmp_path / "model", learned, asked | {"reject": "auto"}, overwrite=True)
    again = load_model(tmp_path / "model")
    assert (again.settings["reject"], again.learned.background) == ("auto", None)


def test_a_model_that_learned_in_parts_comes_back(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(20, 3))
    model = FewShotClassifier().fit(X[:2], ["m", "z"])
    for i, label in enumerate(["a", "z", "n", "a", "q"]):
        model.enroll(label, X[2 + 3 * i : 5 + 3 * i])
    model.forget("n").rename("a", "y")
    model.save(tmp_path / "model")
    again = FewShotClassifier.load(tmp_path / "model")
    assert again.counts_ == model.counts_ == {"m": 1, "q": 3, "y": 6, "z": 4}
    assert again.support_labels_.tolist() == model.support_labels_.tolist()
    np.testing.assert_allclose(again.predict_proba(X), model.predict_proba(X), atol=1e-12)


@pytest.mark.parametrize(
    ("info", "tensors", "says"),
    [
        ({"format": 3}, {}, "format 3, written by a newer multifsl.*reads up to 2: update multifsl"),
        ({"format": 10**9}, {}, "update multifsl"),
        ({"format": -1}, {}, "format is -1"),
        ({"format": True}, {}, "format is True"),
        ({"format": "1"}, {}, "format is '1'"),
        ({"reject": "never"}, {}, "reject is 'never'; \"auto\", a number or null was expected"),
        ({"reject": True}, {}, "reject is True"),
        ({"reject": [1]}, {}, "reject is"),
        ({"false_accept": 0}, {}, "false_accept is 0; a number between 0 and 1"),
        ({"false_accept": None}, {}, "false_accept is None"),
        ({"reject_by": 3}, {}, "reject_by is 3"),
        ({"reject_by": "nosuch"}, {}, "reject_by is 'nosuch'; one of mixed, cosine, .* was expected"),
        ({"unknown_label": []}, {}, "unknown_label is"),
        ({"batch_size": 2**40}, {}, "batch_size is"),
        ({"dim": 2**30, "n_features": 2**30}, {}, "no numbers of width 1073741824"),
        # 28 * 60000^2 weights, were they made to be compared
        ({"method": "matching(fce=True)"}, {"support": torch.zeros(4, 60_000)}, "weights in .* are not those that"),
        ({"classes": ["b", "a"]}, {}, "sorted, each once"),
        ({"classes": ["a", "b", "c"]}, {}, "do not fit the classes"),
        ({"classes": ["a", "b" * 1001]}, {}, "a label may have 1000 characters; 'b+... has 1001"),
        ({"classes": ["a", "b\0"]}, {}, r"may not have the character NUL; 'b\\x00' has it"),
        ({"unknown_label": "\0"}, {}, "may not have the character NUL"),
        ({"classes": [1, 2**70]}, {}, "may have 64 bits; 1180591620717411303424 has 71"),
        ({"classes": [1.0, float("nan")]}, {}, "may not be NaN"),
        ({}, {"background": torch.zeros(2, 4)}, "width 3"),
        ({}, {"background": torch.full((20, 3), torch.nan)}, "not finite"),
        ({}, {"background": torch.zeros(20, 3, dtype=torch.int64)}, "width 3"),
        ({}, {"background": torch.zeros(0, 3)}, "the background in .* has 0 items; 20 or more"),
        ({}, {"background": torch.zeros(19, 3)}, "the background in .* has 19 items; 20 or more"),
        ({}, {"background": torch.zeros(20, 3, dtype=torch.float8_e4m3fn)}, "background is torch.float8_e4m3fn"),
        ({}, {"support": SUPPORT.to(torch.float8_e5m2)}, "support is torch.float8_e5m2"),
        ({}, {"support": torch.full((4, 3), torch.inf)}, "do not fit the classes"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_with_a_reason(
    info: dict[str, Any], tensors: dict[str, torch.Tensor], says: str, tmp_path: Path
) -> None:
    found = {**TENSORS, **tensors}
    width = {"dim": 60_000, "n_features": 60_000} if found["support"].shape[1] == 60_000 else {}
    write_pair(tmp_path, "model.json", VERSION_1, TENSORS)
    load_model(tmp_path)
    write_pair(tmp_path, "model.json", {**VERSION_1, **width, **info}, found)
    with pytest.raises(MultifslError, match=f"(?s){says}") as told:
        load_model(tmp_path)
    assert isinstance(told.value, BadFile) or "update" in says


def test_a_label_that_json_can_write_and_utf_8_cannot(tmp_path: Path) -> None:
    write_pair(tmp_path, "model.json", VERSION_1, TENSORS)
    file = tmp_path / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "classes": ["a", "b\udcff"]}))
    with pytest.raises(BadFile, match=r"text that UTF-8 can write, and 'b\\udcff' is none"):
        load_model(tmp_path)


def test_an_encoder_wider_than_its_weights_is_not_made(tmp_path: Path) -> None:
    model = FewShotClassifier(build("encoders", "conv4(width=8, norm='group')"))
    model.fit([np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 255, np.uint8)], ["a", "b"]).save(
        tmp_path / "model"
    )
    file = tmp_path / "model" / "model.json"
    wide = json.loads(file.read_text())
    wide["encoder"] = wide["encoder"].replace("width=8", "width=1000000")  # 100 TB
    file.write_text(json.dumps(sealed(wide)))
    with pytest.raises(BadFile, match="weights in .* are not those that"):
        load_model(tmp_path / "model")


def test_json_of_any_size_is_not_read(tmp_path: Path) -> None:
    write_pair(tmp_path, "model.json", VERSION_1, TENSORS)
    with (tmp_path / "model.json").open("r+b") as file:
        file.truncate(2**40)  # a hole: it takes no space on the disk, and would in memory
    with pytest.raises(BadFile, match="has more than 67108864 bytes"):
        load_model(tmp_path)


@pytest.mark.parametrize("page", [VERSION_1, VERSION_2])
def test_what_a_model_lost_or_changed_is_not_guessed(page: dict[str, Any], tmp_path: Path) -> None:
    """A gatekeeper that has lost its `reject` would let everybody in."""
    write_pair(tmp_path, "model.json", page, TENSORS)
    file = tmp_path / "model.json"
    whole = json.loads(file.read_text())
    load_model(tmp_path)
    for key in whole:
        file.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        with pytest.raises(BadFile):
            load_model(tmp_path)
        if page is VERSION_2 and key not in ("schema", "sha256"):
            file.write_text(json.dumps(sealed({k: v for k, v in whole.items() if k != key})))
            if key != "digest":
                with pytest.raises(BadFile, match="lacks"):
                    load_model(tmp_path)
            file.write_text(json.dumps({**whole, key: [whole[key]]}))
            with pytest.raises(BadFile):
                load_model(tmp_path)


def test_a_model_that_was_edited_by_hand_is_refused(tmp_path: Path) -> None:
    FewShotClassifier(reject="auto").fit([[0.0], [1.0]], ["up", "down"]).save(tmp_path / "model")
    file = tmp_path / "model" / "model.json"
    whole = file.read_text()
    file.write_text(json.dumps(json.loads(whole)))  # the same, written otherwise
    assert load_model(tmp_path / "model").settings["reject"] == "auto"
    for changed in (whole.replace('"auto"', "null"), whole.replace("0.05", "0.5"), whole.replace('"up"', '"us"')):
        assert changed != whole
        file.write_text(changed)
        with pytest.raises(BadFile, match="was changed, by hand or by a fault, after it was written"):
            load_model(tmp_path / "model")


def test_labels_that_take_too_much_room_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long label makes those of all examples take its room. Oracle: the size of numpy's array."""
    model = FewShotClassifier().fit([[0.0], [1.0], [2.0]], ["a", "b" * 1000, "c"])
    room = np.array(["a", "b" * 1000, "c"]).nbytes
    monkeypatch.setattr(store, "MOST_ROOM", room)
    model.save(tmp_path / "model")
    assert FewShotClassifier.load(tmp_path / "model").counts_ == model.counts_
    monkeypatch.setattr(store, "MOST_ROOM", room - 1)
    says = "longest label has 1000 characters, for 3 examples together at most 999 are allowed"
    with pytest.raises(BadFile, match=says):
        FewShotClassifier.load(tmp_path / "model")
    with pytest.raises(MultifslError, match=says):
        model.save(tmp_path / "model", overwrite=True)


def test_a_setting_that_would_not_load_is_not_saved(tmp_path: Path) -> None:
    model = FewShotClassifier().fit([[0.0], [1.0]], ["up", "down"]).set_params(reject_by="nosuch")
    with pytest.raises(MultifslError, match="reject_by is 'nosuch'; one of mixed, cosine"):
        model.save(tmp_path / "model")


@pytest.mark.parametrize("label", ["a" * 1001, "a\0b", "a\udcff"])
def test_what_would_not_load_is_not_saved(tmp_path: Path, label: str) -> None:
    for model in (
        FewShotClassifier().fit([[0.0], [1.0]], ["up", label]),
        FewShotClassifier(unknown_label=label).fit([[0.0], [1.0]], ["up", "down"]),
    ):
        with pytest.raises(MultifslError, match="a label (may|must)"):
            model.save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(key=st.sampled_from(sorted(VERSION_1)), value=VALUES)
def test_any_value_gives_a_model_or_a_reason(tmp_path: Path, key: str, value: Any) -> None:
    write_pair(tmp_path, "model.json", {**VERSION_1, key: value}, TENSORS)
    try:
        found = load_model(tmp_path)
    except MultifslError as error:
        assert str(tmp_path) in str(error) or "method" in str(error)
    else:
        logits = found.learned.logits(SUPPORT)
        assert logits.shape == (4, 2) and np.isfinite(logits).all()


PROCESSES = """
import os, random, signal, sys, time, traceback
from pathlib import Path
import torch
from PIL import Image
from multifsl.classifier import FewShotClassifier
from multifsl.commands import learn
from multifsl.registry import build

torch.set_num_threads(1)  # threads do not outlive a fork

def forked(work, *args):
    listen, told = os.pipe()
    child = os.fork()
    if not child:
        try:
            work(*args, told)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(told)
    return child, listen

def enrol(folder, told):
    model = FewShotClassifier.load(folder)
    for i in range(len(model.classes_), 10_000):
        model.enroll(f"{i:05}", [[float(i), 1.0]]).save(folder, overwrite=True)
        os.write(told, b".")

def read(folder, told):
    seen = 0
    while True:
        now = FewShotClassifier.load(folder).classes_.tolist()
        assert now == [f"{i:05}" for i in range(len(now))] and len(now) >= seen, (seen, now)
        seen = len(now)
        os.write(told, b".")

folder, dice = sys.argv[1], random.Random(0)
FewShotClassifier().fit([[0.0, 1.0], [1.0, 1.0]], ["00000", "00001"]).save(folder)
reader, heard = forked(read, folder)
known, fresh = 2, 0
for trial in range(15):
    child, listen = forked(enrol, folder)
    os.read(listen, 1)  # it is at work
    time.sleep(dice.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    written = 1
    while chunk := os.read(listen, 4096):
        written += len(chunk)
    os.close(listen)
    model = FewShotClassifier.load(folder)
    now = len(model.classes_)
    assert known + written <= now <= known + written + 1, (known, written, now)
    assert model.classes_.tolist() == [f"{i:05}" for i in range(now)]
    assert set(model.counts_.values()) == {1}
    fresh, known = fresh + written, now
os.kill(reader, signal.SIGKILL)
assert os.waitpid(reader, 0)[1] == signal.SIGKILL  # and not its own error, before
print(fresh, len(os.read(heard, 4096)))

def enroll_by_command(model, name, told):
    for i in range(4):
        learn.enroll(Path(model), f"{name}{i}", [model + ".png"], device="cpu")

images = folder + "_of_images"
Image.new("RGB", (20, 20)).save(images + ".png")
FewShotClassifier(build("encoders", "conv4(width=8, norm='group')")).fit([images + ".png"], ["first"]).save(images)
for child, _ in [forked(enroll_by_command, images, name) for name in "ab"]:
    assert os.waitpid(child, 0)[1] == 0
assert FewShotClassifier.load(images).classes_.tolist() == [*(f"{name}{i}" for name in "ab" for i in range(4)), "first"]
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_processes_at_once(tmp_path: Path) -> None:
    """One enrols, saves and is killed, at 15 moments: all that it had said was written is there. Another reads all the while, and
    every state is a whole one, none older than the last. Then two commands enrol at once, and nothing of either is lost."""
    command = [sys.executable, "-W", "ignore", "-c", PROCESSES, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    written, read = map(int, done.stdout.splitlines()[0].split())
    assert written >= 15
    assert read >= 15

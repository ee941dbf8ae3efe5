"""Every method by its name in every modality: trained, evaluated, and put to use on new classes; and one that is added.

Tiny data and few steps: whether the parts fit, not how well they do.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import multifsl
from multifsl import registry
from multifsl.classifier import FewShotClassifier
from multifsl.errors import MultifslError
from multifsl.method import Method
from tests.test_packaging import copy_tree
from tests.test_text import WORDS, save

METHODS = registry.names("methods")
CLASSES, EACH = 9, 6
LETTERS = WORDS[5:14]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Modality -> the specs of a task and of an encoder."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = []
    for c in range(CLASSES):
        for folder in ("photos", "voices"):
            (root / folder / f"c{c}").mkdir(parents=True)
        for i in range(EACH):
            pixels = rng.integers(0, 80, (16, 16)).astype(np.uint8)
            pixels[:, c : c + 4] = 255
            Image.fromarray(pixels).save(root / "photos" / f"c{c}" / f"{i}.png")
            t = np.arange(2400) / 16000
            wave = np.sin(2 * np.pi * 200 * 1.5**c * t) * (t % 0.05 < 0.03) + 0.01 * rng.normal(size=len(t))
            soundfile.write(root / "voices" / f"c{c}" / f"{i}.wav", 0.5 * wave, 16000)
            lines.append({"text": " ".join([LETTERS[c]] * 3 + list(rng.choice(LETTERS, 2))), "label": f"c{c}"})
    (root / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    splits = root / "splits.json"
    splits.write_text(json.dumps({"train": [f"c{c}" for c in range(5)], "val": ["c8"], "test": ["c5", "c6", "c7"]}))
    save(root / "bert", "Bert", hidden_dropout_prob=0.0)
    made = {
        "image": (f"images({str(root / 'photos')!r}", "conv4(width=8, channels=1, image_size=16)"),
        "speech": (f"speakers({str(root / 'voices')!r}", "ecapa(channels=8, dim=16)"),
        "text": (f"texts({str(root / 'texts.jsonl')!r}", f"transformer(model={str(root / 'bert')!r})"),
    }
    return {k: (f"{task}, splits={str(splits)!r})", encoder) for k, (task, encoder) in made.items()}


@pytest.mark.parametrize("modality", ["image", "speech", "text"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:no validation", "ignore:.*is transductive")
def test_a_method_trains_is_evaluated_and_serves(
    name: str, modality: str, sets: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    task, encoder = sets[modality]
    run = multifsl.train(
        task, encoder, name, out=tmp_path / "run", way=3, shot=2, query=2, steps=2, episodes_per_step=2, device="cpu"
    )
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["method"] == registry.resolved(run.method) and info["transductive"] == run.method.transductive
    result = multifsl.evaluate(tmp_path / "run", way=3, shot=2, query=2, episodes=4, device="cpu")
    assert 0 <= result.accuracy <= 1 and result.method == info["method"]
    if not run.method.sequential:  # the same episodes, the same weights
        assert (
            multifsl.evaluate(tmp_path / "run", way=3, shot=2, query=2, episodes=4, device="cpu").accuracy
            == result.accuracy
        )

    items = registry.build("tasks", task).items("test")
    X, y = list(items.items), np.array(items.class_names)[items.labels]
    model = FewShotClassifier.from_run(tmp_path / "run", device="cpu").fit(X[::2], y[::2])
    known = model.predict_proba(X[1::2])
    assert known.shape == (9, 3) and np.isfinite(known).all()
    model.save(tmp_path / "model")
    again = FewShotClassifier.load(tmp_path / "model", device="cpu")
    np.testing.assert_allclose(again.predict_proba(X[1::2]), known, rtol=1e-4, atol=1e-6)
    model.forget("c6").partial_fit([X[i] for i in range(len(X)) if y[i] == "c6"][::2], ["c6"] * 3)
    # An enrolment equals a fit on everything. Of meta_lstm it cannot be seen in float32: on this tiny speech encoder, with channels
    # that hardly vary, its five steps make 0.2 of a probability of the rounding of another order of the items (4e-12 in float64,
    # where the contracts see that order does not matter).
    if not run.method.sequential and name != "meta_lstm":
        np.testing.assert_allclose(model.predict_proba(X[1::2]), known, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:.*(beside its encoder's are random|is transductive|centres embeddings)")
def test_features_of_any_type_do(name: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b", "c"], 4)
    X = (np.eye(5)[np.repeat([0, 1, 2], 4)] * 3 + rng.normal(size=(12, 5)) * 0.1).astype(dtype)
    model = FewShotClassifier(method=name, device="cpu").fit(X, y)
    assert np.isfinite(model.predict_proba(X[::2])).all() and list(model.classes_) == ["a", "b", "c"]


@pytest.mark.filterwarnings("ignore:no validation")
def test_a_run_keeps_what_it_learned_under_other_options(sets: dict[str, tuple[str, str]], tmp_path: Path) -> None:
    """Named again, a method has the run's weights and options but for those named; another takes the encoder alone, and says so."""
    task, encoder = sets["image"]
    shape: dict[str, Any] = {"way": 3, "shot": 2, "query": 2, "device": "cpu"}
    method = "maml(lr=0.4, steps=1, head_lr=0.2)"
    run = multifsl.train(task, encoder, method, out=tmp_path / "maml", steps=2, **shape)
    other = multifsl.load_run(tmp_path / "maml", method="maml(test_steps=4)").method
    assert "steps=1, lr=0.4, head_lr=0.2, test_steps=4" in registry.resolved(other) and other.max_way == 3
    classifier = FewShotClassifier.from_run(tmp_path / "maml", method="maml(test_steps=4)", device="cpu")
    for found in (other, classifier.method):
        assert isinstance(found, Method)
        for name, value in run.method.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(MultifslError, match="has not the weights for maml"):
        multifsl.load_run(tmp_path / "maml", method="maml(learn_lr='step')")
    with pytest.warns(UserWarning, match="weights of Relation beside its encoder's are random"):
        multifsl.load_run(tmp_path / "maml", method="relation")
    with pytest.warns(UserWarning, match="weights of Anil"):
        assert multifsl.load_run(tmp_path / "maml", method="anil", way=4).method.max_way == 4

    multifsl.train(task, encoder, "simpleshot", out=tmp_path / "simple", steps=2, **shape)
    mean = multifsl.load_run(tmp_path / "simple").method.state_dict()["centring.mean"]
    assert float(mean.abs().max()) > 0
    again = FewShotClassifier.from_run(tmp_path / "simple", method="simpleshot(temperature=0.1)", device="cpu").method
    assert isinstance(again, Method) and torch.equal(again.state_dict()["centring.mean"], mean)
    names = str(tmp_path / "maml"), {"episodes": 3, **shape}
    ours = multifsl.evaluate(names[0], method="simpleshot", split="test", **names[1])
    assert ours.method.startswith("simpleshot")


def test_what_would_answer_poorly_says_so() -> None:
    X, y = np.eye(4), ["a", "b", "c", "d"]
    for method, message in {
        "maml": "weights of Maml beside its encoder's are random",
        "tim": "is transductive: it answers all items of one `predict` together",
        "simpleshot": "has seen none",
    }.items():
        with pytest.warns(UserWarning, match=message):
            FewShotClassifier(method=method, device="cpu").fit(X, y)
    with pytest.warns(UserWarning, match="one class only"):
        FewShotClassifier(device="cpu").fit(X, ["a"] * 4)


# ---- a method of one's own ----

TOY = '''"""Nearest example: the class of the nearest support item."""

import torch

from multifsl.functional import mask_absent, squared_distances
from multifsl.method import EmbeddingMethod


class Nearest(EmbeddingMethod):
    """The nearest one."""

    family = "metric"

    def __init__(self, encoder, *, scale: float = 1.0):
        super().__init__(encoder)
        self.scale = scale

    def adapt(self, support, present):
        x = support.x.where((support.y >= 0).unsqueeze(1), 0.0)
        return x, support.y, present

    def classify(self, state, x):
        z, y, present = state
        d = squared_distances(x, z)[:, :, None]  # [Q, S, 1]
        own = y[:, None] == torch.arange(present.shape[0], device=y.device)  # [S, N]
        return mask_absent(-self.scale * d.where(own, torch.inf).amin(1), present)
'''


def test_a_method_is_one_file(tmp_path: Path, sets: dict[str, tuple[str, str]]) -> None:
    """A file in `multifsl/methods/` of a copy of the tree, and no other line: listed, under contract, trained and evaluated."""
    tree = tmp_path / "tree"
    tree.mkdir()
    copy_tree(tree, links=True)
    (tree / "multifsl" / "methods" / "nearest.py").write_text(TOY)

    def run(*command: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
        done = subprocess.run(
            [sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    assert re.search(r"^method: metric +nearest ", run("-m", "multifsl.cli", "list", "methods"), re.M)
    contracts = ["-m", "pytest", "tests/contracts/test_methods.py", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    passed = run(*contracts, "-k", "nearest and features")
    assert " passed" in passed and "failed" not in passed
    task, encoder = sets["image"]
    shape = ["--way", "3", "--shot", "1", "--query", "2", "--device", "cpu"]
    run("-m", "multifsl.cli", "train", task, encoder, "nearest(scale=2.0)", "--steps", "2", "--out", "run", *shape)
    assert "nearest(scale=2.0), inductive" in run("-m", "multifsl.cli", "evaluate", "run", "--episodes", "3", *shape)


# ---- bad use ----


def test_another_method_on_a_run(sets: dict[str, tuple[str, str]], tmp_path: Path) -> None:
    """Of the same name with the run's weights; of another on its encoder; else refused."""
    task, encoder = sets["image"]
    shape: dict[str, Any] = {"way": 3, "shot": 1, "query": 2, "episodes": 6, "device": "cpu"}
    with pytest.warns(UserWarning, match="no validation"):
        multifsl.train(task, encoder, "maml(steps=1)", out=tmp_path / "run", way=3, query=2, steps=2, device="cpu")
    assert not multifsl.evaluate(tmp_path / "run", **shape).transductive
    other = multifsl.evaluate(tmp_path / "run", method="maml(steps=1, test_steps=3, batch_norm='query')", **shape)
    assert other.transductive and "test_steps=3" in other.method and "max_way=3" in other.method
    plain = multifsl.evaluate(tmp_path / "run", method="prototypical", **shape)
    assert plain.method.startswith("prototypical(") and plain.encoder == other.encoder
    with pytest.raises(MultifslError, match="do not fit.*step_rates"):
        multifsl.evaluate(tmp_path / "run", method="maml(steps=1, learn_lr='step')", **shape)
    with pytest.raises(MultifslError, match=r"maml.*at most 3 classes apart, not 5"):
        multifsl.evaluate(tmp_path / "run", **{**shape, "way": 5})


@pytest.mark.filterwarnings("ignore:no validation")
def test_what_cannot_be_trained_is_said(sets: dict[str, tuple[str, str]], tmp_path: Path) -> None:
    task, encoder = sets["image"]
    with pytest.raises(MultifslError, match="way must be at least 2, not 1"):
        multifsl.train(task, encoder, "prototypical", out=tmp_path / "run", way=1, steps=1)
    assert not (tmp_path / "run").exists()
    frozen: Method = registry.build("methods", "simpleshot", encoder=registry.build("encoders", encoder))
    frozen.encoder.requires_grad_(False)
    with pytest.raises(MultifslError, match="nothing to train"):
        multifsl.train(task, frozen.encoder, "simpleshot", out=tmp_path / "run", way=3, shot=1, query=2, steps=1)


@pytest.mark.filterwarnings("ignore:.*beside its encoder's are random")
def test_an_adaptation_that_diverges_is_told(sets: dict[str, tuple[str, str]]) -> None:
    task, encoder = sets["image"]
    wild = "maml(lr=1e30, steps=5)"
    items = registry.build("tasks", task).items("test")
    torch.manual_seed(0)
    built = registry.build("encoders", encoder)
    with pytest.warns(UserWarning, match="in 4 of 4 episodes the adaptation diverged"):
        multifsl.evaluate(
            task=task, encoder=built, method=wild, way=3, shot=1, query=2, episodes=4, split="test", device="cpu"
        )
    model = FewShotClassifier(built, wild, device="cpu").fit(list(items.items), items.labels)
    with pytest.raises(MultifslError, match="maml.*diverged.*smaller learning rate"):
        model.predict(list(items.items))

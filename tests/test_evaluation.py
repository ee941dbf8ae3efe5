"""Evaluation against loops in numpy, and against figures that an independent script gave on real data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import multifsl
from multifsl.bank import Bank
from multifsl.encoder import Features
from multifsl.episode import EpisodeSampler
from multifsl.errors import MultifslError
from multifsl.evaluation import CHUNK, episode_accuracies
from multifsl.intervals import half_width
from multifsl.registry import build
from multifsl.task import Items
from tests.needs import needs_data, needs_minilm
from tests.reference import prototypical


def features(classes: int = 8, count: int = 9, spread: float = 1.2) -> tuple[np.ndarray, Items]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), count)
    x = rng.normal(size=(classes, 5))[labels] + spread * rng.normal(size=(len(labels), 5))
    return x, Items(list(x), labels, [str(i) for i in range(classes)])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_accuracies_equal_a_plain_loop(distance: str) -> None:
    """Each episode's items, then the paper's sums over them, then the share of right arg-maxes."""
    x, items = features()
    method = build("methods", f"prototypical(distance={distance!r})", encoder=Features(5)).double()
    found = episode_accuracies(method, items, way=4, shot=2, query=3, episodes=40, seed=3)
    sampler = EpisodeSampler(items.labels, way=4, shot=2, query=3, seed=3)
    for i, accuracy in enumerate(found):
        task = sampler.task(i // CHUNK, i % CHUNK)
        scores = prototypical.logits(x[task.support], task.support_y, x[task.query], 4, distance)
        assert accuracy == pytest.approx(np.mean(scores.argmax(1) == task.query_y), abs=1e-6)
    assert 0.3 < found.mean() < 0.95 and found.std() > 0  # neither trivial nor chance


def test_the_interval_holds_what_it_says() -> None:
    """Of 300 evaluations of 50 episodes, about 95 % cover the mean over very many."""
    _, items = features()
    method = build("methods", "prototypical", encoder=Features(5)).double()
    bank = Bank(torch.from_numpy(np.stack(items.items)), items)
    scores = episode_accuracies(method, bank, way=4, shot=1, query=3, episodes=15_000, seed=0).reshape(300, 50)
    covered = [abs(s.mean() - scores.mean()) < half_width(s) for s in scores]
    assert 0.90 < np.mean(covered) < 0.985  # 0.95 with a standard error of 0.013


def test_a_stored_interval_is_the_formula() -> None:
    scores = np.array([0.2, 0.4, 0.9])
    assert half_width(scores) == pytest.approx(1.96 * np.sqrt(((scores - 0.5) ** 2).sum() / 2) / np.sqrt(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "takes a run, or a task and an encoder"),
        ({"encoder": "conv4"}, "takes a run, or a task and an encoder"),
        ({"task": "banking77", "encoder": "conv4"}, r"reads image items, but the task .* has text items"),
        (
            {"task": "banking77", "encoder": "transformer", "split": "dev"},
            "no split 'dev'; known: train, val, test, all",
        ),
        ({"task": "banking77", "encoder": "transformer", "episodes": 1}, "at least 2 episodes"),
        ({"run": "/no/such/run"}, "there is no run at /no/such/run"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*random weights")
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        multifsl.evaluate(**options)


def test_random_weights_are_said(tmp_path: Path) -> None:
    from PIL import Image

    for c in range(10):
        (tmp_path / f"c{c}").mkdir()
        for i in range(3):
            Image.fromarray(np.random.default_rng(9 * c + i).integers(0, 255, (16, 16), dtype=np.uint8)).save(
                tmp_path / f"c{c}" / f"{i}.png"
            )
    with pytest.warns(UserWarning, match="random weights"):
        result = multifsl.evaluate(task=f"images({str(tmp_path)!r})", encoder="conv4", way=2, query=2, episodes=10)
    assert result.to_json()["method"] == "prototypical(distance='cosine', temperature='learned')"


@pytest.mark.slow
@pytest.mark.parametrize(("way", "shot", "expected"), [(5, 1, 0.851), (5, 5, 0.951), (20, 1, 0.674)])
def test_frozen_minilm_on_banking77(way: int, shot: int, expected: float) -> None:
    """An independent script's figures for nearest class mean by cosine, on the test classes of fold 1."""
    needs_data("text_banking77")
    needs_minilm()
    result = multifsl.evaluate(task="banking77(fold=1)", encoder="transformer", way=way, shot=shot)
    assert result.accuracy == pytest.approx(expected, abs=0.008)

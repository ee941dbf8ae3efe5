"""A teacher's lessons. Oracles: the loss as a loop in numpy, and the pupil's cosines beside those of the teacher."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import multifsl
from multifsl.bank import Bank, sampler_of
from multifsl.distillation import WEIGHT, Imitation, unlikeness
from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.registry import build, resolved
from tests.needs import needs_minilm
from tests.test_training import ENCODER, SHAPE, equal, pictures, weights  # noqa: F401 (pictures is a fixture)


def by_hand(pupil: np.ndarray, teacher: np.ndarray, real: np.ndarray) -> float:
    rows = np.flatnonzero(real)
    cosines: list[list[float]] = [[], []]
    for i in rows:
        for j in rows:
            if i != j:
                for z, into in zip((pupil, teacher), cosines, strict=True):
                    into.append(z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j]))
    return 1 - float(np.corrcoef(np.array(cosines))[0, 1]) if cosines[0] else 1.0


def test_the_loss_is_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    pupil, teacher = rng.normal(size=(3, 6, 4)), rng.normal(size=(3, 6, 7))
    real = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 0, 0]], dtype=bool)
    pupil[1, 1] = np.nan  # padding may hold anything, and leaves no gradient
    z = torch.from_numpy(pupil).requires_grad_()
    found = unlikeness(z, torch.from_numpy(teacher), torch.from_numpy(real))
    assert found.tolist() == pytest.approx([by_hand(*one) for one in zip(pupil, teacher, real, strict=True)], abs=1e-12)
    found.sum().backward()
    assert z.grad is not None and bool(z.grad.isfinite().all())


def test_both_losses_count_and_both_teach() -> None:
    torch.manual_seed(0)
    method = build("methods", "matching(temperature='learned')", encoder=Features(4)).double()
    y = torch.tensor([[0, 1, 2]])
    present = torch.ones(1, 3, dtype=torch.bool)
    x, q, tx, tq = (torch.randn(1, 3, 4, dtype=torch.float64) for _ in range(4))
    episode = Episode(Batch(x, y), Batch(q, y), present)
    output = Imitation(method)(episode, Episode(Batch(tx, y), Batch(tq, y), present))
    plain = method(episode)
    extra = by_hand(torch.cat([x, q], 1)[0].numpy(), torch.cat([tx, tq], 1)[0].numpy(), np.ones(6, dtype=bool))
    assert float(output.loss.detach()) == pytest.approx(float(plain.loss.detach()) + WEIGHT * extra)
    assert torch.equal(output.logits, plain.logits)


class Left(Features):
    """A teacher with a view of its own: which columns of the left half are bright, and nothing else."""

    modality = "image"

    def __init__(self) -> None:
        super().__init__(8)
        self.reader = build("encoders", ENCODER)

    def load(self, item: Any) -> Any:
        return self.reader.load(item)

    def collate(self, loaded: Any) -> Any:
        return self.reader.collate(loaded)

    def forward(self, x: Any) -> torch.Tensor:
        return x.float().mean((1, 2))[:, :8] / 255


def test_a_pupil_comes_to_see_as_its_teacher_does(
    pictures: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The cosines of all train items agree more with the teacher's than without it; the run repeats to the bit."""
    monkeypatch.setattr(
        "multifsl.training.resolved", lambda thing: "left" if isinstance(thing, Left) else resolved(thing)
    )
    task, teacher = f"images({str(pictures)!r})", Left()
    options: dict[str, Any] = {**SHAPE, "way": 5, "steps": 150}
    multifsl.train(task, ENCODER, "prototypical", out=tmp_path / "taught", teacher=teacher, **options)
    multifsl.train(task, ENCODER, "prototypical", out=tmp_path / "again", teacher=teacher, **options)
    multifsl.train(task, ENCODER, "prototypical", out=tmp_path / "alone", **options)
    assert equal(weights(tmp_path / "taught"), weights(tmp_path / "again"))
    x = Bank.build(teacher.reader, build("tasks", task).items("train")).x

    def cosines(encoder: Encoder, mean: torch.Tensor | float = 0.0) -> np.ndarray:
        z = torch.nn.functional.normalize(encoder.embed(x) - mean, dim=1)
        return (z @ z.T).numpy()[np.triu_indices(len(z), 1)]

    wanted = cosines(teacher, teacher.embed(x).mean(0))
    near, far = (
        np.corrcoef(cosines(multifsl.load_run(tmp_path / name, weights="last").method.encoder), wanted)[0, 1]
        for name in ("taught", "alone")
    )
    assert near > far + 0.1
    info = multifsl.load_run(tmp_path / "taught").info
    assert info["teacher"][0] == "left" and multifsl.load_run(tmp_path / "alone").info.get("teacher") is None


def test_lessons_are_of_the_same_items_as_the_episodes(pictures: Path) -> None:  # noqa: F811
    """The teacher's rows follow the same sampler: row numbers taught as embeddings come back in the episodes' places."""
    items = build("tasks", f"images({str(pictures)!r})").items("train")
    numbers = torch.arange(len(items.labels), dtype=torch.float64).unsqueeze(1)
    encoder = build("encoders", ENCODER)
    source, lessons = Bank.build(encoder, items), Bank(numbers, items)
    sampler = sampler_of(items, seed=3, **SHAPE)
    for shown, told in zip(source.stream(sampler, range(4), 2), lessons.stream(sampler, range(4), 2), strict=True):
        assert isinstance(told.query.x, torch.Tensor) and isinstance(source.x, torch.Tensor)
        assert torch.equal(source.x[told.query.x.long().squeeze(-1)], shown.query.x)  # type: ignore[arg-type]
        assert torch.equal(told.query.y, shown.query.y)


def test_who_cannot_be_taught(pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    task, out = f"images({str(pictures)!r})", tmp_path / "run"
    teacher, empty = build("encoders", ENCODER), dict[str, Any]()
    for method, options, message in (
        ("maml", empty, "is not trained on embeddings of whole episodes"),
        ("simpleshot", empty, "is not trained on embeddings of whole episodes"),
        ("ridge", {"freeze_encoder": True}, "a frozen encoder imitates nobody"),
    ):
        with pytest.raises(MultifslError, match=message):
            multifsl.train(task, build("encoders", ENCODER), method, out=out, teacher=teacher, **SHAPE, **options)
    needs_minilm()
    with pytest.raises(MultifslError, match="reads text items, the encoder image items"):
        multifsl.train(task, ENCODER, "ridge", out=out, teacher="transformer", **SHAPE)
    assert not out.exists()

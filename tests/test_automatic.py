"""The method that is chosen on the examples. Oracles: a plain loop over folds, scipy, data of which one knows what is to win."""

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from multifsl.automatic import CLASSES, FOLDS, ITEMS, _spread, best_likelihood, candidates, choose, leave_one_out
from multifsl.encoder import Features
from multifsl.episode import Batch
from multifsl.evaluation import DEFAULT_METHOD
from multifsl.functional import accuracy
from multifsl.method import Method
from multifsl.registry import build, resolved

DIM = 16
DEFAULT = resolved(build("methods", DEFAULT_METHOD, encoder=Features(DIM)))


def examples(counts: list[int], seed: int, loud: float = 0.0) -> tuple[Tensor, Tensor]:
    """Round classes about means of length about 4; `loud`: noise along three directions that no class differs in."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(len(counts), DIM))
    means[:, :3] = 0
    y = np.repeat(np.arange(len(counts)), counts)
    z = means[y] + 0.5 * rng.normal(size=(len(y), DIM))
    z[:, :3] += loud * rng.normal(size=(len(y), 3))
    order = rng.permutation(len(y))
    return torch.tensor(z[order], dtype=torch.float32), torch.tensor(y[order])


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_head_is_chosen_where_noise_along_a_few_directions_hides_the_classes(seed: int) -> None:
    z, y = examples([10] * 5, seed, loud=6.0)
    choice = choose(Features(DIM), z, y, 5)
    assert type(choice.method).__name__ in ("Ridge", "Logistic")
    more, truth = examples([30] * 5, seed, loud=6.0)  # further items of the same classes: the means are drawn first

    def right(method: Method) -> float:
        state = method.adapt(Batch(z, y), torch.ones(5, dtype=torch.bool))
        return float(accuracy(method.classify(state, more), truth))

    assert right(choice.method) > right(build("methods", DEFAULT_METHOD, encoder=Features(DIM))) + 0.1


@pytest.mark.parametrize("seed", range(3))
def test_the_default_stays_where_classes_are_round(seed: int) -> None:
    choice = choose(Features(DIM), *examples([5] * 5, seed), 5)
    assert resolved(choice.method) == DEFAULT
    assert len(choice.scores) == 4


def test_one_example_of_any_class_or_one_class_keeps_the_default_unasked() -> None:
    for counts in ([6, 6, 1], [4]):
        choice = choose(Features(DIM), *examples(counts, 0, loud=6.0), len(counts))
        assert resolved(choice.method) == DEFAULT
        assert choice.scores == []


def test_candidates_that_say_the_same_keep_the_default() -> None:
    """Two classes of the same items."""
    z = torch.stack([torch.ones(DIM), torch.arange(float(DIM)), torch.eye(DIM)[0]])
    choice = choose(Features(DIM), z.repeat(2, 1), torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    assert resolved(choice.method) == DEFAULT
    assert [abs(s.gain) for s in choice.scores] == pytest.approx([0.0] * 4, abs=1e-6)


@pytest.mark.parametrize("counts", [[2, 2, 2], [5, 5], [2, 7, 3], [12, 11, 3]])
@pytest.mark.parametrize("spec", candidates(10, 3, float(DIM)))
def test_all_folds_at_once_are_a_loop_over_folds(spec: str, counts: list[int]) -> None:
    z, y = examples(counts, 1)
    z, n = z.double(), len(counts)
    method = build("methods", spec, encoder=Features(DIM)).double()
    place = [int((y[:i] == y[i]).sum()) for i in range(len(y))]
    folds = min(max(counts), FOLDS)
    expected = torch.empty(len(y), n, dtype=torch.float64)
    for fold in range(folds):
        out = torch.tensor([p % folds == fold for p in place])
        state = method.adapt(Batch(z[~out], y[~out]), torch.ones(n, dtype=torch.bool))
        expected[out] = method.classify(state, z[out])
    torch.testing.assert_close(leave_one_out(method, z, y), expected)


def test_an_example_says_nothing_of_itself() -> None:
    """With FOLDS or fewer examples a class: an example's label, moved to another class, changes none of its own logits."""
    z, y = examples([3, 3], 2)
    z = z.double()
    method = build("methods", "prototypical", encoder=Features(DIM))
    before = leave_one_out(method, z, y)
    first = int((y == 0).nonzero()[0])
    z[first] = 100.0
    after = leave_one_out(method, z, y)
    same_fold = int((y == 1).nonzero()[0])
    torch.testing.assert_close(after[same_fold], before[same_fold])
    others = [i for i in range(len(y)) if i not in (first, same_fold)]
    assert bool((after[others] != before[others]).any(1).all())


def test_the_temperature_is_the_best_one_and_no_scale_of_logits_matters() -> None:
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(60, 4)), rng.integers(0, 4, 60)
    logits[np.arange(60), y] += 1.5

    def loss(log_t: float) -> float:
        x = logits / np.exp(log_t)
        return float(np.mean(np.log(np.exp(x).sum(1)) - x[np.arange(60), y]))

    best = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded")
    for scale in (1e-4, 1.0, 1e4):
        found, t = best_likelihood(torch.tensor(logits * scale), torch.tensor(y))
        assert float(found.mean()) == pytest.approx(-best.fun, abs=2e-3)
        assert np.log(t / scale) == pytest.approx(best.x, abs=0.13)  # half a step of the grid


def test_embeddings_of_another_length_change_no_choice() -> None:
    z, y = examples([4] * 5, 3, loud=2.0)
    a, b = (choose(Features(DIM), z * scale, y, 5).scores for scale in (1.0, 32.0))
    for one, other in zip(a, b, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-3)


def test_the_same_examples_give_the_same_choice() -> None:
    z, y = examples([3, 9, 5], 4, loud=2.0)
    one, other = choose(Features(DIM), z, y, 3), choose(Features(DIM), z, y, 3)
    assert one.scores == other.scores
    assert resolved(one.method) == resolved(other.method)


def test_what_is_looked_at_is_bounded() -> None:
    for n, shots in ((500, 2), (500, 40), (3, 1000)):
        y = torch.arange(n).repeat(shots)
        rows, labels = _spread(y, y.bincount())
        assert len(rows) <= ITEMS
        assert 2 <= int(labels.max()) + 1 == len(labels.unique()) <= CLASSES
        assert len(torch.unique(torch.stack([labels, y[rows]]), dim=1).T) == len(labels.unique())
        assert int(labels.bincount().min()) >= 2
    rows, labels = _spread(torch.tensor([1, 0, 0, 1]), torch.tensor([2, 2]))
    assert rows.tolist() == [0, 1, 2, 3] and labels.tolist() == [1, 0, 0, 1]


def test_ten_thousand_classes_are_compared_by_what_can_be_fitted_to_them() -> None:
    y = torch.arange(10_000).repeat(2)
    z = torch.nn.functional.one_hot(y % 8, 8) + 0.1 * torch.rand(len(y), 8, generator=torch.Generator().manual_seed(0))
    assert [s.spec for s in choose(Features(8), z, y, 10_000).scores] == candidates(20_000, 10_000, 1.0)


def test_copies_of_examples_change_no_choice() -> None:
    z, y = examples([3] * 6, 5, loud=2.0)
    once = choose(Features(DIM), z, y, 6)
    twice = choose(Features(DIM), torch.cat([z, z[:5], z]), torch.cat([y, y[:5], y]), 6)
    assert twice.scores == once.scores
    assert choose(Features(DIM), z[:6].repeat(2, 1), torch.arange(6).repeat(2), 6).scores == []


def test_what_classes_are_called_changes_no_choice() -> None:
    y = torch.arange(50).repeat(3)
    new, counts = torch.from_numpy(np.random.default_rng(0).permutation(50)), torch.full((50,), 3)
    torch.testing.assert_close(_spread(new[y], counts)[0], _spread(y, counts)[0])

"""Intervals. Oracles: coverage in worlds whose truth is known, scipy, statsmodels' published example by hand, a plain loop."""

import numpy as np
import pytest
from scipy import stats

from multifsl.errors import MultifslError
from multifsl.intervals import class_half_width, difference, half_width, holm

DIM, SHOT, QUERY, ITEMS = 8, 1, 5, 20


def world(n_classes: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Means [C, D] of classes, and how widely each one's items are spread [C, 1]: some classes are harder."""
    return rng.normal(size=(n_classes, DIM)), np.exp(0.4 * rng.normal(size=(n_classes, 1)))


def episodes(items: np.ndarray, count: int, way: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies [B] of the nearest class mean, and the classes [B, N], over items [C, I, D]."""
    n_classes, n_items = items.shape[:2]
    classes = rng.random((count, n_classes)).argsort(axis=1)[:, :way]
    picks = rng.random((count, way, n_items)).argsort(axis=2)[:, :, : SHOT + QUERY]
    x = items[classes[:, :, None], picks]  # [B, N, K + Q, D]
    means, queries = x[:, :, :SHOT].mean(2), x[:, :, SHOT:].reshape(count, -1, DIM)
    distances = ((queries[:, :, None] - means[:, None]) ** 2).sum(-1)  # [B, N * Q, N]
    return (distances.argmin(-1) == np.repeat(np.arange(way), QUERY)).mean(1), classes


def draw(n_classes: int, n_items: int, rng: np.random.Generator) -> np.ndarray:
    means, spread = world(n_classes, rng)
    return means[:, None] + spread[:, None] * rng.normal(size=(n_classes, n_items, DIM))


@pytest.mark.parametrize("n_classes", [20, 60])
def test_over_classes_it_holds_the_truth_and_is_no_wider_than_it_must_be(n_classes: int) -> None:
    """400 data sets from one world: how often an interval holds that world's accuracy, beside the usual one."""
    rng = np.random.default_rng(0)
    truth = float(np.concatenate([episodes(draw(500, 6, rng), 4000, 5, rng)[0] for _ in range(8)]).mean())
    means, widths, usual = [], [], []
    for _ in range(400):
        scores, classes = episodes(draw(n_classes, ITEMS, rng), 500, 5, rng)
        width = class_half_width(scores, classes)
        assert width is not None
        means.append(scores.mean())
        widths.append(width)
        usual.append(half_width(scores))
    off = np.abs(np.array(means) - truth)
    covered, covered_by_the_usual = (off < widths).mean(), (off < usual).mean()
    assert 0.93 <= covered <= 0.98, covered  # 400 cases: 0.95 is seen as 0.93 to 0.97
    assert covered_by_the_usual < 0.5
    ideal = 1.96 * np.std(means)
    assert 0.8 * ideal < np.mean(widths) < 2 * ideal


def test_over_episodes_it_holds_the_data_sets_own_accuracy() -> None:
    rng = np.random.default_rng(1)
    items = draw(20, ITEMS, rng)
    truth = episodes(items, 40_000, 5, rng)[0].mean()
    held = [abs((s := episodes(items, 100, 5, rng)[0]).mean() - truth) < half_width(s) for _ in range(400)]
    assert 0.92 <= np.mean(held) <= 0.98


def test_the_jackknife_is_the_plain_loop() -> None:
    rng = np.random.default_rng(2)
    classes = np.stack([rng.choice(12, 4, replace=False) for _ in range(300)])
    classes[::3, 3] = -1  # episodes of three classes
    scores = rng.random(300) + 0.1 * classes[:, 0]
    left = [scores[~(classes == c).any(1)].mean() for c in range(12)]
    jackknife = 11 / 12 * sum((m - np.mean(left)) ** 2 for m in left)
    noise = scores.var(ddof=1) / 300
    expected = stats.t.ppf(0.975, 11) * np.sqrt(max(jackknife - (np.mean((classes >= 0).sum(1)) - 1) * noise, noise))
    assert class_half_width(scores, classes) == pytest.approx(expected, rel=1e-12)


def test_where_it_cannot_be_told_it_is_not() -> None:
    scores = np.linspace(0, 1, 50)
    assert class_half_width(scores, np.tile([0, 1, 2, 3], (50, 1))) is None  # every class in every episode
    assert class_half_width(scores, np.tile([0, 1], (50, 1))) is None


def test_a_difference_is_paired() -> None:
    """Two methods that share their hard episodes: the paired interval is far narrower than either one's."""
    rng = np.random.default_rng(3)
    classes = np.stack([rng.choice(15, 5, replace=False) for _ in range(400)])
    hard = rng.random(400)
    a, b = 0.5 * hard + 0.02 + 0.01 * rng.random(400), 0.5 * hard + 0.01 * rng.random(400)
    found = difference(a, b, classes)
    assert found.mean == pytest.approx((a - b).mean()) and found.ci95 < half_width(a) / 10
    assert found.p == pytest.approx(stats.ttest_1samp(a - b, 0).pvalue, rel=1e-6) and found.p < 1e-6
    assert difference(a, a, classes).p == 1 and difference(a + 0.5, a, classes).p < 1e-6
    with pytest.raises(MultifslError, match="the same episodes, not 400 and 399"):
        difference(a, b[1:], classes)


def test_holm_by_hand_and_against_its_rule() -> None:
    """The step-down rule itself: reject the smallest p while p <= 0.05 / (tests left)."""
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    rng = np.random.default_rng(4)
    for _ in range(200):
        p = rng.random(6) ** 3
        rejected, left = set(), 6
        for i in np.argsort(p):
            if p[i] > 0.05 / left:
                break
            rejected.add(int(i))
            left -= 1
        assert set(np.flatnonzero(holm(p) <= 0.05).tolist()) == rejected

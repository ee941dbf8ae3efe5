"""Contrastive fine-tuning against its paper as plain loops."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.testing import assert_close

from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.methods.contrastive_finetune import ContrastiveFinetune, draw_pairs
from multifsl.registry import build
from tests.contracts import toys
from tests.methods.test_anil import Net
from tests.methods.test_finetune import LABELS, data, episode, weights
from tests.reference import contrastive_finetune as reference
from tests.reference.finetune import Weights, hidden


def method(options: str = "", encoder: Encoder | None = None) -> ContrastiveFinetune:
    torch.manual_seed(3)
    spec = f"contrastive_finetune({options})"
    made: ContrastiveFinetune = build("methods", spec, encoder=Net() if encoder is None else encoder).double()
    return made.eval()


def tuned(made: ContrastiveFinetune, x: np.ndarray, y: np.ndarray) -> Weights:
    return reference.tuned(weights(made), x, y, made.draws.numpy(), made.lr)


@pytest.mark.parametrize("pairs", [4, 7, 16])  # of 12 items, encoded pair by pair, or all of them once
def test_weights_and_logits_equal_plain_loops(pairs: int) -> None:
    """Draws, gradients, Adam, and the head of class means; 1e-9."""
    made = method(f"steps=5, pairs={pairs}, lr=0.05, head='prototypes', seed=4")
    (x, y), (q, qy) = data(), data(1)
    w = tuned(made, x, y)
    support = Batch(torch.from_numpy(x), torch.from_numpy(y))
    state = made.adapt(support, torch.ones(4, dtype=torch.bool))
    for name, k in (("weight", "W"), ("bias", "b")):
        np.testing.assert_allclose(state.weights[f"encoder.layer.{name}"].numpy(), w[k], rtol=1e-9, atol=1e-9)
    expected = reference.prototype_logits(w, x, y, q, 4)
    for training in (False, True):  # there is nothing that training would do otherwise
        found = made.train(training)(episode(x, y, q, qy)).logits[0].detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-8)


def test_the_gradient_of_the_pairs_loss_equals_that_of_plain_loops_and_of_finite_differences() -> None:
    made = method()
    x, y = data()
    i, j = np.array([0, 3, 1, 5, 2]), np.array([3, 9, 2, 5, 11])
    pairs = [(x[a], x[b], bool(y[a] == y[b])) for a, b in zip(i, j, strict=True)]
    w = {k: v for k, v in made.initial(4).items() if k.startswith("encoder.")}
    tensors = [torch.from_numpy(v) for v in (x, i, j, y[i] == y[j])]
    loss = made.pair_loss(w, *tensors)
    assert float(loss.detach()) == pytest.approx(reference.pair_loss(weights(made), pairs), rel=1e-12)
    expected = reference.pair_gradient(weights(made), pairs)
    for g, k in zip(torch.autograd.grad(loss, list(w.values())), ("W", "b"), strict=True):
        np.testing.assert_allclose(g.numpy(), expected[k], rtol=1e-10, atol=1e-12)

    def of(*values: Tensor) -> Tensor:
        return made.pair_loss(dict(zip(w, values, strict=True)), *tensors)

    assert torch.autograd.gradcheck(of, tuple(v.detach().requires_grad_() for v in w.values()))


def test_the_logistic_head_is_that_of_scikit_learn() -> None:
    """On the tuned embeddings, at length 1; probabilities to 1e-4."""
    made = method("steps=5, lr=0.05")
    (x, y), (q, qy) = data(), data(1)
    w = tuned(made, x, y)
    unit = [np.stack([hidden(w, v) / np.linalg.norm(hidden(w, v)) for v in leaf]) for leaf in (x, q)]
    theirs = LogisticRegression(class_weight="balanced", tol=1e-8, max_iter=1000).fit(unit[0], y)
    found = made(episode(x, y, q, qy)).logits[0].softmax(1).detach().numpy()
    np.testing.assert_allclose(found, theirs.predict_proba(unit[1]), atol=1e-4)


def test_cosines_move_towards_one_within_a_class_and_towards_none_between_classes() -> None:
    """What the method is for: over all pairs that there are, mean (cos - 1)^2 and mean cos^2 fall by more than a third."""
    made = method("steps=50, pairs=32, lr=0.1")
    x, y = data(2, spread=0.5)
    support = Batch(torch.from_numpy(x), torch.from_numpy(y))

    def errors(w: dict[str, Tensor]) -> tuple[float, float]:
        z = torch.nn.functional.normalize(made.embeddings(w, support.x), dim=1)
        same, itself = support.y.unsqueeze(1) == support.y, torch.eye(len(y), dtype=torch.bool)
        cosines = z @ z.T
        return float((cosines[same & ~itself] - 1).square().mean()), float(cosines[~same].square().mean())

    after = made.adapt(support, torch.ones(4, dtype=torch.bool)).weights
    with torch.no_grad():
        before, left = errors(made.initial(4)), errors(after)
    assert left[0] < 0.67 * before[0] and left[1] < 0.67 * before[1]


def test_every_pair_that_fits_is_as_likely() -> None:
    """Of 40,000 draws: counts within five standard deviations of those of a fair draw, and no pair that does not fit."""
    y = torch.tensor([0, 0, 0, 1, 1, 2, -1])
    many = 40_000
    i, j = draw_pairs(y, torch.rand(2, many, generator=torch.Generator().manual_seed(0)))
    assert not bool(((i == 6) | (j == 6)).any())  # padding
    for half, wanted in ((slice(0, many // 2), True), (slice(many // 2, many), False)):
        counts = torch.zeros(7, 7).index_put((i[half], j[half]), torch.ones(many // 2), accumulate=True)
        for a in range(6):
            fits = [b for b in range(6) if (y[a] == y[b]) == wanted and a != b] or [a]
            assert {b for b in range(7) if counts[a, b] > 0} <= set(fits)
            p = 1 / 6 / len(fits)
            for b in fits:
                assert abs(float(counts[a, b]) - many / 2 * p) < 5 * (many / 2 * p * (1 - p)) ** 0.5


def test_one_shot_learns_from_pairs_of_two_classes_alone() -> None:
    """An item is its own partner where its class has no other: a cosine of 1, and no gradient."""
    y = torch.arange(4)
    i, j = draw_pairs(y, torch.rand(2, 20, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(i[:10], j[:10]) and not bool((i[10:] == j[10:]).any())
    made = method("steps=2, lr=0.05")
    x, labels = data(labels=np.arange(4))
    loss = made.pair_loss(made.initial(4), torch.from_numpy(x), i[:10], j[:10], i[:10] == j[:10])
    assert_close(loss.detach(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-15)
    g = torch.autograd.grad(loss, list(made.encoder.parameters()))
    assert all(float(v.abs().max()) < 1e-12 for v in g)
    assert made(episode(x, labels, *data(1))).logits.isfinite().all()


def test_answers_repeat_and_hang_on_the_seed() -> None:
    (x, y), (q, qy) = data(), data(1)
    found = [method(f"steps=3, lr=0.05, seed={seed}")(episode(x, y, q, qy)).logits for seed in (0, 0, 1)]
    assert_close(found[0], found[1], rtol=0, atol=0)
    assert float((found[0] - found[2]).abs().max()) > 1e-3


def test_an_encoder_without_parameters_gets_the_head_alone() -> None:
    """Oracle: `logistic` and `prototypical` on the same embeddings."""
    (x, y), (q, qy) = data(), data(1)
    one = episode(x, y, q, qy)
    for head, other in (
        ("logistic", "logistic(scale=1.0)"),
        ("prototypes", "prototypical(distance='cosine', temperature=0.1)"),
    ):
        found = method(f"head={head!r}", Features(3))(one).logits
        expected = build("methods", other, encoder=Features(3)).double()(one).logits
        assert_close(found, expected, rtol=1e-6, atol=1e-6)
    (sx, sy), (qx, qy_), present, _ = one
    assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
    support, query = (Batch(torch.cat([x, x.flip(2)]), y.expand(2, -1)) for x, y in ((sx, sy), (qx, qy_)))
    two = Episode(support, query, present.expand(2, -1), False)
    assert_close(method("", Features(3))(two).logits[:1], method("", Features(3))(one).logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pairs", [2, 8])
@pytest.mark.parametrize("modality", ["image", "image with batch statistics", "text"])
def test_vectorised_equals_the_loop(modality: str, pairs: int) -> None:
    outs = []
    for vectorize in (False, True):
        encoder = toys.encoder(modality)
        made = method(f"steps=3, lr=1e-2, pairs={pairs}, vectorize={vectorize}", encoder)
        outs.append(made(toys.episodes(encoder, modality, shot=3)))
    assert_close(outs[1].logits, outs[0].logits, rtol=1e-8, atol=1e-8)
    assert_close(outs[1].loss, outs[0].loss, rtol=1e-8, atol=1e-9)


def test_the_cost_does_not_grow_with_the_pairs_that_there_are() -> None:
    """A step encodes 2 * pairs items, however many there are, with gradient; and no more than there are."""
    for labels, expected in ((np.tile(LABELS, 5), 8), (LABELS[:6], 6)):
        encoder = Net()
        seen: list[int] = []
        encoder.register_forward_hook(lambda _, x, z, seen=seen: seen.append(len(x[0])) if z.requires_grad else None)
        made = method("steps=3, pairs=4", encoder)
        x, y = data(labels=labels)
        made.adapt(Batch(torch.from_numpy(x), torch.from_numpy(y)), torch.ones(int(y.max()) + 1, dtype=torch.bool))
        assert seen == [expected] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("steps=0", "steps must be a whole number from 1, not 0"),
        ("pairs=1", "pairs must be a whole number from 2, not 1"),
        ("seed=-1", "seed must be a whole number from 0, not -1"),
        ("lr=-0.1", "lr must be a number above 0, not -0.1"),
        ("head='svm'", "no head 'svm'; known: 'logistic', 'prototypes'"),
        ("trainable='conv'", "'conv' fits none of the encoder's 2 parameters"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        method(options)


def test_a_class_without_support() -> None:
    (x, y), (q, qy) = data(), data(1)
    with pytest.raises(MultifslError, match="class 2 of task 0 takes part but has no support item"):
        method()(episode(x[y != 2], y[y != 2], q, qy))

"""Fine-tuning against its arithmetic as plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from multifsl.base_training import BaseClassifier
from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Episode, Inputs
from multifsl.errors import MultifslError
from multifsl.functional import adam_step
from multifsl.method import Method
from multifsl.methods.finetune import Finetune, deal, most_folds
from multifsl.registry import build
from tests.contracts import toys
from tests.methods.test_anil import Net
from tests.reference import finetune as reference

LABELS = np.array([0, 1, 2] * 3 + [0, 0, 3])  # five, three, three, and one item
RATES = {"W": 0.02, "b": 0.02, "V": 0.3, "c": 0.3}


def method(options: str, encoder: Encoder | None = None) -> Finetune:
    torch.manual_seed(3)
    made: Finetune = build("methods", f"finetune({options})", encoder=Net() if encoder is None else encoder).double()
    return made.eval()


def weights(made: Method) -> reference.Weights:
    assert isinstance(made.encoder, Net)
    return {"W": made.encoder.layer.weight.detach().numpy(), "b": made.encoder.layer.bias.detach().numpy()}


def data(seed: int = 0, labels: np.ndarray = LABELS, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(8, 3))
    return rng.normal(size=(len(labels), 3)) * spread + centres[labels], labels


def episode(x: np.ndarray, y: np.ndarray, q: np.ndarray, qy: np.ndarray) -> Episode:
    present = torch.ones(1, int(y.max()) + 1, dtype=torch.bool)
    leaves = [torch.from_numpy(leaf)[None] for leaf in (x, y, q, qy)]
    return Episode(Batch(leaves[0], leaves[1]), Batch(leaves[2], leaves[3]), present, False)


@pytest.mark.parametrize("head", ["cosine", "linear"])
@pytest.mark.parametrize(("trainable", "moving"), [("all", "WbVc"), ("weight", "WVc"), ("head", "Vc")])
@pytest.mark.parametrize("early_stop", [False, True])
def test_logits_and_loss_equal_plain_loops(head: str, trainable: str, moving: str, early_stop: bool) -> None:
    """Start, gradients, Adam and the choice of the number of steps; 1e-9, for Adam divides rounding errors by small numbers."""
    made = method(f"trainable={trainable!r}, head={head!r}, steps=4, lr=0.02, head_lr=0.3, early_stop={early_stop}")
    rates = {k: RATES[k] for k in moving}
    (x, y), (q, qy) = data(), data(1)
    w = weights(made)
    path = reference.descend(reference.start(w, x, y, 4, head), x, y, 4, rates, head)
    stop = reference.best_stop(w, x, y, 4, 4, rates, head) if early_stop else 4
    for training in (False, True):  # there is nothing that training would do otherwise
        out = made.train(training)(episode(x, y, q, qy))
        expected = reference.logits(path[stop], q, head)
        np.testing.assert_allclose(out.logits[0].detach().numpy(), expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(float(out.loss.detach()), reference.loss(path[stop], q, qy, head), rtol=1e-9)


def test_the_number_of_steps_is_the_one_that_plain_loops_choose() -> None:
    """For tasks that part by little and tasks that part by much; none, some and all of the steps are among the choices."""
    made = method("steps=6, lr=0.02, head_lr=0.3, early_stop=True")
    chosen = []
    for seed in range(8):
        x, y = data(seed, spread=(0.1, 0.8)[seed % 2])
        support = Batch(torch.from_numpy(x), torch.from_numpy(y))
        stop = int(made.best_stop(support, torch.ones(4, dtype=torch.bool)))
        assert stop == reference.best_stop(weights(made), x, y, 4, 6, RATES)
        chosen.append(stop)
    assert len(set(chosen)) > 2


def test_where_nothing_can_be_left_out_all_steps_are_taken() -> None:
    """One-shot: the same as without `early_stop`, to the bit. And a class of one item stays with every fold."""
    x, y = data(labels=np.arange(4))
    q, qy = data(1)
    outs = [method(f"steps=3, lr=0.02, early_stop={e}")(episode(x, y, q, qy)).logits for e in (False, True)]
    assert_close(outs[0], outs[1], rtol=0, atol=0)
    x, y = data()
    fold = deal(torch.from_numpy(x), torch.from_numpy(y), 5)
    assert fold[y == 3].tolist() == [-1]
    assert [sorted(fold[y == k].tolist()) for k in range(3)] == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1, 2]]
    assert [most_folds(torch.tensor(v), 3) for v in ([0, 1, 2], [0, 0, 1, 2], [0] * 9, [-1, -1, 0])] == [0, 2, 5, 0]


@pytest.mark.parametrize("encoder", ["features", "network"])
def test_without_a_step_it_is_the_nearest_class_mean_by_cosine(encoder: str) -> None:
    """Oracle: prototypical(distance='cosine', temperature=0.1), on the same embeddings."""
    made = method("", Features(3) if encoder == "features" else None)
    (x, y), (q, _) = data(), data(1)
    present = torch.ones(4, dtype=torch.bool)
    found = made.logits(made.start(Batch(torch.from_numpy(x), torch.from_numpy(y)), present), torch.from_numpy(q))
    plain = build("methods", "prototypical(distance='cosine', temperature=0.1)", encoder=Features(made.encoder.dim))
    z, zq = (made.encoder(torch.from_numpy(leaf)) for leaf in (x, q))
    expected = plain.double().classify(plain.adapt(Batch(z, torch.from_numpy(y)), present), zq)
    assert_close(found, expected, rtol=1e-6, atol=1e-6)  # its temperature is a float32 logarithm


class Noisy(Encoder):
    """Batch normalisation and dropout."""

    modality = "features"

    def __init__(self) -> None:
        super().__init__()
        self.dim = 4
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5))

    def forward(self, x: Inputs) -> Tensor:
        out: Tensor = self.layers(x)
        return out


@pytest.mark.parametrize("trainable", ["all", "last", "head"])
def test_the_encoder_stays_as_it_was(trainable: str) -> None:
    """Nor do its statistics move, nor its mode, in training mode either; they normalise, so that one item will do."""
    encoder = Noisy()
    encoder.layers[1].running_mean.copy_(torch.arange(4.0))  # type: ignore[operator]
    made = method(f"trainable={trainable!r}, steps=2, lr=0.05", encoder)
    (x, y), (q, qy) = data(), data(1)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    first = made.eval()(episode(x, y, q, qy)).logits
    made.train()
    assert_close(made(episode(x, y, q, qy)).logits, first, rtol=1e-12, atol=1e-12)
    assert all(module.training for module in made.modules())
    for k, v in made.state_dict().items():
        assert_close(v, before[k], rtol=0, atol=0)
    assert made(episode(x[:1], y[:1], q, qy * 0)).logits.shape == (1, 12, 1)
    assert not made.transductive


@pytest.mark.parametrize("options", ["", "trainable='last', early_stop=True", "head='linear', early_stop=True"])
@pytest.mark.parametrize("modality", ["image", "image with batch statistics", "text"])
def test_vectorised_equals_the_loop(modality: str, options: str) -> None:
    outs = []
    for vectorize in (False, True):
        encoder = toys.encoder(modality)
        made = method(f"steps=3, lr=1e-2, vectorize={vectorize}{', ' * bool(options)}{options}", encoder)
        outs.append(made(toys.episodes(encoder, modality, shot=3)))
    assert_close(outs[1].logits, outs[0].logits, rtol=1e-8, atol=1e-8)
    assert_close(outs[1].loss, outs[0].loss, rtol=1e-8, atol=1e-9)


def test_a_state_serves_several_tasks_at_once() -> None:
    """It is returned, not kept: a task that comes in between changes nothing."""
    made = method("steps=2, lr=0.05")
    (x, y), (other, _), (q, _) = data(), data(5), data(1)
    present = torch.ones(4, dtype=torch.bool)
    state = made.adapt(Batch(torch.from_numpy(x), torch.from_numpy(y)), present)
    before = made.classify(state, torch.from_numpy(q))
    made.adapt(Batch(torch.from_numpy(other), torch.from_numpy(y)), present)
    assert_close(made.classify(state, torch.from_numpy(q)), before, rtol=0, atol=0)
    assert not any(v.requires_grad for v in state.weights.values())


def test_base_training_reaches_the_encoder_and_nothing_else() -> None:
    encoder = toys.encoder("image")
    made = build("methods", "finetune", encoder=encoder)
    assert made.learns_from == "classes"
    assert {n for n, p in made.named_parameters() if p.requires_grad} == {
        f"encoder.{n}" for n, _ in encoder.named_parameters()
    }
    assert BaseClassifier(made, 7).head.weight.shape == (7, encoder.dim)


def test_adam_equals_torch() -> None:
    """`adam_step`, with a rate for each weight, over five steps; 1e-12."""
    torch.manual_seed(0)
    w = {"a": torch.randn(3, 2).double(), "b": torch.randn(4).double()}
    theirs = {k: nn.Parameter(v.clone()) for k, v in w.items()}
    for betas in ((0.9, 0.999), (0.0, 0.99)):
        groups = [{"params": [theirs["a"]], "lr": 0.1}, {"params": [theirs["b"]], "lr": 0.02}]
        optimizer = torch.optim.Adam(groups, betas=betas)
        moments: Any = None
        for _ in range(5):
            g = {k: torch.randn_like(v) for k, v in w.items()}
            w, moments = adam_step(w, g, moments, lr={"a": 0.1, "b": 0.02}, beta1=betas[0], beta2=betas[1])
            for k, p in theirs.items():
                p.grad = g[k]
            optimizer.step()
        for k, v in w.items():
            assert_close(v, theirs[k].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("steps=0", "steps must be a whole number from 1, not 0"),
        ("lr=0", "lr must be a number above 0, not 0"),
        ("head_lr='fast'", "head_lr must be a number above 0, not 'fast'"),
        ("head='mlp'", "no head 'mlp'; known: 'cosine', 'linear'"),
        ("early_stop='yes'", "early_stop must be True or False, not 'yes'"),
        ("trainable='conv'", "'conv' fits none of the encoder's 2 parameters"),
        ("max_way=5", "unexpected keyword argument 'max_way'"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        method(options)


def test_a_class_without_support() -> None:
    (x, y), (q, qy) = data(), data(1)
    with pytest.raises(MultifslError, match="class 2 of task 0 takes part but has no support item"):
        method("")(episode(x[y != 2], y[y != 2], q, qy))

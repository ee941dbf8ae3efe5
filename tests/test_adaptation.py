"""What surrounds an inner loop: which weights are adapted, batch statistics, gradients, bad use."""

import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multifsl import registry
from multifsl.adaptation import chosen_parameters, gradients, known_gradient, last_block
from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.norms import apply_gains_outside
from multifsl.registry import build
from tests.contracts import toys


def names(encoder: str, trainable: str) -> list[str]:
    return chosen_parameters(registry.build("encoders", encoder), trainable)


def test_trainable_names_what_is_adapted() -> None:
    conv = [f"{part}.{i}.{kind}" for part in ("convs", "norms") for i in range(4) for kind in ("weight", "bias")]
    assert names("conv4", "all") == conv
    assert names("conv4", "head") == []
    assert names("conv4", "last") == [n for n in conv if ".3." in n]
    assert names("conv4", r"norms|convs\.0") == [n for n in conv if n.startswith(("norms", "convs.0"))]
    with pytest.raises(
        MultifslError, match=r"'nothing' fits none of the encoder's 16 parameters, such as convs\.0\.weight"
    ):
        names("conv4", "nothing")
    with pytest.raises(MultifslError, match="regular expression"):
        names("conv4", "(")


def test_the_last_block_of_every_kind_of_encoder() -> None:
    ecapa = names("ecapa(channels=8)", "last")
    assert {n.partition(".")[0] for n in ecapa} == {"blocks", "aggregate", "pool", "out", "out_norm"}
    assert {n.split(".")[1] for n in ecapa if n.startswith("blocks")} == {"2"}

    class OneAfterTheOther(toys.WordBag):
        """Convolutions, then blocks of another kind, as wav2vec 2.0 and its kin have them, and a head."""

        def __init__(self) -> None:
            super().__init__()
            self.front = torch.nn.Module()
            self.front.convs = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
            self.encoder = torch.nn.Module()
            self.encoder.layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
            self.head = torch.nn.Linear(2, 2)

    kin = ["encoder.layers.2.weight", "encoder.layers.2.bias", "head.weight", "head.bias"]
    assert last_block(OneAfterTheOther()) == kin
    assert last_block(toys.WordBag()) == ["table.weight"]
    assert last_block(Features(3)) == []


def test_gradients_in_a_plain_pass_and_under_vmap() -> None:
    """d/da sum(a^3) = 3 a^2; with create_graph they can be differentiated once more, 6 a; without, they are constants."""
    a = torch.tensor([1.0, -2.0], requires_grad=True)

    def once(a: torch.Tensor, create_graph: bool) -> torch.Tensor:
        return gradients(lambda w: w["a"].pow(3).sum(), {"a": a}, create_graph=create_graph)[0]["a"]

    assert_close(once(a, False), torch.tensor([3.0, 12.0]))
    assert not once(a, False).requires_grad
    (second,) = torch.autograd.grad(once(a, True).sum(), a)
    assert_close(second, torch.tensor([6.0, -12.0]))
    many = torch.vmap(lambda a: once(a, True))(a.expand(3, 2))
    assert_close(torch.autograd.grad(many.sum(), a)[0], 3 * second)
    assert_close(torch.vmap(lambda a: once(a, False))(a.expand(3, 2)), torch.tensor([[3.0, 12.0]] * 3))
    assert not torch.vmap(lambda a: once(a, False))(a.expand(3, 2)).requires_grad


def test_a_known_gradient_is_scaled_by_what_comes_behind() -> None:
    w, unused = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    loss = known_gradient(torch.tensor(4.0), [w, unused], (torch.tensor([1.0, 2.0]), None))
    found = torch.autograd.grad((loss * 3).square(), [w, unused], allow_unused=True)  # d(9 l^2) = 18 l dl
    assert_close(found[0], 18 * 4.0 * torch.tensor([1.0, 2.0]))
    assert found[1] is None


@pytest.mark.parametrize("modality", ["image with batch statistics", "speech"])
def test_queries_are_normalised_by_the_support_set_or_by_one_another(modality: str) -> None:
    """Oracle: the encoder by hand. With the support's mean and variance in its buffers, or in training mode on the queries."""
    encoder = toys.encoder(modality).double()
    episodes = toys.episodes(encoder, modality, tasks=1, shot=3)
    support = Batch(toys.one(episodes, 0).support.x, episodes.support.y)
    x = {k: v[0] for k, v in support.x.items()} if isinstance(support.x, dict) else support.x[0]
    q = episodes.query.x
    qx = {k: v[0] for k, v in q.items()} if isinstance(q, dict) else q[0]
    for batch_norm in ("support", "query"):
        spec = f"maml(steps=1, lr=1e-30, batch_norm={batch_norm!r})"  # adaptation moves nothing
        method = registry.build("methods", spec, encoder=encoder, way=3).double().eval()
        assert method.transductive == (batch_norm == "query")
        state = method.adapt(Batch(x, episodes.support.y[0]), episodes.present[0])
        by_hand = toys.encoder(modality).double()
        by_hand.load_state_dict(encoder.state_dict())
        by_hand.train()
        if batch_norm == "support":
            for module in by_hand.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.momentum = 1.0
            by_hand(x)
            by_hand.eval()
        z = by_hand(qx)
        expected = z @ method.linear.weight.T + method.linear.bias
        assert_close(method.classify(state, qx), expected, rtol=1e-9, atol=1e-9)
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.buffers(), toys.encoder(modality).double().buffers(), strict=True)
    )


def test_a_class_without_support_and_a_single_item_are_refused() -> None:
    y = torch.tensor([[0, 0, 2, 2]])
    lacking = Episode(
        Batch(torch.randn(1, 4, 6), y),
        Batch(torch.randn(1, 2, 6), torch.tensor([[0, 1]])),
        torch.ones(1, 3, dtype=torch.bool),
    )
    for spec in ("prototypical", "maml"):
        method = registry.build("methods", spec, encoder=Features(6), way=3)
        with pytest.raises(MultifslError, match="class 1 of task 0 takes part but has no support item"):
            method(lacking)
    encoder = toys.encoder("image with batch statistics")
    method = registry.build("methods", "maml", encoder=encoder, way=1)
    one = Batch(encoder.preprocess(toys.items("image", np.array([0]))), torch.tensor([0]))
    with pytest.raises(MultifslError, match="at least 2 items; 1 came"):
        method.adapt(one, torch.ones(1, dtype=torch.bool))
    with pytest.raises(
        MultifslError, match="at most 1 classes apart, not 2.*--way 2 and no smaller max_way, or with head='shared'"
    ):
        method.adapt(
            Batch(encoder.preprocess(toys.items("image", np.array([0, 1]))), torch.tensor([0, 1])),
            torch.ones(2, dtype=torch.bool),
        )


def test_what_fine_tuning_does_not_adapt_takes_no_gradient() -> None:
    """The layers below the adapted ones build no graph, in any inner step."""
    encoder = build("encoders", "conv4(width=8, channels=1, image_size=16)")
    method = build("methods", "finetune(trainable='last', steps=2)", encoder=encoder)
    seen = []
    encoder.convs[0].register_forward_hook(lambda _module, _x, out: seen.append(out.requires_grad))
    method.adapt(Batch(torch.zeros(4, 1, 16, 16, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])), torch.ones(2) > 0)
    assert len(seen) >= 2 and not any(seen)


def test_running_statistics_may_be_the_average_over_all_tasks() -> None:
    """Batch normalisation with momentum=None: over three tasks, the mean of theirs."""
    encoder = build("encoders", "conv4(width=4, channels=1, image_size=16)")
    for norm in encoder.norms:
        norm.momentum = None
    method = build("methods", "maml(steps=1, max_way=2)", encoder=encoder).train()
    found = []
    torch.manual_seed(0)
    for _ in range(3):
        x = torch.randint(0, 255, (1, 4, 1, 16, 16), dtype=torch.uint8)
        y = torch.tensor([[0, 0, 1, 1]])
        single = copy.deepcopy(method)
        for norm in single.encoder.norms:
            norm.reset_running_stats()
        single(Episode(Batch(x, y), Batch(x, y), torch.ones(1, 2, dtype=torch.bool), False))
        method(Episode(Batch(x, y), Batch(x, y), torch.ones(1, 2, dtype=torch.bool), False))
        found.append(single.encoder.norms[0].running_mean)
    torch.testing.assert_close(encoder.norms[0].running_mean, torch.stack(found).mean(0))


def test_a_normalisation_of_ones_own_cannot_be_vectorised_unless_it_says_so() -> None:
    class Own(torch.nn.LayerNorm):
        pass

    with pytest.raises(MultifslError, match="Own with a gain.*gain_outside = True"):
        apply_gains_outside(torch.nn.Sequential(Own(4)))
    apply_gains_outside(torch.nn.Sequential(Own(4, elementwise_affine=False)))
    Own.gain_outside = True  # type: ignore[attr-defined]
    apply_gains_outside(torch.nn.Sequential(Own(4)))

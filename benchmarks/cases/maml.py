"""A meta-step of methods that adapt weights: forward, backward and the outer optimiser, over episodes that lie ready.

Ours: a method and its loss, as `multifsl.train` runs them. TorchOpt and higher: their Omniglot examples, the backward pass task by
task, as higher's has it, for both. The plain loops follow learn2learn's recipes for FOMAML and Reptile (it does not build on Python
3.11 itself). All sides begin with the same weights, meet the same episodes, and are compared after the same steps.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.harness import Case, Run, Same, Setting, counted
from multifsl.bank import rows_of, sampler_of, to_episode
from multifsl.encoder import Encoder, Features
from multifsl.encoders.conv4 import Conv4
from multifsl.episode import Batch, Episode, Inputs
from multifsl.functional import accuracy
from multifsl.methods.maml import Maml
from multifsl.methods.reptile import Reptile, minibatches
from multifsl.registry import build
from multifsl.task import Items, Task

TITLE = "Meta-step, methods that adapt weights, Omniglot, 5-way 1-shot 15-query"
WAY, WIDTH, META_LR, REPTILE_LR = 5, 64, 1e-3, 1e-3
QUERIES = (
    "The queries' pass in bfloat16, the inner loop in float32; the peers in float32, as their users have them. It pays where the "
    "machine multiplies bfloat16 faster than float32."
)
SECOND_ORDER = (
    "Most of the time is the second derivative through the inner loop, on five images: as many small operations as the peers have; "
    "only the queries' pass gains from the layout of the images."
)
LAYOUT = (
    "What is gained is the layout of the images in convolutions: 1.5 to 1.6x in CPU time on one thread, less where two threads "
    "share passes of five images."
)
REPTILE = (
    "Reptile's inner loop, nearly all of it, stays in float32 under precision='bfloat16': only the queries are rounded."
)


class Kind(NamedTuple):
    """What a row runs. net: "conv4", or, on embeddings, "mlp" or "head". precision: of our side, as `multifsl.train` has it."""

    method: str
    net: str
    steps: int
    lr: float
    precision: str = "float32"

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float64 if self.precision == "float64" else torch.float32


class Side(NamedTuple):
    """parameters: in the plain network's order. learn: fills their gradients with those of a meta-batch, and gives the accuracy."""

    parameters: list[nn.Parameter]
    learn: Callable[[Episode], Tensor]


Make = Callable[[Setting, Kind], Side]


def cases(setting: Setting) -> Iterator[Case]:
    both: dict[str, Make] = {"torchopt": torchopt, "higher": higher}
    fomaml: dict[str, Make] = {"plain loop": plain_fomaml}
    reptile: dict[str, Make] = {"plain loop": plain_reptile}
    for name, kind, peers, aim, note in (
        ("MAML, Conv4, 1 inner step, float32", Kind("maml", "conv4", 1, 0.4), both, 1.5, SECOND_ORDER),
        ("MAML, Conv4, 1 inner step, bfloat16", Kind("maml", "conv4", 1, 0.4, "bfloat16"), both, 2.0, QUERIES),
        ("MAML, Conv4, 5 inner steps, float32", Kind("maml", "conv4", 5, 0.1), both, 1.3, SECOND_ORDER),
        ("FOMAML, Conv4, 1 inner step, float32", Kind("fomaml", "conv4", 1, 0.4), fomaml, 1.4, LAYOUT),
        ("FOMAML, Conv4, 1 inner step, bfloat16", Kind("fomaml", "conv4", 1, 0.4, "bfloat16"), fomaml, 2.0, QUERIES),
        ("Reptile, Conv4, 5 inner steps, float32", Kind("reptile", "conv4", 5, REPTILE_LR), reptile, 1.7, LAYOUT),
        ("Reptile, Conv4, 5 inner steps, bfloat16", Kind("reptile", "conv4", 5, REPTILE_LR, "bfloat16"), reptile, 2.3, REPTILE),
        ("MAML, head on embeddings, 5 inner steps", Kind("maml", "head", 5, 0.1), both, 7.0, ""),
        ("MAML, MLP on embeddings, vectorize=True, 5 inner steps", Kind("maml", "mlp", 5, 0.1), both, 7.0, ""),
    ):  # fmt: skip
        yield case(setting, name, kind, peers, aim, note)


def case(setting: Setting, name: str, kind: Kind, peers: Mapping[str, Make], aim: float, note: str) -> Case:
    makers: dict[str, Make] = {"ours": ours, **peers}
    there: list[str] = []
    batches = partial(episodes, setting, kind.net)
    steps = setting.pick(2 if kind.net == "conv4" else 10, 1)  # of a round

    def ready(which: str) -> Run:
        side, seen = makers[which](setting, kind), batches()[:steps]
        there.append(which)
        return partial(train, side, outer(side, kind), seen)

    def same() -> Sequence[Same]:
        """The gradient of a meta-batch at the first weights; the accuracy on episodes held out, after some meta-steps."""
        exact = kind._replace(precision="float64") if kind.net == "conv4" and kind.precision == "float32" else kind
        within = {"float64": 1e-6, "float32": 1e-3, "bfloat16": 5e-3}[exact.precision]
        found, right = {}, {}
        for which in there:
            side = makers[which](setting, exact)
            side.learn(batches()[0])
            # Where Reptile's Adam begins, it makes rounding as large as any gradient.
            if kind.method != "reptile" or exact.precision == "float64":
                found[which] = gradient(side, kind.net)
            side = makers[which](setting, exact)
            train(side, outer(side, kind), batches()[:steps])
            right[which] = float(side.learn(batches()[-1]))
        rows = []
        for peer in there[1:]:
            if found:
                own, theirs = found["ours"], found[peer]
                rows.append(
                    Same(
                        f"cosine of the meta-gradients, {peer}", float(F.cosine_similarity(own, theirs, 0)), 1.0, within
                    )
                )
                rows.append(Same(f"their norms' ratio, {peer}", float(own.norm() / theirs.norm()), 1.0, within))
            rows.append(
                Same(f"accuracy, {peer}", right["ours"], right[peer], 0.1 if kind.precision == "bfloat16" else 0.01)
            )
        return rows

    return Case(
        name,
        ours=partial(ready, "ours"),
        peers={peer: partial(ready, peer) for peer in peers},
        aim=aim,
        same=same,
        # Of bfloat16 rows some products are in float32, and no one rate is their limit.
        flops=None
        if kind.precision == "bfloat16"
        else lambda: steps * counted(partial(ours(setting, kind).learn, batches()[0])),
        precision=kind.precision,
        inner=steps,
        unit="meta-step",
        peak=kind.method == "maml" and kind.net == "conv4" and kind.precision == "float32",
        note=note,
    )


def outer(side: Side, kind: Kind) -> torch.optim.Optimizer:
    if kind.method == "reptile":
        return torch.optim.SGD(side.parameters, lr=1.0)
    return torch.optim.Adam(side.parameters, lr=META_LR)


def train(side: Side, optimizer: torch.optim.Optimizer, batches: Sequence[Episode]) -> None:
    for batch in batches:
        optimizer.zero_grad()
        side.learn(batch)
        optimizer.step()


def gradient(side: Side, net: str) -> Tensor:
    """The meta-gradient; without the biases under a batch normalisation, whose gradient is nothing but rounding."""
    grads = [p.grad.flatten() for p in side.parameters if p.grad is not None]
    assert len(grads) == len(side.parameters)
    if net == "conv4":
        del grads[1:16:4]
    return torch.cat(grads)


# ---- episodes ----


@cache
def characters() -> Items:
    task: Task = build("tasks", "omniglot")
    return task.items("train")


@cache
def episodes(setting: Setting, net: str) -> list[Episode]:
    """Meta-batches of train characters, those of a round and one held out; images as uint8, or an untrained Conv4's embeddings."""
    steps, tasks = (2, setting.pick(4, 1)) if net == "conv4" else (10, setting.pick(32, 2))
    items = characters()
    sampler = sampler_of(items, way=WAY, shot=1, query=setting.pick(15, 2), seed=0)
    encoder = conv4()
    found = []
    for step in range(setting.pick(steps, 1) + 1):
        drawn = sampler.tasks(step, tasks)
        x = encoder.preprocess([items.items[row] for row in rows_of(drawn)])
        if net != "conv4":
            z = encoder.embed(x)
            x = (z - z.mean(0)) / z.std(0).clamp(min=1e-6)  # some stay 0
        assert isinstance(x, Tensor)
        found.append(to_episode(drawn, x.to(setting.device)))
    return found


def in_turn(episodes: Episode, dtype: torch.dtype) -> Iterator[Sequence[Tensor]]:
    """Task after task, as the plain networks read it, sx, sy, qx, qy: images as numbers from 0 to 1."""
    (sx, sy), (qx, qy), *_ = episodes
    assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
    for task in zip(sx, sy, qx, qy, strict=True):
        yield [part.to(dtype) / 255 if part.dtype == torch.uint8 else part for part in task]


# ---- networks ----


def conv4() -> Encoder:
    torch.manual_seed(0)
    return Conv4(channels=1)


class Mlp(Encoder):
    """One hidden layer, over embeddings."""

    modality = "features"
    dim = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        return F.relu(self.hidden(x))


def method(kind: Kind) -> Any:
    torch.manual_seed(0)
    encoder = conv4() if kind.net == "conv4" else Mlp() if kind.net == "mlp" else Features(WIDTH)
    if kind.method == "reptile":
        return Reptile(encoder, steps=kind.steps, lr=kind.lr)
    return Maml(encoder, steps=kind.steps, lr=kind.lr, first_order=kind.method == "fomaml", vectorize=kind.net == "mlp")


def layers(made: Any) -> list[nn.Module]:
    """Of a method of ours, those with weights, in the plain network's order."""
    found = list(made.encoder.children())
    if isinstance(made.encoder, Conv4):
        found = [layer for pair in zip(made.encoder.convs, made.encoder.norms, strict=True) for layer in pair]
    return [*found, made.linear]


def plain(setting: Setting, kind: Kind) -> nn.Sequential:
    """The network as the peers' examples write it, with the first weights of ours."""
    found: list[nn.Module] = []
    for layer in layers(method(kind)):
        if isinstance(layer, nn.BatchNorm2d):
            found += [nn.BatchNorm2d(layer.num_features, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2)]
        else:
            found.append(layer.to(memory_format=torch.contiguous_format))
    behind: dict[str, nn.Module] = {"conv4": nn.Flatten(), "mlp": nn.ReLU(), "head": nn.Identity()}
    return nn.Sequential(*found[:-1], behind[kind.net], found[-1]).to(setting.device, kind.dtype).train()


# ---- sides ----


def ours(setting: Setting, kind: Kind) -> Side:
    made = method(kind).to(setting.device, kind.dtype).train()

    def learn(batch: Episode) -> Tensor:
        with torch.autocast(
            setting.device.partition(":")[0], dtype=torch.bfloat16, enabled=kind.precision == "bfloat16"
        ):
            output = made(batch)
        output.loss.mean().backward()
        return accuracy(output.logits, batch.query.y).mean()

    return Side([p for layer in layers(made) for p in layer.parameters()], learn)


def torchopt(setting: Setting, kind: Kind) -> Side:
    import torchopt

    network = plain(setting, kind)
    own = list(network.parameters())
    inner = torchopt.MetaSGD(network, lr=kind.lr)

    def learn(batch: Episode) -> Tensor:
        right = []
        first = torchopt.extract_state_dict(network, by="reference", detach_buffers=True)
        first_inner = torchopt.extract_state_dict(inner, by="reference")
        for sx, sy, qx, qy in in_turn(batch, kind.dtype):
            for _ in range(kind.steps):
                inner.step(F.cross_entropy(network(sx), sy))
            logits = network(qx)
            (F.cross_entropy(logits, qy) / len(batch.present)).backward()
            right.append(accuracy(logits, qy))
            torchopt.recover_state_dict(network, first)
            torchopt.recover_state_dict(inner, first_inner)
        return torch.stack(right).mean()

    return Side(own, learn)


def higher(setting: Setting, kind: Kind) -> Side:
    import higher

    network = plain(setting, kind)
    inner = torch.optim.SGD(network.parameters(), lr=kind.lr)

    def learn(batch: Episode) -> Tensor:
        right = []
        for sx, sy, qx, qy in in_turn(batch, kind.dtype):
            with higher.innerloop_ctx(network, inner, copy_initial_weights=False) as (adapted, moved):
                for _ in range(kind.steps):
                    moved.step(F.cross_entropy(adapted(sx), sy))
                logits = adapted(qx)
                (F.cross_entropy(logits, qy) / len(batch.present)).backward()
                right.append(accuracy(logits, qy))
        return torch.stack(right).mean()

    return Side(list(network.parameters()), learn)


def plain_fomaml(setting: Setting, kind: Kind) -> Side:
    network = plain(setting, kind)

    def learn(batch: Episode) -> Tensor:
        right = []
        for sx, sy, qx, qy in in_turn(batch, kind.dtype):
            weights: dict[str, Tensor] = dict(network.named_parameters())
            for _ in range(kind.steps):
                loss = F.cross_entropy(functional_call(network, weights, (sx,)), sy)
                found = torch.autograd.grad(loss, list(weights.values()))
                weights = {name: w - kind.lr * g for (name, w), g in zip(weights.items(), found, strict=True)}
            logits = functional_call(network, weights, (qx,))
            (F.cross_entropy(logits, qy) / len(batch.present)).backward()
            right.append(accuracy(logits, qy))
        return torch.stack(right).mean()

    return Side(list(network.parameters()), learn)


def plain_reptile(setting: Setting, kind: Kind) -> Side:
    """Minibatches are dealt as ours are; Adam's second moments go from task to task, in the recipe as in ours."""
    network = plain(setting, kind)
    state = torch.optim.Adam(network.parameters(), lr=kind.lr, betas=(0.0, 0.999)).state_dict()

    def learn(batch: Episode) -> Tensor:
        nonlocal state
        right = []
        for p in network.parameters():
            p.grad = torch.zeros_like(p)
        for sx, sy, qx, qy in in_turn(batch, kind.dtype):
            learner = copy.deepcopy(network)
            inner = torch.optim.Adam(learner.parameters(), lr=kind.lr, betas=(0.0, 0.999))
            inner.load_state_dict(state)
            for x, y in minibatches(Batch(torch.cat([sx, qx]), torch.cat([sy, qy])), WAY, 10, kind.steps):
                inner.zero_grad()
                F.cross_entropy(learner(x), y).backward()
                inner.step()
            with torch.no_grad():
                right.append(accuracy(learner(qx), qy))
                for p, moved in zip(network.parameters(), learner.parameters(), strict=True):
                    assert p.grad is not None
                    p.grad.sub_(moved)
            state = inner.state_dict()
        with torch.no_grad():
            for p in network.parameters():
                assert p.grad is not None
                p.grad.mul_(1 / len(batch.present)).add_(p)
        return torch.stack(right).mean()

    return Side(list(network.parameters()), learn)

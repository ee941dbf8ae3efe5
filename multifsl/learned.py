"""What a classifier has learned, whole and at one moment: a snapshot that is never changed.

Who learns more makes a new snapshot from the old one and puts it in its place at once; who answers takes one and keeps to it. So
none comes from a state half made, and the only thing that they may wait for is a value that another is finding out (`Memo`).

A method that adapts an encoder puts weights in the place of others while it runs. Each pass of it goes through modules that no
other pass is using (`_twin`), so that any number run side by side, and beside plain embedding.

The examples are kept in parts, each at least twice as large as the next: n enrolments copy each example log n times at most.

Shape letters: S examples, N classes, Q queries, D embedding width, `*` the shape of one item.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from multifsl.bank import pad_together
from multifsl.calibration import DEFAULT, Calibration, against, held_out, refined, softened, unit
from multifsl.cohort import cohort_of
from multifsl.episode import Batch, Inputs, first_leaf, map_inputs, size
from multifsl.errors import MultifslError, some
from multifsl.functional import full_precision
from multifsl.method import EmbeddingMethod, Method, State
from multifsl.registry import resolved
from multifsl.rejection import Rejection, learn_rejection

Found = TypeVar("Found")


class Memo:
    """What a snapshot found out when it was asked, by name. One thread finds a thing out; those that ask meanwhile wait for it.

    A copy begins with nothing.

    >>> memo = Memo()
    >>> memo("length", lambda: len("abc")), memo("length", lambda: 1 // 0)
    (3, 3)
    """

    def __init__(self, known: dict[str, Any] | None = None) -> None:
        self.known: dict[str, Any] = known or {}
        self._locks: dict[str, threading.Lock] = {}

    def __call__(self, name: str, find: Callable[[], Found]) -> Found:
        if name not in self.known:
            with self._locks.setdefault(name, threading.Lock()):
                if name not in self.known:
                    self.known[name] = find()
        found: Found = self.known[name]
        return found

    def __reduce__(self) -> tuple[type["Memo"], tuple[()]]:
        return Memo, ()


@dataclass(frozen=True, eq=False)
class Learned:
    """Classes and their examples, and what a method made of them.

    method: on its device, in evaluation mode.
    parts: the examples, x [S, *] and y int64 [S], the places of their classes.
    places: label -> place, 0 .. N-1, in order.
    kind: the labels' numpy type.
    seen: what scikit-learn noted of the features, on an estimator of its own.
    base, fresh: the state of all examples but the last `fresh` ones, which join it when it is first asked for.
    background: embeddings [B, D] of items that are of no class, where the user gave some.

    >>> from multifsl.encoder import Features
    >>> from multifsl.registry import build
    >>> method = build("methods", "prototypical", encoder=Features(1))
    >>> few = learn(method, torch.tensor([[0.0], [9.0]]), np.array(["low", "up"]))
    >>> more = few.with_more(torch.tensor([[5.0]]), np.array(["middle"])).without("low")
    >>> more.classes, few.counts
    (array(['middle', 'up'], dtype='<U6'), {'low': 1, 'up': 1})
    >>> more.logits(torch.tensor([[6.0]]))
    array([[-1., -9.]])
    """

    method: Method
    parts: tuple[Batch, ...]
    places: dict[Any, int]
    kind: np.dtype
    seen: Any = None
    base: State = None
    fresh: int = 0
    background: Tensor | None = None
    _memo: Memo = field(default_factory=Memo)

    # ---- what there is ----

    @property
    def classes(self) -> np.ndarray:
        """Labels [N], sorted."""
        return self._memo("classes", lambda: np.sort(self._names))

    @property
    def counts(self) -> dict[Any, int]:
        """Label -> number of examples, in the order of `classes`."""
        counts = sum(torch.bincount(part.y, minlength=len(self.places)) for part in self.parts).tolist()  # type: ignore[union-attr]
        return {label: counts[self.places[label]] for label in self.classes.tolist()}

    @property
    def x(self) -> Inputs:
        """All examples, [S, *]."""
        return pad_together([part.x for part in self.parts])

    @property
    def labels(self) -> np.ndarray:
        """Their labels, [S]."""
        found: np.ndarray = self._names[torch.cat([part.y for part in self.parts]).cpu().numpy()]
        return found

    @property
    def state(self) -> State:
        """The method's state, of all examples, classes by place."""
        return self._memo("state", self._grown) if self.fresh else self.base

    # ---- answers ----

    def logits(self, x: Inputs) -> np.ndarray:
        """Logits [Q, N] of prepared queries, columns in the order of `classes`. Raises MultifslError where they are no numbers."""
        if isinstance(x, Tensor) and isinstance(self.parts[0].x, Tensor):
            x = x.to(self.parts[0].x.dtype)
        with self._lent() as method, torch.inference_mode():
            found = method.classify(self._memo("ready", lambda: method.prepared(self.state)), x)
        if bool(found.isnan().any()):
            raise MultifslError(
                f"{resolved(self.method)} diverged on these examples: its answers are not numbers; take a smaller learning "
                "rate, lr"
            )
        order = self._memo("order", lambda: np.argsort(self._names))
        logits: np.ndarray = found.cpu().double().numpy()
        return logits if np.array_equal(order, np.arange(len(order))) else logits[:, order]

    # ---- what is of no class ----

    def rejection(self, reject: Literal["auto"] | float, score: str, false_accept: float) -> Rejection:
        """The open-set score of the classes, by their order, and its thresholds; learned when it is first asked for.

        Without a background of the user's, the cohort that comes with the package for the encoder is taken, if there is one.
        """
        return self._memo(
            f"rejection {reject} {score} {false_accept}", lambda: self._learn_rejection(reject, score, false_accept)
        )

    @property
    def alone(self) -> bool:
        """Whether there is one class, and no background: nothing tells then what is unknown."""
        return len(self.places) == 1 and self._cohort is None

    def place_of(self, label: Any) -> int:
        """Where a class stands in `classes`. Raises MultifslError where there is none of that label."""
        self._place(label)
        return int(np.searchsorted(self.classes, np.array(label, dtype=self.kind)))

    def embedded(self, x: Inputs, batch_size: int = 64) -> Tensor:
        """Prepared items as embeddings [B, D], which open-set scores go by whatever the method: those of the encoder as it came.

        Ready-made ones come in the examples' precision, or float32 where that is less.
        """
        if self.method.takes_embeddings:
            assert isinstance(x, Tensor)
            return x.to(torch.promote_types(first_leaf(self.parts[0].x).dtype, torch.float32))
        return full_precision(self.method.encoder.embed(x, batch_size))

    # ---- how sure it is ----

    @property
    def calibrated(self) -> "Calibrated":
        """The temperature of its probabilities, and what sets of classes go by; learned when it is first asked for.

        It is the run's that the method is from, or the rule for methods on frozen encoders, either corrected by examples that are
        held out where there are two of a class. Of a method that is neither it is 1.
        """
        return self._memo("calibrated", self._calibrate)

    def _calibrate(self) -> "Calibrated":
        method, n = self.method, len(self.places)
        run = None if method.calibration is None else Calibration.from_json(method.calibration, "the run of the method")
        shot = n / sum(1 / count for count in self.counts.values())
        scores = np.zeros(0)
        if not isinstance(method, EmbeddingMethod) or method.transductive:
            return Calibrated(1.0 if run is None else run.at(n, shot), scores, run, n, shot)
        x, y = self.embedded(self.x), torch.cat([part.y for part in self.parts])
        rule, size = (DEFAULT, unit(method, x, y, n)) if run is None else (run, 1.0)
        temperature = rule.at(n, shot) * size
        logits, labels = held_out(method, x, y, n)
        if len(labels):
            temperature *= refined(rule.at(n, max(1.0, shot - 1)) * size, logits, labels)
            scores = against(softened(logits, temperature))[np.arange(len(labels)), labels]
        return Calibrated(temperature, scores, run, n, shot)

    # ---- other snapshots ----

    def with_more(self, x: Inputs, labels: np.ndarray) -> "Learned":
        """With more examples, of known or new classes. Raises MultifslError where labels are of another kind, or too many."""
        self.check_kind(labels)
        kind = np.result_type(self.kind, kind_of(labels))
        if isinstance(x, Tensor) and isinstance(self.parts[0].x, Tensor):
            x = x.to(self.parts[0].x.dtype)
        new = sorted(set(labels.tolist()) - self.places.keys())
        places = self.places | {label: len(self.places) + i for i, label in enumerate(new)} if new else self.places
        parts = _joined([*self.parts, Batch(x, _codes(labels.tolist(), places).to(first_leaf(x).device))])
        if not self._grows:
            return replace(self, parts=parts, places=places, kind=kind, _memo=self._kept)._adapted()
        known = {"base": self._memo.known["state"], "fresh": 0} if "state" in self._memo.known else {}
        more = replace(self, parts=parts, places=places, kind=kind, _memo=self._kept, **known)
        return replace(more, fresh=more.fresh + len(labels), _memo=self._kept)

    def without(self, label: Any) -> "Learned":
        """Without a class and its examples. Raises MultifslError where there is no such class, or no other one."""
        place = self._place(label)
        if len(self.places) == 1:
            raise MultifslError(f"{label!r} is the only class; a classifier needs one")
        left = []
        for part in self.parts:
            kept = part.y != place
            y = part.y[kept]
            if len(y):
                left.append(Batch(map_inputs(lambda leaf, kept=kept: leaf[kept], part.x), y - (y > place).long()))  # type: ignore[misc]
        places = {other: i for i, other in enumerate(k for k, at in self.places.items() if at != place)}
        fewer = replace(self, parts=_joined(left), places=places, base=None, fresh=0, _memo=self._kept)
        if not self._grows:
            return fewer._adapted()
        assert isinstance(self.method, EmbeddingMethod)
        with torch.inference_mode():
            return replace(fewer, base=self.method.remove(self.state, place), _memo=self._kept)

    def renamed(self, old: Any, new: Any) -> "Learned":
        """With another label for a class. Raises MultifslError where there is no `old`, `new` is taken or of another kind."""
        place = self._place(old)
        if new == old:
            return self
        if new in self.places:
            raise MultifslError(f"there is a class {new!r} already; forget it first, or choose another name")
        labels = np.array([new])
        self.check_kind(labels)
        places = {new if at == place else label: at for label, at in self.places.items()}
        other = replace(self, places=places, kind=np.result_type(self.kind, kind_of(labels)), _memo=self._kept)
        return other if self._grows else other._adapted()

    # ---- inside ----

    @property
    def _names(self) -> np.ndarray:
        """Labels [N], by place."""
        return np.array(list(self.places), dtype=self.kind)

    @property
    def _kept(self) -> Memo:
        """What the next snapshot need not find again."""
        return Memo({name: self._memo.known[name] for name in ("cohort", "twins") if name in self._memo.known})

    @property
    def _cohort(self) -> Tensor | None:
        own = self.background
        return self._memo("cohort", lambda: cohort_of(self.method.encoder) if own is None else own)

    def _learn_rejection(self, reject: Literal["auto"] | float, score: str, false_accept: float) -> Rejection:
        z, cohort = self.embedded(self.x), self._cohort
        y = torch.from_numpy(np.searchsorted(self.classes, self.labels)).to(z.device)
        with torch.inference_mode():
            return learn_rejection(
                z,
                y,
                len(self.places),
                None if cohort is None else cohort.to(z),
                reject=reject,
                score=score,
                false_accept=false_accept,
            )

    def _grown(self) -> State:
        """The state, with the examples that it has not seen."""
        assert isinstance(self.method, EmbeddingMethod)
        with torch.inference_mode():
            return self.method.update(self.base, _last(self.parts, self.fresh), self._present)

    @contextmanager
    def _lent(self) -> Iterator[Method]:
        """The method, for one pass; where it runs the encoder, a twin that no other pass is using."""
        if self.method.takes_embeddings:
            yield self.method
            return
        idle: list[Method] = self._memo("twins", list)
        try:
            twin = idle.pop()
        except IndexError:
            twin = _twin(self.method)
        yield twin
        idle.append(twin)  # but for one that a pass failed in

    @property
    def _present(self) -> Tensor:
        return torch.ones(len(self.places), dtype=torch.bool, device=self.parts[0].y.device)

    @property
    def _grows(self) -> bool:
        """Whether the method takes examples in one by one; classes are then placed as they come, else by their order."""
        method = self.method
        return (
            isinstance(method, EmbeddingMethod)
            and type(method).update is not EmbeddingMethod.update
            and method.max_way is None
        )

    def _adapted(self) -> "Learned":
        """Adapted anew to all examples, classes placed in the order of their labels."""
        limit, n = self.method.max_way, len(self.places)
        if limit is not None and n > limit:
            raise MultifslError(
                f"{resolved(self.method)} tells at most {limit} classes apart, not {n}: train it anew, with max_way={n}"
                + (", or with head='shared'" if hasattr(self.method, "head") else "")
                + ", or take a method for any number of classes, such as prototypical"
            )
        labels = sorted(self.places)
        places = {label: i for i, label in enumerate(labels)}
        y = torch.cat([part.y for part in self.parts])
        y = torch.tensor([places[label] for label in self.places], device=y.device)[y]
        support = Batch(self.x, y)
        with self._lent() as method, torch.inference_mode():
            state = method.adapt(support, self._present)
        return replace(self, parts=(support,), places=places, base=state, fresh=0, _memo=self._kept)

    def _place(self, label: Any) -> int:
        if label not in self.places:
            raise MultifslError(f"there is no class {label!r}; known: {some([str(c) for c in self.classes])}")
        return self.places[label]

    def check_kind(self, labels: np.ndarray) -> None:
        mine, theirs = word_for(self.kind), word_for(labels.dtype)
        if mine != theirs:
            raise MultifslError(f"the known labels are {mine}s, the new ones {theirs}s; use one kind")


class Calibrated(NamedTuple):
    """temperature: what logits are divided by. scores: [M] of held-out examples (`calibration.against`). run: what a run learned of
    this, if there is one; way and shot: the task's."""

    temperature: float
    scores: np.ndarray
    run: Calibration | None
    way: int
    shot: float

    def threshold(self, alpha: float) -> float | None:
        """The run's threshold for sets, where it learned one."""
        return None if self.run is None else self.run.threshold(self.way, self.shot, alpha)


def learn(
    method: Method, x: Inputs, labels: np.ndarray, *, seen: Any = None, background: Tensor | None = None
) -> Learned:
    """Learn classes from their examples x [S, *] and labels [S]. Raises MultifslError where the method has not as many ways."""
    names = labels.tolist()
    places = {label: i for i, label in enumerate(sorted(set(names)))}
    part = Batch(x, _codes(names, places).to(first_leaf(x).device))
    return Learned(method, (part,), places, kind_of(labels), seen, background=background)._adapted()


def _twin(method: Method) -> Method:
    """The same method as modules of its own, on the same tensors."""
    return copy.deepcopy(method, {id(t): t for t in (*method.parameters(), *method.buffers())})


def kind_of(labels: np.ndarray) -> np.dtype:
    """The type of labels; of texts, of any length.

    >>> kind_of(np.array(["a", "bc"])), kind_of(np.array([1.5]))
    (dtype('<U'), dtype('float64'))
    """
    return np.dtype(labels.dtype.kind) if labels.dtype.kind in "US" else labels.dtype


def word_for(kind: np.dtype) -> str:
    return "text" if kind.kind in "US" else "number"


def _codes(labels: Sequence[Any], places: dict[Any, int]) -> Tensor:
    return torch.tensor([places[label] for label in labels], dtype=torch.int64)


def _joined(parts: Sequence[Batch]) -> tuple[Batch, ...]:
    """The same examples, the last parts joined until each has at least twice as many as the next."""
    kept: list[Batch] = []
    for part in parts:
        kept.append(part)
        while len(kept) > 1 and len(kept[-2].y) < 2 * len(kept[-1].y):
            b, a = kept.pop(), kept.pop()
            kept.append(Batch(pad_together([a.x, b.x]), torch.cat([a.y, b.y])))
    return tuple(kept)


def _last(parts: Sequence[Batch], count: int) -> Batch:
    """The last `count` examples."""
    taken: list[Batch] = []
    for x, y in reversed(parts):
        n = min(count, size(x))
        taken.insert(0, Batch(map_inputs(lambda leaf, n=n: leaf[len(leaf) - n :], x), y[len(y) - n :]))  # type: ignore[misc]
        count -= n
        if not count:
            break
    return Batch(pad_together([part.x for part in taken]), torch.cat([part.y for part in taken]))

"""Episodes: what a few-shot task is made of, and the sampler that draws them.

Shape letters: T tasks, S support items, Q query items, N ways (classes), B items of any batch, L padded length,
`*` the shape of one item.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

from multifsl.errors import MultifslError

Inputs = Tensor | dict[str, Tensor]
"""A batch for an encoder, first axis = items: a tensor [B, *] or a dict of them. In a dict, every leaf of two or more
axes is padded along axis 1, and the valid lengths stand in "length" [B] or "attention_mask" [B, L]."""

PADDING = -1  # a row that is not there: never counted, never seen by another row
UNKNOWN = -2  # a query of no class in the episode


class Batch(NamedTuple):
    """Items and their labels within the episode.

    x: Inputs [B, *]. y: int64 [B], 0..N-1; -1 = padding, ignored; -2 = of no known class.
    """

    x: Inputs
    y: Tensor


class Episode(NamedTuple):
    """One few-shot task, or, with a leading axis T on every leaf, a meta-batch of them.

    present: bool [N], the classes that take part (a variable way is False entries). `padded=False` is the promise that
    no row is padding (the sampler keeps it); it spares a look at `y`, which on an accelerator would be a host sync.
    """

    support: Batch
    query: Batch
    present: Tensor
    padded: bool = True


# ---- inputs: the few things that are done to a batch without knowing what is in it ----


def map_inputs(function: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """Apply `function` to every leaf.

    >>> map_inputs(lambda leaf: leaf[:1], {"wave": torch.zeros(3, 8)})["wave"].shape
    torch.Size([1, 8])
    """
    if isinstance(x, Tensor):
        return function(x)
    return {name: function(leaf) for name, leaf in x.items()}


def concat(batches: Sequence[Inputs], dim: int = 0) -> Inputs:
    """Join batches of equal item shape along `dim`.

    >>> concat([torch.zeros(2, 3), torch.ones(1, 3)]).shape
    torch.Size([3, 3])
    """
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat([b for b in batches if isinstance(b, Tensor)], dim)
    return {name: torch.cat([b[name] for b in batches if isinstance(b, dict)], dim) for name in first}


def first_leaf(x: Inputs) -> Tensor:
    return x if isinstance(x, Tensor) else next(iter(x.values()))


def size(x: Inputs) -> int:
    """The number of items."""
    return first_leaf(x).shape[0]


def lengths(x: Inputs) -> Tensor | None:
    """Valid length of each item, int64 [B]; None where items are not of variable length.

    >>> lengths({"input_ids": torch.zeros(1, 4), "attention_mask": torch.tensor([[1, 1, 1, 0]])})
    tensor([3])
    """
    if isinstance(x, Tensor):
        return None
    if "length" in x:
        return x["length"]
    return x["attention_mask"].sum(1) if "attention_mask" in x else None


def trim(x: Inputs, longest: int) -> Inputs:
    """Cut the padded axis down to `longest`.

    >>> trim({"wave": torch.zeros(2, 9), "length": torch.tensor([4, 5])}, 5)["wave"].shape
    torch.Size([2, 5])
    """
    return x if isinstance(x, Tensor) else map_inputs(lambda leaf: leaf[:, :longest] if leaf.ndim > 1 else leaf, x)


# ---- many of numpy's generators at once, to the bit ----
#
# To make one generator from its seed takes ten times as long as to draw what an episode needs, and so do its calls for numbers.
# Here the seeds of all are mixed together (numpy's SeedSequence, which it promises to keep,
# https://numpy.org/neps/nep-0019-rng-policy.html), and raw numbers made bounded together (Lemire: Fast Random Integer Generation
# in an Interval, 2019, https://arxiv.org/abs/1805.10941). T generators draw M numbers each.

LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Streams:
    """T generators. seed: the numbers of a seed, from 0, each one for all or an array [T] of numbers below 2^32.

    sure: bool [T], False where numpy may have drawn some number anew, so that what is drawn here is not to be used: hardly ever.

    >>> Streams([7, np.arange(3)]).upto(np.array([[99, 99, 99], [9, 9, 9]])).tolist()  # [M, T]
    [[94, 87, 28], [6, 7, 2]]
    >>> [np.random.default_rng((7, t)).integers([100, 10]).tolist() for t in range(3)]
    [[94, 6], [87, 7], [28, 2]]
    """

    def __init__(self, seed: Sequence[int | np.ndarray]) -> None:
        count = next(len(part) for part in seed if isinstance(part, np.ndarray))
        states = _states([word for part in seed for word in _words(part, count)])
        self._generators = [np.random.PCG64(_Mixed(state)) for state in states]  # type: ignore[arg-type]
        self._spare = np.zeros((0, count), dtype=np.uint64)
        self.sure = np.ones(count, dtype=bool)

    def upto(self, most: np.ndarray) -> np.ndarray:
        """Numbers from 0 to `most` [M, T], both among them, below 2^32: int64 [M, T]. A bound of 0 takes no number."""
        taken = most.any(1)
        found = np.zeros(most.shape, dtype=np.int64)
        bounds = most[taken].astype(np.uint64)
        self.sure &= bounds.all(0)  # else one takes fewer numbers than the others
        bounds += np.uint64(1)
        raw = self._raw(max(0, (len(bounds) - len(self._spare) + 1) // 2))
        halves = np.stack([raw & LOW, raw >> HALF], axis=1).reshape(-1, raw.shape[1])  # the lower one comes first
        halves = np.concatenate([self._spare, halves])
        self._spare = halves[len(bounds) :]
        product = halves[: len(bounds)] * bounds
        self.sure &= ((product & LOW) >= bounds).all(0)
        found[taken] = product >> HALF
        return found

    def fractions(self) -> np.ndarray:
        """A number from 0 to 1 of each, as `Generator.random` has it: float64 [T]."""
        found: np.ndarray = (self._raw(1)[0] >> np.uint64(11)) * 2.0**-53
        return found

    def _raw(self, count: int) -> np.ndarray:
        """uint64 [count, T]."""
        return np.ascontiguousarray(np.stack([one.random_raw(count) for one in self._generators]).T)


class _Mixed(ISeedSequence):
    """A seed that is mixed already."""

    def __init__(self, state: np.ndarray) -> None:
        self.state = state

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return self.state


def _words(part: int | np.ndarray, count: int) -> list[np.ndarray]:
    """A number of a seed as words uint32 [T], the lowest first."""
    if isinstance(part, np.ndarray):
        return [part.astype(np.uint32)]
    words = [part & 0xFFFFFFFF]
    while part := part >> 32:
        words.append(part & 0xFFFFFFFF)
    return [np.full(count, word, dtype=np.uint32) for word in words]


def _states(words: list[np.ndarray]) -> np.ndarray:
    """SeedSequence(words).generate_state(4, np.uint64) of T seeds [T, 4], each of words uint32 [T]."""
    constant, factor = 0x43B0D7E5, 0x931E8875

    def hashed(x: np.ndarray) -> np.ndarray:
        nonlocal constant
        x = x ^ np.uint32(constant)
        constant = constant * factor & 0xFFFFFFFF
        return folded(x * np.uint32(constant))

    def mixed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return folded(x * np.uint32(0xCA01F9DD) - hashed(y) * np.uint32(0x4973F715))

    def folded(x: np.ndarray) -> np.ndarray:
        found: np.ndarray = x ^ (x >> np.uint32(16))
        return found

    words = words + [np.zeros_like(words[0])] * (4 - len(words))
    pool = [hashed(word) for word in words[:4]]
    for i in range(4):
        for j in range(4):
            pool[j] = mixed(pool[j], pool[i]) if i != j else pool[j]
    for word in words[4:]:
        pool = [mixed(one, word) for one in pool]
    constant, factor = 0x8B51F9DD, 0x58F38DED
    halves = np.stack([hashed(pool[i % 4]) for i in range(8)], axis=1).astype(np.uint64)
    found: np.ndarray = halves[:, ::2] | halves[:, 1::2] << HALF
    return found


# ---- the sampler ----


class Indices(NamedTuple):
    """One task as rows of the data: support [S], support_y [S], query [Q], query_y [Q]; classes [N], the data's labels.

    query_y is UNKNOWN for queries of classes that are not among the N.
    """

    support: np.ndarray
    support_y: np.ndarray
    query: np.ndarray
    query_y: np.ndarray
    classes: np.ndarray


Range = int | tuple[int, int]


def spelled(value: Range | Sequence[int]) -> str:
    """A number, or a range, in words.

    >>> spelled(5), spelled((5, 20))
    ('5', '5-20')
    """
    return str(value) if isinstance(value, int) else f"{value[0]}-{value[1]}"


def distinct(draw: Callable[[np.ndarray], np.ndarray], sizes: np.ndarray, count: int) -> np.ndarray:
    """`count` numbers below each size [T, R], none of them twice: int64 [T, R, count].

    They are those of `rngs[t].choice(sizes[t, r], count, replace=False)`, one r after the other, for sizes up to 10,000: numpy's
    way (Floyd's algorithm, then a shuffle), for all t and r together. draw: the generators, as `Streams.upto`.

    >>> distinct(Streams([np.array([0])]).upto, np.array([[9, 4]]), 3).tolist()
    [[[7, 4, 5], [3, 2, 0]]]
    """
    place, (tasks, rows) = np.arange(count), sizes.shape
    last = sizes.T - count + place[:, None, None]  # [count, R, T]: the highest that each may be
    bounds = np.concatenate([last, np.broadcast_to(place[:0:-1, None, None], (count - 1, rows, tasks))])
    drawn = draw(bounds.swapaxes(0, 1).reshape(-1, tasks)).astype(np.int16).reshape(rows, -1, tasks)
    raw = drawn.swapaxes(0, 1).reshape(2 * count - 1, -1)  # [2 count - 1, R * T], rows in one piece
    found = last.reshape(count, -1).astype(np.int16)
    for k in place:  # one that is there already gives way to the highest, which cannot be
        found[k] = np.where((found[:k] != raw[k]).all(0), raw[k], found[k])
    column = np.arange(found.shape[1])
    for k, other in zip(place[:0:-1], raw[count:], strict=True):
        found[k], found[other, column] = found[other, column], found[k].copy()
    return found.T.reshape(rows, tasks, count).swapaxes(0, 1).astype(np.int64)


class EpisodeSampler:
    """Draws episodes from labelled items; task `t` of step `s` is a pure function of (seed, s, t).

    Whoever asks gets the same tasks, so that processes can share a step by slicing its tasks, and a resumed run goes on
    as if it had never stopped. Way and shot may be ranges: they are drawn once a step, so that the tasks of a step have
    one shape and need no padding.

    Args:
        labels: int [n], the class of each item, 0..C-1.
        way, shot: an int, or an inclusive range (low, high). query: items a class in the query set.
        class_names: for error messages. groups: int [n], the recording, session or drawer of each item.
        sources: int [C], which data set each class is from; an episode stays within one.
        disjoint_groups: support and query share no group.
        skip_small_classes: leave out the classes with fewer than shot + query items, with a warning, instead of an error.
        imbalance: 0 gives every class `shot` support items; above, the S = way * shot items are shared out at random
            (Dirichlet of concentration 1 / imbalance), each class keeping at least one.
        unknown: classes beside the N of an episode that have `query` queries, labelled UNKNOWN, and no support items.

    Raises:
        MultifslError: fewer classes or items than asked for, naming the class and what would fit.

    >>> sampler = EpisodeSampler(np.repeat(np.arange(10), 20), way=5, shot=1, query=15, seed=0)
    >>> task = sampler.task(step=0, index=0)
    >>> task.support.shape, task.query.shape, bool(np.isin(task.support, task.query).any())
    ((5,), (75,), False)
    """

    def __init__(
        self,
        labels: np.ndarray,
        *,
        way: Range = 5,
        shot: Range = 1,
        query: int = 15,
        seed: int = 0,
        class_names: Sequence[str] | None = None,
        groups: np.ndarray | None = None,
        sources: np.ndarray | None = None,
        disjoint_groups: bool = False,
        imbalance: float = 0.0,
        skip_small_classes: bool = False,
        unknown: int = 0,
    ) -> None:
        self.way, self.shot, self.query, self.seed, self.imbalance, self.unknown = (
            _range("way", way),
            _range("shot", shot),
            query,
            seed,
            imbalance,
            unknown,
        )
        labels = np.asarray(labels)
        n_classes = int(labels.max(initial=-1)) + 1
        self.names = [str(c) for c in range(n_classes)] if class_names is None else list(class_names)
        order = np.argsort(labels, kind="stable")
        self.rows = (
            np.split(order, np.cumsum(np.bincount(labels, minlength=len(self.names)))[:-1]) if len(self.names) else []
        )
        sources = np.zeros(len(self.names), dtype=np.int64) if sources is None else np.asarray(sources)
        if disjoint_groups and groups is None:
            raise MultifslError("support and query are to share no group, but these items have no groups")
        self.groups = np.asarray(groups) if disjoint_groups else None
        self.order, self.sizes = order, np.array([len(rows) for rows in self.rows])
        if skip_small_classes:
            sources = self._without_small(sources)
        self.pools = [np.flatnonzero(sources == s) for s in np.unique(sources[sources >= 0])]
        self._check()

    def _check(self) -> None:
        if self.query < 1:
            raise MultifslError(f"query must be at least 1, not {self.query}")
        if self.imbalance < 0:
            raise MultifslError(f"imbalance must be 0 or more, not {self.imbalance}")
        if self.unknown < 0:
            raise MultifslError(f"unknown is a number of classes, 0 or more, not {self.unknown}")
        if not self.pools:
            raise MultifslError("there is no class to draw episodes from: the data are empty")
        smallest = min(self.pools, key=len)
        if len(smallest) < self.way[1] + self.unknown:
            beside = f" and {self.unknown} unknown beside" if self.unknown else ""
            fits = f"at most --way {len(smallest) - self.unknown}{beside} fits"
            raise MultifslError(
                f"way {self.way[1]}{beside} asks for more classes than there are: {len(smallest)} "
                f"(such as {', '.join(self.names[c] for c in smallest[:3])}); "
                f"{fits if len(smallest) > self.unknown + 1 else 'take a split with more, if there is one, or add some'}"
            )
        used = np.concatenate(self.pools)
        counts = np.array([len(self.rows[c]) for c in used])
        need = self.shot[1] + self.query
        if counts.min() < need:
            worst = int(counts.argmin())
            name = self.names[used[worst]]
            least, items = int(counts[worst]), "item" if counts[worst] == 1 else "items"
            shot = min(self.shot[1], least - 1)
            fits = (
                f"shot + query may be at most {least}, such as --shot {shot} --query {least - shot}"
                if least > 1
                else "an episode needs at least 2 items of each class"
            )
            raise MultifslError(
                f"class {name!r} has {least} {items}, but {self.shot[1]} shot + {self.query} query items ask for {need} "
                f"({(counts < need).sum()} of {len(counts)} classes are too small): {fits}; "
                "or leave small classes out (--skip-small-classes)"
            )
        for c in used if self.groups is not None else ():
            if not self._fits(int(c)):
                raise self._cannot_split(int(c))

    def _fits(self, c: int) -> bool:
        """Whether a class has items for both sides of an episode, without a shared group if that is asked."""
        rows = self.rows[c]
        if self.groups is None or len(rows) < self.shot[1] + self.query:
            return len(rows) >= self.shot[1] + self.query
        reachable = 1  # bit s: some of the groups have s items together
        for size in np.unique(self.groups[rows], return_counts=True)[1]:
            reachable |= reachable << int(size)
        return any(reachable >> s & 1 for s in range(self.shot[1], len(rows) - self.query + 1))

    def _cannot_split(self, c: int) -> MultifslError:
        groups = self.groups
        assert groups is not None
        count = len(np.unique(groups[self.rows[c]]))
        return MultifslError(
            f"class {self.names[c]!r} has {len(self.rows[c])} items in {count} group{'s' * (count != 1)}: they cannot be split "
            f"into {self.shot[1]} shot + {self.query} query items that share no group; ask for fewer, allow shared groups, or "
            "leave such classes out (--skip-small-classes)"
        )

    def _without_small(self, sources: np.ndarray) -> np.ndarray:
        """`sources` with -1 for the classes that no episode can use."""
        small = np.array([not self._fits(c) for c in range(len(self.rows))])
        if small.any() and not small.all():
            named = ", ".join(self.names[c] for c in np.flatnonzero(small)[:5])
            warnings.warn(
                f"left out {small.sum()} of {len(small)} classes, which are too small for {self.shot[1]} shot + "
                f"{self.query} query items: {named}{', ...' if small.sum() > 5 else ''}",
                stacklevel=3,
            )
            return np.where(small, -1, sources)
        return sources

    @property
    def varies(self) -> bool:
        """Whether the way or the shot is a range."""
        return self.way[0] < self.way[1] or self.shot[0] < self.shot[1]

    def shape(self, step: int) -> tuple[int, int]:
        """(way, shot) of a step."""
        if not self.varies:
            return self.way[0], self.shot[0]
        rng = np.random.default_rng((self.seed, step))
        return int(rng.integers(self.way[0], self.way[1] + 1)), int(rng.integers(self.shot[0], self.shot[1] + 1))

    def task(self, step: int, index: int = 0) -> Indices:
        """Task `index` of step `step`."""
        way, shot = self.shape(step)
        rng = np.random.default_rng((self.seed, step, index, 1))
        drawn = self._classes(rng, way + self.unknown)
        classes = drawn[:way]
        shots = self._shots(rng, classes, shot)
        if self.unknown:
            shots = np.concatenate([shots, np.zeros(self.unknown, dtype=np.int64)])
        if self.groups is None:
            support, query = [], []
            for c, k in zip(drawn.tolist(), shots.tolist(), strict=True):
                rows = self.rows[c]
                picks = rows[rng.choice(len(rows), k + self.query, replace=False)]
                support.append(picks[:k])
                query.append(picks[k:])
        else:
            support, query = self._split_groups(rng, drawn, shots)
        y = np.arange(way + self.unknown)
        query_y = y.repeat(self.query)
        if self.unknown:
            query_y[way * self.query :] = UNKNOWN
        return Indices(np.concatenate(support), y.repeat(shots), np.concatenate(query), query_y, classes)

    def tasks(self, step: int, count: int, *, rank: int = 0, world: int = 1) -> list[Indices]:
        """The tasks of a step that fall to process `rank` of `world`: rank, rank + world, ..."""
        indices = np.arange(rank, count, world)
        return self.drawn(np.full(len(indices), step), indices)

    def drawn(self, steps: np.ndarray, indices: np.ndarray) -> list[Indices]:
        """Each task `indices` [T] of step `steps` [T], which all are of one way and shot: together in far less time than alone."""
        if not len(steps):
            return []
        way, shot = self.shape(int(steps[0]))
        alike = self.groups is None and not self.imbalance and not self.unknown and self.seed >= 0
        lengths = np.array([len(pool) for pool in self.pools])
        alike &= max(self.sizes.max(), lengths.max()) <= 10_000
        alike &= bool(
            min(steps.min(), indices.min()) >= 0 and max(steps.max(), indices.max()) < 2**32
        )  # a word of the seed each
        if not alike or shot + self.query > 64 or way * len(steps) < 32:  # beyond these, `distinct` is the slower
            return [self.task(*place) for place in zip(steps.tolist(), indices.tolist(), strict=True)]
        streams = Streams([self.seed, steps, indices, 1])
        pool = np.zeros(len(steps), dtype=np.int64)
        if len(lengths) > 1:
            shares = (lengths / lengths.sum()).cumsum()
            pool = (shares / shares[-1]).searchsorted(streams.fractions(), side="right")
        first = distinct(streams.upto, lengths[pool][:, None], way)[:, 0]  # [T, N]
        classes = np.concatenate(self.pools)[(lengths.cumsum() - lengths)[pool][:, None] + first]
        picks = distinct(streams.upto, self.sizes[classes], shot + self.query)  # [T, N, K + Q]
        rows = self.order[(np.cumsum(self.sizes) - self.sizes)[classes][..., None] + picks]
        support, query = (part.reshape(len(steps), -1) for part in np.split(rows, [shot], axis=2))
        support_y, query_y = (np.arange(way).repeat(each) for each in (shot, self.query))
        found = [Indices(s, support_y, q, query_y, c) for s, q, c in zip(support, query, classes, strict=True)]
        for t in np.flatnonzero(~streams.sure):
            found[t] = self.task(int(steps[t]), int(indices[t]))
        return found

    def _classes(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Some classes of one data set; each set's chance is its share of the classes."""
        pool = self.pools[0]
        if len(self.pools) > 1:
            weights = np.array([len(p) for p in self.pools], dtype=np.float64)
            pool = self.pools[rng.choice(len(self.pools), p=weights / weights.sum())]
        return rng.choice(pool, count, replace=False)

    def _shots(self, rng: np.random.Generator, classes: np.ndarray, shot: int) -> np.ndarray:
        """Support items of each class [N], summing to N * shot whatever the imbalance."""
        shots = np.full(len(classes), shot)
        if self.imbalance == 0:
            return shots
        room = np.array([len(self.rows[c]) for c in classes]) - self.query
        weights = rng.dirichlet(np.full(len(classes), 1.0 / self.imbalance))
        shots = np.ones(len(classes), dtype=np.int64)
        for _ in range(len(classes) * (shot - 1)):
            open_weights = np.where(shots < room, weights + 1e-12, 0.0)
            shots[rng.choice(len(classes), p=open_weights / open_weights.sum())] += 1
        return shots

    def _split_groups(
        self, rng: np.random.Generator, classes: np.ndarray, shots: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Deal whole groups to the support or the query side until every class has its items on both.

        A class of no shots, which comes last, takes its queries where no support item is from.
        """
        assert self.groups is not None
        for _ in range(50):  # a greedy deal can paint itself into a corner: shuffle and deal again
            side: dict[int, int] = {}
            support, query, stuck = [], [], -1
            for c, k in zip(classes, shots, strict=True):
                rows, of = self.rows[c], self.groups[self.rows[c]]
                for g in rng.permutation(np.unique(of)) if k else ():
                    have = [sum(int((of == h).sum()) for h, s in side.items() if s == where) for where in (0, 1)]
                    if int(g) not in side and (have[0] < k or have[1] < self.query):
                        side[int(g)] = (
                            0 if (have[0] / k <= have[1] / self.query and have[0] < k) or have[1] >= self.query else 1
                        )
                left = rows[[side.get(int(g)) == 0 for g in of]]
                right = rows[[side.get(int(g)) == 1 or (not k and int(g) not in side) for g in of]]
                if len(left) < k or len(right) < self.query:
                    stuck = int(c)
                    break
                support.append(rng.choice(left, k, replace=False))
                query.append(rng.choice(right, self.query, replace=False))
            if stuck < 0:
                return support, query
        raise self._cannot_split(stuck)


def _range(name: str, value: Range) -> tuple[int, int]:
    low, high = (value, value) if isinstance(value, int) else value
    if not 1 <= low <= high:
        raise MultifslError(f"{name} must be at least 1, and a range must run from low to high; got {value}")
    return low, high

"""Data on their way to episodes: decoded once into memory where they fit, else streamed.

Shape letters: T tasks, S support items, Q queries, n items of the data set.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from multifsl.archive import Member
from multifsl.base_training import base_batch
from multifsl.cache import EmbeddingCache
from multifsl.encoder import Encoder
from multifsl.episode import (
    Batch,
    Episode,
    EpisodeSampler,
    Indices,
    Inputs,
    concat,
    first_leaf,
    lengths,
    map_inputs,
    size,
    trim,
)
from multifsl.errors import BadItem, MultifslError
from multifsl.registry import resolved
from multifsl.task import Items
from multifsl.windows import Windows, mean_of_windows

BLOCK = 512  # items collated at once: bounds what decoded copies take beside the bank
EMBED_BLOCK = 1024  # items embedded at once: enough for batches of similar length, few enough for a bar that moves
Progress = Callable[..., Any]  # wraps an iterable, `description=` and `total=` as in rich.progress.track


class Tasks(Protocol):
    """What says which tasks a step has: an EpisodeSampler, or a part of one."""

    def tasks(self, step: int, count: int, /) -> Sequence[Indices]: ...


class BadItemWarning(UserWarning):
    """Items that could not be read were left out."""


class Bank:
    """Items decoded once; an episode is an index gather.

    x: Inputs [n, *], on the device that will use them. labels and the rest are the items', without those left out.
    """

    def __init__(self, x: Inputs, items: Items) -> None:
        self.x, self.items = x, items
        valid = lengths(x)
        self.lengths = (
            None if valid is None else valid.cpu().numpy()
        )  # on the host: a gather must not wait for a device

    @classmethod
    def build(
        cls, encoder: Encoder, items: Items, *, device: torch.device | str = "cpu", progress: Progress | None = None
    ) -> "Bank":
        """Decode every item; those that cannot be read are left out with one warning that counts and names them."""
        bad, kept, loaded, blocks = list[str](), list[int](), list[Any](), list[Inputs]()
        for i, item in scan(encoder.load, items.items, bad, progress):
            kept.append(i)
            loaded.append(item)
            if len(loaded) == BLOCK:  # now: a million small arrays would take more than the bank
                blocks.append(collate_blocks(encoder, loaded))
        _report_bad(bad, len(items.labels))
        if loaded:
            blocks.append(collate_blocks(encoder, loaded))
        return cls(map_inputs(lambda leaf: leaf.to(device), pad_together(blocks)), select(items, kept))

    def gather(self, rows: np.ndarray) -> Inputs:
        """Inputs [B, *] of some rows, padded no further than the longest of them."""
        index = torch.from_numpy(rows).to(self.device, non_blocking=True)
        x = map_inputs(lambda leaf: leaf.index_select(0, index), self.x)  # a quarter of the time of leaf[index]
        return x if self.lengths is None else trim(x, int(self.lengths[rows].max()))

    def episodes(self, tasks: Sequence[Indices], *, n_classes: int = 0) -> Episode:
        """Tasks of equal shape as one meta-batch [T, ...]; with n_classes, as a batch for base training."""
        return to_episode(tasks, self.gather(rows_of(tasks)), n_classes)

    @property
    def device(self) -> torch.device:
        return first_leaf(self.x).device

    def batches(self, parts: Iterable[Sequence[Indices]]) -> Iterator[tuple[Sequence[Indices], Episode]]:
        """Each part, tasks of equal shape, with its meta-batch."""
        for part in parts:
            yield part, self.episodes(part)

    def stream(self, sampler: Tasks, steps: range, tasks: int, *, n_classes: int = 0) -> Iterator[Episode]:
        for step in steps:
            yield self.episodes(sampler.tasks(step, tasks), n_classes=n_classes)


class Stream:
    """Items too many for memory: a task's are decoded when it comes, in worker processes, ahead of time."""

    def __init__(
        self, encoder: Encoder, items: Items, *, device: torch.device | str = "cpu", workers: int | None = None
    ) -> None:
        self.encoder, self.items, self.device = encoder, items, torch.device(device)
        self.workers = min(4, max(1, (os.cpu_count() or 2) - 1)) if workers is None else workers

    def batches(
        self, parts: Iterable[Sequence[Indices]], *, n_classes: int = 0
    ) -> Iterator[tuple[Sequence[Indices], Episode]]:
        """Each part, tasks of equal shape, with its meta-batch; beside it, a few tasks at most are in memory."""
        ahead, parts = itertools.tee(parts)
        loader = torch.utils.data.DataLoader(
            _Decoded(self.encoder, self.items),
            sampler=(task for part in ahead for task in part),
            batch_size=None,
            num_workers=self.workers,
            generator=torch.Generator(),  # else it draws from everybody's, and a resumed run draws once more
            pin_memory=self.device.type == "cuda",
        )
        decoded = iter(loader)
        for part in parts:
            x = pad_together([self._move(next(decoded)) for _ in part])
            yield part, to_episode(part, x, n_classes)

    def stream(self, sampler: Tasks, steps: range, tasks: int, *, n_classes: int = 0) -> Iterator[Episode]:
        drawn = (sampler.tasks(step, tasks) for step in steps)
        return (episode for _, episode in self.batches(drawn, n_classes=n_classes))

    def _move(self, x: Inputs) -> Inputs:
        return map_inputs(lambda leaf: leaf.to(self.device, non_blocking=True), x)


class _Decoded(torch.utils.data.Dataset[Inputs]):
    """Task -> its items [S + Q, *]."""

    def __init__(self, encoder: Encoder, items: Items) -> None:
        self.load, self.collate, self.items = encoder.load, encoder.collate, items.items

    def __getitem__(self, task: Indices) -> Inputs:
        return self.collate([self.load(self.items[int(r)]) for r in rows_of([task])])


def rows_of(tasks: Sequence[Indices]) -> np.ndarray:
    """The rows of tasks [T * (S + Q)], a task's support before its queries."""
    return np.concatenate([rows for task in tasks for rows in (task.support, task.query)])


def to_episode(tasks: Sequence[Indices], x: Inputs, n_classes: int = 0) -> Episode:
    """Tasks and their items x [T * (S + Q), *], in the order of `rows_of`, as a meta-batch.

    With n_classes, as a batch for base training: all items are queries, labelled by their class in the data.
    """
    t, s = len(tasks), len(tasks[0].support)
    x = map_inputs(lambda leaf: leaf.unflatten(0, (t, -1)), x)  # [T, S + Q, *]
    device = first_leaf(x).device
    if n_classes:
        y = np.stack([task.classes[np.concatenate([task.support_y, task.query_y])] for task in tasks])
        return base_batch(x, torch.from_numpy(y).to(device, non_blocking=True), n_classes)
    support_y = torch.from_numpy(np.stack([task.support_y for task in tasks])).to(device, non_blocking=True)
    query_y = torch.from_numpy(np.stack([task.query_y for task in tasks])).to(device, non_blocking=True)
    present = torch.ones(t, len(tasks[0].classes), dtype=torch.bool, device=device)
    return Episode(
        Batch(map_inputs(lambda leaf: leaf[:, :s], x), support_y),
        Batch(map_inputs(lambda leaf: leaf[:, s:], x), query_y),
        present,
        False,
    )


def sampler_of(items: Items, **shape: Any) -> EpisodeSampler:
    """The sampler over some items; `shape` is EpisodeSampler's way, shot, query, seed and so on."""
    return EpisodeSampler(
        items.labels, class_names=items.class_names, groups=items.groups, sources=items.sources, **shape
    )


def scan(
    load: Callable[[Any], Any], items: Sequence[Any], bad: list[str], progress: Any = None
) -> Iterator[tuple[int, Any]]:
    """(position, loaded item) of those that can be read; the others are noted in `bad`."""
    positions = range(len(items))
    for i in progress(positions, description="reading items", total=len(items)) if progress else positions:
        item = None
        try:
            item = items[i]  # a lazy sequence decodes here
            loaded = load(item)
        except BadItem as error:
            bad.append(_named(item, i, error))
            continue
        yield i, loaded


def load_all(
    encoder: Encoder, items: Sequence[Any], *, progress: Progress | None = None
) -> tuple[list[Any], list[int]]:
    """Loaded items and their positions; bad ones are left out and named in one warning.

    Raises MultifslError where none can be read.
    """
    bad: list[str] = []
    read = list(scan(encoder.load, items, bad, progress))
    _report_bad(bad, len(items))
    return [loaded for _, loaded in read], [i for i, _ in read]


def _named(item: Any, position: int, error: BadItem) -> str:
    """The reason, with the item's place where the item has no name of its own, or was not even opened."""
    return str(error) if item is None or isinstance(item, str | Path | Member) else f"item {position}: {error}"


def _report_bad(bad: list[str], total: int) -> None:
    """One warning that counts and names the items left out; an error where nothing is left."""
    if total == 0:
        raise MultifslError("there are no items")
    if len(bad) == total:
        raise MultifslError(f"none of the {total} items can be read; the first: {bad[0]}")
    if bad:
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        warnings.warn(BadItemWarning(f"left out {len(bad)} of {total} items: {'; '.join(bad[:5])}{more}"), stacklevel=3)


def collate_blocks(encoder: Encoder, loaded: list[Any]) -> Inputs:
    """`encoder.collate` over blocks, joined; frees the loaded items on the way."""
    blocks = [encoder.collate(loaded[i : i + BLOCK]) for i in range(0, len(loaded), BLOCK)]
    loaded.clear()
    return pad_together(blocks)


def pad_together(blocks: Sequence[Inputs]) -> Inputs:
    """Blocks of different padded lengths as one batch."""
    if isinstance(blocks[0], torch.Tensor):
        return concat(blocks)
    longest = max(leaf.shape[1] for b in blocks for leaf in b.values() if leaf.ndim > 1)

    def pad(leaf: torch.Tensor) -> torch.Tensor:
        if leaf.ndim < 2 or leaf.shape[1] == longest:
            return leaf
        out = leaf.new_zeros(leaf.shape[0], longest, *leaf.shape[2:])
        out[:, : leaf.shape[1]] = leaf
        return out

    return concat([map_inputs(pad, b) for b in blocks])


def select(items: Items, kept: Sequence[int]) -> Items:
    """The items at some positions."""
    if len(kept) == len(items.labels):
        return items
    index = np.asarray(kept, dtype=np.int64)
    return Items(
        Chosen(items.items, kept),
        items.labels[index],
        items.class_names,
        None if items.groups is None else items.groups[index],
        items.sources,
    )


def embed_windows(encoder: Encoder, found: Sequence[Windows], batch_size: int = 64) -> torch.Tensor:
    """Embeddings [n, D] of items, each from its windows."""
    x = collate_blocks(encoder, [piece for item in found for piece in item.pieces])
    return mean_of_windows(encoder.embed(x, batch_size), [len(item.pieces) for item in found])


def embed_items(
    encoder: Encoder,
    items: Items,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
    cache: EmbeddingCache | None = None,
    seconds: list[float | None] | None = None,
) -> tuple[torch.Tensor, Items]:
    """Embeddings [n, D] of all items, and the items without those that cannot be read; memory stays bounded.

    cache: where blocks that were embedded before are read, and the others kept, each as soon as it is there.
    seconds: a list that takes the seconds of speech of each item kept; then each is embedded by its windows, without a cache.
    """
    assert cache is None or seconds is None
    embed = encoder.embed if cache is None else cache.embedder(encoder, resolved(encoder))
    parts: list[torch.Tensor] = []
    kept: list[int] = []
    bad: list[str] = []
    block: list[Any] = []

    def add() -> None:
        if seconds is None:
            parts.append(embed(collate_blocks(encoder, block), batch_size))
            return
        seconds.extend(found.seconds for found in block)
        parts.append(embed_windows(encoder, block, batch_size))
        block.clear()

    for i, loaded in scan(encoder.load if seconds is None else encoder.windows, items.items, bad, progress):
        block.append(loaded)
        kept.append(i)
        if len(block) == EMBED_BLOCK:
            add()
    if block:
        add()
    _report_bad(bad, len(items.labels))
    return torch.cat(parts), select(items, kept)


def open_data(
    encoder: Encoder,
    items: Items,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    limit: int | None = None,
) -> Bank | Stream:
    """A Bank where the decoded items fit into `limit` bytes (a third of the free memory by default), else a Stream."""
    sample = range(0, len(items.labels), max(1, len(items.labels) // 32))
    with warnings.catch_warnings(action="ignore"):  # what cannot be read is told once, by whoever reads it all
        probes, _ = load_all(encoder, Chosen(items.items, sample))
    x = encoder.collate(probes)
    leaves = [x] if isinstance(x, torch.Tensor) else list(x.values())
    each = sum(leaf.nbytes for leaf in leaves) / size(x)
    free = free_bytes(torch.device(device)) // 3 if limit is None else limit
    if each * len(items.labels) <= free:
        return Bank.build(encoder, items, device=device, progress=progress)
    warnings.warn(
        f"the decoded items would take {each * len(items.labels) / 2**30:.1f} GiB of {free / 2**30:.1f} GiB allowed: "
        "they are streamed from disk, which is slower",
        stacklevel=2,
    )
    bad: list[str] = []
    kept = [
        i for i, _ in scan(encoder.load, items.items, bad, progress)
    ]  # a bad item would stop the training when it came
    _report_bad(bad, len(items.labels))
    return Stream(encoder, select(items, kept), device=device)


class Chosen(Sequence[Any]):
    """Some items of a sequence, opened when asked for."""

    def __init__(self, items: Sequence[Any], positions: Sequence[int]) -> None:
        self.items, self.positions = items, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        return self.items[self.positions[index]]


def free_bytes(device: torch.device) -> int:
    """Memory that is free now, on the accelerator or the host."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return 4 * 2**30  # no portable way to ask: assume a small machine

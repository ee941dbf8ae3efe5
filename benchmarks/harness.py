"""Timing: variants in turns, ratios with their spread, agreement with the peer, and the distance from the machine's limit.

A ratio is the peer's time over ours in one round, so that what disturbs the machine for a while disturbs both; the figure is the
median of the rounds, its spread their quartiles. Each round runs the variants in another order.
"""

import gc
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

CASES = Path(__file__).parent / "cases"
MISSING = "not installed"
PEERS = {
    "easyfsl",
    "faiss",
    "higher",
    "librosa",
    "resemblyzer",
    "sentence_transformers",
    "torchopt",
    "webrtcvad",
}  # modules
Run = Callable[[], float | None]  # one round: the seconds that count, or None where all of it counts


@dataclass(frozen=True)
class Setting:
    """How a benchmark is run. quick: the smallest work that runs every line, for CI: its times mean nothing."""

    quick: bool = False
    device: str = "cpu"
    rounds: int = 7

    def pick(self, full: Any, quick: Any) -> Any:
        """One size or the other."""
        return quick if self.quick else full


class Same(NamedTuple):
    """That both sides computed the same: `ours` and `peer` differ by no more than `within`."""

    what: str
    ours: float
    peer: float
    within: float

    @property
    def holds(self) -> bool:
        return abs(self.ours - self.peer) <= self.within


@dataclass(frozen=True)
class Case:
    """One row of the table.

    ours: makes our side ready, and gives what a round runs. peers: name -> the same of a peer; one whose import fails is told as
    not installed. aim: how many times as fast as the best peer; below 1: how many times its time is allowed (`ceiling`);
    0: any. most: the seconds that a unit of ours may take, where the aim is not about a peer.
    same: compares both sides' results, after the rounds. flops, moved: what one round of ours computes, or moves in bytes;
    precision: of the multiplications that `flops` are held against. inner: units of work a round, which the times are divided by.
    peak: whether the memory of each side is measured too, in a process of its own. note: for the table.
    """

    name: str
    ours: Callable[[], Run]
    peers: Mapping[str, Callable[[], Run]]
    aim: float
    same: Callable[[], Sequence[Same]] = tuple
    flops: Callable[[], float] | None = None
    moved: Callable[[], float] | None = None
    precision: str = "float32"
    inner: int = 1
    unit: str = "round"
    peak: bool = False
    note: str = ""
    most: float | None = None


@dataclass(frozen=True)
class Curve:
    """How cost grows with a size. run(x): one measurement's seconds (or MiB, as `measure` says); order: the algorithm's own."""

    name: str
    axis: str
    xs: Sequence[int]
    run: Callable[[int], float]
    order: float
    measure: str = "seconds"
    note: str = ""


@dataclass
class Row:
    """What came of a case: seconds are medians a unit; ratio, low, high: the peer's time over ours, median and quartiles."""

    case: str
    unit: str
    aim: float
    ours: float
    ours_spread: tuple[float, float]
    peers: dict[str, dict[str, float] | str] = field(default_factory=dict)
    limit: str = ""
    share: float | None = None
    same: list[dict[str, Any]] = field(default_factory=list)
    peak: dict[str, float] = field(default_factory=dict)
    note: str = ""
    most: float | None = None


def names() -> list[str]:
    """The benchmarks there are."""
    return sorted(file.stem for file in CASES.glob("*.py") if not file.stem.startswith("_"))


def load(name: str) -> Any:
    return importlib.import_module(f"benchmarks.cases.{name}")


def run(name: str, setting: Setting, tell: Callable[[str], None]) -> dict[str, Any]:
    """All of one benchmark, as what is written to JSON."""
    module, began = load(name), time.monotonic()
    rates = limits(setting)
    rows, curves = [], []
    for case in module.cases(setting) if "cases" in vars(module) else ():
        rows.append(measure(name, case, setting, rates))
        tell(told(rows[-1]))
    for curve in module.curves(setting) if "curves" in vars(module) else ():
        points = [(x, curve.run(x)) for x in curve.xs]
        curves.append({**_plain(curve), "points": points, "sentence": sentence(curve, points)})
        tell(f"{curve.name}: {curves[-1]['sentence']}")
    return {
        "name": name,
        "title": module.TITLE,
        "rows": [asdict(row) for row in rows],
        "curves": curves,
        "limits": rates,
        "machine": machine(setting),
        "on": setting.device,
        "quick": setting.quick,
        "rounds": 1 if setting.quick else setting.rounds,
        "seconds": round(time.monotonic() - began, 1),
    }


def measure(name: str, case: Case, setting: Setting, rates: Mapping[str, float]) -> Row:
    """The variants of a case in turns. Raises AssertionError where the sides do not agree."""
    sides: dict[str, Run] = {"ours": case.ours()}
    missing = []
    for peer, ready in case.peers.items():
        try:
            sides[peer] = ready()
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in PEERS:
                raise
            missing.append(peer)
    times: dict[str, list[float]] = {side: [] for side in sides}
    if not setting.quick:
        for once in sides.values():
            timed(once, setting.device)  # warm-up
    for turn in range(1 if setting.quick else setting.rounds):
        order = list(sides)
        for side in order[turn % len(order) :] + order[: turn % len(order)]:
            times[side].append(timed(sides[side], setting.device) / case.inner)
    ours = times["ours"]
    row = Row(case.name, case.unit, case.aim, statistics.median(ours), _quartiles(ours), note=case.note, most=case.most)
    for peer in case.peers:
        if peer in missing:
            row.peers[peer] = MISSING
            continue
        ratios = [theirs / own for theirs, own in zip(times[peer], ours, strict=True)]
        low, high = _quartiles(ratios)
        ratio = statistics.median(ratios)
        row.peers[peer] = {"seconds": statistics.median(times[peer]), "ratio": ratio, "low": low, "high": high}
    if case.flops is not None:
        row.limit, rate = f"{case.precision} matrix product", rates[f"{case.precision} FLOP/s"]
        row.share = case.flops() / case.inner / row.ours / rate
    elif case.moved is not None:
        row.limit, row.share = "memory copy", case.moved() / case.inner / row.ours / rates["bytes/s"]
    if len(missing) < len(case.peers):
        for same in case.same():
            row.same.append({**same._asdict(), "holds": bool(same.holds)})
            assert setting.quick or same.holds, f"{case.name}: {same.what} differs: {same.ours} and {same.peer}"
    if case.peak and not setting.quick:
        row.peak = {side: peak(name, case.name, side, setting) for side in sides}
    return row


def timed(once: Run, device: str) -> float:
    """Seconds of one round; on an accelerator, of all that it was given to do."""
    gc.collect()
    wait(device)
    start = time.perf_counter()
    counted = once()
    wait(device)
    return time.perf_counter() - start if counted is None else counted


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def discarding(call: Callable[[], object]) -> Run:
    """A round that makes a call and drops what it gives: all of its time counts."""

    def once() -> None:
        call()

    return once


def best(once: Callable[[], object], device: str, rounds: int = 5) -> float:
    """Seconds of the fastest of some rounds, for a limit or a point of a curve."""
    plain = discarding(once)
    plain()
    return min(timed(plain, device) for _ in range(rounds))


def limits(setting: Setting) -> dict[str, float]:
    """What the machine can do: matrix products in both precisions, and bytes read and written by a copy."""
    size, device = setting.pick(2048, 64), setting.device
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        found[f"{name} FLOP/s"] = 2 * size**3 / best(lambda a=a, b=b: torch.nn.functional.linear(a, b), device)  # type: ignore[misc]
    x = torch.zeros(setting.pick(64, 1) * 2**20, device=device)
    y = torch.empty_like(x)
    found["bytes/s"] = 2 * 4 * len(x) / best(lambda: y.copy_(x), device)
    return found


def counted(once: Callable[[], object]) -> float:
    """Floating-point operations of a call, as torch counts those of its matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        once()
    return float(counter.get_total_flops())


def peak(name: str, case: str, side: str, setting: Setting) -> float:
    """MiB that the first round of a side takes beyond what stood before it, in a process of its own."""
    asked = [sys.executable, "-m", "benchmarks", name, "--peak", case, side, "--device", setting.device]
    return float(json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout))


def peak_here(name: str, case_name: str, side: str, setting: Setting) -> float:
    """See `peak`: this is what runs in the other process."""
    case = next(case for case in load(name).cases(setting) if case.name == case_name)
    return taken((case.ours if side == "ours" else case.peers[side])(), setting.device)


def taken(once: Callable[[], object], device: str = "cpu") -> float:
    """MiB that a call takes at its peak beyond what stood before it."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; getrusage's would begin with the parent's
    resident = _resident("VmRSS")
    once()
    return _resident("VmHWM") - resident


def _resident(field: str) -> float:
    """MiB of this process, now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) / 1024


def told(row: Row) -> str:
    """A row, on one line."""
    parts = [f"{row.case}: {duration(row.ours)} a {row.unit}"]
    for peer, found in row.peers.items():
        if isinstance(found, str):
            parts.append(f"{peer} {found}")
        else:
            parts.append(f"{found['ratio']:.2f}x {peer} ({found['low']:.2f} to {found['high']:.2f})")
    if row.share is not None:
        parts.append(f"{row.share:.0%} of the {row.limit}")
    parts += [f"{s['what']} {s['ours']:.4g} / {s['peer']:.4g}{'' if s['holds'] else ' DIFFERS'}" for s in row.same]
    parts += [f"peak of {side} {mib:.0f} MiB" for side, mib in row.peak.items()]
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """
    >>> duration(0.0123)
    '12.3 ms'
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def sentence(curve: Curve, points: Sequence[tuple[int, float]]) -> str:
    """The order of growth over the upper half of a curve, and where it leaves its floor."""
    if len(points) < 2:
        return "too few points"
    upper = points[len(points) // 2 - (len(points) < 4) :]
    slope = _slope(upper)
    floor = points[0][1]
    bend = next((x for x, y in points if y > 2 * floor), None)
    told = f"grows as {curve.axis} to the power {slope:.2f} (the algorithm's own: {curve.order:g})"
    if curve.measure == "MiB":  # the least that a process takes is chance
        return told
    return told + (f"; twice its floor from {bend:,} on" if bend is not None else "; nowhere twice its first value")


def _slope(points: Sequence[tuple[int, float]]) -> float:
    xs, ys = ([math.log(max(point[i], 1e-12)) for point in points] for i in range(2))
    return statistics.linear_regression(xs, ys).slope


def machine(setting: Setting) -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    card = torch.cuda.get_device_name(setting.device) if setting.device.startswith("cuda") else ""
    return {
        "device": card or cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
    }


def _plain(curve: Curve) -> dict[str, Any]:
    keys = ("name", "axis", "order", "measure", "note")
    return {key: getattr(curve, key) for key in keys}


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high

"""docs/performance.md: the tables between its marks and the plots beside it, from the records in docs/performance/.

python -m benchmarks --save    # measures, writes the records, and the page
python -m benchmarks.page      # the page and the plots alone, from the records that stand there
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import MISSING, duration
from multifsl.curves import write
from multifsl.errors import MultifslError

DOCS = Path(__file__).resolve().parent.parent / "docs"
RECORDS, PAGE = DOCS / "performance", DOCS / "performance.md"
MARK = ("<!-- tables: benchmarks/page.py -->", "<!-- end of tables -->")
HEAD = ("work", "ours", "peer's time over ours", "aim", "share of the limit", "ours and the peer's", "peak of memory")
DIGITS = 4  # that figures keep
Record = Mapping[str, Any]


def save(result: Record) -> None:
    """Write what `harness.run` found as a record, its plots, and the page of all records.

    Raises MultifslError where a peer was missing: a row without it would look like one that meets its aim.
    """
    missing = sorted({name for row in result["rows"] for name, peer in row["peers"].items() if peer == MISSING})
    if missing:
        raise MultifslError(
            f"{', '.join(missing)} not installed, so that nothing is saved: `make bench` installs the peers"
        )
    RECORDS.mkdir(exist_ok=True)
    text = json.dumps(rounded(result), indent=1, sort_keys=True, ensure_ascii=False)
    (RECORDS / f"{stem(result)}.json").write_text(text + "\n")
    render()


def render() -> None:
    """Draw the curves of all records, and write their tables into the page, between its marks."""
    found = records()
    for record in found:
        for curve in record["curves"]:
            draw(curve, RECORDS / plot_of(record, curve))
    text = PAGE.read_text()
    before, after = text.split(MARK[0])[0], text.split(MARK[1])[1]
    PAGE.write_text(before + MARK[0] + "\n" + tables(found) + MARK[1] + after)


def records() -> list[Record]:
    """What stands in docs/performance/: of the CPU first, by name."""
    found = [json.loads(path.read_text()) for path in RECORDS.glob("*.json")]
    return sorted(found, key=lambda record: (record["on"] != "cpu", record["on"], record["name"]))


def stem(record: Record) -> str:
    """What a record's files are called; each kind of device has its own.

    >>> stem({"name": "maml", "on": "cpu"}), stem({"name": "maml", "on": "cuda:0"})
    ('maml', 'maml-cuda')
    """
    kind = record["on"].partition(":")[0]
    return record["name"] if kind == "cpu" else f"{record['name']}-{kind}"


def plot_of(record: Record, curve: Record) -> str:
    """The file of a curve's plot.

    >>> plot_of({"name": "growth", "on": "cpu"}, {"name": "evaluation, one episode"})
    'growth-evaluation-one-episode.svg'
    """
    return f"{stem(record)}-{re.sub('[^a-z0-9]+', '-', curve['name'].lower()).strip('-')}.svg"


def rounded(value: Any) -> Any:
    """The same with numbers of DIGITS digits.

    >>> rounded({"a": [0.123456, 7, "x", True]})
    {'a': [0.1235, 7, 'x', True]}
    """
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [rounded(each) for each in value]
    return value


# ---- the text ----


def tables(found: Sequence[Record]) -> str:
    """All between the marks: how many rows meet their aim, a part for each record, and the rows that fall short, with why."""
    rows = [row for record in found for row in record["rows"]]
    short = [row for row in rows if falls_short(row)]
    parts = [
        f"{len(rows) - len(short)} of {len(rows)} rows meet their aim." if rows else "Nothing has been measured yet."
    ]
    for record in found:
        parts += ["", f"## {record['title']}{'' if record['on'] == 'cpu' else ' (' + record['on'] + ')'}", ""]
        if record["rows"]:
            parts += ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
            parts += ["| " + " | ".join(cells(row)) + " |" for row in record["rows"]]
            parts += [""]
            noted = [row for row in record["rows"] if row["note"] and not falls_short(row)]
            parts += [f"- {row['case']}: {row['note']}" for row in noted] + [""] * bool(noted)
        for curve in record["curves"]:
            note = f" {curve['note']}" if curve["note"] else ""
            parts += [f"**{curve['name']}**: {curve['sentence']}.{note}", ""]
            parts += [f"![{curve['name']}](performance/{plot_of(record, curve)})", ""]
        times = f", {record['rounds']} rounds" if record["rows"] else ""
        parts += [f"`python -m benchmarks {record['name']}`{times}, on {machine(record)}."]
    if short:
        parts += ["", "## Short of their aim", ""]
        parts += [f"- {row['case']}: {_aim(row)} was the aim. {row['note']}" for row in short]
    return "\n".join(parts) + "\n"


def cells(row: Record) -> list[str]:
    """A row of the table, in the order of HEAD."""
    share = "" if row["share"] is None else f"{row['share']:.0%} of the {row['limit']}"
    same = [f"{one['what']} {one['ours']:.4g} and {one['peer']:.4g} (± {one['within']:.1g})" for one in row["same"]]
    peaks = [f"{side} {mib:,.0f} MiB" for side, mib in row["peak"].items()]
    mark = "**short** of " if falls_short(row) else ""
    each = f"{duration(row['ours'])} a {row['unit']}"
    return [row["case"], each, "; ".join(_peers(row)), mark + _aim(row), share, "; ".join(same), "; ".join(peaks)]


def ratio(row: Record) -> float | None:
    """How many times as fast as the fastest peer; None where none was measured."""
    return min((peer["ratio"] for peer in row["peers"].values() if peer != MISSING), default=None)


def falls_short(row: Record) -> bool:
    found = ratio(row)
    slow = row["most"] is not None and row["ours"] > row["most"]
    return slow or (found is not None and found < row["aim"])


def _aim(row: Record) -> str:
    """At least so many times as fast; below 1: at most so many times the peer's time. Or at most so many seconds.

    >>> [_aim({"aim": aim, "most": most}) for aim, most in ((1.8, None), (1 / 1.5, None), (0, 0.3))]
    ['1.8x', 'within 1.5 times its time', '0.3 s']
    """
    aim, most = row["aim"], row["most"]
    if most is not None:
        return f"{most:g} s"
    return f"{aim:g}x" if aim >= 1 else f"within {1 / aim:.3g} times its time" if aim else ""


def _peers(row: Record) -> list[str]:
    return [
        f"{name} {MISSING}"
        if peer == MISSING
        else f"{peer['ratio']:.3g}x {name} ({peer['low']:.3g} to {peer['high']:.3g})"
        for name, peer in row["peers"].items()
    ]


def machine(record: Record) -> str:
    """What it was measured on, and what that can do.

    >>> machine({"machine": {"device": "A CPU", "cores": 2, "threads": 1, "torch": "2.14.1"},
    ...          "limits": {"float32 FLOP/s": 1.5e11, "bfloat16 FLOP/s": 7e11, "bytes/s": 3e10}})
    'A CPU, 2 cores, 1 thread, torch 2.14.1: matrix products at 150 GFLOP/s in float32 and 700 in bfloat16, copies at 30 GB/s'
    """
    at, can = record["machine"], record["limits"]
    threads = f"{at['threads']} thread{'s' * (at['threads'] != 1)}"
    return (
        f"{at['device']}, {at['cores']} cores, {threads}, torch {at['torch']}: matrix products at "
        f"{can['float32 FLOP/s'] / 1e9:.3g} GFLOP/s in float32 and {can['bfloat16 FLOP/s'] / 1e9:.3g} in bfloat16, copies at "
        f"{can['bytes/s'] / 1e9:.3g} GB/s"
    )


# ---- the plots ----


def draw(curve: Record, path: Path) -> None:
    """The measured points of a curve, and its algorithm's own order through the last of them; both axes logarithmic."""
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    xs, ys = zip(*curve["points"], strict=True)
    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axis = figure.subplots()
    own = [ys[-1] * (x / xs[-1]) ** curve["order"] for x in xs]
    axis.loglog(xs, own, "--", color="0.6", label=f"the algorithm's own order, {curve['order']:g}")
    axis.loglog(xs, ys, "o-", markersize=4, label="measured")
    axis.set(xlabel=curve["axis"], ylabel=curve["measure"])
    axis.legend(fontsize=8)
    write(figure, path)


if __name__ == "__main__":
    render()

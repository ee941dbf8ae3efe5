"""The benchmarks run, their statistics are right, and docs/performance.md says what the records do. No time is asserted."""

import doctest
import gc
import importlib.util
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import harness, page
from benchmarks.__main__ import app
from benchmarks.harness import Case, Curve, Same, Setting
from multifsl.errors import DataNotFound, MultifslError

QUICK = Setting(quick=True)
RATES = {"float32 FLOP/s": 1e9, "bfloat16 FLOP/s": 2e9, "bytes/s": 1e9}


@pytest.fixture(autouse=True)
def _uncollected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before every round the memory is tidied up, which times need and tests do not."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def paced(times: Sequence[float]) -> Callable[[], harness.Run]:
    """A side whose rounds say that they took these seconds, the first of them for the warm-up."""
    left = iter(times)
    return lambda: lambda: next(left)


def missing() -> harness.Run:
    raise ModuleNotFoundError("No module named 'easyfsl'", name="easyfsl")


def measured(setting: Setting = Setting(rounds=5), **of: Any) -> harness.Row:  # noqa: B008 (frozen)
    given: dict[str, Any] = {"ours": paced([9, 1, 2, 4, 1, 2]), "peers": {}, "aim": 1.0, **of}
    return harness.measure("some", Case("a case", **given), setting, RATES)


# ---- the benchmarks ----


@pytest.mark.xdist_group("benchmarks")  # one process, which imports what they need once
@pytest.mark.parametrize("name", harness.names())
def test_a_benchmark_runs(name: str) -> None:
    """All its lines, on the smallest work, with the peers that are installed; agreement is told, and not held to."""
    with torch.random.fork_rng():
        try:
            found = harness.run(name, QUICK, lambda line: None)
        except DataNotFound as error:
            pytest.skip(str(error))
    assert found["rows"] or found["curves"]
    for row in found["rows"]:
        assert row["ours"] > 0 and (row["share"] is None or row["share"] > 0)
    for curve in found["curves"]:
        assert all(y > 0 or curve["measure"] == "MiB" for _, y in curve["points"])
    assert json.loads(json.dumps(found))["name"] == name
    assert page.tables([page.rounded(found)]).count("|---") == 7 * bool(found["rows"])


def test_the_command_says_what_it_cannot_do() -> None:
    unknown = CliRunner().invoke(app, ["nothing"])
    assert unknown.exit_code == 2 and "no benchmark 'nothing'" in unknown.output
    both = CliRunner().invoke(app, ["growth", "--save", "--quick"])
    assert both.exit_code == 2 and "mean nothing" in " ".join(both.output.split())


# ---- the statistics ----


def test_figures_are_medians_and_quartiles_of_the_rounds() -> None:
    """Ratios are of a round's two sides; the warm-up's times are not among them."""
    theirs, ours = [3.0, 4.0, 4.0, 6.0, 2.0], [1.0, 2.0, 4.0, 1.0, 2.0]
    row = measured(ours=paced([9, *ours]), peers={"peer": paced([99, *theirs])}, inner=2, unit="step")
    assert row.ours == statistics.median(ours) / 2
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))  # 1, 1, 2, 3, 6
    assert row.peers["peer"] == {"seconds": 2.0, "ratio": ratios[2], "low": ratios[1], "high": ratios[3]}
    assert row.ours_spread == (0.5, 1.0)


def test_sides_take_turns_in_changing_order() -> None:
    seen: list[str] = []

    def side(name: str) -> Callable[[], harness.Run]:
        return lambda: lambda: seen.append(name) or 1.0  # type: ignore[func-returns-value]

    measured(ours=side("ours"), peers={"a": side("a"), "b": side("b")})
    assert seen == "ours a b  ours a b  a b ours  b ours a  ours a b  a b ours".split()


def test_a_peer_that_is_not_installed_is_told_and_ours_still_runs() -> None:
    def never() -> Sequence[Same]:
        raise AssertionError("there is nothing to compare with")

    row = measured(peers={"peer": missing}, same=never)
    assert row.peers == {"peer": harness.MISSING} and row.ours == 2 and "peer not installed" in harness.told(row)


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("no", name="multifsl.nothing"), ImportError("no", name="easyfsl"), ImportError("no")]
)
def test_a_peer_that_is_broken_is_an_error(error: ImportError) -> None:
    def broken() -> harness.Run:
        raise error

    with pytest.raises(ImportError, match="no"):
        measured(peers={"peer": broken})


@pytest.mark.parametrize(("within", "holds"), [(0.5, True), (0.4, False)])
def test_sides_that_differ_are_an_error(within: float, holds: bool) -> None:
    of: dict[str, Any] = {"peers": {"peer": paced([1] * 6)}, "same": lambda: [Same("loss", 1.0, 1.5, within)]}
    if holds:
        assert measured(**of).same[0]["holds"]
    else:
        with pytest.raises(AssertionError, match="a case: loss differs: 1.0 and 1.5"):
            measured(**of)
        quick = measured(QUICK, **{**of, "peers": {"peer": paced([1])}})
        assert "DIFFERS" in harness.told(quick)


def test_the_share_of_the_limit_is_of_one_unit() -> None:
    assert measured(flops=lambda: 8e9, precision="bfloat16", inner=4).share == pytest.approx(8e9 / 2 / 2e9)
    assert measured(moved=lambda: 1e9).share == pytest.approx(1e9 / 2 / 1e9)


def test_operations_are_counted() -> None:
    """A product of [3, 4] and [4, 5], a multiplication and an addition each."""
    assert harness.counted(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5


def test_a_peak_is_what_a_call_takes_for_a_while() -> None:
    found = harness.taken(lambda: torch.ones(64 * 2**18).sum())
    assert 60 < found < 80


@pytest.mark.parametrize("order", [1, 2])
def test_a_curve_tells_its_order_and_where_it_leaves_its_floor(order: int) -> None:
    curve = Curve("c", "classes", (1, 10, 100, 1000, 10_000), lambda x: 1000.0**order + x**order, order)
    told = harness.sentence(curve, [(x, curve.run(x)) for x in curve.xs])
    assert f"(the algorithm's own: {order})" in told and "twice its floor from 10,000 on" in told
    straight = harness.sentence(curve, [(x, float(x**order)) for x in curve.xs])
    assert f"power {order}.00" in straight


# ---- the page ----


def record(**of: Any) -> dict[str, Any]:
    peers: Any = {
        "peer": {"seconds": 2.0, "ratio": 1.51234, "low": 1.4, "high": 1.6},
        "other": {"seconds": 3.0, "ratio": 3.0, "low": 2.9, "high": 3.1},
    }
    row = harness.Row("a step", "step", 1.8, 1.0, (0.9, 1.1), peers, "memory copy", 0.123, [], {"ours": 1234.5}, "Why.")
    row.same.append({"what": "loss", "ours": 0.25, "peer": 0.25, "within": 0.001, "holds": True})
    curve = {
        "name": "A curve", "axis": "ways", "order": 1, "measure": "seconds", "note": "N.", "points": [[1, 1.0], [9, 3.0]],
        "sentence": "grows",
    }  # fmt: skip
    machine = {"device": "A CPU", "cores": 2, "threads": 1, "torch": "2.14.1"}
    return {
        "name": "some", "title": "Some work", "on": "cpu", "rows": [vars(row)], "curves": [curve], "limits": RATES,
        "machine": machine, "quick": False, "rounds": 7, "seconds": 1.0, **of,
    }  # fmt: skip


def test_the_page_says_what_the_record_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "RECORDS", tmp_path / "performance")
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    page.PAGE.write_text("Before.\n\n{}\nold\n{}\n\nAfter.\n".format(*page.MARK))
    page.save(record())
    text = page.PAGE.read_text()
    assert text.startswith("Before.\n\n") and text.endswith("\n\nAfter.\n") and "old" not in text
    assert (
        "\n0 of 1 rows meet their aim.\n" in text
        and "- a step: 1.8x was the aim. Why." in text
        and "## Some work\n" in text
    )
    row = "1 s a step | 3x other (2.9 to 3.1); 1.51x peer (1.4 to 1.6) | **short** of 1.8x | 12% of the memory copy"
    assert f"| a step | {row} | loss 0.25 and 0.25 (± 0.001) | ours 1,234 MiB |" in text
    assert "**A curve**: grows. N.\n\n![A curve](performance/some-a-curve.svg)" in text
    kept = json.loads((page.RECORDS / "some.json").read_text())
    assert list(kept) == sorted(kept) and kept["rows"][0]["peers"]["peer"]["ratio"] == 1.512
    drawn = (page.RECORDS / "some-a-curve.svg").read_text()
    assert "own order, 1" in drawn
    page.save(record(on="cuda"))  # beside the CPU's, not over it
    assert "## Some work (cuda)" in page.PAGE.read_text()
    assert page.PAGE.read_text().count("## Some work\n") == 1
    page.render()
    assert (page.RECORDS / "some-a-curve.svg").read_text() == drawn


@pytest.mark.parametrize(("aim", "short"), [(1.6, True), (1.5, False), (1 / 1.5, False), (0.0, False)])
def test_a_row_is_short_of_its_aim_by_its_fastest_peer(aim: float, short: bool) -> None:
    row = record()["rows"][0] | {"aim": aim}
    row["peers"] = {**row["peers"], "slow": {"seconds": 9.0, "ratio": 9.0, "low": 9.0, "high": 9.0}}
    assert page.falls_short(row) is short
    assert ("**short**" in page.cells(row)[3]) is short


def test_without_a_peer_nothing_is_saved() -> None:
    """Such a row has no ratio, and would look like one that meets its aim."""
    row = record()["rows"][0] | {"peers": {"peer": harness.MISSING}}
    assert not page.falls_short(row)
    with pytest.raises(MultifslError, match="peer not installed, so that nothing is saved"):
        page.save(record(rows=[row]))


def test_a_row_that_falls_short_says_why() -> None:
    for found in page.records():
        for row in found["rows"]:
            assert row["note"] or not page.falls_short(row), row["case"]


def test_the_page_is_up_to_date() -> None:
    """Its tables are those of the records, and each plot is there."""
    text = page.PAGE.read_text()
    assert text.split(page.MARK[0] + "\n")[1].split(page.MARK[1])[0] == page.tables(page.records())
    plots = {page.plot_of(record, curve) for record in page.records() for curve in record["curves"]}
    assert {path.name for path in page.RECORDS.glob("*.svg")} == plots
    assert not any(record["quick"] for record in page.records())


# ---- what a card is expected to do ----


@pytest.fixture(scope="module")
def roofline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roofline", page.DOCS.parent / "scripts" / "roofline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_operations_and_bytes_are_those_of_the_tensors(roofline: ModuleType) -> None:
    """By hand, in float32: a product; views, which are free; and rows of a table, of which no others are read."""
    a, b, rows = torch.ones(3, 4), torch.ones(4, 5), torch.tensor([7, 7])
    product = roofline.Operation(2.0 * 3 * 4 * 5, 4.0 * (12 + 20 + 15))
    assert roofline.logged(lambda: a @ b) == roofline.logged(lambda: (a.t().t() @ b).view(-1)) == [product]
    table = torch.ones(1000, 6)
    assert roofline.logged(lambda: table[rows]) == [roofline.Operation(0.0, 2 * 4.0 * 2 * 6 + rows.nbytes)]


def test_the_page_on_gpus_has_a_row_for_each_workload_and_none_is_measured(roofline: ModuleType) -> None:
    text = roofline.PAGE.read_text().split(roofline.MARK[0] + "\n")[1].split(roofline.MARK[1])[0]
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert tuple(head) == roofline.HEAD and head[-1] == "predicted, unmeasured"
    named = [[work.name, arithmetic] for work in roofline.WORKLOADS for arithmetic in work.arithmetics]
    assert [row[:2] for row in rows] == named


def test_examples(roofline: ModuleType) -> None:
    for module in (harness, page, roofline):
        found = doctest.testmod(module)
        assert found.attempted and not found.failed, module.__name__

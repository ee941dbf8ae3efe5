"""`multifsl evaluate`, `compare` and `report`: figures of runs, and of encoders as they are."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multifsl.commands.shared import (
    AllowDownload,
    AllowLeak,
    DataRoot,
    Debug,
    Device,
    Disjoint,
    Imbalance,
    Json,
    LeakCheck,
    NoCache,
    Plugin,
    Query,
    Seed,
    Shot,
    SkipSmall,
    Split,
    WayOrAll,
    count,
    number_or_range,
)
from multifsl.errors import MultifslError
from multifsl.terminal import say, show_table, track, write_json

if TYPE_CHECKING:
    from multifsl.comparison import Comparison
    from multifsl.evaluation import Evaluation

PICTURES = (".svg", ".png", ".pdf")


def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run's folder, or model:NAME; or give --task and --encoder."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task; by default the run's own.")] = None,
    encoder: Annotated[str | None, typer.Option(help="An encoder as it is, no training.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="The method; by default the run's, or prototypical(distance='cosine'). On a run, one of the same name takes over "
            'its weights, such as "maml(test_steps=10)".'
        ),
    ] = None,
    weights: Annotated[Literal["best", "last"], typer.Option(help="The run's best weights, or its last.")] = "best",
    split: Annotated[Split, typer.Option(help="Which classes.")] = "test",
    way: WayOrAll = "5",
    shot: Shot = "1",
    query: Query = 15,
    episodes: Annotated[int, typer.Option(help="How many episodes.", min=2)] = 1000,
    seed: Seed = 0,
    disjoint_groups: Disjoint = False,
    imbalance: Imbalance = 0.0,
    skip_small_classes: SkipSmall = False,
    unknown: Annotated[
        int,
        typer.Option(
            help="Classes beside the episode's that are asked about too: are they told from the known?", min=0
        ),
    ] = 0,
    outside: Annotated[
        int, typer.Option(help="Queries an episode that belong to no class, of the tasks that have such.", min=0)
    ] = 0,
    episodes_file: Annotated[
        Path | None,
        typer.Option(help="Read the episodes from this file; where there is none, write those that are drawn."),
    ] = None,
    allow_leak: AllowLeak = None,
    leak_check: LeakCheck = "quick",
    no_cache: NoCache = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    allow_download: AllowDownload = False,
    json_: Json = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Accuracy and other figures over episodes, of a run or of an encoder as it is."""
    from multifsl.evaluation import evaluate as run_evaluation

    read = episodes_file is not None and episodes_file.exists()
    result = run_evaluation(
        run, task=task, encoder=encoder, split=split, way=_way(way), shot=number_or_range("shot", shot),
        query=query, unknown=unknown, outside=outside, episodes_file=episodes_file, cache=not no_cache,
        allow_leaks=allow_leak or (), leak_check=leak_check,
        episodes=episodes, seed=seed, disjoint_groups=disjoint_groups, imbalance=imbalance, device=device, data_root=data_root,
        skip_small_classes=skip_small_classes, allow_download=allow_download, progress=track, method=method, weights=weights,
    )  # fmt: skip
    if read:
        _say_of_file(episodes_file)
    if json_ is not None:
        write_json({**result.to_json(), **_made()}, json_)
    if json_ != "-":
        _show(result)


def compare(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Such as banking77, or \"images('photos')\".")],
    encoder: Annotated[list[str] | None, typer.Option(help="An encoder as it is; may be given several times.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A method on each encoder; may be given several times.")
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option(help="A run's folder, or model:NAME; may be given several times.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which classes.")] = "test",
    way: WayOrAll = "5",
    shots: Annotated[
        str, typer.Option(help="Support items a class; several, such as 1,2,5,10,20, show how many labels are needed.")
    ] = "1",
    query: Query = 15,
    episodes: Annotated[int, typer.Option(help="How many episodes.", min=2)] = 1000,
    seed: Seed = 0,
    disjoint_groups: Disjoint = False,
    imbalance: Imbalance = 0.0,
    skip_small_classes: SkipSmall = False,
    unknown: Annotated[
        int,
        typer.Option(
            help="Classes beside the episode's that are asked about too: are they told from the known?", min=0
        ),
    ] = 0,
    outside: Annotated[
        int, typer.Option(help="Queries an episode that belong to no class, of the tasks that have such.", min=0)
    ] = 0,
    episodes_file: Annotated[
        Path | None,
        typer.Option(help="Read the episodes from this file; where there is none, write those that are drawn."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Where a picture of it goes: SVG, PNG or PDF.")] = None,
    allow_leak: AllowLeak = None,
    leak_check: LeakCheck = "quick",
    no_cache: NoCache = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    allow_download: AllowDownload = False,
    json_: Json = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Compare methods, encoders and runs on the same episodes: who is better, by how much, and is that more than chance?"""
    from multifsl.comparison import compare as run_comparison
    from multifsl.comparison import draw

    each = _shots(shots)
    if plot is not None and plot.suffix.lower() not in PICTURES:
        raise MultifslError(f"--plot writes {', '.join(PICTURES)}, not {plot.name!r}")
    read = episodes_file is not None and episodes_file.exists()
    found = run_comparison(
        task, encoders=encoder or [], methods=method or [], runs=run or [], split=split, way=_way(way), shots=each,
        query=query, episodes=episodes, seed=seed, disjoint_groups=disjoint_groups, imbalance=imbalance,
        skip_small_classes=skip_small_classes, unknown=unknown, outside=outside, episodes_file=episodes_file,
        allow_leaks=allow_leak or (), leak_check=leak_check, cache=not no_cache, device=device, data_root=data_root,
        allow_download=allow_download, progress=track,
    )  # fmt: skip
    if read:
        _say_of_file(episodes_file)
    if json_ is not None:
        write_json({"comparisons": [one.to_json() for one in found], **_made()}, json_)
    if json_ != "-":
        _show_comparisons(found)
    if plot is not None:
        draw(found, plot)
        say(f"drew {plot}")


def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|RESULT...",
            help="Runs (a folder, or model:NAME) and files that evaluate --json or compare --json wrote.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page: one HTML file that needs no network.")] = Path("report.html"),
    task: Annotated[str | None, typer.Option(help="The task of the runs' evaluations; by default their own.")] = None,
    split: Annotated[
        Split | None, typer.Option(help="Which classes; by default test, or val where there are no test data.")
    ] = None,
    way: Annotated[int, typer.Option(help="Classes an episode.")] = 5,
    shots: Annotated[
        str | None,
        typer.Option(help="Support items a class; several, such as 1,5,10, are a result each; by default 1 and 5."),
    ] = None,
    query: Query = 15,
    episodes: Annotated[int, typer.Option(help="How many episodes.", min=2)] = 600,
    seed: Seed = 0,
    skip_small_classes: SkipSmall = False,
    allow_leak: AllowLeak = None,
    no_cache: NoCache = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    allow_download: AllowDownload = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Runs and results as one web page: tables, plots, a map of the items and the worst mistakes. Runs are evaluated for it."""
    from multifsl.report import report as write_report

    path = write_report(
        sources, out, task=task, split=split, way=way, shots=None if shots is None else _shots(shots), query=query,
        episodes=episodes, seed=seed, skip_small_classes=skip_small_classes, allow_leaks=allow_leak or (), cache=not no_cache,
        device=device, data_root=data_root, allow_download=allow_download, progress=track,
    )  # fmt: skip
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _say_of_file(file: Path | None) -> None:
    """Of options that a file of episodes overrules."""
    say(f"the episodes are those of {file}: ways, shots, queries and seed are its own")


def _show(result: "Evaluation") -> None:
    """An evaluation for people to read."""
    from multifsl.episode import spelled

    kind = "transductive" if result.transductive else "inductive"
    way, shot, query = map(spelled, (result.way, result.shot, result.query))
    print(f"{result.task}, {result.split} classes\n{result.encoder}\n{result.method}, {kind}")
    queries = "1 query" if result.query == 1 else f"{query} queries"
    asked = result.arguments
    strange = f", {count(asked['unknown'], 'unknown class')}" if asked.get("unknown") else ""
    strange += f", outside queries: {asked['outside']}" if asked.get("outside") else ""
    print(f"{way}-way {shot}-shot, {queries} a class{strange}, {result.episodes:,} episodes, seed {result.seed}")
    half = result.ci95_classes
    over_classes = "; over classes it cannot be told" if half is None else f", ± {half:.4f} over classes"
    rows = [("accuracy", f"{result.accuracy:.4f} ± {result.ci95:.4f} (95 %) over episodes{over_classes}")]
    if result.macro_f1 is not None:
        rows.append(("macro-F1", f"{result.macro_f1:.4f}"))
    rows.append(("log loss", f"{result.nll:.4f} nats; Brier score {result.brier:.4f}"))
    rows.append(("calibration error", f"{result.calibration_error:.4f} (15 bins)"))
    if result.unknown is not None:
        auroc, aupr, false_positives = result.unknown.values()
        rows.append(
            (
                "known or unknown",
                f"AUROC {auroc:.4f}, AUPR {aupr:.4f}, {false_positives:.4f} of the unknown taken at 95 % of the known",
            )
        )
    if result.verification is not None:
        equal, *costs = result.verification.values()
        rows.append(
            ("verification", f"equal error rate {equal:.4f}, min DCF {costs[0]:.4f} (p 0.01), {costs[1]:.4f} (p 0.05)")
        )
    weakest = sorted(result.details["classes"], key=lambda one: one["accuracy"])[:3]
    rows.append(("weakest classes", ", ".join(f"{one['name']} {one['accuracy']:.2f}" for one in weakest)))
    if confused := result.details["confused"][:3]:
        named = ", ".join(f"{one['true']} taken for {one['answered']} ({one['queries']:,})" for one in confused)
        rows.append(("often confused", named))
    rows += [(leak.kind, leak.message) for leak in result.marks]
    wide = max(len(name) for name, _ in rows)
    for name, figure in rows:
        print(f"{name:<{wide}}  {figure}")


def _show_comparisons(found: "list[Comparison]") -> None:
    """Tables for people to read: the entries, the best first, and each one's difference from the best; then accuracy by shots."""
    from multifsl.episode import spelled

    first = found[0]
    print(
        f"{first.task}, {first.split} classes, {spelled(first.query)} queries a class, {first.episodes:,} episodes, "
        f"seed {first.seed}"
    )
    encoders = {entry.evaluation.encoder for entry in first.entries}
    if len(encoders) == 1:
        print(*encoders)
    for one in found:
        print(f"\n{spelled(one.way)}-way {spelled(one.shot)}-shot")
        best, rows = one.entries[0].name, []
        for entry in one.entries:
            result = entry.evaluation
            less = next((pair for pair in one.pairs if (pair.a, pair.b) == (best, entry.name)), None)
            gap = "" if less is None else f"{-less.mean:+.4f} ± {less.ci95:.4f}"
            verdict = "the best" if less is None else f"p {less.p:.2g}" if less.shown else "no difference shown"
            over_classes = "cannot be told" if result.ci95_classes is None else f"± {result.ci95_classes:.4f}"
            rows.append(
                (
                    entry.name, f"{result.accuracy:.4f} ± {result.ci95:.4f}", over_classes, gap, verdict,
                    *([f"{result.unknown['auroc']:.4f}"] if result.unknown else []),
                    f"{entry.ms_per_episode:.2f}", f"{entry.memory:,.0f}", "transductive" if result.transductive else "inductive",
                )
            )  # fmt: skip
        columns = (
            "",
            "accuracy (over episodes)",
            "over classes",
            "from the best",
            "paired test",
            *(["AUROC (unknown)"] if one.entries[0].evaluation.unknown else []),
            "ms/episode",
            "MiB",
            "",
        )
        show_table(columns, rows)
    print(
        "\n±: half of a 95 % interval. p: of a paired test over the episodes, corrected for all pairs of a table (Holm)."
    )
    for leak in dict.fromkeys(leak for entry in first.entries for leak in entry.evaluation.marks):
        names = [entry.name for entry in first.entries if leak in entry.evaluation.marks]
        of = "" if len(names) == len(first.entries) else f" ({', '.join(names)})"
        print(f"{leak.kind}{of}: {leak.message}")
    if len(found) > 1:
        print()
        by_name = [{entry.name: entry.evaluation.accuracy for entry in one.entries} for one in found]
        show_table(
            ("shots", *(str(one.shot) for one in found)),
            [(name, *(f"{one[name]:.4f}" for one in by_name)) for name in by_name[0]],
        )


def _way(text: str) -> int | tuple[int, int] | Literal["all"]:
    return "all" if text == "all" else number_or_range("way", text)


def _shots(text: str) -> list[int]:
    try:
        return [int(shot) for shot in text.split(",")]
    except ValueError:
        raise MultifslError(f"--shots takes numbers such as 1,2,5, not {text!r}") from None


def _made() -> dict[str, Any]:
    """How a result was made, as its file says."""
    import shlex

    from multifsl.checkpoint import made_here

    return {"command": shlex.join(["multifsl", *sys.argv[1:]]), **made_here()}

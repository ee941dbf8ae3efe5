"""The parts of a report: from results, as `evaluate --json` and `compare --json` write them, to tables and plots."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from json import dumps
from math import log10
from statistics import NormalDist, median
from typing import Any
from xml.etree.ElementTree import Element

from multifsl.episode import spelled
from multifsl.page import COLOURS, Axes, Child, data, el, legend, table
from multifsl.report_media import Medium

MATRIX = 40  # classes of which every pair is shown
LISTED = 20  # classes, or pairs of them, in a list
OVERLAID = COLOURS  # results in one plot
FIRST = 6  # mistakes that are seen at once; the others unfold
GROUPS = 10  # colours of a map: of twice as many classes, as discs and squares


@dataclass(frozen=True)
class Result:
    """One evaluation. source: what was evaluated, or the file's name. figures: `Evaluation.to_json()`."""

    source: str
    figures: dict[str, Any]

    @property
    def name(self) -> str:
        """What tells it from the page's others."""
        return f"{self.source}, {shape_of(self.figures)}"


@dataclass(frozen=True)
class Point:
    """An item on the map: its place, its class and how it is shown."""

    x: float
    y: float
    name: str
    medium: Medium


@dataclass(frozen=True)
class Mistake:
    """A wrong answer: its query, and a support example of the query's own class and of the one it was taken for."""

    true: str
    answered: str
    confidence: float
    query: Medium
    own: Medium
    other: Medium


@dataclass
class Shown:
    """What the page shows of one argument.

    title: the argument. detail: that of the results whose classes and mistakes are shown. comparisons: `Comparison.to_json()`.
    steps: lines of a run's metrics.jsonl. pairs: (true, answered, queries) of all wrong answers of `detail`, where they are known.
    mapped: the arguments whose map `points` is. whole: how many items and classes the split has. wrong, asked: how many items were
    ever answered wrongly, and were queries at all.
    notes: what is missing, and why. made: command, versions and date of the figures, and a run's settings, as far as known.
    """

    title: str
    results: list[Result] = field(default_factory=list)
    detail: Result | None = None
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[tuple[str, str, int]] | None = None
    points: list[Point] = field(default_factory=list)
    mapped: list[str] = field(default_factory=list)
    whole: tuple[int, int] = (0, 0)
    mistakes: list[Mistake] = field(default_factory=list)
    wrong: int = 0
    asked: int = 0
    notes: list[str] = field(default_factory=list)
    made: dict[str, Any] = field(default_factory=dict)


def body(shown: Sequence[Shown]) -> list[Element]:
    """All parts for which there is something to show.

    >>> [part.find("h2").text for part in body([Shown("a run", notes=["its data are not here"])])]
    ['How it was made']
    """
    results = [one for each in shown for one in each.results]
    parts = [
        _section("Results", "What was measured, and how sure it is.", [_key(results), _headline(results)]),
        _section("Comparison", "The same episodes for all, so that differences are those of the methods.", _compared(shown)),
        _section("Learning", "How training went.", _each(shown, "curves", _curves)),
        _section("Labels", "How many labelled examples of a class it takes.", [_shots(shown)]),
        _section("Confidence", "Whether it knows when it is wrong.", _confidence(results)),
        _section("Classes", "Where the mistakes are.", _each(shown, "confusion", _confusion) + _each(shown, "classes", _classes)),
        _section("Map", "The items as the encoder sees them.", _each(shown, "map", _map)),
        _section("Mistakes", "Its most confident wrong answers.", _each(shown, "mistakes", _mistakes)),
        _section("How it was made", "Commands, versions and dates.", [_made(shown), _notes(shown)]),
    ]  # fmt: skip
    return [part for part in parts if part is not None]


# ---- the frame ----


def _section(title: str, line: str, figures: Iterable[Element | None]) -> Element | None:
    found = [one for one in figures if one is not None]
    if not found:
        return None
    return el("section", el("h2", title), el("p", line, class_="line"), el("div", found, class_="figures"))


def _figure(ident: str, title: str, caption: str, *content: Child | Iterable[Child], wide: bool = False) -> Element:
    """caption: what the figure means, and what not to conclude."""
    return el(
        "figure",
        el("h3", title),
        *content,
        el("figcaption", caption),
        id=ident,
        class_="wide" if wide else None,
    )


def _each(shown: Sequence[Shown], ident: str, draw: Callable[[Shown, str, str], Element | None]) -> list[Element]:
    """A figure of each argument that has it, the first named `ident`, the next `ident`-2."""
    found: list[Element] = []
    for one in shown:
        figure = draw(one, f"{ident}-{len(found) + 1}" if found else ident, f": {one.title}" if len(shown) > 1 else "")
        found += [] if figure is None else [figure]
    return found


# ---- results ----


def _key(results: Sequence[Result]) -> Element | None:
    if not results or len(results) > 4:
        return None
    facts = [
        el(
            "div",
            el("dt", one.name),
            el("dd", f"{100 * one.figures['accuracy']:.1f} %", el("small", f" ± {100 * one.figures['ci95']:.1f}")),
        )
        for one in results
    ]
    return el("dl", facts, class_="key")


def _headline(results: Sequence[Result]) -> Element | None:
    if not results:
        return None
    rows = [_row(one) for one in results]
    told = [name for name in rows[0] if any(row[name] != "" for row in rows) or name == ""]
    alike = [name for name in told if name in _SETTINGS and len({str(row[name]) for row in rows}) == 1]
    head = [name for name in told if name not in alike]
    facts = [el("div", el("dt", name), el("dd", _cell(name, rows[0][name]))) for name in alike]
    marks = {(leak["kind"], leak["message"]) for one in results for leak in one.figures["marks"]}
    facts += [el("div", el("dt", el("span", kind, class_="badge mark")), el("dd", why)) for kind, why in sorted(marks)]
    caption = (
        "What was measured; below the table, what is the same for all of it, and what the marks mean. Accuracy is the mean over "
        "episodes of the share of right queries; both ± are half widths of 95 % intervals. The one over "
        "episodes takes these data as given; the one over classes asks what other classes and items of the kind would give, and is "
        "the one to look at before a claim about new classes. Log loss (nats), Brier score (0 to 2) and calibration error (15 "
        "bins) are better when lower. Figures of another way, shot or split are not comparable with these."
    )
    cells = [[_cell(name, row[name]) for name in head] for row in rows]
    return _figure(
        "headline",
        "All results",
        caption,
        table(head, cells, "All results"),
        el("dl", facts, class_="facts"),
        wide=True,
    )


_OPTIONS = ("disjoint_groups", "imbalance", "skip_small_classes", "unknown", "outside", "episodes_file")
_SPECS = ("task", "encoder", "method")
_SETTINGS = ("episodes", "queries a class", "seed", "classes", "options", *_SPECS)


def _cell(name: str, value: Child | list[Child]) -> Child | list[Child]:
    return el("code", value) if name in _SPECS else value


def _row(one: Result) -> dict[str, Child | list[Child]]:
    """Column -> cell, "" where there is nothing to say."""
    f = one.figures
    unknown, trials = f["unknown"] or {}, f["verification"] or {}
    asked = f.get("arguments") or {}
    options = ", ".join(f"{key}={asked[key]}" for key in _OPTIONS if asked.get(key))
    badges = [el("span", "transductive" if f["transductive"] else "inductive", class_="badge")]
    badges += [el("span", leak["kind"], class_="badge mark", title=leak["message"]) for leak in f["marks"]]
    return {
        "": [one.name, el("div", badges)],
        "accuracy": _fixed(f["accuracy"]), "± over episodes": _fixed(f["ci95"]), "± over classes": _fixed(f["ci95_classes"]),
        "macro-F1": _fixed(f["macro_f1"]), "log loss": _fixed(f["nll"]), "Brier": _fixed(f["brier"]),
        "calibration error": _fixed(f["calibration_error"]), "known or unknown: AUROC": _fixed(unknown.get("auroc")),
        "AUPR": _fixed(unknown.get("aupr")), "FPR at 95 % TPR": _fixed(unknown.get("fpr_at_95_tpr")),
        "equal error rate": _fixed(trials.get("equal_error_rate")), "min DCF (p 0.01)": _fixed(trials.get("min_dcf_0.01")),
        "min DCF (p 0.05)": _fixed(trials.get("min_dcf_0.05")), "episodes": f"{f['episodes']:,}",
        "queries a class": spelled(f["query"]), "seed": str(f["seed"]), "classes": f["split"], "options": options,
        "task": f["task"], "encoder": f["encoder"], "method": f["method"],
    }  # fmt: skip


def shape_of(figures: dict[str, Any]) -> str:
    """Way and shot, in words.

    >>> shape_of({"way": [5, 20], "shot": 1})
    '5-20-way 1-shot'
    """
    return f"{spelled(figures['way'])}-way {spelled(figures['shot'])}-shot"


def _fixed(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


# ---- comparisons ----


def _compared(shown: Sequence[Shown]) -> list[Element]:
    found = [one for each in shown for one in each.comparisons]
    return [_paired(one, "paired" if i == 1 else f"paired-{i}") for i, one in enumerate(found, 1)]


def _paired(one: dict[str, Any], ident: str) -> Element:
    rows = [
        [
            f"{pair['a']} less {pair['b']}", f"{pair['mean']:+.4f}", _fixed(pair["ci95"]), _fixed(pair["ci95_classes"]),
            f"{pair['p']:.2g}" if pair["shown"] else "no difference shown",
        ]
        for pair in one["pairs"]
    ]  # fmt: skip
    costs = [[e["name"], f"{e['ms_per_episode']:.2f}", f"{e['memory']:,.0f}"] for e in one["entries"]]
    title = f"Paired differences, {shape_of(one)}, {one['task']}"
    caption = (
        "Differences of accuracy over the same episodes, with half widths of their 95 % intervals, and the p-value of a paired "
        'test, Holm-corrected for all pairs. "No difference shown" is p of 0.05 or more: it does not say that they are equal.'
    )
    return _figure(
        ident, title, caption,
        table(["", "difference", "± over episodes", "± over classes", "p"], rows, title),
        table(["", "ms an episode", "MiB"], costs, f"Cost, {shape_of(one)}"), wide=True,
    )  # fmt: skip


# ---- learning curves ----


def _curves(one: Shown, ident: str, named: str) -> Element | None:
    looks = [row for row in one.steps if "loss" in row]
    tried = [row for row in one.steps if "val_accuracy" in row]
    if not looks and not tried:
        return None
    steps = (0.0, float(max(row["step"] for row in [*looks, *tried])) or 1.0)
    plots: list[Element | None] = []
    if looks:
        losses = [row["loss"] for row in looks]
        high = max(losses) * 1.05 or 1.0
        loss = Axes(f"loss over steps{named}", x=steps, y=(min(0.0, *losses), high), x_label="step", y_label="loss")
        loss.line([row["step"] for row in looks], losses, 0, dots=len(looks) == 1)
        plots.append(loss.svg)
    low = min(row.get("accuracy", row.get("val_accuracy", 1.0)) for row in [*looks, *tried])
    accuracy = Axes(
        f"accuracy over steps{named}", x=steps, y=(max(0.0, low - 0.05), 1.0), x_label="step", y_label="accuracy"
    )
    trained = [row for row in looks if "accuracy" in row]
    accuracy.line([row["step"] for row in trained], [row["accuracy"] for row in trained], 0, dots=len(trained) == 1)
    if tried:
        xs, ys = [row["step"] for row in tried], [row["val_accuracy"] for row in tried]
        accuracy.whiskers(xs, ys, [row.get("val_ci95", 0.0) for row in tried], 1)
        accuracy.line(xs, ys, 1, dots=True)
    names = ["training episodes", *(["validation episodes"] if tried else [])]
    caption = (
        "Loss and accuracy while it was trained; bars are 95 % intervals over the validation episodes. Training and validation may "
        "differ in way and shot, so the gap between them is not by itself over-fitting. The validation episodes chose the weights: "
        "their accuracy is no result."
    )
    return _figure(
        ident,
        f"Learning curves{named}",
        caption,
        el("div", plots, accuracy.svg, class_="pair"),
        legend(names),
        wide=True,
    )


# ---- accuracy against shots ----


def _shots(shown: Sequence[Shown]) -> Element | None:
    """Results that differ in their shots alone are one curve; of two files, where no shot is in both of them."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for each in shown:
        alone = "" if len(each.results) == 1 else each.title
        for one in each.results:
            if isinstance(one.figures["shot"], int):
                key = [str(one.figures[k]) for k in ("task", "split", "way", "query", "encoder", "method")]
                groups.setdefault((alone, one.source if alone else "", *key), []).append(one)
    several = []
    for group in groups.values():
        group.sort(key=lambda one: one.figures["shot"])
        if len({one.figures["shot"] for one in group}) == len(group) > 1:
            names = ", ".join(dict.fromkeys(one.source for one in group))
            several.append((names, [one.figures for one in group]))
    if not several:
        return None
    several = several[:OVERLAID]
    counts = sorted({f["shot"] for _, found in several for f in found})
    said = [
        f"{names}, " + ", ".join(f"{f['accuracy']:.3f} with {f['shot']}" for f in found) for names, found in several
    ]
    low = min(f["accuracy"] - f["ci95"] for _, found in several for f in found)
    plot = Axes(
        "accuracy against the number of labelled examples a class: " + "; ".join(said),
        x=(-0.3, len(counts) - 0.7), y=(max(0.0, low - 0.03), 1.0), x_ticks=[(i, str(n)) for i, n in enumerate(counts)],
        x_label="labelled examples a class (shots)", y_label="accuracy",
    )  # fmt: skip
    for i, (_, found) in enumerate(several):
        xs, ys = [counts.index(f["shot"]) for f in found], [f["accuracy"] for f in found]
        plot.whiskers(xs, ys, [f["ci95"] for f in found], i)
        plot.line(xs, ys, i, dots=True)
    caption = (
        "Accuracy by the number of labelled examples; bars are 95 % intervals over episodes. The steps along the axis are not to "
        "scale. It says how far more labels helped on these classes, not what beyond the last point."
    )
    return _figure("shots", "Accuracy against shots", caption, plot.svg, legend([names for names, _ in several]))


# ---- confidence ----


def _confidence(results: Sequence[Result]) -> list[Element | None]:
    first = results[:OVERLAID]
    rest = f" Of {len(results)} results, the first {OVERLAID}." if len(results) > OVERLAID else ""
    plots = [_reliability(one, "reliability" if i == 1 else f"reliability-{i}") for i, one in enumerate(first, 1)]
    names = [one.name for one in first]
    found: list[Element | None] = [*plots]
    if first:
        curves = [_numbers(one.figures["details"]["coverage"], "coverage", "accuracy") for one in first]
        low = min((y for _, ys in curves for y in ys), default=0.0)
        title = "Accuracy against coverage"
        plot = Axes(
            title, x=(0.0, 1.0), y=(max(0.0, low - 0.05), 1.0), x_label="share of queries answered", y_label="accuracy"
        )
        for i, (xs, ys) in enumerate(curves):
            plot.line(xs, ys, i)
        caption = (
            "Answering only the queries it is surest of: how accurate are those? A curve that rises to the left means that the "
            "confidence is worth something. The share is known only after all queries are seen." + rest
        )
        found.append(_figure("coverage", title, caption, plot.svg, legend(names)))
    verified = [one for one in first if one.figures["details"]["detection"] and one.figures["verification"]]
    if verified:
        found.append(_detection(verified))
    return found


def _numbers(curve: dict[str, Any], x: str, y: str) -> tuple[list[float], list[float]]:
    """The points of a curve at which there is a number."""
    both = [(a, b) for a, b in zip(curve[x], curve[y], strict=False) if a is not None and b is not None]
    return [a for a, _ in both], [b for _, b in both]


def _reliability(one: Result, ident: str) -> Element:
    bins = one.figures["details"]["reliability"]
    count = len(bins["queries"])
    edges = [(i / count, (i + 1) / count) for i in range(count)]
    title = f"Reliability, {one.name}"
    plot = Axes(
        f"accuracy by confidence, {one.name}", x=(0.0, 1.0), y=(0.0, 1.0), x_label="confidence", y_label="accuracy"
    )
    for edge, n, confidence, accuracy in zip(
        edges, bins["queries"], bins["confidence"], bins["accuracy"], strict=False
    ):
        if n and accuracy is not None and confidence is not None:
            plot.bar(edge, accuracy, f"confidence {confidence:.3f}, accuracy {accuracy:.3f}, {n:,} queries")
    plot.line([0, 1], [0, 1], "diagonal")
    most = max(bins["queries"], default=0)
    powers = range(len(str(most)))
    counts = Axes(
        f"queries by confidence, {one.name}", x=(0.0, 1.0), y=(log10(0.5), log10(max(most, 1))), x_label="confidence",
        y_label="queries", height=150.0, y_ticks=[(float(power), _power(power)) for power in powers],
    )  # fmt: skip
    for edge, n in zip(edges, bins["queries"], strict=True):
        if n:
            counts.bar(edge, log10(n), f"{n:,} queries", "bar faint")
    caption = (
        f"How right it is at each confidence; calibration error {one.figures['calibration_error']:.4f}. Bars on the dashed line: "
        "of the answers given with a confidence of 80 %, 80 % are right. Above it, it is better than it thinks; below, worse. The "
        "lower plot counts the queries (each line is ten times the one below): a bar of few says little, and a calibrated method "
        "may still be a poor one."
    )
    return _figure(ident, title, caption, plot.svg, counts.svg)


def _power(power: int) -> str:
    """A power of ten that fits beside an axis.

    >>> _power(2), _power(4)
    ('100', '10k')
    """
    return f"{10 ** (power % 3)}{['', 'k', 'M', 'G'][min(power // 3, 3)]}"


def _detection(results: Sequence[Result]) -> Element:
    """Both errors on the scale of normal deviates, on which scores that are normal make straight lines."""
    normal, edge = NormalDist(), 0.001
    places = [(normal.inv_cdf(p), f"{100 * p:g}") for p in (0.001, 0.01, 0.05, 0.2, 0.5, 0.8)]
    span = (normal.inv_cdf(edge), normal.inv_cdf(0.9))
    plot = Axes(
        "detection error trade-off", x=span, y=span, x_ticks=places, y_ticks=places, x_label="false accepts, %",
        y_label="false rejects, %", height=340.0,
    )  # fmt: skip
    plot.line(span, span, "diagonal")
    for i, one in enumerate(results):
        xs, ys = _numbers(one.figures["details"]["detection"], "false_accept", "false_reject")
        deviates = [[normal.inv_cdf(min(max(v, edge), 0.9)) for v in values] for values in (xs, ys)]
        plot.line(deviates[0], deviates[1], i)
    rates = ", ".join(f"{one.name} {one.figures['verification']['equal_error_rate']:.4f}" for one in results)
    caption = (
        "Verification trials: is this the voice of that support? Nearer the lower left is better; the curve meets the dashed line "
        f"at the equal error rate ({rates}). The trials are those of the episodes, of short clips in like conditions: not what "
        "telephones or attackers would give."
    )
    return _figure("detection", "Detection errors", caption, plot.svg, legend([one.name for one in results]))


# ---- classes ----


def _confusion(one: Shown, ident: str, _: str) -> Element | None:
    last = one.detail
    if last is None:
        return None
    found = last.figures["details"]
    listed = [(pair["true"], pair["answered"], pair["queries"]) for pair in found["confused"]]
    pairs = listed if one.pairs is None else one.pairs
    wrong = sum(round(c["queries"] * (1 - c["accuracy"])) for c in found["classes"])
    names = sorted({c["name"] for c in found["classes"]} | {name for pair in pairs for name in pair[:2]})
    whole = one.pairs is not None or sum(n for *_, n in listed) >= wrong
    where = last.name
    if whole and len(names) <= MATRIX:
        caption = (
            "Rows are the true classes, columns the answers, cells the share of the row's queries that fell there, in per cent; "
            "the diagonal is right. A class is only ever confused with those of its episode, so it depends on how often two met."
        )
        return _figure(ident, f"Confusion, {where}", caption, _matrix(names, found["classes"], pairs), wide=True)
    if not pairs:
        return None
    counts = {c["name"]: c["queries"] for c in found["classes"]}
    first = sorted(pairs, key=lambda pair: -pair[2])[:LISTED]
    rows = [
        [
            true,
            el("span", answered, class_="name"),
            f"{n:,}",
            f"{100 * n / counts[true]:.1f} %" if true in counts else "",
        ]
        for true, answered, n in first
    ]
    title = f"Most confused pairs, {where}"
    caption = (
        f"The {len(first)} pairs with the most wrong answers, of {len(names)} classes; the last column is their share of the true "
        "class's queries. Pairs that met in more episodes have more."
    )
    return _figure(ident, title, caption, table(["true class", "taken for", "queries", "share"], rows, title))


def _matrix(names: list[str], classes: list[dict[str, Any]], pairs: Sequence[tuple[str, str, int]]) -> Element:
    counts = {c["name"]: c["queries"] for c in classes}
    share = {(true, answered): n / counts[true] for true, answered, n in pairs if counts.get(true)}
    share |= {(c["name"], c["name"]): c["accuracy"] for c in classes}
    rows: list[list[Child]] = []
    for true in names:
        row: list[Child] = [true]
        for answered in names:
            part = share.get((true, answered), 0.0)
            kind = "right" if true == answered else "wrong"
            text = f"{100 * part:.0f}" if part > 0.005 else ""
            row.append(
                el(
                    "span",
                    text,
                    class_=f"cell {kind}",
                    style=f"--share:{part:.3f}",
                    title=f"{true} answered as {answered}: {part:.3f}",
                )
            )
        rows.append(row)
    box = table(["", *names], rows, "Confusion matrix: true classes in rows, answers in columns")
    box.set("class", "scroll matrix")
    return box


def _classes(one: Shown, ident: str, _: str) -> Element | None:
    last = one.detail
    if last is None:
        return None
    classes = sorted(last.figures["details"]["classes"], key=lambda c: c["accuracy"])
    if not classes:
        return None
    where = last.name
    least = classes if len(classes) <= MATRIX else classes[:LISTED]
    rows = [
        el(
            "li", el("span", c["name"], class_="name"),
            el("span", el("span", style=f"width:{100 * c['accuracy']:.1f}%"), class_="track", aria_hidden="true"),
            el("span", f"{c['accuracy']:.3f}", class_="value", title=f"{c['queries']:,} queries"),
        )
        for c in least
    ]  # fmt: skip
    accuracies = [c["accuracy"] for c in classes]
    plot: Element | None = None
    if len(classes) > len(least):
        axes = Axes(
            f"accuracy of {len(classes)} classes, sorted", x=(1.0, float(len(classes))), y=(max(0.0, min(accuracies) - 0.05), 1.0),
            x_label="classes, the weakest first", y_label="accuracy",
        )  # fmt: skip
        axes.line([float(i) for i in range(1, len(classes) + 1)], accuracies, 0)
        plot = axes.svg
    some = f"the {len(least)} weakest of {len(classes)} classes" if plot is not None else f"all {len(classes)} classes"
    caption = (
        f"Accuracy over a class's queries: {some}; the median class has {median(accuracies):.3f}. The weakest of many classes are "
        "in part those with bad luck: few queries, or hard company in their episodes."
    )
    return _figure(
        ident, f"Accuracy by class, {where}", caption, plot, el("ol", rows, class_="bars"), wide=plot is None
    )


# ---- items ----


def _map(one: Shown, ident: str, named: str) -> Element | None:
    if not one.points:
        return None
    named = f": {', '.join(one.mapped)}" if named else ""
    names = list(dict.fromkeys(point.name for point in one.points))
    side, edge, radius = 400.0, 10.0, 4.5
    items, classes = one.whole
    span = max(max(abs(p.x) for p in one.points), max(abs(p.y) for p in one.points), 1e-9)
    svg = el(
        "svg", viewBox=f"0 0 {side:g} {side:g}", class_="plot map", tabindex=0, role="application",
        aria_label=f"Map of {len(one.points)} items of {len(names)} classes; arrow keys go from item to item",
        data_items=f"{ident}-items", data_shows=f"{ident}-shows",
    )  # fmt: skip
    for i, point in enumerate(one.points):
        left, top = (side / 2 + v / span * (side / 2 - edge) for v in (point.x, -point.y))
        kind = {"class_": f"item {_group(names, point.name)}", "data_i": i}
        if names.index(point.name) < GROUPS:
            svg.append(el("circle", cx=left, cy=top, r=radius, **kind))
        else:
            svg.append(el("rect", x=left - radius, y=top - radius, width=1.8 * radius, height=1.8 * radius, **kind))
    marks = [el("li", el("span", class_=f"spot {_group(names, name)}", aria_hidden="true"), name) for name in names]
    hint = el("p", "Point at an item or touch it; or tab to the map, and use the arrow keys.", class_="hint")
    media = [{"name": point.name, **point.medium} for point in one.points]
    caption = (
        f"{len(one.points)} items of {len(names)} classes (the split has {items:,} of {classes:,}), drawn by seed, embedded "
        "and laid out by t-SNE (cosine distance). Near neighbours are alike to the encoder. Distances between far clusters, their "
        "sizes and their shapes mean nothing, and t-SNE can show clusters where there are none."
    )
    return _figure(
        ident, f"Map of embeddings{named}", caption,
        el("div", svg, el("div", hint, class_="shows", id=f"{ident}-shows", aria_live="polite"), el("ul", marks, class_="legend"),
           class_="mapped"),
        data(f"{ident}-items", media), wide=True,
    )  # fmt: skip


def _group(names: list[str], name: str) -> str:
    """The classes of the style that mark a class: a colour, and, for the second half, a square."""
    number = names.index(name)
    return f"g{number % GROUPS}" + (" square" if number >= GROUPS else "")


def _mistakes(one: Shown, ident: str, named: str) -> Element | None:
    if not one.mistakes or one.detail is None:
        return None
    more = len(one.mistakes) - FIRST
    cards = [
        el(
            "li",
            el("p", "answered ", el("b", m.answered), f" with confidence {m.confidence:.2f}; it is ", el("b", m.true)),
            el(
                "div", _shows("query", m.true, m.query), _shows("own class", m.true, m.own),
                _shows("taken for", m.answered, m.other), class_="trio",
            ),
        )
        for m in one.mistakes
    ]  # fmt: skip
    caption = (
        f"{len(cards):,} of the {one.wrong:,} items that were answered wrongly at least once, of {one.asked:,} that were queries "
        f"({shape_of(one.detail.figures)}): those with the most confident wrong answer, the surest first, each beside a support "
        "example of its own class and one of the class it was taken for. They are the worst, not the usual; some may be wrong "
        "labels."
    )
    rest = (
        [el("details", el("summary", f"{more} more"), el("ol", cards[FIRST:], class_="mistakes"))] if more > 0 else []
    )
    return _figure(
        ident, f"Worst mistakes{named}", caption, el("ol", cards[:FIRST], class_="mistakes"), rest, wide=True
    )


def _shows(label: str, name: str, medium: Medium) -> Element:
    said = f"{label}, {name}"
    picture = (
        el("img", src=medium["image"], alt=f"{said}: {medium['alt']}", loading="lazy") if "image" in medium else None
    )
    sound = (
        el("audio", src=medium["sound"], controls="", preload="metadata", aria_label=said)
        if "sound" in medium
        else None
    )
    text = el("blockquote", medium["text"]) if "text" in medium else None
    return el("div", el("small", label), picture, sound, text, class_="medium")


# ---- how it was made ----


def _made(shown: Sequence[Shown]) -> Element:
    entries: list[Element] = []
    for one in shown:
        entries.append(el("dt", one.title))
        command, date, versions = (one.made.get(key) for key in ("command", "date", "versions"))
        commands = [command] if isinstance(command, str) else command or ["the file does not say which command made it"]
        entries += [el("dd", el("pre", line, tabindex=0)) for line in commands]
        seeds = sorted({str(result.figures["seed"]) for result in one.results})
        facts = [
            f"seed {', '.join(seeds)}" if seeds else None,
            date,
            ", ".join(f"{k} {v}" for k, v in (versions or {}).items()) or None,
        ]
        entries.append(el("dd", "; ".join(fact for fact in facts if fact)))
        if "settings" in one.made:
            settings = el("pre", dumps(one.made["settings"], indent=2, ensure_ascii=False), tabindex=0)
            entries.append(el("dd", el("details", el("summary", "How it was trained"), settings)))
    caption = "What made the figures. The same command, versions and data give the same figures on the CPU; a GPU rounds otherwise."
    return _figure("made", "Commands and versions", caption, el("dl", entries, class_="made"), wide=True)


def _notes(shown: Sequence[Shown]) -> Element | None:
    notes = [el("li", f"{one.title}: {note}") for one in shown for note in one.notes]
    caption = "What this page would show, had it been there."
    return _figure("missing", "Not shown", caption, el("ul", notes), wide=True) if notes else None

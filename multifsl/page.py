"""A web page that is one file: elements, which escape what they are given, and plots as SVG that follows the page's colours.

Texts become nodes of a tree, never markup, so that nothing in data (a class called `<script>`) can act on the page.
"""

import json
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any
from xml.etree.ElementTree import Element, tostring

TEMPLATE = "report.html"
COLOURS = 8  # that the template knows, as classes c0, c1 ...

Child = Element | str | None


def el(tag: str, *children: Child | Iterable[Child], **attributes: object) -> Element:
    """An element; None among the children is nothing, an attribute that is None is left out, and `class_` is `class`.

    >>> tostring(el("p", "1 < 2", el("b", "so"), class_="note"), encoding="unicode", method="html")
    '<p class="note">1 &lt; 2<b>so</b></p>'
    """
    names = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    node = Element(tag, {key: _number(value) for key, value in names.items()})
    for child in children:
        for one in [child] if child is None or isinstance(child, str | Element) else child:
            if isinstance(one, Element):
                node.append(one)
            elif one is not None and len(node):
                node[-1].tail = (node[-1].tail or "") + one
            elif one is not None:
                node.text = (node.text or "") + one
    return node


def _number(value: object) -> str:
    """An attribute's value; places in a drawing are given to a tenth."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Sequence[Sequence[Child | Iterable[Child]]], caption: str) -> Element:
    """A table in a box of its own, which scrolls where it is too wide. The first cell of a row is its heading.

    >>> table(["class", "queries"], [["cat", "15"]], "Queries").find(".//td").text
    '15'
    """
    body = [
        el("tr", [el("td" if i else "th", cell, scope=None if i else "row") for i, cell in enumerate(row)])
        for row in rows
    ]
    return el(
        "div",
        el(
            "table",
            el("caption", caption, class_="unseen"),
            el("thead", el("tr", [el("th", name, scope="col") for name in head])),
            el("tbody", body),
        ),
        class_="scroll",
        tabindex=0,  # so that the keyboard can scroll it
        role="region",
        aria_label=caption,
    )


def data(ident: str, content: Any) -> Element:
    """JSON that the page's own script reads.

    >>> data("items", ["</script>"]).text
    '["\\\\u003c/script>"]'
    """
    return el("script", json.dumps(content).replace("<", "\\u003c"), type="application/json", id=ident)


def page(title: str, body: Sequence[Element]) -> bytes:
    """The whole file, UTF-8.

    >>> page("A page", [el("p", "text")])[:15]
    b'<!doctype html>'
    """
    template = (resources.files("multifsl") / TEMPLATE).read_text(encoding="utf-8")
    head, _, rest = template.partition("<!-- title -->")
    middle, _, end = rest.partition("<!-- body -->")
    name = tostring(el("title", title), encoding="unicode", method="html")
    main = "\n".join(tostring(one, encoding="unicode", method="html") for one in body)
    return f"{head}{name}{middle}{main}{end}".encode("utf-8", "replace")  # replace: half a surrogate pair


# ---- plots ----

Ticks = Sequence[tuple[float, str]]
WIDTH, HEIGHT = 420.0, 280.0
LEFT, RIGHT, TOP, BOTTOM = 60.0, 12.0, 10.0, 42.0


def ticks(low: float, high: float, most: int = 6) -> Ticks:
    """Round numbers within a range.

    >>> ticks(0.0, 1.0)
    [(0.0, '0'), (0.2, '0.2'), (0.4, '0.4'), (0.6, '0.6'), (0.8, '0.8'), (1.0, '1')]
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    places = [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(round(place, 12), f"{place:,.10g}" if abs(place) < 1e9 else f"{place:.3g}") for place in places]


class Axes:
    """A plot with its axes; what is drawn is given in the units of the axes.

    title: what it shows, for those who cannot see it. x, y: (low, high) of the axes. x_ticks, y_ticks: by default round numbers.

    >>> axes = Axes("loss over steps", x=(0, 10), y=(0, 2), x_label="step", y_label="loss")
    >>> axes.line([0, 10], [2, 1], 0)
    >>> axes.svg.find("polyline").get("points")
    '60.0,10.0 408.0,124.0'
    """

    def __init__(
        self,
        title: str,
        *,
        x: tuple[float, float],
        y: tuple[float, float],
        x_label: str,
        y_label: str,
        x_ticks: Ticks | None = None,
        y_ticks: Ticks | None = None,
        height: float = HEIGHT,
    ) -> None:
        self.x, self.y, self.bottom = x, y, height - BOTTOM
        self.svg = el("svg", viewBox=f"0 0 {WIDTH:g} {height:g}", role="img", aria_label=title, class_="plot")
        for place, text in ticks(*x) if x_ticks is None else x_ticks:
            left, _ = self.at(place, y[0])
            self._line(left, TOP, left, self.bottom, "grid")
            self.svg.append(el("text", text, x=left, y=self.bottom + 16, text_anchor="middle"))
        for place, text in ticks(*y, most=5) if y_ticks is None else y_ticks:
            _, top = self.at(x[0], place)
            self._line(LEFT, top, WIDTH - RIGHT, top, "grid")
            self.svg.append(el("text", text, x=LEFT - 6, y=top + 4, text_anchor="end"))
        middle = (TOP + self.bottom) / 2
        self.svg.append(
            el("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=height - 6, text_anchor="middle", class_="axis")
        )
        turn = f"rotate(-90 13 {middle:g})"
        self.svg.append(el("text", y_label, x=13, y=middle, text_anchor="middle", transform=turn, class_="axis"))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is in the drawing; beyond the axes, at their edge."""
        across = min(max((x - self.x[0]) / (self.x[1] - self.x[0]), 0.0), 1.0)
        up = min(max((y - self.y[0]) / (self.y[1] - self.y[0]), 0.0), 1.0)
        return LEFT + across * (WIDTH - RIGHT - LEFT), self.bottom - up * (self.bottom - TOP)

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: int | str, *, dots: bool = False) -> None:
        """A curve through points. colour: which of the page's, or a class of its style."""
        kind = colour if isinstance(colour, str) else f"c{colour % COLOURS}"
        places = [self.at(x, y) for x, y in zip(xs, ys, strict=True)]
        points = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
        self.svg.append(el("polyline", points=points, class_=f"curve {kind}"))
        if dots:
            for (left, top), x, y in zip(places, xs, ys, strict=True):
                self.svg.append(
                    el("circle", el("title", f"{y:.4f} at {x:g}"), cx=left, cy=top, r=3, class_=f"dot {kind}")
                )

    def whiskers(self, xs: Sequence[float], ys: Sequence[float], halves: Sequence[float], colour: int) -> None:
        """An interval y - half to y + half at each x."""
        for x, y, half in zip(xs, ys, halves, strict=True):
            left, top = self.at(x, y + half)
            self._line(left, top, left, self.at(x, y - half)[1], f"whisker c{colour % COLOURS}")

    def bar(self, x: tuple[float, float], top: float, title: str, kind: str = "bar") -> None:
        """A bar from the bottom of the plot up to `top`."""
        left, high = self.at(x[0], top)
        right, low = self.at(x[1], self.y[0])
        size = {"x": left + 0.5, "y": high, "width": max(right - left - 1, 0.5), "height": low - high}
        self.svg.append(el("rect", el("title", title), class_=kind, **size))

    def _line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.svg.append(el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind))


def legend(names: Sequence[str]) -> Element | None:
    """What the colours mean; None where there is one curve only.

    >>> legend(["one"]), len(legend(["one", "two"]))
    (None, 2)
    """
    if len(names) < 2:
        return None
    return el(
        "ul",
        [
            el("li", el("span", class_=f"swatch c{i % COLOURS}", aria_hidden="true"), name)
            for i, name in enumerate(names)
        ],
        class_="legend",
    )

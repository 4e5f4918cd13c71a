"""Arrays -> inline SVG, coloured by the page's CSS variables so that one figure reads on light and dark.

No plotting library: a library's figure carries its own fonts and colours, cannot follow the reader's colour
scheme and weighs megabytes once there are several. Every mark has a ``<title>``, so hovering names it.
"""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

import numpy as np

MARKS = ("circle", "square", "triangle", "diamond", "plus", "cross", "star")
NAMES_UP_TO = 40  # classes whose names fit on the axes of a confusion matrix


def _svg(width: float, height: float, body: str, label: str, kind: str) -> str:
    return (
        f'<svg class="plot {kind}" viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px" '
        f'role="img" aria-label="{escape(label, quote=True)}">{body}</svg>'
    )


def confusion_svg(matrix: np.ndarray, names: Sequence[str], label: str) -> str:
    """(C, C) counts, row = true class -> heat map of row shares; hovering gives names and counts."""
    classes = len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    named = classes <= NAMES_UP_TO
    margin = min(150.0, 12 + 5.6 * max((len(name) for name in names), default=1)) if named else 22.0
    cell = float(np.clip(430 / classes, 3.2, 46))
    size = margin + cell * classes + 4
    parts = [_confusion_frame(margin, cell, classes)]
    for row, column in zip(*np.nonzero(matrix), strict=True):
        title = f"{names[row]} → {names[column]}: {matrix[row, column]:g} ({shares[row, column]:.0%})"
        parts.append(_confusion_cell(margin, cell, row, column, shares[row, column], title))
    parts.append(_confusion_names(margin, cell, names) if named else _confusion_axes(margin, size))
    return _svg(size, size, "".join(parts), label, "confusion")


def _confusion_frame(margin: float, cell: float, classes: int) -> str:
    side = cell * classes
    return f'<rect class="field" x="{margin:g}" y="{margin:g}" width="{side:.1f}" height="{side:.1f}"/>'


def _confusion_cell(margin: float, cell: float, row: int, column: int, share: float, title: str) -> str:
    x, y = margin + column * cell, margin + row * cell
    kind = "right" if row == column else "wrong"
    box = f'x="{x:.1f}" y="{y:.1f}" width="{cell - 0.5:.1f}" height="{cell - 0.5:.1f}"'
    # A square-root keeps single confusions visible beside a full diagonal.
    mark = f'<rect class="{kind}" {box} fill-opacity="{0.08 + 0.92 * share**0.5:.2f}">'
    text = ""
    if cell >= 17 and share >= 0.095:
        tone = "on" if share > 0.3 else ""
        at = f'x="{x + cell / 2:.1f}" y="{y + cell / 2 + 3:.1f}"'
        text = f'<text class="cell {tone}" {at}>{share * 100:.0f}</text>'
    return f"{mark}<title>{escape(title)}</title></rect>{text}"


def _confusion_names(margin: float, cell: float, names: Sequence[str]) -> str:
    parts = []
    for index, name in enumerate(names):
        shown = escape(name if len(name) <= 24 else name[:23] + "…")
        middle = margin + (index + 0.5) * cell
        parts.append(f'<text class="name end" x="{margin - 5:.1f}" y="{middle + 3:.1f}">{shown}</text>')
        turn = f'transform="translate({middle + 3:.1f} {margin - 5:.1f}) rotate(-90)"'
        parts.append(f'<text class="name" {turn}>{shown}</text>')
    return "".join(parts)


def _confusion_axes(margin: float, size: float) -> str:
    middle = (margin + size) / 2
    turn = f'transform="translate({margin - 8:g} {middle:.1f}) rotate(-90)"'
    across = f'<text class="name mid" x="{middle:.1f}" y="{margin - 7:g}">predicted class</text>'
    return f'{across}<text class="name mid" {turn}>true class</text>'


def interval_svg(value: float, low: float | None, high: float | None, chance: float | None) -> str:
    """A fraction with its interval on a 0..1 line, and a tick at chance: a table cell's worth of plot."""
    width, height, middle = 132.0, 16.0, 8.0

    def x(fraction: float) -> float:
        return 3 + (width - 6) * min(max(fraction, 0.0), 1.0)

    parts = [f'<line class="rail" x1="{x(0):g}" x2="{x(1):g}" y1="{middle}" y2="{middle}"/>']
    if chance is not None:
        parts.append(f'<line class="chance" x1="{x(chance):.1f}" x2="{x(chance):.1f}" y1="2" y2="14"/>')
    if low is not None and high is not None:
        ends = f'x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle}" y2="{middle}"'
        parts.append(f'<line class="interval" {ends}/>')
    parts.append(f'<circle class="value" cx="{x(value):.1f}" cy="{middle}" r="3.6"/>')
    span = "" if low is None or high is None else f", 95 % interval {low:.3f} to {high:.3f}"
    return _svg(width, height, "".join(parts), f"{value:.3f}{span}", "mini")


Line = tuple[Sequence[float], Sequence[float]]


def curves_svg(series: Mapping[str, Line], x_label: str, title: str) -> str:
    """Name -> (x, y) as lines that carry their names at their ends; non-finite points are left out."""
    width, height = 460.0, 230.0
    left, right, top, bottom = 46.0, 104.0, 26.0, 30.0
    clean = {name: _finite(x, y) for name, (x, y) in series.items()}
    clean = {name: points for name, points in clean.items() if len(points)}
    if not clean:
        return ""
    everything = np.concatenate(list(clean.values()))
    (x0, y0), (x1, y1) = everything.min(0), everything.max(0)
    y0, y1 = _padded(y0, y1)
    x1 = x1 if x1 > x0 else x0 + 1

    def place(points: np.ndarray) -> np.ndarray:
        x = left + (points[:, 0] - x0) / (x1 - x0) * (width - left - right)
        y = height - bottom - (points[:, 1] - y0) / (y1 - y0) * (height - top - bottom)
        return np.stack([x, y], axis=1)

    parts = [f'<text class="title" x="{left:g}" y="14">{escape(title)}</text>']
    for tick in ticks(y0, y1):
        y = place(np.array([[x0, tick]]))[0, 1]
        parts.append(f'<line class="grid" x1="{left:g}" x2="{width - right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{left - 6:g}" y="{y + 3:.1f}">{tick:g}</text>')
    for tick in ticks(x0, x1, 5):
        x = place(np.array([[tick, y0]]))[0, 0]
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{height - bottom + 15:g}">{tick:g}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text class="tick mid" x="{middle:g}" y="{height - 2:g}">{escape(x_label)}</text>')
    ends = _spread([place(points)[-1, 1] for points in clean.values()], 12.0)
    for index, (name, points) in enumerate(clean.items()):
        parts.append(_curve(place(points), name, points[-1, 1], index, ends[index]))
    return _svg(width, height, "".join(parts), title, "curves")


def histogram_svg(series: Mapping[str, Sequence[float]], edges: np.ndarray, title: str) -> str:
    """Name -> counts between the (B + 1) edges, each as an outline of its own shares; empty ones left out.

    Only the range that has counts is drawn; hovering names an outline and its total.
    """
    width, height, left, right, top, bottom = 340.0, 170.0, 12.0, 12.0, 40.0, 22.0
    shares = {name: np.asarray(counts) / np.sum(counts) for name, counts in series.items() if np.sum(counts)}
    if not shares:
        return ""
    used = np.flatnonzero(np.sum(list(shares.values()), axis=0))
    first, last = int(used[0]), int(used[-1]) + 1
    low, high, most = edges[first], edges[last], max(float(each.max()) for each in shares.values())

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = [f'<text class="title" x="{left:g}" y="14">{escape(title)}</text>']
    floor = height - bottom
    parts.append(f'<line class="grid" x1="{left:g}" x2="{width - right:g}" y1="{floor:g}" y2="{floor:g}"/>')
    for tick in ticks(low, high, 5):
        parts.append(f'<text class="tick mid" x="{x(tick):.1f}" y="{height - 7:g}">{tick:g}</text>')
    place = left
    for index, (name, each) in enumerate(shares.items()):
        heights = floor - each[first:last] / most * (floor - top)
        steps = " ".join(
            f"H{x(edges[first + bin]):.1f}V{y:.1f}H{x(edges[first + bin + 1]):.1f}"
            for bin, y in enumerate(heights)
        )
        path = f"M{x(low):.1f} {floor:g}{steps}V{floor:g}"
        told = f"{name}: {np.sum(series[name]):,.0f}"
        label = f'<text x="{place:.1f}" y="30">{escape(name)}</text>'
        parts.append(
            f'<g class="s{index % 7}"><path d="{path}"><title>{escape(told)}</title></path>{label}</g>'
        )
        place += 6.2 * len(name) + 14
    return _svg(width, height, "".join(parts), title, "histogram")


Bar = tuple[str, float, float | None, float | None, float | None]


def bars_svg(bars: Sequence[Bar], title: str) -> str:
    """(name, value, low, high, chance) each as a bar from 0 with its interval, and a tick at chance."""
    left, line, top, reach = 20 + 5.6 * max((len(name) for name, *_ in bars), default=1), 20.0, 26.0, 240.0
    most = max((max(value, high or 0, chance or 0) for _, value, _, high, chance in bars), default=0) or 1.0
    parts = [f'<text class="title" x="0" y="14">{escape(title)}</text>']
    for index, (name, value, low, high, chance) in enumerate(bars):
        y, scale = top + index * line, reach / most
        span = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
        told = f"{name}: {value:.3f}{span}" + ("" if chance is None else f", by chance {chance:.3f}")
        parts.append(f'<text class="name end" x="{left - 6:.1f}" y="{y + 12:.1f}">{escape(name)}</text>')
        box = f'x="{left:.1f}" y="{y + 3:.1f}" width="{max(value * scale, 0.5):.1f}" height="12"'
        parts.append(f'<rect class="bar" {box}><title>{escape(told)}</title></rect>')
        if low is not None and high is not None:
            ends = f'x1="{left + low * scale:.1f}" x2="{left + high * scale:.1f}"'
            parts.append(f'<line class="whisker" {ends} y1="{y + 9:.1f}" y2="{y + 9:.1f}"/>')
        if chance is not None:
            at = f'x1="{left + chance * scale:.1f}" x2="{left + chance * scale:.1f}"'
            parts.append(f'<line class="chance" {at} y1="{y:.1f}" y2="{y + 18:.1f}"/>')
        shown = left + max(value, high or 0, chance or 0) * scale + 6
        parts.append(f'<text class="name" x="{shown:.1f}" y="{y + 12:.1f}">{value:.3f}</text>')
    return _svg(left + reach + 46, top + line * len(bars) + 4, "".join(parts), title, "bars")


def _curve(placed: np.ndarray, name: str, last: float, index: int, label_y: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    return (
        f'<g class="s{index % 7}"><polyline points="{path}"><title>{escape(name)}</title></polyline>'
        f'<circle cx="{placed[-1, 0]:.1f}" cy="{placed[-1, 1]:.1f}" r="2.6"/>'
        f'<text x="{placed[-1, 0] + 7:.1f}" y="{label_y + 3:.1f}">{escape(name)} {last:.3g}</text></g>'
    )


def scatter_svg(
    points: np.ndarray,
    classes: np.ndarray,
    groups: Sequence[str],
    titles: Sequence[str],
    names: Sequence[str],
) -> str:
    """(n, 2) positions -> map: colour = class, mark = group (modality), names at class medians.

    Args:
        points: (n, 2), any scale; x and y keep one scale.
        classes: (n,) class numbers, -1 for none.
        groups: n modality names; each gets a mark, in order of appearance.
        titles: n hover texts.
        names: Class names.
    """
    width, height, margin = 520.0, 480.0, 20.0
    span = max(float(np.ptp(points, axis=0).max()), 1e-9)
    centre = (points.min(0) + points.max(0)) / 2
    reach = min(width, height) - 2 * margin
    placed = (points - centre) / span * np.array([reach, -reach]) + np.array([width / 2, height / 2])
    order = list(dict.fromkeys(groups))
    marks = {group: MARKS[index % len(MARKS)] for index, group in enumerate(order)}
    body = []
    for (x, y), label, group, title in zip(placed, classes, groups, titles, strict=True):
        colour = f"--h:{hue(int(label)):.0f}" if label >= 0 else "--h:0;--s:0%"
        kind = f'class="p g{order.index(group)}" data-class="{int(label)}" style="{colour}"'
        body.append(f'<path {kind} d="{_mark(marks[group], x, y)}"><title>{escape(title)}</title></path>')
    body.append(_class_names(placed, classes, names, width))
    return _svg(width, height, "".join(body), "map of embeddings, coloured by class", "map")


def mark_svg(index: int) -> str:
    """The mark of the ``index``-th group, for a legend."""
    shape = _mark(MARKS[index % len(MARKS)], 7, 7)
    return f'<svg class="legend" viewBox="0 0 14 14" width="14" height="14"><path d="{shape}"/></svg>'


def hue(label: int) -> float:
    """Class number -> degrees on the colour wheel, neighbours far apart (golden angle)."""
    return (label * 137.508 + 20) % 360


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    step = 10.0 ** np.floor(np.log10(max(high - low, 1e-12) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count + 1)
    first = np.ceil(low / step - 1e-9)
    return [float(f"{index * step:.12g}") + 0.0 for index in np.arange(first, high / step + 1e-9)]


def _mark(kind: str, x: float, y: float) -> str:
    r = 3.4
    if kind == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    if kind == "square":
        return f"M{x - 3:.1f} {y - 3:.1f}h6v6h-6z"
    if kind == "triangle":
        return f"M{x:.1f} {y - 4:.1f}l3.9 6.8h-7.8z"
    if kind == "diamond":
        return f"M{x:.1f} {y - 4.4:.1f}l4.4 4.4l-4.4 4.4l-4.4 -4.4z"
    if kind == "plus":
        return f"M{x - 1.3:.1f} {y - 4.2:.1f}h2.6v2.9h2.9v2.6h-2.9v2.9h-2.6v-2.9h-2.9v-2.6h2.9z"
    if kind == "cross":
        return f"M{x - 4:.1f} {y - 2.4:.1f}l1.6 -1.6l2.4 2.4l2.4 -2.4l1.6 1.6l-2.4 2.4l2.4 2.4l-1.6 1.6l-2.4 -2.4l-2.4 2.4l-1.6 -1.6l2.4 -2.4z"  # noqa: E501
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 5.6, 2.4)
    corners = [f"{x + r * np.cos(a):.1f} {y + r * np.sin(a):.1f}" for r, a in zip(radii, angles, strict=True)]
    return "M" + "L".join(corners) + "z"


def _class_names(placed: np.ndarray, classes: np.ndarray, names: Sequence[str], width: float) -> str:
    """Names at the classes' median positions, in class order, leaving out those that would overlap."""
    boxes: list[tuple[float, float, float]] = []
    parts = []
    for label in sorted({int(value) for value in classes if value >= 0}):
        x, y = np.median(placed[classes == label], axis=0)
        half = 3.1 * len(names[label]) + 3
        x = float(np.clip(x, half, width - half))
        if any(abs(x - bx) < half + other and abs(y - by) < 13 for bx, by, other in boxes):
            continue
        boxes.append((x, float(y), half))
        at = f'data-class="{label}" x="{x:.1f}" y="{y - 6:.1f}"'
        parts.append(f'<text class="place" {at}>{escape(names[label])}</text>')
    return "".join(parts)


def _finite(x: Sequence[float], y: Sequence[float]) -> np.ndarray:
    points = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], axis=1)
    return points[np.isfinite(points).all(axis=1)]


def _padded(low: float, high: float) -> tuple[float, float]:
    space = (high - low) * 0.06 or max(abs(high), 1.0) * 0.06
    return (max(low - space, 0.0) if low >= 0 else low - space), high + space


def _spread(positions: Sequence[float], gap: float) -> list[float]:
    """Label positions moved down until neighbours are ``gap`` apart, order kept."""
    order = np.argsort(positions, kind="stable")
    moved = np.array(positions, np.float64)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    return moved.tolist()

"""The live page of something that is being measured: what is believed, and a button that stops it.

It only draws a `View`, which somebody else reads off the disk. Needs bokeh: `micjax[live]`.
"""

import dataclasses
import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.layouts import column, row
from bokeh.models import Button, ColumnDataSource, DataRange1d, Div, Range1d
from bokeh.plotting import figure

from micjax.report.figures import ALERT, FAINT, INK, SERIES
from micjax.report.text import readable_length

EVERY_MS = 500
MAPS = ("median", "uncertainty", "acquisition")


@dataclasses.dataclass(frozen=True)
class Curve:
    """Something that was measured along one axis."""

    x: np.ndarray
    y: np.ndarray
    x_label: str
    y_label: str


@dataclasses.dataclass(frozen=True)
class View:
    """What the page shows.

    **Arguments:**

    - `said`: sentences about how far it has come. `running`: whether a stop can be asked for.
    - `believed`: the arrays of a snapshot (`micjax.active.snapshot`), or none yet.
    - `names`, `units`: of the axes. `points`: where it was measured, `[n, d]`.
    - `following`: the points that are suggested and not measured, `[k, d]`.
    - `last`: what was measured last.
    """

    title: str
    said: Sequence[str]
    running: bool
    believed: Mapping[str, np.ndarray]
    names: Sequence[str]
    units: Sequence[str]
    points: np.ndarray
    following: np.ndarray
    last: Sequence[Curve]


def fill(document: Document, look: Callable[[], View | None], stop: Callable[[], None]) -> None:
    """Draws what `look` sees into a document, and again whenever it is not None.

    **Arguments:**

    - `stop`: what the button does.
    """
    view = look()
    if view is None:
        raise ValueError("there is nothing to see at first")
    statements = Div(styles={"font": "15px/1.45 system-ui, sans-serif", "color": INK})
    button = Button(label="Stop the instrument", button_type="danger", name="stop", width=200)
    body = column(name="body")
    page = _Page(statements, button, body)
    page.show(view)

    def update():
        latest = look()
        if latest is not None:
            page.show(latest)

    def clicked():
        button.label, button.disabled = "Stopping …", True
        stop()

    button.on_click(clicked)
    document.title = f"micjax: {view.title}"
    document.add_root(column(statements, button, body, sizing_mode="stretch_width"))
    document.add_periodic_callback(update, EVERY_MS)


class _Page:
    """The panels, made anew when other ones are wanted and else only filled."""

    def __init__(self, statements: Div, button: Button, body: Any):
        self._said, self._button, self._body = statements, button, body
        self._kind: Any = None
        self._fill: list[Callable[[View], None]] = []

    def show(self, view: View) -> None:
        lines = "".join(f"<p style='margin:.15rem 0'>{html.escape(s)}</p>" for s in view.said)
        self._said.text = f"<h2 style='margin:.2rem 0'>{html.escape(view.title)}</h2>{lines}"
        self._button.disabled = not view.running
        self._button.label = "Stop the instrument" if view.running else "It is not running"
        kind = _kind(view)
        if kind != self._kind:
            self._kind, panels = kind, _panels(view)
            self._fill = [fill for _, fill in panels]
            figures = [f for f, _ in panels]
            self._body.children = [row(figures[i : i + 3]) for i in range(0, len(figures), 3)]
        for fill_panel in self._fill:
            fill_panel(view)


def _kind(view: View) -> tuple:
    """What decides which panels there are."""
    return bool(view.believed), tuple(view.names), tuple((c.x_label, c.y_label) for c in view.last)


Panel = tuple[figure, Callable[[View], None]]


def _panels(view: View) -> list[Panel]:
    panels: list[Panel] = []
    if "along0" in view.believed:
        panels += [_map(view, name) for name in MAPS]
    elif view.believed:
        panels += [_profile(view, i) for i in range(len(view.names))]
    elif len(view.names) > 1:
        panels.append(_places(view))
    if view.believed:
        panels.append(_course(view))
    return panels + [_curve(view, i) for i in range(len(view.last))]


# --- panels: a figure, and what fills it ---------------------------------------------------------


def _figure(title: str, x_label: str, y_label: str, **options: Any) -> figure:
    plot = figure(
        title=title, width=410, height=340, toolbar_location=None, background_fill_color=None,
        **options,
    )  # fmt: skip
    plot.title.text_color = plot.axis.axis_label_text_color = INK
    plot.axis.major_label_text_color = plot.axis.axis_line_color = FAINT
    plot.axis.axis_label_text_font_style = "normal"
    plot.xaxis.axis_label, plot.yaxis.axis_label = x_label, y_label
    return plot


def _scale(view: View, i: int, far: float) -> tuple[float, str]:
    """A factor for the i-th axis and its label, so that metres are read as nm or µm."""
    scale, unit = readable_length(view.units[i], far)
    return scale, f"{view.names[i]} ({unit})" if unit else view.names[i]


def _places(view: View) -> Panel:
    """Where it was measured, over the first two axes, while nothing is believed."""
    reach = np.max(np.abs(np.concatenate([view.points, view.following])), axis=0, initial=0.0)
    (down, y_label), (across, x_label) = (_scale(view, i, float(reach[i])) for i in range(2))
    plot = _figure("measured points", x_label, y_label)
    plot.y_range.flipped = True
    points, following = _scattered(plot)

    def fill_places(now: View) -> None:
        points.data = {"x": now.points[:, 1] * across, "y": now.points[:, 0] * down}
        following.data = {"x": now.following[:, 1] * across, "y": now.following[:, 0] * down}

    return plot, fill_places


def _scattered(plot: figure) -> tuple[ColumnDataSource, ColumnDataSource]:
    points = ColumnDataSource({"x": [], "y": []}, name="points")
    following = ColumnDataSource({"x": [], "y": []}, name="following")
    plot.scatter("x", "y", source=points, size=6, fill_color="white", line_color=INK)
    plot.scatter("x", "y", source=following, marker="x", size=14, line_color=ALERT, line_width=3)
    return points, following


def _map(view: View, name: str) -> Panel:
    along = (view.believed["along0"], view.believed["along1"])
    reach = [float(np.max(np.abs(a))) for a in along]
    (down, y_label), (across, x_label) = (_scale(view, i, reach[i]) for i in range(2))
    y, x = along[0] * down, along[1] * across
    # y down the rows, as in an image
    plot = _figure(
        f"{view.believed['outcome']}: {name}",
        x_label,
        y_label,
        x_range=Range1d(x[0], x[-1]),
        y_range=Range1d(y[-1], y[0]),
    )
    plot.grid.visible = False
    image = ColumnDataSource({"z": [view.believed[name]]}, name=name)
    place = {"x": x[0], "y": y[0], "dw": x[-1] - x[0], "dh": y[-1] - y[0]}
    plot.image("z", source=image, palette="Viridis256", **place)
    points, following = _scattered(plot)

    def fill_map(now: View) -> None:
        values = now.believed[name]
        if name == "acquisition":  # of a logarithm the low half says nothing
            values = np.maximum(values, np.median(values))
        image.data = {"z": [values]}
        points.data = {"x": now.points[:, 1] * across, "y": now.points[:, 0] * down}
        following.data = {"x": now.following[:, 1] * across, "y": now.following[:, 0] * down}

    return plot, fill_map


def _profile(view: View, i: int) -> Panel:
    scale, label = _scale(view, i, float(np.max(np.abs(view.believed["along"][i]))))
    outcome = str(view.believed["outcome"])
    through = "" if len(view.names) == 1 else " through the best point"
    plot = _figure(f"prediction{through}, 90 %", label, outcome)
    band = ColumnDataSource({n: [] for n in ("x", "median", "lower", "upper")}, name="band")
    plot.varea("x", "lower", "upper", source=band, fill_color=SERIES[0], fill_alpha=0.2)
    plot.line("x", "median", source=band, color=SERIES[0], line_width=2)
    points, _ = _scattered(plot)

    def fill_profile(now: View) -> None:
        bands = {n: now.believed[n][i] for n in ("median", "lower", "upper")}
        band.data = {"x": now.believed["along"][i] * scale, **bands}
        points.data = {"x": now.believed["points"][:, i] * scale, "y": now.believed["outcomes"]}

    return plot, fill_profile


def _course(view: View) -> Panel:
    outcome = str(view.believed["outcome"])
    plot = _figure(f"{outcome} of each measurement", "measurement", outcome)
    source = ColumnDataSource({"x": [], "y": []}, name="course")
    plot.line("x", "y", source=source, color=FAINT)
    plot.scatter("x", "y", source=source, size=5, color=SERIES[0])

    def fill_course(now: View) -> None:
        outcomes = now.believed["outcomes"]
        source.data = {"x": np.arange(1, len(outcomes) + 1), "y": outcomes}

    return plot, fill_course


def _curve(view: View, i: int) -> Panel:
    curve = view.last[i]
    plot = _figure(
        f"last: {curve.y_label}",
        curve.x_label,
        curve.y_label,
        x_range=DataRange1d(),
        y_range=DataRange1d(),
    )
    source = ColumnDataSource({"x": [], "y": []}, name="last")
    plot.line("x", "y", source=source, color=SERIES[3], line_width=1.5)

    def fill_curve(now: View) -> None:
        source.data = {"x": now.last[i].x, "y": now.last[i].y}

    return plot, fill_curve

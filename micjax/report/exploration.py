"""Figures of an exploration: what is believed, where it was measured, how it went."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from micjax.report.figures import ALERT, FAINT, INK, SERIES, TRUTH, captioned, new_figure


def maps(
    panels: Mapping[str, np.ndarray],
    extent: tuple[float, float, float, float],
    labels: tuple[str, str],
    points: np.ndarray,
    following: np.ndarray | None = None,
    categories: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> Figure:
    """Maps `[iy, ix]` over two axes, with the measured points `[n, 2]` as (y, x) in their order.

    **Arguments:**

    - `extent`: left, right, bottom and top of the maps, in the units of the axes.
    - `labels`: of the y axis and the x axis.
    - `following`: the point that would be measured next, `[2]`.
    - `categories`: the names along the y axis and the x axis, if they have no order.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(rows, columns, 4.3 * columns, 3.6 * rows)
    for ax, (title, values) in zip(axes.flat, panels.items(), strict=False):
        low, high = np.quantile(values[np.isfinite(values)], [0.005, 0.995])
        shown = ax.imshow(
            values, extent=extent, aspect="auto", vmin=low, vmax=high, interpolation="nearest"
        )
        figure.colorbar(shown, ax=ax, shrink=0.85).ax.tick_params(labelsize=7)
        ax.set_title(title, fontsize=9.5, color=INK)
        ax.plot(points[:, 1], points[:, 0], "o", ms=3.2, mfc="white", mec=INK, mew=0.6)
        if following is not None:
            ax.plot(following[1], following[0], "x", ms=8, mew=2.2, color=ALERT)
        ax.set_ylabel(labels[0], fontsize=8)
        ax.set_xlabel(labels[1], fontsize=8)
        _name_ticks(ax.set_yticks, categories[0])
        _name_ticks(ax.set_xticks, categories[1])
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    return captioned(
        figure,
        "White: measured points. Red cross: the next one. Each panel shows 99 % of its values "
        "in a range of its own.",
    )


def _name_ticks(set_ticks: Callable[..., object], names: Sequence[str]) -> None:
    if names:
        set_ticks(np.arange(len(names)), names, fontsize=8)


def slices(
    profiles: Sequence[Mapping[str, np.ndarray]], labels: Sequence[str], outcome: str
) -> Figure:
    """The prediction along each axis through the best point.

    **Arguments:**

    - `profiles`: for each axis `x`, `median`, `lower`, `upper` of one length, and `points`,
        `outcomes` of the measurements; `categories`, the names along an axis without an order.
    """
    columns = min(3, len(profiles))
    rows = -(-len(profiles) // columns)
    figure, axes = new_figure(rows, columns, 8.6 if columns > 1 else 7.2, 2.7 * rows)
    alone = len(profiles) == 1
    for ax, profile, label in zip(axes.flat, profiles, labels, strict=False):
        ax.fill_between(
            profile["x"], profile["lower"], profile["upper"], color=SERIES[0], alpha=0.2
        )
        ax.plot(profile["x"], profile["median"], color=SERIES[0], lw=1.8)
        ax.plot(profile["points"], profile["outcomes"], "o", ms=3.5, color=INK if alone else FAINT)
        ax.set_xlabel(label, fontsize=8.5)
        _name_ticks(ax.set_xticks, profile.get("categories", ()))
        ax.set_ylabel(outcome, fontsize=8.5)
        ax.grid(alpha=0.25, lw=0.6)
    for ax in axes.flat[len(profiles) :]:
        ax.set_axis_off()
    through = "" if alone else " through the best point; measurements lie beside the line"
    return captioned(figure, f"Prediction and 90 % interval of a measurement{through}.")


def front(
    values: np.ndarray,
    feasible: np.ndarray,
    rows: np.ndarray,
    intervals: np.ndarray,
    names: Sequence[str],
) -> Figure:
    """Every pair of two or three objectives against each other.

    **Arguments:**

    - `values`: of all measurements, `[n, k]`. `feasible`: which of them keep all limits.
    - `rows`: those on the front, in their order.
    - `intervals`: lower and upper end of a 90 % interval of each of these, `[k, 2, p]`.
    """
    pairs = [(i, j) for i in range(len(names)) for j in range(i + 1, len(names))]
    figure, axes = new_figure(1, len(pairs), 4.6 if len(pairs) == 1 else 9.0, 3.4)
    for ax, (i, j) in zip(axes.flat, pairs, strict=True):
        ax.plot(values[feasible, i], values[feasible, j], "o", ms=3.5, color=FAINT)
        ax.plot(values[~feasible, i], values[~feasible, j], "x", ms=4, color=ALERT)
        ax.hlines(values[rows, j], *intervals[i], color=SERIES[0], lw=0.9, alpha=0.6)
        ax.vlines(values[rows, i], *intervals[j], color=SERIES[0], lw=0.9, alpha=0.6)
        ax.plot(values[rows, i], values[rows, j], "o", ms=4.5, color=SERIES[0])
        ax.set_xlabel(names[i], fontsize=8.5)
        ax.set_ylabel(names[j], fontsize=8.5)
        ax.grid(alpha=0.25, lw=0.6)
    return captioned(
        figure,
        "Coloured: the front, with 90 % intervals of a measurement there. Grey: dominated. "
        "Red crosses: not feasible.",
    )


def course(
    best: np.ndarray,
    surprise: np.ndarray,
    seconds: np.ndarray | None = None,
    optimum: float | None = None,
    label: str = "best outcome so far",
) -> Figure:
    """How it went: the best outcome so far (or the regret), the doubt at each point, the time.

    **Arguments:**

    - `best`: the best outcome after each measurement, `[n]`.
    - `surprise`: standard deviation predicted for each point before it was measured, NaN where
        there was no model yet.
    - `seconds`: spent after each measurement.
    - `optimum`: the best there is, where it is known.
    - `label`: what `best` counts, if it is not that.
    """
    figure, axes = new_figure(1, 2 if seconds is None else 3, 8.6, 2.7)
    steps = np.arange(1, len(best) + 1)
    first = axes[0, 0]
    if optimum is None:
        first.step(steps, best, where="post", color=SERIES[0], lw=1.6)
        first.set_ylabel(label, fontsize=8.5)
    else:
        regret = np.abs(optimum - best)
        floor = np.min(regret[regret > 0], initial=1.0) / 3.0
        first.step(steps, np.maximum(regret, floor), where="post", color=SERIES[0], lw=1.6)
        first.set_yscale("log")
        first.set_ylabel("regret", fontsize=8.5)
        if (regret == 0).any():
            measurement = int(np.argmax(regret == 0)) + 1
            first.axvline(
                measurement, color=TRUTH, lw=1.4, label=f"best of all: measurement {measurement}"
            )
            first.legend(fontsize=8, frameon=False)
    axes[0, 1].plot(steps, surprise, ".-", color=SERIES[3], lw=1.0, ms=4)
    axes[0, 1].set_ylabel("predicted sd at the point (scaled)", fontsize=8.5)
    if seconds is not None:
        axes[0, 2].plot(steps, seconds, color=SERIES[1], lw=1.6)
        axes[0, 2].set_ylabel("time spent (s)", fontsize=8.5)
    for ax in axes.flat:
        ax.set_xlabel("measurement", fontsize=8.5)
        ax.grid(alpha=0.25, lw=0.6)
    return figure

"""Panels that a microscopist reads at a glance: scales in nm, one colour range, honest residuals.

Pure matplotlib, without pyplot and its global state. Problem files build their `figures` of these.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, FAINT, TRUTH, ALERT = "#1f2a44", "#8a93a6", "#2a9d8f", "#c8553d"
SERIES = ("#1f5fa8", "#c8553d", "#2a9d8f", "#8a5fb0", "#b8860b", "#555555")
_MAX_PANELS = 24  # of marginals: beyond it nobody looks


def captioned(figure: Figure, text: str) -> Figure:
    """The same figure with a caption, which the report prints below it."""
    figure.set_label(text)
    return figure


def new_figure(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes `[rows, columns]`; width and height in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.tick_params(labelsize=8, color=FAINT)
        for spine in ax.spines.values():
            spine.set_color(FAINT)
    return figure, axes


def common_range(*arrays: np.ndarray) -> tuple[float, float]:
    """Lowest and highest finite value of all arrays together."""
    finite = [np.asarray(a)[np.isfinite(a)] for a in arrays]
    finite = [a for a in finite if a.size]
    if not finite:
        return 0.0, 1.0
    return float(min(a.min() for a in finite)), float(max(a.max() for a in finite))


def image_panel(
    ax: Axes,
    image: np.ndarray,
    title: str = "",
    *,
    pixel_nm: float | tuple[float, float] | None = None,
    label: str = "",
    vmin: float | None = None,
    vmax: float | None = None,
    cmap: str = "viridis",
    colour_bar: bool = True,
) -> Any:
    """Draw one image `[iy, ix]`, y down the rows.

    **Arguments:**

    - `pixel_nm`: pixel size, one number or `(dy, dx)`; without it the axes count pixels.
    - `label`: of the colour bar, with its unit: `"height (nm)"`.

    **Returns:** the matplotlib image.
    """
    image = np.asarray(image)
    image = np.abs(image) if np.iscomplexobj(image) else image.astype(float)
    dy, dx = np.broadcast_to(1.0 if pixel_nm is None else pixel_nm, (2,))
    extent = (0.0, image.shape[1] * float(dx), image.shape[0] * float(dy), 0.0)
    low, high = common_range(image)
    shown = ax.imshow(
        image,
        extent=extent,
        vmin=low if vmin is None else vmin,
        vmax=high if vmax is None else vmax,
        cmap=cmap,
        interpolation="nearest",
    )
    unit = "px" if pixel_nm is None else "nm"
    ax.set_title(title, fontsize=9.5, color=INK)
    ax.set_xlabel(f"x ({unit})", fontsize=8)
    ax.set_ylabel(f"y ({unit})", fontsize=8)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    if colour_bar:
        beside = ax.inset_axes((1.03, 0.0, 0.05, 1.0))  # as high as the image, whatever its shape
        bar = ax.figure.colorbar(shown, cax=beside)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    return shown


def residual_panel(ax: Axes, residual: np.ndarray, title: str = "residual", **options: Any) -> Any:
    """Draw a residual with colours symmetric about zero; options as for `image_panel`.

    The range holds 99.5 % of the pixels, so that one spike does not hide all structure.
    """
    residual = np.asarray(residual)
    residual = np.real(residual) if np.iscomplexobj(residual) else residual
    finite = np.abs(residual[np.isfinite(residual)])
    limit = float(np.quantile(finite, 0.995)) if finite.size else 0.0
    limit = limit or 1e-30
    return image_panel(ax, residual, title, vmin=-limit, vmax=limit, cmap="RdBu_r", **options)


def mask_overlay(ax: Axes, mask: np.ndarray, colour: str = "#ffffff", alpha: float = 0.55) -> None:
    """Veil the pixels of the last image in `ax` where `mask` is True."""
    image = ax.get_images()[-1]
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    veil = np.zeros((*np.shape(mask), 4))
    veil[...] = (red, green, blue, 0.0)
    veil[..., 3] = np.where(mask, alpha, 0.0)
    ax.imshow(veil, extent=image.get_extent(), interpolation="nearest")


def image_row(
    images: Mapping[str, np.ndarray],
    *,
    pixel_nm: float | tuple[float, float] | None = None,
    label: str = "",
    shared: bool = True,
    residuals: Sequence[str] = (),
    masks: Mapping[str, np.ndarray] | None = None,
    columns: int = 3,
) -> Figure:
    """Images side by side, by title, in one colour range if `shared`.

    **Arguments:**

    - `residuals`: titles which are residuals: drawn about zero, in a range of their own.
    - `masks`: by title, where to veil an image.
    """
    plain = [
        np.abs(i) if np.iscomplexobj(i) else i for t, i in images.items() if t not in residuals
    ]
    low, high = common_range(*plain) if shared and plain else (None, None)
    count = len(images)
    columns = min(columns, count)
    rows = -(-count // columns)
    shape = np.shape(next(iter(images.values())))
    width = 8.6 / columns if columns > 1 else 4.5
    # what the labels and the colour bar leave of a panel is as high as the image asks for
    height = float(np.clip((width - 1.0) * shape[0] / shape[1], 0.8, 6.0)) + 0.75
    figure, axes = new_figure(rows, columns, width * columns, height * rows)
    for ax, (title, image) in zip(axes.flat, images.items(), strict=False):
        if title in residuals:
            residual_panel(ax, image, title, pixel_nm=pixel_nm, label=label)
        else:
            image_panel(ax, image, title, pixel_nm=pixel_nm, label=label, vmin=low, vmax=high)
        if masks and title in masks:
            mask_overlay(ax, masks[title])
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure


def line_profiles(
    lines: Mapping[str, np.ndarray],
    *,
    step_nm: float | None = None,
    label: str = "",
    title: str = "",
    shade: np.ndarray | None = None,
    shade_label: str = "",
) -> Figure:
    """Profiles along one line, by name, over each other.

    **Arguments:**

    - `lines`: arrays `(n,)`, the first one drawn boldest.
    - `step_nm`: distance of two samples; without it the axis counts pixels.
    - `shade`: bool `(n,)`, where the background is shaded (such as: not certain).
    """
    figure, axes = new_figure(1, 1, 7.6, 3.1)
    ax = axes[0, 0]
    step = 1.0 if step_nm is None else step_nm
    for i, (name, values) in enumerate(lines.items()):
        x = step * (np.arange(len(values)) + 0.5)
        ax.plot(x, values, color=SERIES[i % 6], lw=2.0 if i == 0 else 1.3, label=name)
    if shade is not None:
        for i, (start, stop) in enumerate(_runs(np.asarray(shade, bool))):
            name = shade_label if i == 0 and shade_label else None
            ax.axvspan(start * step, stop * step, color=FAINT, alpha=0.2, lw=0, label=name)
    _finish(ax, "x (px)" if step_nm is None else "x (nm)", label, title)
    return figure


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Where `mask` is True, as half-open ranges of indices."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def curve_with_residual(
    x: np.ndarray, data: np.ndarray, prediction: np.ndarray, *, x_label: str = "x", label: str = "y"
) -> Figure:
    """Measured points and the fitted curve, and their difference below it."""
    figure, axes = new_figure(2, 1, 7.6, 4.4, sharex=True, height_ratios=[3, 1])
    above, below = axes[:, 0]
    order = np.argsort(x)
    above.plot(x, data, ".", ms=5, color=FAINT, label="data")
    above.plot(x[order], prediction[order], color=SERIES[0], lw=1.8, label="prediction")
    _finish(above, "", label)
    below.axhline(0.0, color=FAINT, lw=0.8)
    below.plot(x, data - prediction, ".", ms=4, color=SERIES[1])
    limit = 1.1 * (np.nanmax(np.abs(data - prediction)) or 1.0)
    below.set_ylim(-limit, limit)
    _finish(below, x_label, "data − prediction")
    return figure


def loss_curve(losses: np.ndarray, stop_reason: str = "") -> Figure:
    """The loss of each step above the lowest one, logarithmic; `[steps]` or `[starts, steps]`."""
    curves = np.atleast_2d(np.asarray(losses, dtype=float))
    figure, axes = new_figure(1, 1, 7.6, 2.9)
    ax = axes[0, 0]
    finite = curves[np.isfinite(curves)]
    floor = float(finite.min()) if finite.size else 0.0
    best = int(np.argmin(np.where(np.isfinite(curves), curves, np.inf).min(axis=1)))
    for i, curve in enumerate(curves):
        above = np.where(curve > floor, curve - floor, np.nan)
        chosen = i == best
        ax.plot(
            np.arange(1, curve.size + 1),
            above,
            color=SERIES[0] if chosen else FAINT,
            lw=1.5 if chosen else 0.8,
            alpha=1.0 if chosen else 0.6,
            label=("best start" if chosen else None) if len(curves) > 1 else None,
            zorder=2 + chosen,
        )
    if np.any(finite > floor):
        ax.set_yscale("log")
    _finish(ax, "step", "loss − lowest (nats)", f"stopped: {stop_reason}" if stop_reason else "")
    return figure


def learning_curve(losses: np.ndarray, held_out: np.ndarray, label: str = "loss") -> Figure:
    """The loss of each batch `[steps]`, and of what is held out `[looks]`, from before the first
    step to after the last."""
    figure, axes = new_figure(1, 1, 7.6, 3.0)
    ax = axes[0, 0]
    ax.plot(np.arange(1, len(losses) + 1), losses, color=FAINT, lw=0.6, label="batch")
    looks = np.linspace(0.0, len(losses), len(held_out))
    ax.plot(looks, held_out, "o-", ms=3, color=SERIES[0], label="held out")
    low, high = np.nanquantile(np.concatenate([losses, held_out]), (0.0, 0.98))
    if high > low:  # a few batches of a start may be far above
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    _finish(ax, "step", label)
    return figure


def marginals(
    draws: Mapping[str, np.ndarray],
    *,
    truth: Mapping[str, Any] | None = None,
    prior: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """A histogram for each scalar unknown.

    **Arguments:**

    - `draws`: posterior draws `(n,)` by name.
    - `truth`: the true values, where they are known.
    - `prior`: draws of the priors, drawn behind them on the range of the posterior.
    """
    names = list(draws)[:_MAX_PANELS]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = new_figure(rows, columns, 7.6 if columns > 1 else 4.2, 2.2 * rows + 0.2)
    for ax, name in zip(axes.flat, names, strict=False):
        _marginal(ax, name, np.asarray(draws[name]), truth or {}, prior or {})
    for ax in axes.flat[len(names) :]:
        ax.set_axis_off()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(
            handles, labels, loc="outside upper right", ncols=3, fontsize=8, frameon=False
        )
    return figure


def _marginal(ax: Axes, name: str, values: np.ndarray, truth, prior) -> None:
    values = values[np.isfinite(values)]
    true = float(np.asarray(truth[name])) if name in truth else None
    low, high = np.quantile(values, [0.001, 0.999]) if values.size else (0.0, 1.0)
    pad = 0.15 * (high - low) or abs(high) * 1e-3 or 1.0
    low, high = low - pad, high + pad
    if true is not None and abs(true - (low + high) / 2) < 2 * (high - low):
        low, high = min(low, true - pad), max(high, true + pad)
    bins = np.linspace(low, high, 41)
    if name in prior:
        outside = np.asarray(prior[name])
        # of all its draws, so that a wide prior is seen to be flat and low
        heights, _ = np.histogram(outside, bins)
        heights = heights / (max(outside.size, 1) * (bins[1] - bins[0]))
        ax.stairs(heights, bins, color=FAINT, fill=True, alpha=0.3, label="prior")
    if values.size:
        ax.hist(values, bins, density=True, color=SERIES[0], alpha=0.75, label="posterior")
    if true is not None:
        ax.axvline(true, color=TRUTH, lw=1.8, label="truth")
    ax.set_xlim(low, high)
    ax.set_yticks([])
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel(name, fontsize=8)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def corner(draws: Mapping[str, np.ndarray], *, truth: Mapping[str, Any] | None = None) -> Figure:
    """Every pair of scalar unknowns as points, each one alone on the diagonal."""
    names, truth = list(draws)[:6], truth or {}
    n = len(names)
    figure, axes = new_figure(n, n, min(1.9 * n + 0.6, 9.5), min(1.7 * n + 0.4, 8.5))
    for i, j in np.ndindex(n, n):
        ax = axes[i, j]
        if j > i:
            ax.set_axis_off()
        elif i == j:
            ax.hist(draws[names[i]], 30, color=SERIES[0], alpha=0.75)
            ax.set_yticks([])
        else:
            a, b = (np.asarray(draws[names[k]])[:2000] for k in (j, i))
            ax.plot(a, b, ".", ms=1.5, alpha=0.35, color=SERIES[0])
            if names[i] in truth and names[j] in truth:
                ax.axvline(float(truth[names[j]]), color=TRUTH, lw=1.0)
                ax.axhline(float(truth[names[i]]), color=TRUTH, lw=1.0)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        if i != j:
            ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.set_xlabel(names[j] if i == n - 1 else "", fontsize=7.5)
        ax.set_ylabel(names[i] if j == 0 and i > 0 else "", fontsize=7.5)
        ax.tick_params(labelsize=7, labelbottom=i == n - 1, labelleft=j == 0 and i > 0)
    return figure


def _finish(ax: Axes, x_label: str, y_label: str, title: str = "") -> None:
    ax.set_xlabel(x_label, fontsize=8.5)
    ax.set_ylabel(y_label, fontsize=8.5)
    ax.set_title(title, fontsize=9.5, color=INK)
    ax.grid(alpha=0.25, lw=0.6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=8, frameon=False)

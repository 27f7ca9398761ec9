"""What `micjax.problems.tip_characteriser` shows of a solution."""

from typing import Any

import numpy as np

from micjax.core.problem import InverseProblem, Values
from micjax.inference.solution import Solution
from micjax.problems.tip_characteriser.conclusion import touched
from micjax.report.figures import (
    ALERT,
    FAINT,
    INK,
    SERIES,
    TRUTH,
    captioned,
    image_panel,
    image_row,
    marginals,
    mask_overlay,
    new_figure,
)


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Each number against the truth in standard deviations, then tips by their heights where the
    true tip touches, up to a constant."""
    rows, true = [], truth.values()
    if solution.posterior is not None:
        mean, sd = solution.posterior.mean(), solution.posterior.sd()
        for name, index, label in elements(true):
            value, m, s = (float(np.asarray(a[name])[index]) for a in (true, mean, sd))
            rows.append(
                {"quantity": label, "truth": value, "mean": m, "sd": s, "z": (m - value) / s}
            )
    tip = np.asarray(truth.forward.tip())
    touching = touched(truth.forward, x)
    tips = {
        "first guess (the given values)": solution.extra["guess"],
        "classical (image eroded by the characteriser)": solution.results["classical_tip"].data,
        "micjax": solution.results["tip"].data,
    }
    for name, heights in tips.items():
        # without the mean, which charges no method with the bias of its zero
        error = float(np.std((heights - tip)[touching]))
        rows.append({"quantity": f"tip: {name}", "rms error (nm)": error})
    return rows


def elements(values: Values) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, index, short label) of each scalar in `values`."""
    return [
        (n, i, n.removeprefix("forward.") + (f"[{','.join(map(str, i))}]" if i else ""))
        for n, v in values.items()
        for i in np.ndindex(np.shape(v))
    ]


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Image, tip, the second apex, and where the starts went."""
    makers = {
        "Image and model": lambda: _image_figure(solution),
        "Tip": lambda: _tip_figure(solution, truth),
        "Where the starts went": lambda: _starts_figure(solution, truth),
    }
    if solution.posterior is not None:
        makers["Place of the second apex"] = lambda: _apex_figure(solution, truth)
    return makers


def _image_figure(solution: Solution):
    fields = {n: solution.results[n] for n in ("image", "model", "residual")}
    shown = {n: f.data if f.data.ndim == 2 else f.data[0] for n, f in fields.items()}
    pixel = tuple(float(p) for p in solution.problem.forward.tip.pixel_nm)
    figure = image_row(shown, pixel_nm=pixel, label="nm", residuals=["residual"])
    return captioned(
        figure,
        "The scan of the characteriser, the model at the posterior mean, and what is left, which "
        "should look like noise. Each cone draws the tip upside down.",
    )


def _tip_figure(solution: Solution, truth):
    field, touching = solution.results["tip"], solution.results["tip_touches"].data
    tips = {"tip (micjax)": field.data, "classical": solution.results["classical_tip"].data}
    if truth is not None:
        tips = {"true tip": np.asarray(truth.forward.tip()), **tips}
    pixel = tuple(float(p) for p in solution.problem.forward.tip.pixel_nm)
    depth = 1.1 * float(-field.data[touching].min())
    figure, axes = new_figure(1, len(tips) + 1, 3.2 * (len(tips) + 1), 3.0)
    for ax, (name, heights) in zip(axes[0], tips.items(), strict=False):
        lowered = np.maximum(heights, -depth)
        image_panel(ax, lowered, name, pixel_nm=pixel, label="nm", vmin=-depth, vmax=0.0)
        mask_overlay(ax, ~touching)
    _front(axes[0, -1], tips, field.metadata.get("errors"), depth, pixel[1])
    return captioned(
        figure,
        "Tips drawn apex up; pixels that never touched the characteriser are veiled. Right: seen "
        "from the front, with 3 standard deviations where there are any.",
    )


def _front(ax, tips, sd, depth, step_nm):
    """The silhouettes of the tips against x."""
    colours = {"true tip": TRUTH, "tip (micjax)": SERIES[0], "classical": FAINT}
    for name, heights in tips.items():
        across = (np.arange(heights.shape[1]) - heights.shape[1] // 2) * step_nm
        line = np.maximum(heights.max(axis=0), -depth)
        dashes = "--" if name == "true tip" else "-"
        ax.plot(
            across, line, dashes, color=colours[name], label=name, zorder=4 if dashes == "--" else 3
        )
        if name == "tip (micjax)" and sd is not None:
            row = heights.argmax(axis=0)
            band = 3 * sd[row, np.arange(len(row))]
            ax.fill_between(across, line - band, line + band, color=colours[name], alpha=0.3, lw=0)
    ax.set_title("seen from the front", fontsize=9.5, color=INK)
    ax.set_xlabel("x (nm)", fontsize=8)
    ax.legend(fontsize=7, frameon=False)


def _starts_figure(solution: Solution, truth):
    near = solution.extra["near"]
    figure, axes = new_figure(1, 2, 8.6, 3.9)
    ax, good = axes[0, 0], solution.extra["good"]
    for (y0, x0), (y1, x1), ok in zip(
        solution.extra["from"], solution.extra["to"], good, strict=True
    ):
        colour = SERIES[0] if ok else ALERT
        ax.plot([x0, x1], [y0, y1], color=colour, lw=0.7, alpha=0.5)
        ax.plot(x0, y0, ".", ms=4, color=FAINT)
        ax.plot(x1, y1, "o" if ok else "x", ms=5, color=colour)
    if truth is not None:
        y0, x0 = np.asarray(truth.forward.tip.offset_nm)
        ax.plot(x0, y0, "+", ms=14, mew=1.5, color=TRUTH, zorder=4)
    ax.invert_yaxis()
    ax.set_xlabel("second apex, x (nm)", fontsize=8)
    ax.set_ylabel("y (nm)", fontsize=8)
    ax.set_title("from the priors to the ends of the fits", fontsize=9.5, color=INK)
    losses = solution.fit.starts_losses
    above = np.sort(losses - losses.min())
    axes[0, 1].plot(np.arange(1, len(above) + 1), np.maximum(above, 1e-3), "o", ms=4, color=INK)
    axes[0, 1].axhline(near, color=ALERT, lw=0.8)
    axes[0, 1].set_yscale("log")
    axes[0, 1].set_xlabel("start, best first", fontsize=8)
    axes[0, 1].set_ylabel("loss above the best (nats)", fontsize=8)
    axes[0, 1].set_title(f"{good.sum()} of {len(good)} in the best basin", fontsize=9.5, color=INK)
    return captioned(
        figure,
        f"Grey: drawn from the priors. Circles: the best basin, within {near:.0f} nats (line). "
        "Crosses: wrong basins, which no chain starts in. Plus: the truth, where it is known.",
    )


def _apex_figure(solution: Solution, truth):
    draws = {
        f"offset {axis} (nm)": solution.posterior.flat()["forward.tip.offset_nm"][:, i]
        for i, axis in enumerate("yx")
    }
    true = None if truth is None else np.asarray(truth.forward.tip.offset_nm)
    named = None if true is None else dict(zip(draws, true, strict=True))
    return captioned(
        marginals(draws, truth=named), "Where the second apex stands from the first; NUTS draws."
    )

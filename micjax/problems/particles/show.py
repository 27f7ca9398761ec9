"""What `micjax.problems.particles` shows of a solution."""

from typing import Any

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.nets.train import Training
from micjax.problems.particles.instances.decoder import instances
from micjax.problems.particles.instances.table import neighbours
from micjax.report.figures import SERIES, captioned, image_panel, new_figure

MATCH = 0.5  # intersection over union


def overlaps(labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of instances, matched in pairs so that their sum is the largest."""
    n, m = int(labels.max()), int(truth.max())
    both = np.bincount((labels * (m + 1) + truth).ravel(), minlength=(n + 1) * (m + 1))
    both = both.reshape(n + 1, m + 1)
    part = both[1:, 1:]
    union = both[1:].sum(1)[:, None] + both[:, 1:].sum(0)[None] - part
    ratio = part / np.maximum(union, 1)
    return ratio[linear_sum_assignment(-ratio)]


def labels_of(signal: np.ndarray) -> np.ndarray:
    """Of a truth: each instance has a contrast of its own."""
    values = np.unique(signal[signal != 0.0])
    return np.where(signal != 0.0, np.searchsorted(values, signal) + 1, 0)


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Counts, and how well outlines agree."""
    if "labels" not in solution.results:
        return []
    labels = solution.results["labels"].data.astype(int)
    true = labels_of(np.asarray(truth.forward.signal))
    ratio = overlaps(labels, true)
    hits = int((ratio > MATCH).sum())
    n, m = int(labels.max()), int(true.max())
    return [
        {
            "instances": n,
            "in truth": m,
            "matched": hits,
            "average precision at 0.5": hits / max(n + m - hits, 1),
            "intersection over union of the matched": float(ratio[ratio > MATCH].mean())
            if hits
            else 0.0,
        }
    ]


def outlined(labels: np.ndarray) -> np.ndarray:
    """Pixels of instances that lie next to what is none of the same."""
    return (neighbours(labels) != labels[..., None]).any(-1) & (labels > 0)


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """The outlines over the image, and how sizes are distributed."""
    if "labels" not in solution.results:
        return {}
    drawn = {"Instances": lambda: _instances(solution, truth)}
    if len(solution.extra["sizes"]):
        drawn["Sizes"] = lambda: _sizes(solution)
    return drawn


def _instances(solution: Solution, truth):
    image, labels = solution.results["image"], solution.results["labels"].data.astype(int)
    pixel = image.pixel_nm if image.axes[0].unit == "nm" else None
    panels = [("image", None), ("instances", labels)]
    if truth is not None:
        panels.append(("truth", labels_of(np.asarray(truth.forward.signal))))
    figure, axes = new_figure(1, len(panels), 5.0 * len(panels), 4.8)
    low, high = np.quantile(image.data, (0.002, 0.998))
    for ax, (title, over) in zip(axes[0], panels, strict=True):
        options = {"vmin": low, "vmax": high, "cmap": "gray", "colour_bar": False}
        shown = image_panel(ax, image.data, title, pixel_nm=pixel, **options)
        if over is not None:
            _over(ax, shown, over)
    return captioned(
        figure,
        "Outlines lie on the pixels of an instance that are next to what does not belong to it.",
    )


def _over(ax, shown, labels) -> None:
    colour = np.full((*labels.shape, 4), (1.0, 0.45, 0.0, 0.0))
    colour[outlined(labels), 3] = 1.0
    # a panel may have fewer pixels than the image: the nearest ones would leave gaps in a line
    ax.imshow(colour, extent=shown.get_extent(), interpolation="auto", interpolation_stage="rgba")


def _sizes(solution: Solution):
    low, high, number, sd = solution.extra["sizes"].T
    figure, axes = new_figure(1, 1, 5.5, 3.2)
    ax = axes[0, 0]
    ax.bar(0.5 * (low + high), number, high - low, color=SERIES[0], alpha=0.6)
    ax.errorbar(0.5 * (low + high), number, sd, fmt="none", color=SERIES[1])
    ax.set_xlabel(f"diameter ({solution.extra['unit']})", fontsize=8)
    ax.set_ylabel("instances", fontsize=8)
    return captioned(
        figure,
        "Of instances that the edge of the image does not cut. Bars: standard deviations of "
        "counting, sqrt(n + 1).",
    )


def training_figures(network, training: Training, key) -> dict[str, Any]:
    """What the network makes of images that it has not seen."""

    def examples():
        seen, wanted = jax.jit(training.draw)(key, training.data)
        heads = np.asarray(jax.jit(lambda s: network(s))(seen))
        figure, axes = new_figure(2, 4, 12.0, 6.2)
        for ax, image, head in zip(axes.ravel(), np.asarray(seen), heads, strict=False):
            shown = image_panel(ax, image[..., 1], cmap="gray", colour_bar=False)
            _over(ax, shown, instances(head).labels)
        return captioned(figure, "Simulated images from other keys than those of the training.")

    return {"Examples": examples}

"""What `micjax.problems.denoise` shows of a solution."""

from typing import Any

import jax
import numpy as np
import scipy.ndimage

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.nets.train import Training
from micjax.problems.denoise.network import Pair, denoised
from micjax.problems.denoise.trust import WIDTHS_PX
from micjax.report.figures import FAINT, SERIES, captioned, image_panel, learning_curve, new_figure

SMOOTH_PX = 1.5  # of the residual: about the width of a column


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Errors against the truth: the data themselves, the best Gaussian filter, this image."""
    if "image" not in solution.results:
        return []
    true = np.asarray(truth.forward.image, float)
    mean = np.asarray(y[0], float)  # frames that have drifted are not added without more ado
    filtered = [scipy.ndimage.gaussian_filter(mean, w) for w in WIDTHS_PX]
    rows = []
    for name, image in (
        ("the first frame as it is", mean),
        ("Gaussian filter of the best width (by the truth)", min(filtered, key=_off(true))),
        ("micjax", solution.results["image"].data),
    ):
        off = _off(true)(image)
        signal = np.ptp(true) ** 2 / off**2
        rows.append(
            {"image": name, "rms error": off, "peak signal to noise (dB)": 10 * np.log10(signal)}
        )
    return rows


def _off(true: np.ndarray):
    return lambda image: float(np.sqrt(np.mean((image - true) ** 2)))


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """The image beside the data, its error, and how the network learned."""
    if "image" not in solution.results:
        return {}
    drawn = {"Image": lambda: _images(solution, truth), "Learning": lambda: _learning(solution)}
    if "filters" in solution.extra:
        drawn["Held-out quanta"] = lambda: _filters(solution)
    return drawn


def _images(solution: Solution, truth):
    image, measured = solution.results["image"], solution.results["measured"]
    pixel = image.pixel_nm if image.axes[0].unit == "nm" else None
    panels = [("measured, mean of frames", measured.data), ("denoised", image.data)]
    if truth is not None:
        panels.append(("truth", np.asarray(truth.forward.image)))
    errors = image.metadata.get("errors")
    count = len(panels) + 1 + (errors is not None)
    figure, axes = new_figure(1, count, 4.0 * count, 3.8)
    low, high = np.quantile(image.data, (0.005, 0.999))
    for ax, (title, data) in zip(axes[0], panels, strict=False):
        image_panel(ax, data, title, pixel_nm=pixel, vmin=low, vmax=high, cmap="gray")
    if errors is not None:
        image_panel(axes[0, -2], errors, "standard error", pixel_nm=pixel, cmap="magma")
    smooth = scipy.ndimage.gaussian_filter(solution.results["residual"].data, SMOOTH_PX)
    smooth *= 2.0 * np.sqrt(np.pi) * SMOOTH_PX  # of white noise it has a deviation of one again
    image_panel(
        axes[0, -1],
        smooth,
        "residual, smoothed",
        pixel_nm=pixel,
        vmin=-4.0,
        vmax=4.0,
        cmap="RdBu_r",
    )
    return captioned(
        figure,
        "All on the scale of the denoised image. The error is that of a pixel; its size comes from "
        "quanta that the network never saw, its pattern from how much noise moves the image. The "
        "residual (standard deviations) shows nothing but noise if all that is there was found.",
    )


def _learning(solution: Solution):
    losses, looks = (np.asarray(solution.extra[f"net.{n}"]) for n in ("losses", "held_out"))
    return captioned(
        learning_curve(losses, looks, "nats a pixel"),
        "What is held out comes from other quanta than what is learned from; the two levels differ "
        "by how many quanta a pixel has there. The network at the lowest held-out loss is kept.",
    )


def _filters(solution: Solution):
    width, gain, error = np.asarray(solution.extra["filters"]).T
    figure, axes = new_figure(1, 1, 5.5, 3.0)
    ax = axes[0, 0]
    ax.errorbar(width, gain, 2.0 * error, fmt="o-", ms=4, color=SERIES[0])
    ax.axhline(0.0, color=FAINT, lw=1.0)
    ax.set_xscale("log")
    ax.set_xlabel("width of a Gaussian filter (px)", fontsize=8)
    ax.set_ylabel("gain of the network (nats)", fontsize=8)
    return captioned(
        figure,
        "By how much the network foretells quanta that it never saw better than a filter does, "
        "with two standard errors. Below zero it makes things up.",
    )


def training_figures(network, training: Training, key) -> dict[str, Any]:
    """What the network makes of images that it has not seen."""

    def examples():
        pair: Pair = jax.jit(training.draw)(key, training.data)
        images = jax.jit(lambda y: denoised(network, pair.law, y))(pair.kept)
        figure, axes = new_figure(3, 4, 12.0, 9.0)
        for column in range(4):
            rows = (pair.kept[column], images[column], pair.other[column])
            high = float(np.max(rows[2]))
            for ax, title, image in zip(
                axes[:, column], ("counts", "denoised", "truth"), rows, strict=True
            ):
                image_panel(ax, image, title, vmin=0.0, vmax=high, cmap="gray", colour_bar=False)
        return captioned(figure, "Made-up images from other keys than those of the training.")

    return {"Examples": examples}

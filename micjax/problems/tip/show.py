"""What `micjax.problems.tip` shows of a solution."""

from functools import partial
from typing import Any

import jax
import numpy as np

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.nets.train import Training
from micjax.physics.tips.dilation import erode
from micjax.problems.tip.network import estimated
from micjax.report.figures import (
    captioned,
    image_panel,
    image_row,
    line_profiles,
    mask_overlay,
    new_figure,
)


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Surface errors against the truth, after the shift that no blind method can know."""
    surface = np.asarray(truth.forward.surface_nm[x])
    tip = truth.forward.tip()
    oracle = jax.vmap(lambda i: erode(i, tip))(y)
    margin = min(20, min(surface.shape[1:]) // 6)
    candidates = {
        "image as it is": np.asarray(y),
        "classical (Villarrubia)": solution.results["classical_surface"].data,
        "erosion with the true tip": np.asarray(oracle),
        "micjax": solution.results["surface"].data,
    }
    rows = []
    for name, estimate in candidates.items():
        error = aligned_error(estimate.reshape(surface.shape), surface, margin)
        rms = float(np.sqrt(np.mean(error**2)))
        peak = float(np.ptp(surface))
        rows.append(
            {"surface": name, "rms error (nm)": rms, "PSNR (dB)": 20 * np.log10(peak / rms)}
        )
    return rows


def aligned_error(estimate: np.ndarray, truth: np.ndarray, margin: int) -> np.ndarray:
    """estimate - truth without its mean, at the best shift by whole pixels, `margin` pixels from
    the border; arrays `[frames, iy, ix]`."""
    frames, ny, nx = truth.shape
    inner = truth[:, margin : ny - margin, margin : nx - margin]
    best = None
    for dy in range(-margin, margin + 1):
        for dx in range(-margin, margin + 1):
            moved = estimate[:, margin + dy : ny - margin + dy, margin + dx : nx - margin + dx]
            error = moved - inner
            error = error - error.mean()
            if best is None or np.mean(error**2) < np.mean(best**2):
                best = error
    return best


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Image, surface, certainty, tips, profiles, residual."""
    maps = {n: _first_frame(f.data) for n, f in solution.results.items()}
    pixel = solution.results["tip"].pixel_nm
    row = int(np.argmax(np.ptp(maps["image"], axis=1)))
    images = {"image": maps["image"], "surface (micjax)": maps["surface"]}
    if truth is not None:
        images["true surface"] = _first_frame(np.asarray(truth.forward.surface_nm))
    images["upper bound"] = maps["upper_bound"]
    images["classical (Villarrubia)"] = maps["classical_surface"]
    images["residual of the fit"] = maps["residual"]
    profiles = {n: i[row] - np.median(i[row]) for n, i in images.items() if "residual" not in n}
    sure = {"How sure the network is": lambda: _half_width_figure(maps, pixel)}
    return (sure if "half_width" in maps else {}) | {
        "Image and surface": lambda: captioned(
            image_row(images, pixel_nm=pixel, label="nm", residuals=["residual of the fit"]),
            "Heights in nm. The residual is data minus forward model and should look like noise.",
        ),
        "What is certain": lambda: _certainty_figure(maps, pixel),
        "Tip": lambda: _tip_figure(solution, maps, pixel, truth),
        "Line profile": lambda: captioned(
            line_profiles(
                profiles,
                step_nm=pixel[1],
                label="height (nm)",
                title=f"line {row}, each about its median",
                shade=~maps["certain"].astype(bool)[row],
                shade_label="not measured",
            ),
            "A blind estimate may be shifted sideways against the truth by the place of the apex.",
        ),
    }


def _first_frame(data: np.ndarray) -> np.ndarray:
    return data[0] if data.ndim == 3 else data


def _half_width_figure(maps, pixel):
    return captioned(
        image_row(
            {
                "surface (network)": maps["surface"],
                "half width of 90 % intervals": maps["half_width"],
            },
            pixel_nm=pixel,
            label="nm",
            shared=False,
        ),
        "The intervals hold 90 % of the points of made-up surfaces that the network did not learn "
        "from, on average; other surfaces it does not know.",
    )


def _certainty_figure(maps, pixel):
    figure, axes = new_figure(1, 3, 11.0, 3.6)
    image_panel(axes[0, 0], maps["surface"], "surface, guesses veiled", pixel_nm=pixel, label="nm")
    mask_overlay(axes[0, 0], ~maps["certain"].astype(bool))
    gap = maps["upper_bound"] - maps["surface"]
    image_panel(axes[0, 1], gap, "upper bound - surface", pixel_nm=pixel, label="nm", cmap="magma")
    image_panel(
        axes[0, 2],
        np.minimum(maps["contact_multiplicity"], 10),
        "contacts within 2 sigma (10: or more)",
        pixel_nm=pixel,
        cmap="cividis",
    )
    return captioned(
        figure,
        "A surface point is certain where the tip touched it and nothing else. The guesses are "
        "what the prior makes of the room below the upper bound.",
    )


def _tip_figure(solution, maps, pixel, truth):
    tips = {"tip (micjax)": maps["tip"], "classical (Villarrubia)": maps["classical_tip"]}
    if truth is not None:
        true = np.asarray(truth.forward.tip())
        tips = {"true tip": true - true.max(), **tips}
    depth = 1.05 * float(np.ptp(maps["image"]))
    figure, axes = new_figure(1, len(tips) + 1, 3.4 * (len(tips) + 1), 3.2)
    for ax, (name, heights) in zip(axes[0], tips.items(), strict=False):
        shown = np.maximum(heights, -depth)
        image_panel(ax, shown, name, pixel_nm=pixel, label="nm", vmin=-depth, vmax=0.0)
        if name == "tip (micjax)":
            mask_overlay(ax, ~maps["tip_touches"].astype(bool))
    ax = axes[0, -1]
    for name, heights in tips.items():
        profile = np.maximum(heights, -depth).max(axis=0)
        ax.plot((np.arange(len(profile)) - len(profile) // 2) * pixel[1], profile, label=name)
    ax.set_title("seen from the front", fontsize=9)
    ax.set_xlabel("x (nm)")
    ax.legend(fontsize=7)
    return captioned(figure, "Tips drawn apex up; pixels that never touched are veiled.")


def training_figures(network, training: Training, key) -> dict[str, Any]:
    """What the network makes of scans that it has not seen."""

    def examples():
        batch = jax.jit(training.draw)(key, training.data)
        run = jax.jit(partial(estimated, passes=training.facts["passes"]))
        surfaces = run(network, batch.sights).surface
        figure, axes = new_figure(4, 4, 12.0, 12.0)
        for column in range(min(4, len(surfaces))):
            sights = (batch.sights.image, batch.sights.upper, surfaces, batch.truth)
            low, high = float(batch.truth[column].min()), float(batch.truth[column].max())
            titles = ("scan", "erosion by the tip it is told", "network", "truth")
            for ax, title, images in zip(axes[:, column], titles, sights, strict=True):
                image_panel(ax, images[column], title, vmin=low, vmax=high, colour_bar=False)
        return captioned(figure, "Made-up surfaces from other keys than those of the training.")

    return {"Examples": examples}

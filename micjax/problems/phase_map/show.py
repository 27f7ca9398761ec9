"""What `micjax.problems.phase_map` shows of a solution."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.colors import ListedColormap

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.physics.patches.local_spectra import over_strips, power_of, window_means
from micjax.physics.patches.unmixing import factorisation, phases
from micjax.physics.patches.unmixing.agreement import adjusted_rand_index, matched
from micjax.report.figures import FAINT, SERIES, captioned, image_panel, mask_overlay, new_figure

COLOURS = ("#3b6fb6", "#e0803c", "#4aa564", "#a05fb0", "#d9b23d", "#5fb8c4", "#b5566b", "#7a7a7a")
NOTHING = "#20242c"


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Phases against the truth: one phase everywhere, factorised spectra of patches, this map."""
    known = truth.forward.truth
    if known is None:
        return []
    true = np.asarray(known.phase)
    count = len(truth.forward.template)
    local = solution.problem.forward.polar.local
    image = np.asarray(x.image)
    spectra = jnp.sqrt(over_strips(local, image, None, power_of))
    flat = jnp.asarray(spectra.reshape(-1, spectra.shape[-2] * spectra.shape[-1]))
    flat = flat / jnp.linalg.norm(flat, axis=1, keepdims=True)
    weights = factorisation.factorise(flat, *factorisation.start(flat, count)).abundance
    weights = np.asarray(weights).reshape(*spectra.shape[:2], count)
    ours = solution.results["abundance"].data[:-1]
    at = np.ix_(*(np.round(c).astype(int) for c in local.centres(true.shape)))
    crystal = np.asarray(true)[at] < count
    shares = np.stack([window_means(true == k, np.ones_like(true), local) for k in range(count)])
    rows = []
    for name, abundance, labels in (
        ("one phase everywhere", np.full(shares.shape, 1.0 / count), np.zeros(crystal.shape, int)),
        ("NMF of the patches' spectra", np.moveaxis(weights, -1, 0), weights.argmax(-1)),
        ("micjax", ours, np.nan_to_num(solution.results["phase"].data, nan=-1).astype(int)[at]),
    ):
        row = {
            "phases from": name,
            "adjusted Rand index": adjusted_rand_index(labels[crystal], true[at][crystal]),
        }
        if len(abundance) == count:
            total = np.maximum(abundance.sum(0), 1e-12)
            pairs = matched(labels[crystal], true[at][crystal], count)
            error = [np.abs(abundance[i] / total - shares[j])[crystal] for i, j in pairs.items()]
            row["error of abundances"] = float(np.mean(error))
        rows.append(row)
    return rows


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Image, phases, orientations, templates, number of phases."""
    if "phase" not in solution.results:
        return {}
    drawn = {
        "Image and phases": lambda: _maps(solution, truth),
        "Templates": lambda: _templates(solution),
    }
    if np.nan_to_num(solution.results["strain"].data).any():
        drawn["Strain of grains"] = lambda: _strain(solution)
    if solution.extra["tried"]:
        drawn["Number of phases"] = lambda: _trials(solution)
    return drawn


def _maps(solution: Solution, truth):
    results = solution.results
    count, pixel = len(solution.extra["templates"]), results["image"].pixel_nm
    image, phase = results["image"].data, results["phase"].data
    known = None if truth is None else truth.forward.truth
    figure, axes = new_figure(1, 3 if known is None else 4, 4.0 * (3 + (known is not None)), 3.9)
    low, high = np.quantile(image[np.isfinite(image)], (0.01, 0.995))
    options = {"pixel_nm": pixel, "colour_bar": False}
    image_panel(axes[0, 0], image, "image", cmap="gray", vmin=low, vmax=high, **options)
    mask_overlay(axes[0, 0], results["border"].data.astype(bool), "#ffd23f", 0.9)
    colours = _colours(count)
    shown = {"cmap": colours, "vmin": -0.5, "vmax": count + 0.5, **options}
    image_panel(axes[0, 1], phase, "phase", **shown)
    mask_overlay(axes[0, 1], results["border"].data.astype(bool), "#ffffff", 0.8)
    image_panel(
        axes[0, 2],
        results["orientation"].data,
        "orientation",
        cmap="twilight",
        vmin=-90.0,
        vmax=90.0,
        label="deg",
        pixel_nm=pixel,
    )
    if known is not None:
        true = np.asarray(known.phase)
        pairs = matched(np.nan_to_num(phase, nan=-1).astype(int), true, count)
        back = {j: i for i, j in pairs.items()}
        image_panel(axes[0, 3], np.vectorize(lambda t: back.get(t, count))(true), "truth", **shown)
    return captioned(
        figure,
        "Borders of grains are drawn over image and phases; dark is no crystal. The orientation is "
        "the direction of the strongest reflection of each phase, from x (right) towards y (down); "
        "it is known up to the symmetry of the spectrum, half a turn at least.",
    )


def _colours(count: int) -> ListedColormap:
    return ListedColormap([*(COLOURS[i % len(COLOURS)] for i in range(count)), NOTHING])


def _templates(solution: Solution):
    templates = solution.extra["templates"]
    polar = solution.problem.forward.polar
    radius = polar.grid.radius_perA
    figure, axes = new_figure(1, len(templates), 3.4 * max(2, len(templates)), 3.2)
    # seen from above: angle of half a turn, and the other half the same
    k = np.linspace(-radius[-1], radius[-1], 161)
    far, turn = np.hypot(k[:, None], k), np.arctan2(k[:, None], k)
    at_r = (far - radius[0]) / (radius[1] - radius[0])
    at_t = (turn / np.pi + 0.5) % 1.0 * templates.shape[-1]
    inside = (at_r >= 0) & (at_r <= len(radius) - 1)
    rows = np.clip(np.round(at_r).astype(int), 0, len(radius) - 1)
    columns = np.round(at_t).astype(int) % templates.shape[-1]
    for i, (ax, template) in enumerate(zip(axes[0], templates, strict=True)):
        plane = np.where(inside, (template / polar.area)[rows, columns], np.nan)
        ax.imshow(plane, extent=(k[0], k[-1], k[-1], k[0]), cmap="magma")
        ax.set_title(f"phase {i}", fontsize=9, color=COLOURS[i % len(COLOURS)])
        ax.set_xlabel("kx (1/Å)", fontsize=8)
    return captioned(
        figure, "Amplitude of the reflections of each phase, turned so that the strongest is at x."
    )


def _strain(solution: Solution):
    strain, pixel = solution.results["strain"], solution.results["image"].pixel_nm
    values, errors = 1e3 * strain.data, 1e3 * strain.metadata["errors"]
    span = float(np.nanmax(np.abs(values)))
    figure, axes = new_figure(1, 4, 15.0, 3.6)
    options = {"pixel_nm": pixel, "label": "‰"}
    for ax, name, of in zip(axes[0], ("yy", "xx", "yx"), values, strict=False):
        image_panel(ax, of, f"strain {name}", cmap="RdBu_r", vmin=-span, vmax=span, **options)
    image_panel(axes[0, 3], errors.max(axis=0), "its error", **options)
    return captioned(
        figure,
        "Of each grain against the largest of its phase, from where its reflections are. Grains "
        "that no window fits in are left out. A grain with a large error is no single crystal.",
    )


def _trials(solution: Solution):
    """The front of few templates and a small residual, and why the rule passed others by."""
    tried = solution.extra["tried"]
    wanted = len(solution.extra["templates"])
    knee = next(t for t in tried if t.count == wanted)
    window_px = solution.problem.forward.polar.local.size
    figure, axes = new_figure(1, 1, 7.0, 3.6)
    ax = axes[0, 0]
    best = phases.front(tried)
    ax.plot([t.count for t in best], [t.residual for t in best], "-", color=FAINT, lw=1.0)
    for trial in tried:
        ax.plot(trial.count, trial.residual, "o", color=SERIES[0], ms=6 if trial in best else 3)
        before = [t for t in phases.taken(tried) if t.count < trial.count]
        reasons = trial.lacks(before[-1]) if before else []
        says = [f"alike {trial.similarity:.2f}"] if trial.count > 1 else []
        says = [*says, f"rarest {100.0 * trial.least_used:.0f} %", *reasons]
        at = (trial.count, trial.residual)
        ax.annotate("\n".join(says), at, (9, 5), "data", "offset points", fontsize=7)
    label = f"taken: window_px={window_px} phases={wanted}"
    ax.plot(knee.count, knee.residual, "o", ms=13, mfc="none", color=SERIES[1], label=label)
    ax.set_xticks([t.count for t in tried])
    ax.margins(0.15, 0.0)
    ax.set_ylim(0.0, 1.4 * max(t.residual for t in tried))
    ax.set_xlabel("number of templates", fontsize=8)
    ax.set_ylabel("residual, held out", fontsize=8)
    ax.legend(fontsize=7)
    return captioned(
        figure,
        "The residual, over the data, of patches that the templates were not learnt from; the line "
        "joins those of which none with as few templates leaves less. Ringed: the last that adds a "
        "phase. Alike: the largest cosine of two templates; rarest: the patches that the rarest "
        "template has. The window was not compared with others: it holds some three and a half "
        f"cells. Another look is taken by --set window_px={window_px} --set phases={wanted + 1}, "
        "or one of the two.",
    )

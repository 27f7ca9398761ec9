"""What `micjax.problems.unmixing` shows of a solution."""

from typing import Any

import numpy as np
import scipy.optimize

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.physics.patches.unmixing.laws import Values
from micjax.report.figures import FAINT, SERIES, captioned, image_panel, new_figure


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Against the truth: the mean spectrum everywhere, least squares, these end members."""
    if "spectrum" not in solution.results:
        return []
    true_w, true_h = _factors(truth, x)
    count, y = len(true_h), np.asarray(y, float)
    ours = _factors(solution.problem, x)
    ours = tuple(
        a[:, : _count(solution)] if i == 0 else a[: _count(solution)] for i, a in enumerate(ours)
    )
    mean = y.sum(axis=0) / y.sum()
    uniform = np.repeat(y.sum(axis=1)[:, None] / count, count, axis=1), np.tile(mean, (count, 1))
    rows = []
    for name, (w, h) in {
        "the mean spectrum everywhere": uniform,
        "least squares (NMF)": Values(y, 1.0).factors(count),
        "micjax": ours,
    }.items():
        row: dict[str, Any] = {"end members from": name, "number": len(h)}
        if len(h) == count:
            cosine = _cosines(true_h, h)
            i, j = scipy.optimize.linear_sum_assignment(-cosine)
            share, true_share = (a / a.sum(axis=1, keepdims=True) for a in (w, true_w))
            angles = np.rad2deg(np.arccos(np.minimum(cosine[i, j], 1.0)))
            row["angle of spectra (deg)"] = float(angles.mean())
            row["error of shares"] = float(np.abs(share[:, j] - true_share[:, i]).mean())
        rows.append(row)
    return rows


def _factors(problem: InverseProblem, x) -> tuple[np.ndarray, np.ndarray]:
    forward = problem.forward
    return np.asarray(forward.abundance, float)[np.asarray(x)], np.asarray(forward.spectrum, float)


def _count(solution: Solution) -> int:
    return len(solution.results["spectrum"].data)


def _cosines(a, b) -> np.ndarray:
    unit = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    first, second = unit
    return first @ second.T


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Maps and spectra of the end members, and how many there are."""
    if "spectrum" not in solution.results:
        return {}
    drawn = {"Maps": lambda: _maps(solution), "Spectra": lambda: _spectra(solution, y)}
    if solution.extra["tried"]:
        drawn["Number of end members"] = lambda: _trials(solution)
    return drawn


def _maps(solution: Solution):
    abundance = solution.results["abundance"]
    count = len(abundance.data)
    forward = solution.problem.forward
    pixel = None if forward.pixel_nm is None else (forward.pixel_nm, forward.pixel_nm)
    figure, axes = new_figure(1, count + 1, 3.6 * (count + 1), 3.4)
    for k in range(count):
        image_panel(axes[0, k], abundance.data[k], f"component {k}", pixel_nm=pixel)
    image_panel(axes[0, count], solution.results["surprise"].data, "surprise", pixel_nm=pixel)
    return captioned(
        figure,
        "Abundances, in the unit of the data summed over a spectrum. The surprise is by how many "
        "standard deviations a spectrum is less likely than draws of its law: something else is "
        "where it is well above 2.",
    )


def _spectra(solution: Solution, y):
    spectrum, forward = solution.results["spectrum"], solution.problem.forward
    errors, along = spectrum.metadata["errors"], forward.signal
    count = len(spectrum.data)
    figure, axes = new_figure(count, 1, 8.0, 1.7 * count + 0.8)
    for k, ax in enumerate(axes[:, 0]):
        line, colour = spectrum.data[k], SERIES[k % len(SERIES)]
        sd = np.where(np.isfinite(errors[k]), errors[k], 0.0)
        ax.fill_between(along, np.maximum(line - sd, 0.0), line + sd, color=colour, alpha=0.3, lw=0)
        ax.plot(along, line, color=colour, lw=1.0)
        ax.set_ylabel(f"component {k}", fontsize=8)
        ax.set_xlim(along[0], along[-1])
    axes[-1, 0].set_xlabel(
        f"{forward.signal_name} ({forward.signal_unit})".replace(" ()", ""), fontsize=8
    )
    return captioned(figure, "Each adds up to one. The band is one standard deviation.")


def _trials(solution: Solution):
    tried = solution.extra["tried"][1:]
    figure, axes = new_figure(1, 1, 5.5, 3.0)
    ax = axes[0, 0]
    counts = [t.count for t in tried]
    gains, errors = ([getattr(t, n) for t in tried] for n in ("gain", "error"))
    ax.errorbar(counts, gains, errors, fmt="o-", color=SERIES[0], capsize=3)
    ax.axhline(0.0, color=FAINT, lw=1.0)
    ax.axvline(_count(solution), color=FAINT, lw=1.0)
    ax.set_yscale("symlog", linthresh=max(1.0, min(map(abs, gains), default=1.0)))
    ax.set_xticks(counts)
    ax.set_xlabel("number of end members", fontsize=8)
    ax.set_ylabel("gain (nats)", fontsize=8)
    return captioned(
        figure,
        "How much better held-out data are predicted than with one end member less, with its "
        "standard error. The vertical line is the number that was taken.",
    )

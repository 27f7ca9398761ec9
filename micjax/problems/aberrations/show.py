"""What `micjax.problems.aberrations` shows of a solution."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.physics.electrons import optics
from micjax.problems.aberrations.model import FOUND, NAMES
from micjax.problems.aberrations.stages import left_over
from micjax.report.figures import captioned, image_row


def defocus_A(errors_A: dict[str, float], semiangle_mrad: float) -> dict[str, float]:
    """The change of defocus that is as large at the edge of the aperture as each aberration:
    C_n alpha^(n+1) / (n+1) = C_1 alpha^2 / 2."""
    alpha = 1e-3 * semiangle_mrad
    return {
        name: 2.0 * error_A * alpha ** (int(name[1]) - 1) / (int(name[1]) + 1)
        for name, error_A in errors_A.items()
    }


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Each aberration against the truth, the error also as a change of defocus."""
    true, best = truth.forward.aberrations_A, solution.problem.forward.aberrations_A
    sd = {} if solution.laplace is None else solution.laplace.sd()
    error = {c: float(best[c] - true[c]) for c in FOUND}
    as_defocus = defocus_A(error, float(truth.forward.semiangle_mrad))
    return [
        {
            "quantity": f"{c} (Å)",
            "truth": float(true[c]),
            "estimate": float(best[c]),
            "sd": float(sd.get(n, np.nan)),
            "error as defocus (Å)": as_defocus[c],
        }
        for c, n in zip(FOUND, NAMES, strict=True)
    ]


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """The images, what the model leaves of them, and the phases over the aperture."""
    best = solution.problem
    counts, change_A = np.asarray(y), np.asarray(x.settings_A)[:, 0]
    titles = [f"C10 {'+' if c >= 0 else '-'} {abs(c):.4g} Å" for c in change_A]
    pixel_nm = float(best.forward.sampling_A) / 10.0

    def images():
        figure = image_row(dict(zip(titles, counts, strict=True)), pixel_nm=pixel_nm, shared=False)
        return captioned(figure, "The images as they came.")

    def residuals():
        left = np.asarray(left_over(best, x, jnp.asarray(y, dtype=float)))
        row = dict(zip(titles, left, strict=True))
        figure = image_row(row, pixel_nm=pixel_nm, residuals=titles)
        return captioned(
            figure,
            "What no object explains of the images, in units of the noise, darker towards the "
            "borders by the window: structure here is what the model lacks.",
        )

    def phases():
        row = {"estimate": _phase(best)}
        if truth is not None:
            row |= {"truth": _phase(truth), "difference": row["estimate"] - _phase(truth)}
        figure = image_row(row, residuals=["difference"])
        return captioned(figure, "Phase of the aberrations over the aperture, in rad.")

    return {"Images": images, "Residuals": residuals, "Aberrations": phases}


def _phase(problem: InverseProblem, pixels: int = 128) -> np.ndarray:
    forward = problem.forward
    wavelength_A = optics.wavelength_A(forward.energy_keV)
    along = jnp.linspace(-1.0, 1.0, pixels) * forward.semiangle_mrad
    angles = along[:, None], along[None, :]
    phase = optics.chi(angles, forward.aberrations_A, wavelength_A)
    inside = jnp.hypot(*angles) <= forward.semiangle_mrad
    return np.asarray(jnp.where(inside, phase, jnp.nan))

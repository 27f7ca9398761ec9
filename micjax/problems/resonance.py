"""Resonance of a driven oscillator, from its response in phase and in quadrature.

    (real, imaginary) = amplitude e^(i phase) f0^2 / (f0^2 - f^2 + i f0 f / Q) + noise

Far from the resonance the misfit has no slope towards it: a fit starts at the largest response.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, Values, drawn_data
from micjax.core.ranges import positive
from micjax.inference.errors.estimates import LaplaceErrors
from micjax.inference.solution import Solution
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.inference.stage import Stage
from micjax.physics.noise import Gaussian
from micjax.physics.probes.oscillator import Oscillator
from micjax.problems.shared.stress import of_curves
from micjax.report.figures import captioned, curve_with_residual

Frequencies = Float[Array, " n"]
Response = Float[Array, "n 2"]


def problem(
    f0_kHz: float = 360.0,
    Q: float = 120.0,
    amplitude: float = 1.0,
    sigma: float = 8.0,
    low_kHz: float = 300.0,
    high_kHz: float = 420.0,
) -> InverseProblem:
    """One resonance somewhere in a band, of any phase.

    **Arguments:**

    - `f0_kHz`: where the fit starts; the prior is flat over the band.
    - `Q`: quality factor expected, to within a factor of 1.5.
    - `amplitude`: response to a slow drive expected, to within a factor of 1.6.
    - `sigma`: rms noise of either channel expected, in units of the data, within a factor of 1.6.
    - `low_kHz`: lower end of the band.
    - `high_kHz`: upper end of the band.

    **Raises:** `ValueError` when f0 is not within the band, or for numbers that are not positive.
    """
    if not 0 < low_kHz < f0_kHz < high_kHz:
        raise ValueError(f"f0_kHz = {f0_kHz} is not between {low_kHz} and {high_kHz}")
    positive(Q=Q, amplitude=amplitude, sigma=sigma, high_kHz=high_kHz)
    return InverseProblem(
        Oscillator(f0_kHz, Q, amplitude),
        Gaussian(sigma),
        {
            "forward.f0_kHz": dist.Uniform(low_kHz, high_kHz),
            "forward.Q": dist.LogNormal(np.log(Q), 0.4),
            "forward.amplitude": dist.LogNormal(np.log(amplitude), 0.5),
            "forward.phase_rad": dist.Uniform(-np.pi, np.pi),
            "noise.sigma": dist.LogNormal(np.log(sigma), 0.5),
        },
    )


stress = of_curves(axis=0)


def example(key) -> tuple[InverseProblem, Frequencies, Response]:
    """A sweep of 121 frequencies over a resonance at 371.3 kHz."""
    truth = problem(371.3, 150.0, 1.2).at({"forward.phase_rad": 0.6})
    x = jnp.linspace(300.0, 420.0, 121)
    return truth, x, drawn_data(truth, x, key)


def load(file) -> tuple[dict[str, Any], Frequencies, Response]:
    """Three columns with commas between them: frequency (kHz), real and imaginary part.

    **Raises:** `ValueError` for another number of columns, fewer than 5 rows, or NaN.
    """
    try:
        rows = np.loadtxt(file, delimiter=",", ndmin=2)
    except ValueError as error:
        raise ValueError(f"{file}: no text of numbers with commas between them: {error}") from error
    if rows.shape[1] != 3 or len(rows) < 5 or not np.isfinite(rows).all():
        raise ValueError(
            f"{file}: {rows.shape} numbers; needed are frequency (kHz), real and imaginary part "
            "in at least 5 finite rows"
        )
    f, y = rows[:, 0], rows[:, 1:]
    power = (y**2).sum(axis=1)
    top = np.flatnonzero(power >= power.max() / 2)
    step = np.ptp(f) / (len(f) - 1)
    Q = f[np.argmax(power)] / max(np.ptp(f[top]), step)
    options = {
        "f0_kHz": f[np.argmax(power)],
        "Q": Q,
        "amplitude": np.sqrt(power.max()) / Q,
        # neighbours differ by the noise, but for the few on the resonance
        "sigma": np.median(np.abs(np.diff(y[np.argsort(f)], axis=0))) / 0.954
        + 1e-9 * np.sqrt(power.max()),  # made-up data have no noise
        "low_kHz": max(f.min() - step, step / 2),
        "high_kHz": f.max() + step,
    }
    return {n: float(v) for n, v in options.items()}, jnp.asarray(f), jnp.asarray(y)


def largest(problem: InverseProblem, x: Frequencies, y: Response) -> Values:
    """The values with f0 at the largest response, and amplitude and phase from it: there the answer
    is Q times that to a slow drive, a quarter turn behind."""
    power, values = (y**2).sum(axis=1), problem.values()
    if prior := problem.unknowns().get("forward.f0_kHz"):
        inside = jnp.isfinite(dist.biject_to(prior.support).inv(x))
        power = jnp.where(inside, power, -1.0)
    i = jnp.argmax(power)
    real, imaginary = y[i]
    estimates = {
        "forward.f0_kHz": x[i],
        "forward.amplitude": jnp.hypot(real, imaginary) / problem.forward.Q,
        "forward.phase_rad": jnp.arctan2(real, -imaginary),  # of i y
    }
    return values | {n: v for n, v in estimates.items() if n in values}


def stages(problem: InverseProblem, x: Frequencies, y: Response, *, steps: int = 2000) -> list:
    """The best of two fits, from the given values and from the largest response; Laplace errors.

    **Arguments:**

    - `steps`: of L-BFGS, at most.
    """

    def starts(problem, x, y, candidates, key):
        return [problem.values(), largest(problem, x, y)]

    return [Stage(LBFGS(), steps, starts=starts, together=True, tolerance=1e-3), LaplaceErrors()]


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """f0, amplitude and phase against the truth, beside what the largest response says."""
    true, best = truth.values(), solution.problem.values()
    sd = {} if solution.laplace is None else solution.laplace.sd()
    classical = largest(truth, x, y)
    return [
        {
            "quantity": n.partition(".")[2],
            "truth": float(true[n]),
            "estimate": float(best[n]),
            "sd": float(sd.get(n, np.nan)),
            "largest response, true Q": float(classical[n]),
        }
        for n in ("forward.f0_kHz", "forward.amplitude", "forward.phase_rad")
        if n in best
    ]


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """Both channels, data and fit."""
    model, data = np.asarray(solution.problem.forward(x)), np.asarray(y)
    caption = "The data, the oscillator at the estimate, and what is left."

    def channel(i):
        panel = curve_with_residual(
            np.asarray(x), data[:, i], model[:, i], x_label="frequency (kHz)", label="response"
        )
        return captioned(panel, caption)

    return {"In phase": lambda: channel(0), "In quadrature": lambda: channel(1)}

"""The gains of a height loop and the surface below it, from trace and retrace.

    trace, retrace = heights of the probe there and back - set point + noise

The loop lags: the trace shows a step too far along +x, the retrace too far along -x. Of two gains
and one surface only the true ones give both. A gain that acts little, beside the other or because
the loop hardly lags, is told badly.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem, drawn_data, parameter
from micjax.core.ranges import positive
from micjax.inference.solution import Solution
from micjax.inference.solvers.first_order import Adam
from micjax.inference.stage import Stage
from micjax.io import Field, FieldAxis
from micjax.physics.noise import Gaussian
from micjax.physics.probes.loop import stable, trace_and_retrace
from micjax.physics.regularisers import Curvature
from micjax.problems.tip import particles
from micjax.report.figures import captioned, line_profiles

Pairs = Float[Array, "n 2 ny nx"]  # trace and retrace


class FeedbackScan(eqx.Module):
    """Trace and retrace of images, less the set point. `x` says which of the surfaces."""

    surface_nm: Float[Array, "frames ny nx"] = parameter()
    proportional: Float[Array, ""] = parameter()
    integral: Float[Array, ""] = parameter()
    set_point_nm: Float[Array, ""] = parameter()
    samples_per_pixel: int = eqx.field(static=True)

    def __call__(self, x: Int[Array, " n"]) -> Pairs:
        both = trace_and_retrace(
            self.surface_nm[x],
            self.proportional,
            self.integral,
            self.set_point_nm,
            samples_per_pixel=self.samples_per_pixel,
        )
        return jnp.stack(both, axis=1) - self.set_point_nm


def problem(
    frames: int = 1,
    ny: int = 32,
    nx: int = 96,
    proportional: float = 0.02,
    integral: float = 1e-3,
    set_point_nm: float = 3.0,
    samples_per_pixel: int = 8,
    sigma_nm: float = 0.1,
    curvature_nm: float | None = None,
) -> InverseProblem:
    """Surfaces of `frames` x `ny` x `nx` pixels below a loop of unknown gains.

    **Arguments:**

    - `frames`: number of images taken with the same gains.
    - `ny`: lines of an image.
    - `nx`: pixels of a line.
    - `proportional`: gain of a sample expected, to within a factor of 2.7.
    - `integral`: gain of a sample expected, to within a factor of 2.7.
    - `set_point_nm`: deflection that the loop holds.
    - `samples_per_pixel`: samples of the loop from one pixel to the next.
    - `sigma_nm`: rms noise of the heights.
    - `curvature_nm`: typical curvature of the surface, nm per pixel^2; 60 sigma if not given.

    **Raises:** `ValueError` for numbers that are not positive, and gains of a loop that is not
    stable.
    """
    if curvature_nm is None:
        curvature_nm = 60 * sigma_nm
    positive(
        frames=frames,
        ny=ny,
        nx=nx,
        proportional=proportional,
        integral=integral,
        set_point_nm=set_point_nm,
        samples_per_pixel=samples_per_pixel,
        sigma_nm=sigma_nm,
        curvature_nm=curvature_nm,
    )
    _check_gains(proportional, integral)
    shape = (frames, ny, nx)
    forward = FeedbackScan(np.zeros(shape), proportional, integral, set_point_nm, samples_per_pixel)
    return InverseProblem(
        forward,
        Gaussian(sigma_nm),
        {
            "forward.surface_nm": Curvature(curvature_nm, sigma_nm, shape),
            "forward.proportional": dist.LogNormal(np.log(proportional), 1.0),
            "forward.integral": dist.LogNormal(np.log(integral), 1.0),
        },
    )


def _check_gains(proportional: float, integral: float) -> None:
    if not stable(proportional, integral):
        raise ValueError(
            f"a loop of the gains proportional = {proportional:g} and integral = {integral:g} is "
            "not stable: an error would grow from sample to sample; lower ones are"
        )


def example(key, ny: int = 32, nx: int = 96) -> tuple[InverseProblem, Int[Array, " n"], Pairs]:
    """Particles below a loop whose gains differ from those expected, by a factor of 1.5 or so."""
    surface_key, gains_key, noise_key = jax.random.split(key, 3)
    proportional, integral = jnp.exp(0.4 * jax.random.normal(gains_key, (2,)))
    truth = problem(1, ny, nx).at(
        {
            "forward.surface_nm": particles(surface_key, ny, nx, 2.0)[None],
            "forward.proportional": 0.02 * proportional,
            "forward.integral": 1e-3 * integral,
        }
    )
    x = jnp.arange(1)
    return truth, x, drawn_data(truth, x, noise_key)


def stages(problem: InverseProblem, x: Int[Array, " n"], y: Pairs, *, steps: int = 1000) -> list:
    """The best values, from the mean of trace and retrace.

    **Arguments:**

    - `steps`: of Adam, whose rate falls from 0.1 nm to nothing.

    **Raises:** `ValueError` when the loop of the gains to start from is not stable.
    """
    _check_gains(float(problem.forward.proportional), float(problem.forward.integral))

    def mean(problem, x, y, candidates, key):
        return [{"forward.surface_nm": problem.forward.surface_nm.at[x].set(y.mean(axis=1))}]

    return [Stage(Adam(0.1, steps), steps, starts=mean)]


def conclude(solution: Solution, x: Int[Array, " n"], y: Pairs) -> Solution:
    """With the surface, and whether the loop lags enough."""
    best = solution.problem
    apart, noise = float(jnp.sqrt(jnp.mean((y[:, 0] - y[:, 1]) ** 2) / 2)), float(best.noise.sigma)
    statements = [
        "The gains are those of the recursion of micjax.physics.probes.loop, without error bars."
    ]
    if apart < 1.5 * noise:
        statements.insert(
            0,
            f"NOT IDENTIFIED: trace and retrace differ by {apart:.2g} nm rms each and the noise is "
            f"{noise:.2g} nm: the loop follows too well to tell its gains.",
        )
    return dataclasses.replace(
        solution,
        results={"surface": _image("surface", best.forward.surface_nm[x])},
        statements=[*statements, *solution.statements],
    )


def _image(name: str, heights: Float[Array, "n ny nx"]) -> Field:
    units = {"frame": "", "y": "px", "x": "px"}
    axes = tuple(
        FieldAxis(n, np.arange(size, dtype=float), unit)
        for (n, unit), size in zip(units.items(), heights.shape, strict=True)
    )
    return Field(np.asarray(heights), axes, "nm", name)


def compare(solution: Solution, x, y: Pairs, truth: InverseProblem) -> list[dict[str, Any]]:
    """The rms error of the surface, beside those of what needs no model."""
    surface, heights = np.asarray(truth.forward.surface_nm[x]), np.asarray(y)
    candidates = {
        "trace as it is": heights[:, 0],
        "mean of trace and retrace": heights.mean(axis=1),
        "lower of trace and retrace": heights.min(axis=1),
        "micjax": np.asarray(solution.problem.forward.surface_nm[x]),
    }
    return [
        {
            "surface": name,
            "rms error (nm)": float(np.sqrt(np.mean((surface_estimate - surface) ** 2))),
        }
        for name, surface_estimate in candidates.items()
    ]


def figures(solution: Solution, x, y: Pairs, truth: InverseProblem | None = None) -> dict[str, Any]:
    """The line of the largest relief, there, back and below."""
    surface = solution.problem.forward.surface_nm[x[0]]
    maps = {"trace": y[0, 0], "retrace": y[0, 1], "surface (micjax)": surface}
    if truth is not None:
        maps["true surface"] = truth.forward.surface_nm[x[0]]
    row = int(np.argmax(np.ptp(np.asarray(y[0, 0]), axis=1)))
    profiles = {n: np.asarray(m)[row] for n, m in maps.items()}
    caption = "Heights less the set point. Trace and retrace lag behind the surface either way."
    return {
        "Line profile": lambda: captioned(
            line_profiles(profiles, label="height (nm)", title=f"line {row}"), caption
        )
    }

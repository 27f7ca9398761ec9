"""How a problem is solved when its module does not say: the best values, their errors, draws."""

import logging
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
import optax
from jaxtyping import Array

from micjax.core.problem import InverseProblem
from micjax.inference.attempt import attempt
from micjax.inference.laplace import Laplace, laplace
from micjax.inference.optimise import Fit, fit
from micjax.inference.sample import Posterior, nuts
from micjax.inference.solution import Solution
from micjax.inference.start import draw_starts
from micjax.run.fields import comparison

log = logging.getLogger("micjax")

MAX_DENSE = 500  # unknown numbers, above which a dense Hessian is not worth its time
LATELY, SETTLED = 100, 1e-3  # steps; nats, as the default tolerance
ADAM_RATE = 2e-2  # of `fit` itself; the same object compiles once


def default_solve(
    problem: InverseProblem,
    x,
    y,
    *,
    key: Array,
    checkpoint: pathlib.Path | None = None,
    resume: bool = False,
    on_chunk: Callable[..., Any] | None = None,
    steps: int = 3000,
    learning_rate: float = ADAM_RATE,
    tolerance: float = SETTLED,
    starts: int = 1,
    sampler: Literal["none", "nuts"] = "none",
    samples: int = 500,
    warmup: int = 500,
    chains: int = 2,
) -> Solution:
    """Maximum a posteriori by Adam, Laplace errors around it, and NUTS when it is asked for.

    **Arguments:**

    - `steps`: of Adam, at most.
    - `learning_rate`: of Adam, in unconstrained coordinates.
    - `tolerance`: stop when 100 steps improve the loss by less than this (nats); 0 never stops.
    - `starts`: how many fits side by side: from the given values and from draws of the priors.
    - `sampler`: `none`, or `nuts` to sample the posterior from the best values on.
    - `samples`: draws of each chain after the warm-up.
    - `warmup`: transitions of each chain before them.
    - `chains`: how many chains.
    """
    start_key, sample_key = jax.random.split(key)
    found = fit(
        problem,
        x,
        y,
        None if learning_rate == ADAM_RATE else optax.adam(learning_rate),
        steps=steps,
        tolerance=tolerance,
        starts=draw_starts(start_key, problem, starts) if starts > 1 else None,
        checkpoint=checkpoint,
        resume=resume,
        on_chunk=on_chunk,
    )
    best, interrupted = found.problem, found.stop_reason == "interrupted"
    curvature = None if interrupted else _laplace(best, x, y)
    posterior = None
    if sampler == "nuts" and not interrupted:
        posterior = attempt(
            "posterior draws",
            nuts,
            best,
            x,
            y,
            sample_key,
            samples=samples,
            warmup=warmup,
            chains=chains,
        )
    results, rms = comparison(best, x, y)
    return Solution(
        problem=best,
        fit=found,
        posterior=posterior,
        laplace=curvature,
        results=results,
        metrics={"loss": found.loss, "steps": float(found.steps)} | rms,
        statements=_statements(found, curvature, posterior),
    )


def _laplace(problem: InverseProblem, x, y) -> Laplace | None:
    unknown_numbers = sum(v.size for v in problem.values().values())
    if unknown_numbers > MAX_DENSE:
        log.info("no Laplace errors: %d unknown numbers, %d at most", unknown_numbers, MAX_DENSE)
        return None
    return attempt("Laplace errors", laplace, problem, x, y)


def _statements(found: Fit, curvature: Laplace | None, posterior: Posterior | None) -> list[str]:
    lines = [_how_it_ended(found)]
    if curvature is not None:
        vague = [n for n, ok in curvature.identified.items() if not ok]
        lines += [f"{n} is not identified by these data." for n in vague]
        if not vague:
            lines.append("All unknowns are identified by these data.")
    if posterior is not None:
        if posterior.divergences:
            lines.append(f"{posterior.divergences} transitions diverged: distrust the draws.")
        worst = max((float(np.nanmax(r)) for r in posterior.r_hat().values()), default=1.0)
        if worst > 1.01:
            lines.append(f"The chains do not agree yet (r_hat up to {worst:.3f}): sample longer.")
    return lines


def _how_it_ended(found: Fit) -> str:
    settled = found.stop_reason == "steps" and _last_gain(found.losses) < SETTLED
    if settled or found.stop_reason in ("tolerance", "converged"):
        return f"The fit converged after {found.steps} steps."
    if found.stop_reason == "steps":
        fell = _last_gain(found.losses)
        so = f": the last {LATELY} lowered the loss by {fell:.2g} nats" if np.isfinite(fell) else ""
        return f"The fit used all of its {found.steps} steps and may not have converged{so}."
    return f"The fit stopped after {found.steps} steps: {found.stop_reason}."


def _last_gain(losses: np.ndarray) -> float:
    """By how much the best loss fell in the last `LATELY` steps."""
    best = np.fmin.accumulate(np.fmin.reduce(np.atleast_2d(losses), axis=0))
    return float(best[-1 - LATELY] - best[-1]) if len(best) > LATELY else float("inf")

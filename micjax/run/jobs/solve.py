"""How a problem is solved when its module does not say: the best values, their errors, draws."""

import logging
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array

from micjax.core.problem import InverseProblem
from micjax.inference.attempt import attempt
from micjax.inference.checkpoint import StopReason
from micjax.inference.errors.laplace import Laplace, laplace
from micjax.inference.errors.nuts import Posterior, nuts
from micjax.inference.solution import Solution
from micjax.inference.solve import Fit, fit
from micjax.inference.solvers.first_order import Adam
from micjax.inference.starts.draw import draw_starts
from micjax.run.jobs.fields import comparison

log = logging.getLogger("micjax")

MAX_DENSE = 500  # unknown numbers, above which a dense Hessian is not worth its time
SETTLED = 1e-3  # nats in 100 steps


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
    learning_rate: float = 2e-2,
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
        Adam(learning_rate),
        steps=steps,
        tolerance=tolerance,
        starts=draw_starts(start_key, problem, starts) if starts > 1 else None,
        checkpoint=checkpoint,
        resume=resume,
        on_chunk=on_chunk,
    )
    best, interrupted = found.problem, found.stop_reason is StopReason.INTERRUPTED
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
    steps = f"after {found.steps} steps"
    if found.stop_reason in (StopReason.TOLERANCE, StopReason.CONVERGED):
        return f"The fit converged {steps}."
    if found.stop_reason is StopReason.STALLED:
        return f"The fit stopped {steps}: no step lowers the loss, which need not be its minimum."
    if found.stop_reason is StopReason.STEPS:
        return f"The fit used all of its {found.steps} steps and may not have converged."
    return f"The fit stopped {steps}: {found.stop_reason}{found.fault and ', '}{found.fault}."

"""From a problem and its stages to a `Solution`: the fits, what follows them, what can be said.

A problem module says in `stages(problem, x, y, **engine)` how it is solved, and in
`conclude(solution, x, y)` what only it knows of the answer. All that problems share is here.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from micjax.core.problem import InverseProblem
from micjax.inference.attempt import attempt
from micjax.inference.checkpoint import StopReason
from micjax.inference.errors.estimates import NUTS, Estimate, LaplaceErrors
from micjax.inference.errors.importance import FEWEST
from micjax.inference.errors.incomplete import widened
from micjax.inference.errors.laplace import Laplace
from micjax.inference.errors.nuts import Posterior
from micjax.inference.solution import Solution
from micjax.inference.solve import fit_stages
from micjax.inference.solvers.first_order import Adam
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.inference.stage import Search, Stage
from micjax.inference.starts.draw import draw_starts
from micjax.inference.verdicts.convergence import how_it_ended
from micjax.inference.verdicts.residual import Residual, compared

SETTLED = 1e-3  # nats in 100 steps
AGREE = 1.01  # r_hat, above which chains do not agree

Entry = Stage | Search | Estimate


def solve(
    module: ModuleType,
    problem: InverseProblem,
    x,
    y,
    *,
    key: Array,
    checkpoint=None,
    resume: bool = False,
    on_chunk: Callable[..., Any] | None = None,
    **engine,
) -> Solution:
    """`run` with the stages and the conclusion of a problem module.

    **Arguments:**

    - `module`: the problem's; one without `stages` is solved by `default_stages`.
    - `engine`: keywords of its `stages`.

    **Raises:** as `run`.
    """
    y = floats(y)
    stages = stages_of(module)(problem, x, y, **engine)
    conclude = getattr(module, "conclude", None)
    how = {"checkpoint": checkpoint, "resume": resume, "on_chunk": on_chunk}
    return run(problem, x, y, stages, key=key, conclude=conclude, **how)


def run(
    problem: InverseProblem,
    x,
    y,
    stages: Sequence[Any] | None = None,
    *,
    key: Array,
    checkpoint=None,
    resume: bool = False,
    on_chunk: Callable[..., Any] | None = None,
    conclude: Callable[[Solution, Any, Any], Solution] | None = None,
) -> Solution:
    """Solve a problem: fits first, then error estimates, then what they say.

    What follows the fits may fail without costing them: a warning says so. Entry number i draws by
    `jax.random.fold_in(key, i)`, and a `Search` by `key`.

    **Arguments:**

    - `stages`: some `Search` and `Stage`, then error estimates such as `LaplaceErrors` and `NUTS`;
        `default_stages` if not given.
    - `checkpoint`, `resume`, `on_chunk`: as of `micjax.fit`.
    - `conclude`: `conclude(solution, x, y) -> Solution`, with more maps, rows and sentences.

    **Raises:** `ValueError` for data of another shape than the prediction, an estimate before a
    fit, or the checkpoint of another fit; `NonFiniteError` when not even the first evaluation is
    finite; `KeyboardInterrupt` before there is anything.
    """
    y = floats(y)
    stages = default_stages(problem, x, y) if stages is None else stages
    fits, estimates = parted(stages)
    how = {"checkpoint": checkpoint, "resume": resume, "on_chunk": on_chunk}
    fit = fit_stages(problem, x, y, fits, key=key, **how)
    interrupted = fit.stop_reason is StopReason.INTERRUPTED
    if interrupted and not np.isfinite(fit.loss):
        raise KeyboardInterrupt
    errors = [
        attempt(estimate.title, estimate, fit, x, y, jax.random.fold_in(key, len(fits) + i))
        for i, estimate in enumerate([] if interrupted else estimates)
    ]
    laplace = next((e for e in errors if isinstance(e, Laplace)), None)
    posterior = next((e for e in errors if isinstance(e, Posterior)), None)
    left = attempt("comparison with the data", compared, fit.problem, x, y) or Residual()
    if laplace is not None and left.correlations is not None and not left.is_noise():
        known = left.correlations, left.seen
        larger = attempt("errors for the residual", widened, laplace, x, *known)
        laplace = larger or laplace
    ended = how_it_ended(fit, fits[-1], laplace, explained=not left.surprise)
    sentences = [
        *filter(None, [ended.sentence]),
        *_identified(fit.problem, laplace),
        *_sampled(posterior),
        *left.sentences(None if posterior is not None or laplace is None else laplace.grown),
    ]
    solution = Solution(
        problem=fit.problem,
        fit=fit,
        posterior=posterior,
        laplace=laplace,
        metrics={"loss": fit.loss, "steps": float(fit.steps)} | left.measures,
        statements=sentences,
        converged=ended.converged,
    )
    if conclude is None:
        return solution
    return attempt("conclusion", _concluded, conclude, solution, x, y) or solution


def parted(stages: Sequence[Any]) -> tuple[list[Stage | Search], list[Estimate]]:
    """The fits of a list of stages, and the error estimates after them.

    **Raises:** `ValueError` for anything else in it, or another order.
    """
    for entry in stages:
        if not isinstance(entry, Stage | Search | Estimate):
            raise ValueError(
                f"{entry!r} is no stage: a list of Stage and Search is needed, then error "
                "estimates, LaplaceErrors, NUTS or SVI"
            )
    fits = [entry for entry in stages if isinstance(entry, Stage | Search)]
    if not fits or fits != list(stages[: len(fits)]):
        raise ValueError("stages begin with a Stage or a Search; error estimates follow all fits")
    return fits, list(stages[len(fits) :])


def stages_of(module: ModuleType) -> Callable[..., Sequence[Entry]]:
    """How a problem module is solved.

    **Raises:** `ValueError` for a module that has its own `solve` in their place.
    """
    if callable(stages := getattr(module, "stages", None)):
        return stages
    old = getattr(module, "solve", None)
    if inspect.isfunction(old) and "checkpoint" in inspect.signature(old).parameters:
        raise ValueError(
            f"{module.__name__}.solve is not called: write stages(problem, x, y, **engine), a "
            "list of micjax.Stage and the like (an algorithm of your own is a micjax.Search in "
            "it), and conclude(solution, x, y) for its maps and sentences"
        )
    return default_stages


def default_stages(
    problem: InverseProblem,
    x,
    y,
    *,
    steps: int = 3000,
    learning_rate: float | None = None,
    tolerance: float = SETTLED,
    starts: int = 1,
    sampler: Literal["none", "nuts"] = "none",
    samples: int = 500,
    warmup: int = 500,
    chains: int = 2,
) -> list[Entry]:
    """Maximum a posteriori by L-BFGS, Laplace errors around it, and NUTS when it is asked for.

    **Arguments:**

    - `steps`: at most.
    - `learning_rate`: of Adam, in unconstrained coordinates, in place of L-BFGS.
    - `tolerance`: stop when 100 steps improve the loss by less than this (nats); 0 never stops.
    - `starts`: how many fits side by side: from the given values and from draws of the priors.
    - `sampler`: `none`, or `nuts` to sample the posterior from the best values on.
    - `samples`: draws of each chain after the warm-up.
    - `warmup`: transitions of each chain before them.
    - `chains`: how many chains.
    """

    def drawn(problem, x, y, candidates, key):
        return draw_starts(key, problem, starts)

    several = starts > 1
    fit = Stage(
        LBFGS() if learning_rate is None else Adam(learning_rate),
        steps,
        starts=drawn if several else None,
        together=several,
        tolerance=tolerance,
    )
    draws = [NUTS(samples, warmup, chains)] if sampler == "nuts" else []
    return [fit, *draws, LaplaceErrors()]


def floats(y: PyTree) -> PyTree:
    """The data in floating point, in which a law of counts does not overflow; wide integers, which
    may be labels, stay what they are."""

    def cast(leaf):
        leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        labels = leaf.dtype.kind in "iu" and leaf.dtype.itemsize >= 4
        return jnp.asarray(leaf, None if labels or leaf.dtype.kind == "c" else float)

    return jax.tree.map(cast, y)


def _concluded(conclude, solution: Solution, x, y) -> Solution:
    solution = conclude(solution, x, y)
    if not isinstance(solution, Solution):
        raise TypeError(f"conclude gave a {type(solution).__name__}, not a Solution")
    return solution


def _identified(problem: InverseProblem, laplace: Laplace | None) -> Iterator[str]:
    if laplace is None:
        return
    for name, factor in laplace.widened.items():
        yield (
            f"The posterior of {name} is wider than its curvature says: its error is {factor:.2g} "
            "times that of the curvature."
        )
    if laplace.effective < FEWEST:
        yield (
            "The posterior is unlike a Gaussian about the best values, and draws about these do "
            "not reach it: errors are those of the curvature, and no more than a guess. NUTS "
            "draws from it."
        )
    vague = [n for n, ok in laplace.identified.items() if not ok]
    yield from (f"{n} is not identified by these data." for n in vague)
    if not vague and set(laplace.names) == set(problem.unknowns()):
        yield "All unknowns are identified by these data."


def _sampled(posterior: Posterior | None) -> Iterator[str]:
    if posterior is None:
        return
    if posterior.losses is None:
        chains, samples = next(iter(posterior.draws.values())).shape[:2]
        worst, fewest = _extreme(np.max, posterior.r_hat()), _extreme(np.min, posterior.ess())
        yield (
            f"{chains} chain{'s' * (chains > 1)} of {samples} draws: r_hat at most {worst:.4f}, at "
            f"least {fewest:.0f} independent draws."
        )
        if not worst <= AGREE:
            yield "The chains do not agree yet: sample longer."
    if posterior.divergences:
        yield f"{posterior.divergences} transitions diverged: distrust the draws."
    elif posterior.losses is None:
        yield "No transition diverged."


def _extreme(of: Callable[..., Any], table: dict[str, np.ndarray]) -> float:
    """Over all numbers of a table; those of an unknown that never moved are NaN."""
    numbers = np.concatenate([np.ravel(v) for v in table.values()])
    numbers = numbers[np.isfinite(numbers)]
    return float(of(numbers)) if numbers.size else np.nan

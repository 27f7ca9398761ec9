"""Planning as inference: which settings x teach most about the named unknowns of a problem.

    x* = argmax_x  information that data at x are expected to give about `names`,

the other unknowns being nuisances, averaged over what is known so far (`Particles`). Measures are

    "D"    growth of the log determinant of the expected precision, in nats (D_s-optimal)
    "A"    shrinking of their mean variance, each relative to what is wanted (A_s-optimal)
    "pce"  a lower bound of the expected information gain, with no Gaussian approximation

D and A are local: right where the posterior is nearly Gaussian about each draw; quick, and for data
of any size. "pce" sees far modes as well, and is bounded by the logarithm of the number of draws.
(Chaloner & Verdinelli 1995, Stat. Sci. 10, 273; Foster et al. 2020.)
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.active.acquire.search import Box, maximise
from micjax.active.design.eig import expected_information
from micjax.active.design.fisher import (
    Learnable,
    a_gain,
    d_gain,
    data_information,
    judged,
    places,
    prior_information,
    slopes,
)
from micjax.active.design.particles import Particles
from micjax.core.precision import double
from micjax.core.problem import InverseProblem, Values
from micjax.inference.errors.smc import systematic

MEASURES = ("D", "A", "pce")
CONTRAST = 8  # draws with which "pce" compares each simulated datum, per simulated datum
TOGETHER = 16  # designs side by side, which bounds the memory

Names = Sequence[str] | Mapping[str, float] | None


class DesignPlan(NamedTuple):
    """What to measure next, and what it is expected to teach."""

    x: Array  # [count, ...]
    gain: float  # nats, of all rows together
    ceiling: float  # above which the measure cannot see; infinite for "D" and "A"


class Outlook(NamedTuple):
    """What a measure looks at: draws of what is known, and how precise it is at each of them."""

    draws: Values  # {name: [draws, ...]}
    known: Float[Array, "draws d d"]
    combinations: Float[Array, "draws k d"] | None  # of theta, whose mean variance "A" looks at
    key: Array  # held, so that designs are compared on the same simulated data


@double
def plan(
    key: Array,
    problem: InverseProblem,
    particles: Particles,
    space: Box | Array | np.ndarray,
    count: int = 1,
    names: Names = None,
    *,
    measure: str = "D",
    draws: int = 64,
    samples: int = 128,
    starts: int = 4,
    steps: int = 10,
) -> DesignPlan:
    """The `count` settings that together teach most about the named unknowns.

    In a box: a coarse screen, then the best of it climb by gradient. From a list: one after the
    other, each the best beside those already chosen, then exchanges while they help (Fedorov 1972).
    Plan, measure, `update`, and plan again for an adaptive experiment; nothing is compiled anew.

    **Arguments:**

    - `space`: a `Box` of the settings of one row of x (its axes in the row's order; axes of whole
        numbers are allowed), or a list of candidates `[n, ...]`; one may be chosen more than once.
    - `names`: what one wants to know, all unknowns if not given. For "A" it may be a dict with the
        standard deviations that are wanted, `{name: sd}` in physical units; without them each
        counts relative to what is known so far.
    - `measure`: "D", "A" or "pce".
    - `draws`: of the particles, over which "D" and "A" average; "pce" simulates data from so many.
    - `samples`: designs of the coarse screen; `starts` of them climb, `steps` steps.

    **Raises:** `ValueError` for a name that is no unknown, a measure that does not exist, a space
    that does not fit, or when no design has a finite gain.
    """
    score = _score(problem, particles, names, measure, draws, count)
    outlook = _outlook(key, problem, particles, draws, measure, _wanted_sd(names))
    listed = not isinstance(space, Box)
    if listed:
        pool = jnp.asarray(space)
        if pool.shape[1:] != particles.x.shape[1:] or not len(pool):
            raise ValueError(f"candidates {pool.shape}: needed are [n, *{particles.x.shape[1:]}]")
    else:
        if space.lower.size != particles.x[0].size:
            raise ValueError(
                f"a box of {space.lower.size} axes; one row of x has {particles.x[0].size} numbers"
            )
        pool = _screen(space, particles, samples if count > 1 else 1)
    x, gain = None, -np.inf
    if listed or count > 1:
        x, gain = _listed(score, problem, outlook, pool, count, 2 if listed else 0)
    if not listed:
        # near the greedy choice too: a joint design is too many numbers for a coarse screen alone
        together = Box(*(jnp.tile(a, count) for a in (space.lower, space.upper, space.whole)))
        near = None if x is None else x.reshape(1, -1)
        x, gain = maximise(
            score,
            together,
            jax.random.fold_in(key, 1),
            (problem, outlook),
            near,
            samples=samples,
            starts=min(starts, samples),
            steps=steps,
        )
        x = x.reshape(count, *particles.x.shape[1:])
    if not np.isfinite(gain):
        raise ValueError("no design has a finite gain: look at forward(x) at the ends of the space")
    return DesignPlan(x.astype(particles.x.dtype), float(gain), _ceiling(outlook, measure))


@double
def gains(
    key: Array,
    problem: InverseProblem,
    particles: Particles,
    candidates: Array | np.ndarray,
    names: Names = None,
    *,
    measure: str = "D",
    draws: int = 64,
) -> Float[Array, "n"]:
    """What each of the `candidates` `[n, ...]` would teach if it were measured alone, in nats."""
    score = _score(problem, particles, names, measure, draws, 1)
    outlook = _outlook(key, problem, particles, draws, measure, _wanted_sd(names))
    return eqx.filter_jit(score)(candidates.reshape(len(candidates), -1), problem, outlook)


class Limits(NamedTuple):
    """How well each unknown can be known with settings from some space.

    `identified` is False for what `Learnable` does not call so even after the design made for it
    alone; `flat_directions` are what the best design for all leaves open.
    """

    identified: dict[str, bool]
    relative_sd: dict[str, Float[np.ndarray, "..."]]  # to the prior's, in unconstrained coordinates
    sd: dict[str, Float[np.ndarray, "..."]]  # of the physical values, about the mean of the draws
    x: dict[str, Array]  # the design made for each, [count, ...]
    flat_directions: list[dict[str, float]]

    def __str__(self) -> str:
        lines = [
            f"{n}: at best {float(np.max(self.relative_sd[n])):.2g} of the prior's width"
            + ("" if ok else ", not identifiable with these settings")
            for n, ok in self.identified.items()
        ]
        for direction in self.flat_directions:
            parts = ", ".join(f"{n} {part:.2f}" for n, part in direction.items())
            lines.append(f"left open by the best design for all: {parts}")
        return "\n".join(lines)


def limits(
    key: Array,
    problem: InverseProblem,
    particles: Particles,
    space: Box | Array | np.ndarray,
    count: int = 1,
    **options,
) -> Limits:
    """What cannot be learnt with `count` more measurements from `space`, whichever they are.

    A design is made for each unknown alone ("A"), and one for all together ("D"); expected
    precisions, to first order about the draws. `options` and the errors are those of `plan`.
    """
    designs = {}
    for i, name in enumerate(problem.unknowns()):
        alone = plan(
            jax.random.fold_in(key, i),
            problem,
            particles,
            space,
            count,
            [name],
            measure="A",
            **options,
        ).x
        designs[name] = alone, expected(key, problem, particles, alone)
    together = plan(key, problem, particles, space, count, measure="D", **options).x
    return Limits(
        {n: best.identified[n] for n, (_, best) in designs.items()},
        {n: best.relative_sd[n] for n, (_, best) in designs.items()},
        {n: best.sd[n] for n, (_, best) in designs.items()},
        {n: x for n, (x, _) in designs.items()},
        expected(key, problem, particles, together).flat_directions,
    )


@double
def expected(
    key: Array, problem: InverseProblem, particles: Particles, x, *, draws: int = 64
) -> Learnable:
    """What data at `x` on top of those that there are would teach, averaged over the particles."""
    outlook = _outlook(key, problem, particles, draws, "D")
    prior = np.asarray(prior_information(problem))
    data = np.asarray(_mean_information(problem, outlook, x)) - prior
    mean = particles.mean(problem)
    return judged(problem.at(mean), data, prior)


@eqx.filter_jit
def _mean_information(problem: InverseProblem, outlook: Outlook, x) -> Float[Array, "d d"]:
    new = jax.vmap(lambda v: data_information(problem.at(v), x))(outlook.draws)
    return jnp.mean(outlook.known + new, axis=0)


# --- the measures -------------------------------------------------------------------------------


def _score(problem, particles: Particles, names, measure: str, draws: int, count: int):
    if measure not in MEASURES:
        raise ValueError(f"measure {measure!r}; there are {MEASURES}")
    names = None if names is None else tuple(names)
    wanted = tuple(places(problem, names))
    shape = (count, *particles.x.shape[1:])
    return _compiled(wanted, names, measure, draws, shape, str(particles.x.dtype))


@functools.cache  # one object for one kind of plan, so that plans share their compilation
def _compiled(wanted, names, measure: str, draws: int, shape: tuple[int, ...], dtype: str):
    """The gain of designs [m, numbers], of which rows may be left out."""

    def local(x, problem, outlook, rows):
        def at(values, known, combinations):
            after = known + data_information(problem.at(values), x, rows)
            if measure == "D":
                return d_gain(after, known, wanted)
            return a_gain(after, known, wanted, combinations)

        return jnp.mean(jax.vmap(at)(outlook.draws, outlook.known, outlook.combinations))

    def contrastive(x, problem, outlook, rows):
        return expected_information(
            outlook.key,
            problem,
            outlook.draws,
            x,
            names,
            row_weights=rows,
            outer=draws,
            inner=draws,
        ).lower

    def score(points, problem, outlook, rows=None):
        rows = jnp.ones(shape[0]) if rows is None else rows
        gain = contrastive if measure == "pce" else local
        return jax.lax.map(
            lambda point: gain(point.reshape(shape).astype(dtype), problem, outlook, rows),
            points,
            batch_size=TOGETHER,
        )

    return score


@eqx.filter_jit
def _outlook(
    key,
    problem: InverseProblem,
    particles: Particles,
    draws: int,
    measure: str,
    wanted_sd: dict[str, Array] | None = None,
) -> Outlook:
    chosen_key, key = jax.random.split(key)
    # all simulated data are compared with all draws, so it takes more of them
    count = min(CONTRAST * draws, len(particles.log_weights)) if measure == "pce" else draws
    some = systematic(chosen_key, particles.log_weights, count)
    theta = {n: t[some] for n, t in particles.theta.items()}
    values = jax.vmap(problem.constrain)(theta)
    size = sum(t[0].size for t in theta.values())
    known = jnp.zeros((0, size, size))
    if measure != "pce":
        past = jax.vmap(lambda v: data_information(problem.at(v), particles.x, particles.present))(
            values
        )
        known = prior_information(problem) + past
    combinations = None
    if wanted_sd is not None:
        # physical values to first order, in units of what is wanted
        slope = jax.vmap(lambda v: slopes(problem.at(v)))(values)
        combinations = jnp.concatenate(
            [slope[n].reshape(count, -1, size) / sd for n, sd in wanted_sd.items()], axis=1
        )
    return Outlook(values, known, combinations, key)


def _wanted_sd(names: Names) -> dict[str, Array] | None:
    if not isinstance(names, Mapping):
        return None
    if wrong := {n: sd for n, sd in names.items() if not sd > 0}:
        raise ValueError(f"standard deviations that are wanted must be positive: {wrong}")
    return {n: jnp.asarray(sd, dtype=float) for n, sd in names.items()}


def _ceiling(outlook: Outlook, measure: str) -> float:
    return np.log(len(next(iter(outlook.draws.values())))) if measure == "pce" else np.inf


# --- the search ---------------------------------------------------------------------------------


def _screen(space: Box, particles: Particles, samples: int) -> Array:
    """Rows of x spread evenly over the box."""
    d = space.lower.size
    # additive recurrence of the generalised golden ratio, which fills a box evenly (Roberts 2018)
    golden = 2.0
    for _ in range(60):
        golden = (1 + golden) ** (1 / (d + 1))
    u = (0.5 + np.outer(np.arange(1, samples + 1), golden ** -np.arange(1.0, d + 1))) % 1.0
    rows = space.uniform(jnp.asarray(u)).reshape(samples, *particles.x.shape[1:])
    return rows.astype(particles.x.dtype)


def _listed(score, problem, outlook, pool: Array, count: int, exchanges: int):
    """Greedy choice of `count` rows from the pool, then exchanges of one row at a time."""
    compiled = eqx.filter_jit(score)
    x, gain = jnp.repeat(pool[:1], count, axis=0), -np.inf

    def best(i, rows):
        tried = jnp.repeat(x[None], len(pool), axis=0).at[:, i].set(pool)
        values = compiled(tried.reshape(len(pool), -1), problem, outlook, rows)
        values = np.where(np.isnan(values), -np.inf, values)
        return tried[np.argmax(values)], values.max()

    for i in range(count):
        x, gain = best(i, jnp.where(jnp.arange(count) <= i, 1.0, 0.0))
    for i in [*range(count)] * exchanges if count > 1 else []:
        tried, value = best(i, jnp.ones(count))
        if value > gain:
            x, gain = tried, value
    return x, gain

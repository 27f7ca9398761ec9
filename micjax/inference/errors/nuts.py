"""Sampling: NUTS on the objective itself, and the same density as a NumPyro model."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jaxtyping import Array, ArrayLike, Float
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer.hmc import hmc

from micjax.core import progress as reporting
from micjax.core.precision import in_float64
from micjax.core.problem import InverseProblem, Theta, Values, check_data
from micjax.core.progress import until_interrupted
from micjax.inference.errors.density import potential
from micjax.inference.finite import NonFiniteError, non_finite
from micjax.inference.starts.draw import stacked_starts

CHUNK = 50  # transitions in one compiled call: the grain of progress and of Ctrl-C


def draw(problem: InverseProblem) -> InverseProblem:
    """Inside a NumPyro model: every unknown becomes a sample site of its own name."""
    return problem.at({n: numpyro.sample(n, p) for n, p in problem.unknowns().items()})


def model(problem: InverseProblem, x, y=None) -> None:
    """The NumPyro model of `problem`; its density is `neg_log_joint` with the sign turned."""
    at = draw(problem)
    numpyro.sample("y", at.noise(at.forward(x)), obs=y)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """Draws of the unknowns, `{name: [chains, samples, ...]}` in physical values."""

    draws: dict[str, Float[np.ndarray, "..."]]
    divergences: int = 0
    losses: Float[np.ndarray, "steps"] | None = None  # of `svi`: minus the evidence bound, nats

    def flat(self) -> dict[str, np.ndarray]:
        """The draws of all chains in one row, `[chains * samples, ...]`."""
        return {n: d.reshape(-1, *d.shape[2:]) for n, d in self.draws.items()}

    def mean(self) -> dict[str, np.ndarray]:
        return {n: np.asarray(d.mean(axis=0)) for n, d in self.flat().items()}

    def sd(self) -> dict[str, np.ndarray]:
        return {n: np.asarray(d.std(axis=0)) for n, d in self.flat().items()}

    def quantiles(self, q: float | Sequence[float]) -> dict[str, np.ndarray]:
        """The quantiles `q` of each unknown, with the axis of `q` (if it has one) in front."""
        return {n: np.asarray(np.quantile(d, q, axis=0)) for n, d in self.flat().items()}

    def r_hat(self) -> dict[str, np.ndarray]:
        """Split Gelman-Rubin statistic; 1 when the chains agree, above 1.01 they do not yet; NaN of
        fewer than four draws."""
        if next(iter(self.draws.values())).shape[1] < 4:
            return {n: np.full(d.shape[2:], np.nan) for n, d in self.draws.items()}
        with np.errstate(divide="ignore", invalid="ignore"):  # an unknown that never moved: NaN
            return {n: np.asarray(split_gelman_rubin(d)) for n, d in self.draws.items()}

    def ess(self) -> dict[str, np.ndarray]:
        """Effective number of independent draws."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return {n: np.asarray(effective_sample_size(d)) for n, d in self.draws.items()}

    def summary(self) -> list[dict[str, Any]]:
        """A table row for each scalar: name, mean, sd, 5 %, 50 % and 95 % quantile, r_hat, ess."""
        columns = {"mean": self.mean(), "sd": self.sd()}
        columns |= {f"{p} %": self.quantiles(p / 100) for p in (5, 50, 95)}
        columns |= {"r_hat": self.r_hat(), "ess": self.ess()}
        return [
            {"name": _element(name, index)} | {c: float(t[name][index]) for c, t in columns.items()}
            for name, d in self.draws.items()
            for index in np.ndindex(d.shape[2:])
        ]


def _element(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{','.join(map(str, index))}]" if index else name


def nuts(
    problem: InverseProblem,
    x,
    y,
    key: Array,
    *,
    samples: int = 500,
    warmup: int = 500,
    chains: int = 1,
    starts: Sequence[Mapping[str, ArrayLike]] | None = None,
    target_accept: float = 0.8,
    max_tree_depth: int = 10,
    progress: bool = True,
) -> Posterior:
    """Draw from the posterior by the No-U-Turn sampler, in float64.

    Compiled once for each set of shapes and settings; `chains` run side by side. Ctrl-C returns
    the draws so far.

    **Arguments:**

    - `starts`: a dict of values for each chain, missing names at their current value; None starts
        all chains at the current values of `problem`. To see whether chains agree, spread them.

    **Returns:** a `Posterior` with draws `[chains, samples, ...]`.

    **Raises:** `ValueError` when a start has another number, name or shape than it should;
    `NonFiniteError` when the density is not finite there; `KeyboardInterrupt` during warm-up,
    when there are no draws.
    """
    with jax.enable_x64(True):
        problem, x, y = in_float64((problem, x, y))
        check_data(problem, x, y)
        theta = _starts(problem, starts, chains)
        settings = (warmup, target_accept, max_tree_depth)
        state = _begin(theta, jax.random.split(key, chains), problem, x, y, *settings)
        if bad := np.flatnonzero(~np.isfinite(state.potential_energy)).tolist():
            faults = non_finite({n: t[bad[0]] for n, t in theta.items()}, problem, x, y)
            raise NonFiniteError(
                f"the density is not finite at the start of chains {bad}: {faults}"
            )
        done, total, got = 0, warmup + samples, []  # got: (draws, divergences) of each chunk
        show = reporting.progress("nuts", total) if progress else _silence()
        with until_interrupted() as interruption:
            with show as show:
                while done < total:
                    # a chunk ends with the warm-up, so that it holds draws of one kind only
                    count = min(CHUNK, (warmup if done < warmup else total) - done)
                    state, z, diverging = _advance(
                        state, jnp.asarray(count), problem, x, y, *settings
                    )
                    if done >= warmup:
                        draws = jax.device_get(_constrain(problem, z))
                        draws = {n: d[:, :count] for n, d in draws.items()}
                        got.append((draws, int(np.asarray(diverging)[:, :count].sum())))
                    done += count
                    text = f"{sum(d for _, d in got)} divergences" if got else "warm-up"
                    show(done, text)
        if interruption.happened and not got:
            raise KeyboardInterrupt
    draws = {n: np.concatenate([new[n] for new, _ in got], axis=1) for n in got[0][0]}
    return Posterior(draws, sum(d for _, d in got))


def _starts(problem: InverseProblem, starts, chains: int) -> Theta:
    starts = [{}] * chains if starts is None else starts
    if len(starts) != chains:
        raise ValueError(f"{len(starts)} starts for {chains} chains")
    return stacked_starts(problem, starts)


def _kernel(theta, key, problem, x, y, warmup, target_accept, max_tree_depth):
    """The first state of a chain, and the transition that belongs to it."""
    begin, transition = hmc(partial(potential, problem=problem, x=x, y=y), algo="NUTS")
    state = begin(
        theta,
        num_warmup=warmup,
        target_accept_prob=target_accept,
        max_tree_depth=max_tree_depth,
        rng_key=key,
    )
    return state, transition


@eqx.filter_jit
def _begin(theta, keys, problem, x, y, *settings):
    return jax.vmap(lambda t, k: _kernel(t, k, problem, x, y, *settings)[0])(theta, keys)


@eqx.filter_jit
def _advance(state, count: Array, problem, x, y, *settings):
    """`count` <= CHUNK transitions -> the state, the points `[chains, CHUNK, ...]`, divergences."""

    def transition(state):
        # numpyro's transition learns its settings from `begin`, whose state is dropped here
        return _kernel(state.z, state.rng_key, problem, x, y, *settings)[1](state)

    def body(i, loop):
        state, z, diverging = loop
        state = jax.vmap(transition)(state)
        z = jax.tree.map(lambda all, new: all.at[:, i].set(new), z, state.z)
        return state, z, diverging.at[:, i].set(state.diverging)

    def empty(a):
        return jnp.zeros((a.shape[0], CHUNK, *a.shape[1:]), a.dtype)

    start = (state, jax.tree.map(empty, state.z), empty(state.diverging))
    return jax.lax.fori_loop(0, count, body, start)


@eqx.filter_jit
def _constrain(problem: InverseProblem, z: Theta) -> Values:
    return jax.vmap(jax.vmap(problem.constrain))(z)


@contextlib.contextmanager
def _silence():
    yield lambda done, text: None

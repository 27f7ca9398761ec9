"""The one loop of every solver: compiled chunks of steps that keep the best point.

A solver is two pure functions, `init(objective, theta) -> state` and `step(objective, theta, state)
-> Step`. The loop owns what all of them share: the best point, runs that are not finite, several
starts side by side, and where a checkpoint goes on.
"""

import abc
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from micjax.core.problem import InverseProblem, Theta, neg_log_joint

RUNNING, CONVERGED, NON_FINITE, STALLED = range(4)


class Objective(eqx.Module):
    """-log p(y, values) as a function of the unconstrained coordinates."""

    problem: InverseProblem
    x: Any
    y: Any

    def __call__(self, theta: Theta) -> Float[Array, ""]:
        return neg_log_joint(theta, self.problem, self.x, self.y)


class Step(NamedTuple):
    """What one step evaluated, and where the next one is."""

    loss: Float[Array, ""]  # NaN: nothing was evaluated
    at: Theta  # where
    theta: Theta  # where the next evaluation is
    state: PyTree
    status: Int[Array, ""]


class Solver(eqx.Module):
    """A way down. `init` and `step` are traced: they run inside `jit` and `vmap`."""

    # whether a step leads to a point that only the next one evaluates, and which may be the best;
    # where none does, an evaluation a chunk is saved
    goes_first: ClassVar[bool] = True

    @abc.abstractmethod
    def init(self, objective: Objective, theta: Theta) -> PyTree:
        """The state before the first step."""

    @abc.abstractmethod
    def step(self, objective: Objective, theta: Theta, state: PyTree) -> Step:
        """One evaluation, at `theta`."""

    def offset(self, objective: Objective) -> float:
        """What has to be added to the losses of the steps."""
        return 0.0


class Carry(NamedTuple):
    """Where a fit is: all that a checkpoint holds."""

    theta: Theta  # where the next evaluation is; of a non-finite run: where it went wrong
    state: PyTree  # of the solver
    best_theta: Theta
    best_loss: Float[Array, "..."]
    status: Int[Array, "..."]

    def running(self) -> bool:
        return bool(np.any(np.asarray(self.status) == RUNNING))


@eqx.filter_jit
def begin(solver: Solver, objective: Objective, theta: Theta, many: bool) -> Carry:
    """Before the first step. With `many`, `theta` has a leading axis of starts."""

    def single(theta):
        theta = {n: jnp.array(v, dtype=v.dtype) for n, v in theta.items()}  # never weakly typed
        dtype = jax.eval_shape(objective, theta).dtype
        state = solver.init(objective, theta)
        return Carry(
            theta, state, theta, jnp.asarray(jnp.inf, dtype), jnp.asarray(RUNNING, jnp.int32)
        )

    return (eqx.filter_vmap(single) if many else single)(theta)


def chunks(
    solver: Solver, objective: Objective, carry: Carry, steps: int, chunk: int, many: bool
) -> Iterator[tuple[Carry, np.ndarray]]:
    """At most `steps` more: the carry after each chunk, and the losses that were evaluated in it,
    `[steps of the chunk]` or `[steps of the chunk, starts]`."""
    while steps > 0 and carry.running():
        limit = jnp.asarray(min(chunk, steps))
        carry, count, losses = _advance(solver, objective, carry, limit, chunk, many)
        count = int(count)
        steps -= count
        yield carry, np.asarray(losses)[:count]


@eqx.filter_jit
def _advance(solver, objective, carry: Carry, limit: Array, chunk: int, many: bool):
    """`limit` <= `chunk` steps -> the carry, how many were made, and their losses."""

    def step(carry):
        return _step(solver, objective, carry)

    def look(carry):
        return _look(objective, carry)

    if many:
        step, look = eqx.filter_vmap(step), eqx.filter_vmap(look)
    arrays, rest = eqx.partition(carry, eqx.is_array)  # optimistix keeps functions in its state

    def going(loop):
        i, arrays, _ = loop
        return (i < limit) & jnp.any(arrays.status == RUNNING)

    def body(loop):
        i, arrays, losses = loop
        carry, loss = step(eqx.combine(arrays, rest))
        return i + 1, eqx.filter(carry, eqx.is_array), losses.at[i].set(loss)

    losses = jnp.full((chunk, *carry.status.shape), jnp.nan, carry.best_loss.dtype)
    i, arrays, losses = jax.lax.while_loop(going, body, (jnp.zeros_like(limit), arrays, losses))
    carry = eqx.combine(arrays, rest)
    # only some solvers leave the last point they went to without having evaluated it
    return (look(carry) if solver.goes_first else carry), i, losses


def _step(solver: Solver, objective: Objective, carry: Carry):
    """One step -> the carry after it and the loss that was evaluated (NaN if none was)."""
    loss, at, theta, state, status = solver.step(objective, carry.theta, carry.state)
    running = carry.status == RUNNING
    moved = running & (status != NON_FINITE)
    better = moved & (loss < carry.best_loss)
    return Carry(
        where(moved, theta, carry.theta),
        where(moved, state, carry.state),
        where(better, at, carry.best_theta),
        jnp.where(better, loss, carry.best_loss),
        jnp.where(running, status, carry.status),
    ), jnp.where(running, loss, jnp.nan)


def _look(objective: Objective, carry: Carry) -> Carry:
    """The point the last step led to may be the best one: evaluate it too."""
    loss = objective(carry.theta)
    better = (carry.status != NON_FINITE) & (loss < carry.best_loss)  # False for NaN
    better = better & jnp.isfinite(loss)
    return carry._replace(
        best_theta=where(better, carry.theta, carry.best_theta),
        best_loss=jnp.where(better, loss, carry.best_loss),
    )


def where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """`new` where the condition holds, leaf by leaf; what is no array is taken from `new`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, new, old)


def all_of(predicate, tree: PyTree) -> Bool[Array, ""]:
    """Whether `predicate` holds for every floating number of the tree."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return jnp.all(jnp.stack([jnp.asarray(True), *(jnp.all(predicate(a)) for a in leaves)]))

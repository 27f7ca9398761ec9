"""Maximum a posteriori: minimise `neg_log_joint` with optax or optimistix, in compiled chunks."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from micjax.core.problem import InverseProblem, Theta, Values, neg_log_joint
from micjax.core.progress import progress
from micjax.inference.checkpoint import load_checkpoint, save_checkpoint
from micjax.inference.finite import NonFiniteError, non_finite
from micjax.inference.start import stacked_starts

log = logging.getLogger("micjax")

Solver = optax.GradientTransformation | optimistix.AbstractMinimiser
RUNNING, CONVERGED, NON_FINITE, FAILED = range(4)
_ADAM = optax.adam(2e-2)  # one object, so that fits with the default solver share a compilation


@dataclasses.dataclass(frozen=True)
class Fit:
    """What `fit` found: the problem at the best values, and how it came there."""

    problem: InverseProblem
    loss: float  # nats, -log p(y, values)
    losses: Float[np.ndarray, "steps"] | Float[np.ndarray, "starts steps"]  # NaN: not evaluated
    steps: int
    stop_reason: str  # "steps" "tolerance" "converged" "interrupted" "non-finite: ..." "solver ..."
    starts_losses: Float[np.ndarray, "starts"]  # the best loss of each start
    starts_values: list[Values]  # and its values


class _Carry(NamedTuple):
    theta: Theta  # where the next evaluation is; of a non-finite run: where it went wrong
    state: PyTree  # of the solver
    best_theta: Theta
    best_loss: Float[Array, "..."]
    status: Int[Array, "..."]


def fit(
    problem: InverseProblem,
    x,
    y,
    solver: Solver | None = None,
    *,
    steps: int = 1000,
    chunk: int = 100,
    tolerance: float = 0.0,
    patience: int | None = None,
    starts: Sequence[Mapping[str, ArrayLike]] | None = None,
    checkpoint=None,
    resume: bool = False,
    on_chunk: Callable[[int, float, Values], Any] | None = None,
) -> Fit:
    """The maximum a posteriori, from the current values of `problem`.

    The loop is compiled once for each solver object and each set of shapes, and runs `chunk` steps
    at a time. Ctrl-C takes effect at the end of a chunk and returns the best so far.

    **Arguments:**

    - `solver`: an optax transformation (default `adam(2e-2)`) or an optimistix minimiser. Keep the
        object to fit again without compiling again.
    - `steps`: how many at most. `chunk`: how many in one compiled call.
    - `tolerance`, `patience`: stop when the best loss fell by less than `tolerance` (nats) in the
        last `patience` steps (default `chunk`); looked at after each chunk. 0 never stops.
    - `starts`: `[{name: value}, ...]`, all fitted at once and the best one returned; names left
        out have their current value. See `draw_starts`.
    - `checkpoint`: an HDF5 file, written after every chunk. With `resume` the fit goes on from it
        if it is there.
    - `on_chunk`: called as `on_chunk(steps_done, best_loss, best_values)`.

    **Returns:** a `Fit`.

    **Raises:** `NonFiniteError` when not even the first evaluation is finite; `ValueError` for
    unknown names in `starts` or for the checkpoint of another fit.
    """
    solver = _ADAM if solver is None else solver
    many = starts is not None
    theta = stacked_starts(problem, starts) if many else problem.unconstrain(problem.values())
    carry = _begin(theta, solver, problem, x, y, many)
    history = [np.empty((0, len(starts)) if many else (0,))]
    if checkpoint is not None and resume:
        carry, history = load_checkpoint(checkpoint, carry, history, solver)
    so_far, done, reason = (carry, history), sum(map(len, history)), "steps"

    try:
        with progress("fit", steps) as show:
            while done < steps and _any_running(so_far[0]):
                limit = jnp.asarray(min(chunk, steps - done))
                carry, count, losses = _advance(
                    so_far[0], solver, problem, x, y, limit, chunk, many
                )
                losses = np.asarray(losses)[: int(count)]
                so_far = carry, so_far[1] + [losses]  # in one go: Ctrl-C comes between lines
                done += len(losses)
                best = float(np.min(carry.best_loss))
                show(done, f"loss {best:.6g}")
                if checkpoint is not None:
                    save_checkpoint(checkpoint, *so_far, solver)
                if on_chunk is not None:
                    on_chunk(done, best, _values(problem, carry, many)[_winner(carry)])
                if _settled(so_far[1], tolerance, patience or chunk):
                    reason = "tolerance"
                    break
    except KeyboardInterrupt:
        reason = "interrupted"

    carry, history = so_far
    return _result(problem, x, y, carry, np.concatenate(history), reason, many)


# --- the compiled part -------------------------------------------------------------------------


@eqx.filter_jit
def _begin(theta: Theta, solver, problem, x, y, many: bool) -> _Carry:
    def begin(theta):
        theta = {n: jnp.array(v, dtype=v.dtype) for n, v in theta.items()}  # never weakly typed
        if isinstance(solver, optimistix.AbstractMinimiser):
            fn = partial(_with_point, problem=problem, x=x, y=y)
            out, aux = jax.eval_shape(fn, theta, None)
            state = solver.init(fn, theta, None, {}, out, aux, frozenset())
        else:
            out, state = jax.eval_shape(neg_log_joint, theta, problem, x, y), solver.init(theta)
        return _Carry(theta, state, theta, jnp.asarray(jnp.inf, out.dtype), jnp.asarray(RUNNING))

    return (eqx.filter_vmap(begin) if many else begin)(theta)


@eqx.filter_jit
def _advance(carry: _Carry, solver, problem, x, y, limit: Array, chunk: int, many: bool):
    """`limit` <= `chunk` steps -> the carry, how many were made, and their losses."""
    step, look = (partial(f, solver, problem, x, y) for f in (_step, _look))
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
    return look(eqx.combine(arrays, rest)), i, losses


def _step(solver, problem, x, y, carry: _Carry):
    """One step -> the carry after it and the loss that was evaluated (NaN if none was)."""
    make = _optimistix if isinstance(solver, optimistix.AbstractMinimiser) else _optax
    loss, at, theta, state, status = make(solver, problem, x, y, carry)
    running = carry.status == RUNNING
    better = running & (status != NON_FINITE) & (loss < carry.best_loss)
    moved = running & (status != NON_FINITE)
    return _Carry(
        _where(moved, theta, carry.theta),
        _where(moved, state, carry.state),
        _where(better, at, carry.best_theta),
        jnp.where(better, loss, carry.best_loss),
        jnp.where(running, status, carry.status),
    ), jnp.where(running, loss, jnp.nan)


def _optax(solver, problem, x, y, carry: _Carry):
    def objective(theta):
        return neg_log_joint(theta, problem, x, y)

    if _keeps_value_and_gradient(carry.state):
        loss, gradient = optax.value_and_grad_from_state(objective)(carry.theta, state=carry.state)
    else:
        loss, gradient = jax.value_and_grad(objective)(carry.theta)
    updates, state = optax.with_extra_args_support(solver).update(
        gradient, carry.state, carry.theta, value=loss, grad=gradient, value_fn=objective
    )
    finite = jnp.isfinite(loss) & _all(jnp.isfinite, gradient)
    status = jnp.where(finite, RUNNING, NON_FINITE)
    return loss, carry.theta, optax.apply_updates(carry.theta, updates), state, status


def _keeps_value_and_gradient(state) -> bool:
    """Line searches have evaluated the next point already."""
    found = [optax.tree.get_all_with_path(state, key) for key in ("value", "grad")]
    return all(len(pairs) == 1 and pairs[0][1] is not None for pairs in found)


def _optimistix(solver, problem, x, y, carry: _Carry):
    fn = partial(_with_point, problem=problem, x=x, y=y)
    theta, state, (loss, at, seen) = solver.step(
        fn, carry.theta, None, {}, carry.state, frozenset()
    )
    done, result = solver.terminate(fn, theta, None, {}, state, frozenset())
    finite = ~seen | (jnp.isfinite(loss) & _all(lambda a: ~jnp.isnan(a), state))
    status = jnp.where(done, CONVERGED, RUNNING)
    status = jnp.where(result == optimistix.RESULTS.successful, status, FAILED)
    return jnp.where(seen, loss, jnp.nan), at, theta, state, jnp.where(finite, status, NON_FINITE)


def _with_point(theta, args, *, problem, x, y):
    """The objective, and beside it the loss, where it was evaluated, and that it was: a solver
    begins with an `aux` of zeros and may hand that out before it has evaluated anything."""
    loss = neg_log_joint(theta, problem, x, y)
    return loss, (loss, theta, jnp.asarray(True))


def _look(solver, problem, x, y, carry: _Carry) -> _Carry:
    """The point the last step led to may be the best one: evaluate it too."""
    loss = neg_log_joint(carry.theta, problem, x, y)
    better = (carry.status != NON_FINITE) & (loss < carry.best_loss)  # False for NaN
    better = better & jnp.isfinite(loss)
    return carry._replace(
        best_theta=_where(better, carry.theta, carry.best_theta),
        best_loss=jnp.where(better, loss, carry.best_loss),
    )


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, new, old)


def _all(predicate, tree: PyTree) -> Bool[Array, ""]:
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    return jnp.all(jnp.stack([jnp.asarray(True), *(jnp.all(predicate(a)) for a in leaves)]))


# --- what came out -----------------------------------------------------------------------------


def _any_running(carry: _Carry) -> bool:
    return bool(np.any(np.asarray(carry.status) == RUNNING))


def _winner(carry: _Carry) -> int:
    return int(np.argmin(np.atleast_1d(np.asarray(carry.best_loss))))


def _settled(history: list[np.ndarray], tolerance: float, patience: int) -> bool:
    if tolerance <= 0:
        return False
    losses = np.concatenate(history)
    losses = np.fmin.reduce(losses, axis=1) if losses.ndim == 2 else losses
    best = np.fmin.accumulate(losses)
    return len(best) > patience and bool(best[-1 - patience] - best[-1] < tolerance)


def _values(problem: InverseProblem, carry: _Carry, many: bool) -> list[Values]:
    if not many:
        return [problem.constrain(carry.best_theta)]
    n = len(carry.best_loss)
    return [problem.constrain({k: v[i] for k, v in carry.best_theta.items()}) for i in range(n)]


def _result(problem, x, y, carry: _Carry, losses: np.ndarray, reason: str, many: bool) -> Fit:
    bests = np.atleast_1d(np.asarray(carry.best_loss, dtype=float))
    winner = _winner(carry)
    at = {n: v[winner] if many else v for n, v in carry.theta.items()}
    status = int(np.atleast_1d(np.asarray(carry.status))[winner])
    if losses.size and not np.isfinite(bests[winner]):
        what = non_finite(at, problem, x, y)
        raise NonFiniteError(f"the loss is not finite at the first evaluation: {what}")
    if status == NON_FINITE:
        reason = f"non-finite: {non_finite(at, problem, x, y)}"
    elif status != RUNNING:
        reason = {CONVERGED: "converged", FAILED: "solver cannot go on"}[status]
    values = _values(problem, carry, many)
    return Fit(
        problem=problem.at(values[winner]),
        loss=float(bests[winner]),
        losses=losses.T.astype(float),
        steps=len(losses),
        stop_reason=reason,
        starts_losses=bests,
        starts_values=values,
    )

"""Maximum a posteriori: stages of fits, from some starts each, by any solver, in one loop.

The loop owns progress, Ctrl-C, checkpoints and why a fit stopped. What it does is decided by the
stages, the key and the data alone, so that it goes on from a checkpoint as if it had never stopped.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from micjax.core.problem import InverseProblem, Theta, Values, check_data, neg_log_joint
from micjax.core.progress import progress, until_interrupted
from micjax.core.tree import array_of, named_leaves
from micjax.inference.checkpoint import (
    Candidate,
    Snapshot,
    StopReason,
    digest,
    load_snapshot,
    restored,
    save_snapshot,
)
from micjax.inference.finite import NonFiniteError, non_finite
from micjax.inference.solvers.driver import (
    CONVERGED,
    NON_FINITE,
    RUNNING,
    STALLED,
    Carry,
    Objective,
    begin,
    chunks,
)
from micjax.inference.solvers.first_order import Adam
from micjax.inference.stage import AnySolver, Arrays, Search, Stage, as_solver
from micjax.inference.starts.draw import stacked_starts, started


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a fit led to: the problem at the best values, and how it came there."""

    problem: InverseProblem
    loss: float  # nats, -log p(y, values)
    losses: Float[np.ndarray, "steps"] | Float[np.ndarray, "starts steps"]  # NaN: not evaluated
    steps: int  # of all stages
    stop_reason: StopReason
    starts_losses: Float[np.ndarray, "starts"]  # the best loss of each start of the last stage
    starts_values: list[Values]  # and its values
    begun: list[Values] = dataclasses.field(default_factory=list)  # where each of them began
    arrays: Arrays = dataclasses.field(default_factory=dict)  # of the searches
    fault: str = ""  # what was not finite, if that is why it stopped


def fit(
    problem: InverseProblem,
    x,
    y,
    solver: AnySolver | None = None,
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
    """The maximum a posteriori, from the current values of `problem`: one stage.

    The loop is compiled once for each kind of solver and each set of shapes, and runs `chunk` steps
    at a time. Ctrl-C takes effect at the end of a chunk and returns the best so far.

    **Arguments:**

    - `solver`: a `Solver` (default `Adam(2e-2)`), an optax transformation or an optimistix
        minimiser; keep the object of the latter two to fit again without compiling again.
    - `steps`, `chunk`, `tolerance`, `patience`: see `Stage`.
    - `starts`: `[{name: value}, ...]`, all fitted at once and the best one returned; names left
        out have their current value. See `draw_starts`.
    - `checkpoint`: an HDF5 file, written after every chunk. With `resume` the fit goes on from it
        if it is there.
    - `on_chunk`: called as `on_chunk(steps_done, best_loss, best_values)`.

    **Returns:** a `Fit`.

    **Raises:** `NonFiniteError` when not even the first evaluation is finite; `ValueError` for
    unknown names in `starts`, data of another shape than the prediction, no data, or for the
    checkpoint of another fit.
    """
    stage = Stage(
        Adam() if solver is None else solver,
        steps,
        chunk,
        starts=None if starts is None else lambda *_: starts,
        together=starts is not None,
        tolerance=tolerance,
        patience=patience,
    )
    return fit_stages(
        problem, x, y, [stage], checkpoint=checkpoint, resume=resume, on_chunk=on_chunk
    )


def fit_stages(
    problem: InverseProblem,
    x,
    y,
    stages: Sequence[Stage | Search],
    *,
    key: Array | None = None,
    checkpoint=None,
    resume: bool = False,
    on_chunk: Callable[[int, float, Values], Any] | None = None,
) -> Fit:
    """One stage after the other, each from the best of the one before.

    **Arguments:** as of `fit`; `key`: for what searches, and the `starts` of a stage, draw.

    **Returns:** a `Fit` with the starts of the last stage; its values are those of the best. If
    interrupted, the best of what the latest stage has come to.

    **Raises:** as `fit`.
    """
    check_data(problem, x, y)
    key = jax.random.key(0) if key is None else key
    state = Snapshot([Candidate(problem.values())])
    data = ""
    if checkpoint is not None:
        kinds = sorted((n, type(p).__name__) for n, p in problem.priors.items())
        data = digest((x, y, problem, key), str(kinds))
    if checkpoint is not None and resume:
        state = load_snapshot(checkpoint, state, data)
        if not 0 <= state.stage < len(stages):
            raise ValueError(
                f"{checkpoint} is the checkpoint of another fit: of stage {state.stage + 1}, "
                f"and there are {len(stages)}"
            )
        for stage in stages[: state.stage]:
            problem = stage.apply(problem, state.arrays) if isinstance(stage, Search) else problem

    def keep():
        if checkpoint is not None:
            save_snapshot(checkpoint, state, stages[state.stage], data)

    with until_interrupted() as interruption, progress("fit", 0) as show:
        while True:
            if isinstance(stage := stages[state.stage], Search):
                arrays = _searched(stage, problem, x, y, key, state, keep)
                # what was fitted before stays, unless the search has something else
                problem = stage.apply(problem.at(_best(state).values), arrays)
                state.searched(problem.values(), arrays)
                if state.stage == len(stages):
                    state.candidates = [_evaluated(problem, x, y)]
                    break
                keep()
                continue
            for best in _fits(stages, problem, x, y, key, state):
                part = f"stage {state.stage + 1} of {len(stages)}, " if len(stages) > 1 else ""
                show(state.steps, f"steps, {part}loss {best.loss:.6g}")
                keep()
                if on_chunk is not None:
                    on_chunk(state.steps, best.loss, best.values)
            if state.stage == len(stages) - 1:
                break
            state.next_stage()
    if state.broken_off:  # a search that has something already
        problem = stages[state.stage].apply(problem.at(_best(state).values), state.arrays)
        state.candidates = [_evaluated(problem, x, y)]
    return _result(problem, state, interruption.happened)


def _searched(
    stage: Search,
    problem: InverseProblem,
    x,
    y,
    key: Array,
    state: Snapshot,
    keep: Callable[[], None],
) -> Arrays:
    """The arrays of all searches so far, from the best values so far."""
    current = problem.at(_best(state).values)
    with progress(stage.title, 100) as show:

        def report(share: float, text: str) -> None:
            show(int(100 * share), text)

        if not stage.goes_on:
            arrays = stage.work(current, x, y, key, report)
            return state.arrays | {n: np.asarray(a) for n, a in arrays.items()}
        for arrays in stage.work(current, x, y, key, report, state.arrays):
            state.arrays = state.arrays | {n: np.asarray(a) for n, a in arrays.items()}
            state.broken_off = True
            keep()
    state.broken_off = False
    return state.arrays


def _best(state: Snapshot) -> Candidate:
    """Of the stage before."""
    return min(state.candidates, key=_loss)


def _evaluated(problem: InverseProblem, x, y) -> Candidate:
    """What a search has led to that no fit follows."""
    theta = problem.unconstrain(problem.values())
    return Candidate(problem.values(), float(eqx.filter_jit(neg_log_joint)(theta, problem, x, y)))


def _fits(
    stages: Sequence[Stage | Search], problem: InverseProblem, x, y, key: Array, state: Snapshot
) -> Iterator[Candidate]:
    """The fits of the stage that `state` is in; the best of them after each chunk."""
    stage, before = stages[state.stage], state.candidates
    if state.stage > 0:
        before = sorted(before, key=_loss)[: stages[state.stage - 1].keep]
    best = problem.at(before[0].values)
    staged = stage.of(best)
    starts: Sequence[Mapping[str, ArrayLike]] = [c.values for c in before]
    if stage.starts is not None:
        starts = stage.starts(staged, x, y, before, jax.random.fold_in(key, state.stage))
    if not starts:
        raise ValueError("starts is empty; leave it out to start from the current values")
    starts = [{n: v for n, v in start.items() if n not in stage.local} for start in starts]
    state.begun = [
        best.values() | {n: jnp.asarray(v, dtype=float) for n, v in start.items()}
        for start in starts
    ]
    solver, many = as_solver(stage.solver), stage.together
    rounds = 1 if many else len(starts)
    for i in range(state.rounds, rounds):
        if many:
            at, theta = staged, stacked_starts(staged, starts)
        else:
            at = started(staged, problem, i, starts[i])
            theta = at.unconstrain(at.values())
        objective = Objective(at, x, y)
        carry = restored(state, begin(solver, objective, theta, many), stage)
        steps_done = sum(map(len, state.losses))
        offset, left = solver.offset(objective), stage.steps - steps_done
        if not _settled(state.losses, stage):
            for reached, losses in chunks(solver, objective, carry, left, stage.chunk, many):
                state.advance(reached, losses + offset)
                state.underway = _candidates(problem, objective, state, offset, stage, ended=False)
                yield min(state.ended + state.underway, key=_loss)
                if _settled(state.losses, stage):
                    break
        state.underway = _candidates(problem, objective, state, offset, stage, ended=True)
        if i < rounds - 1:
            state.next_round()


def _loss(candidate: Candidate) -> float:
    return candidate.loss


def _settled(history: list[np.ndarray], stage: Stage) -> bool:
    if stage.tolerance <= 0 or not history:
        return False
    losses = np.concatenate(history)
    losses = np.fmin.reduce(losses, axis=1) if losses.ndim == 2 else losses
    best, patience = np.fmin.accumulate(losses), stage.patience or stage.chunk
    return len(best) > patience and bool(best[-1 - patience] - best[-1] < stage.tolerance)


def _candidates(
    problem: InverseProblem,
    objective: Objective,
    state: Snapshot,
    offset: float,
    stage: Stage,
    ended: bool,
) -> list[Candidate]:
    """Of each start of this round; when it has `ended`, also why."""
    many = stage.together
    carry: Carry = state.carry
    bests = np.atleast_1d(np.asarray(carry.best_loss, dtype=float)) + offset
    statuses = np.atleast_1d(np.asarray(carry.status))
    losses = np.concatenate(state.losses) if state.losses else np.empty((0, len(bests)))
    losses = losses.reshape(len(losses), len(bests))
    # what a stage holds has the value that it started with
    leaves = named_leaves(objective.problem)
    held = {n: array_of(leaves[n]) for n in problem.unknowns() if n in leaves}
    kept = {n: v for n, v in problem.values().items() if n in stage.local}
    values = jax.device_get(_constrained(objective.problem, carry.best_theta, many))
    ends = []
    for i, status in enumerate(statuses.tolist()):
        own = {n: jnp.asarray(v[i] if many else v) for n, v in values.items() if n in held}
        reason, fault = StopReason.STEPS, ""
        if ended:
            reason = _why(status, losses[:, i], stage, state)
        if reason is StopReason.NON_FINITE:
            at = {n: v[i] if many else v for n, v in carry.theta.items()}
            fault = non_finite(at, objective.problem, objective.x, objective.y)
        ends.append(Candidate(held | own | kept, float(bests[i]), reason, losses[:, i], fault))
    return ends


@eqx.filter_jit
def _constrained(problem: InverseProblem, theta: Theta, many: bool) -> Values:
    return (jax.vmap(problem.constrain) if many else problem.constrain)(theta)


def _why(status: int, losses: np.ndarray, stage: Stage, state: Snapshot) -> StopReason:
    if status != RUNNING:
        return {
            CONVERGED: StopReason.CONVERGED,
            STALLED: StopReason.STALLED,
            NON_FINITE: StopReason.NON_FINITE,
        }[status]
    evaluated = losses[np.isfinite(losses)]
    if len(evaluated) > 1 and np.min(evaluated) == evaluated[0]:
        return StopReason.STALLED  # the start would be handed back as a result
    return StopReason.TOLERANCE if _settled(state.losses, stage) else StopReason.STEPS


def _result(problem: InverseProblem, state: Snapshot, interrupted: bool) -> Fit:
    ends = state.ended + state.underway or state.candidates
    winner = min(ends, key=_loss)
    failed = all(end.reason is StopReason.NON_FINITE for end in ends)
    if failed and not np.isfinite(winner.loss):
        raise NonFiniteError(f"the loss is not finite at the first evaluation: {winner.fault}")
    longest = max(end.losses.size for end in ends)
    padded = [np.pad(e.losses, (0, longest - e.losses.size), constant_values=np.nan) for e in ends]
    return Fit(
        problem=problem.at(winner.values),
        loss=winner.loss,
        losses=np.array(padded) if state.many or len(ends) > 1 else padded[0],
        steps=state.steps,
        stop_reason=StopReason.INTERRUPTED if interrupted else winner.reason,
        starts_losses=np.array([end.loss for end in ends]),
        starts_values=[end.values for end in ends],
        begun=state.begun,
        arrays=state.arrays,
        fault=winner.fault,
    )

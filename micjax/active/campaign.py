"""The closed loop: suggest, move, measure, reduce to a number, learn; until there is enough.

Every suggestion is in the journal before the instrument moves, every record before the learner sees
it. The learner is a pure function of its seed and of what it was told, so a campaign that was
broken off is taken up by telling it all that the journal holds. What it suggests must be the same.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from micjax.core.progress import progress
from micjax.instruments import (
    Axis,
    BudgetError,
    Instrument,
    InstrumentError,
    Journal,
    JournalError,
    LimitError,
    MoveError,
    Record,
    Recorded,
)
from micjax.instruments.base import Over, check_over, layers, nearest

log = logging.getLogger("micjax")

ID = "_id"
TOO_MANY = 5  # points in a row that could not be measured

Reduce = Callable[[Record], float]


@runtime_checkable
class Policy(Protocol):
    """What says where to measure: a `Learner`, a `RandomPolicy`, a `Raster`."""

    def suggest(self, num_points: int | None = None) -> list[dict[str, Any]]: ...

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None: ...


class RandomPolicy:
    """Uniform points of the axes, decided by `seed` and how many there were before."""

    def __init__(self, axes: Mapping[str, Axis], seed: int = 0):
        self._axes, self._seed, self._count = dict(axes), seed, 0

    def suggest(self, num_points: int | None = None) -> list[dict[str, Any]]:
        return [self._point() for _ in range(num_points or 1)]

    def _point(self) -> dict[str, Any]:
        rng = np.random.default_rng([self._seed, self._count])
        self._count += 1
        point = {n: float(rng.uniform(a.lo, a.hi)) for n, a in self._axes.items()}
        return {ID: self._count - 1, **point}

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        pass


class Raster:
    """A grid over the axes, there and back: the last axis is the fast one.

    **Arguments:**

    - `counts`: points along each axis, by name.

    **Raises:** `ValueError` for no axes, one that does not exist, or fewer points than one.
    """

    def __init__(self, axes: Mapping[str, Axis], counts: Mapping[str, int]):
        if wrong := [n for n in counts if n not in axes]:
            raise ValueError(nearest("axis", wrong[0], axes))
        if not counts or min(counts.values()) < 1:
            raise ValueError(f"a raster of {dict(counts)} points is empty")
        lines = [np.linspace(axes[n].lo, axes[n].hi, count) for n, count in counts.items()]
        self._names, self._count = list(counts), 0
        shape = tuple(counts.values())
        order = np.arange(math.prod(shape)).reshape(-1, shape[-1])
        order[1::2] = order[1::2, ::-1]
        grid = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, len(shape))
        self._points = grid[order.ravel()]

    def suggest(self, num_points: int | None = None) -> list[dict[str, Any]]:
        """**Raises:** `ValueError` when the grid is done."""
        chosen = []
        for _ in range(num_points or 1):
            if self._count == len(self._points):
                raise ValueError(f"all {self._count} points of the raster were suggested")
            point = dict(zip(self._names, self._points[self._count].tolist(), strict=True))
            chosen.append({ID: self._count, **point})
            self._count += 1
        return chosen

    def should_stop(self) -> tuple[bool, str | None]:
        done = self._count == len(self._points)
        return done, "the raster is done" if done else None

    def ingest(self, points: Sequence[Mapping[str, Any]]) -> None:
        pass


class Campaign:
    """An instrument, a learner, and a journal between them.

    **Arguments:**

    - `instrument`: a `Guard` around yours, usually. Recorded measurements are made of it here.
    - `policy`: its axes are axes of the instrument, by the same names.
    - `mode`, `over`: what is measured at each point.
    - `reduce`: the number that the policy learns, of a record; NaN for a bad measurement.
    - `outcome`: what the policy calls it.
    - `journal`: if it holds steps, they are taken up first.

    **Raises:** `LimitError` for a mode that the instrument has not; `JournalError` where the policy
    now suggests other points than the journal has; `InDoubt` for a step that was begun, has no
    result and cannot be repeated.
    """

    def __init__(
        self,
        instrument: Instrument,
        policy: Policy,
        mode: str,
        reduce: Reduce,
        journal: Journal,
        *,
        outcome: str = "y",
        over: Over = None,
    ):
        check_over(instrument.axes, instrument.modes, mode, over)
        self.instrument = Recorded(instrument, journal)
        self.policy, self.journal, self.outcome = policy, journal, outcome
        self._mode, self._over, self._reduce = mode, over, reduce
        self.points: list[dict[str, Any]] = []  # all that were measured, with their outcomes
        self._failures = 0
        self._open: dict[str, Any] | None = None  # suggested, in the journal, not learnt
        self._record: Record | None = None  # of it, when `reduce` has failed on it
        self._take_up()

    def run(self, points: int | None = None) -> str:
        """Measures until the policy has enough, `points` are measured in all, or a budget is spent.

        **Returns:** why it ended.

        **Raises:** what the instrument raises, but for points that it cannot reach; everything
        measured is in the journal.
        """
        with progress("campaign", points or 0) as show:
            while True:
                stop, reason = getattr(self.policy, "should_stop", lambda: (False, None))()
                if stop and self._open is None:
                    return reason or "the policy has enough"
                if points is not None and len(self.points) >= points:
                    return f"{points} points are measured"
                try:
                    self._step()
                except BudgetError as error:
                    return str(error)
                show(len(self.points), f"{self.outcome} {self._last():.6g}")

    def _step(self) -> None:
        if self._open is None:
            (point,) = self.policy.suggest(1)
            for name in point.keys() - {ID}:
                if name not in self.instrument.axes:
                    raise LimitError(nearest("axis", name, self.instrument.axes))
            self.instrument.note("suggested", point=point)
            self._open = point
        point = self._open
        try:
            if self._record is None:
                self.instrument.move({n: v for n, v in point.items() if n != ID})
                self._record = self.instrument.acquire(self._mode, self._over)
        except (LimitError, MoveError) as error:
            self.instrument.note("unreachable", point=point, reason=str(error))
            self._failed(point, str(error))
            if self._failures >= TOO_MANY:
                raise InstrumentError(f"{TOO_MANY} points in a row were not measured") from error
            return
        self._measured(point, self._record)

    def _measured(self, point: dict[str, Any], record: Record) -> None:
        found = {**point, self.outcome: float(self._reduce(record))}
        self.policy.ingest([found])
        self.points.append(found)
        self._open, self._record, self._failures = None, None, 0

    def _failed(self, point: dict[str, Any], reason: str) -> None:
        log.warning("%s could not be measured: %s", point, reason)
        self._open, self._failures = None, self._failures + 1
        register = getattr(self.policy, "register_failures", None)
        if register is not None:
            register([point])

    def _last(self) -> float:
        return self.points[-1][self.outcome] if self.points else math.nan

    # --- what was before ---------------------------------------------------------------------

    def _take_up(self) -> None:
        """Tells the policy all that the journal holds, in its order."""
        steps = {step.index: step for step in self.journal.steps}
        for line in self.journal.lines:
            if line["kind"] == "suggested":
                self._open = self._suggested_again(line["point"])
            elif self._open is None and line["kind"] != "intent":
                index = line.get("index")
                raise JournalError(
                    f"{self.journal.path} holds step {index}, which no campaign suggested"
                )
            elif line["kind"] == "unreachable":
                self._failed(self._open, line["reason"])
            elif line["kind"] == "result" and "failed" not in line:
                self._measured(self._open, self.journal.record(steps[line["index"]]))
            elif line["kind"] == "result" and not line.get("again"):
                self._failed(self._open, line["failed"])  # somebody looked, and went on without
        self._failures = 0
        *_, inner = layers(self.instrument)
        if hasattr(inner, "count"):  # a twin goes on with its noise
            inner.count = len(self.points)

    def _suggested_again(self, before: dict[str, Any]) -> dict[str, Any]:
        (now,) = self.policy.suggest(1)
        if now != before:
            raise JournalError(
                f"{self.journal.path}: the campaign suggested {before} then and {now} now; policy, "
                "seed or version are not the same"
            )
        return now

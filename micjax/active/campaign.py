"""The closed loop: suggest, move, measure, reduce to a number, learn; until there is enough.

Every suggestion is in the journal before the instrument moves, every record before the learner sees
it. The learner is a pure function of its seed and of what it was told, so a campaign that was
broken off is taken up by telling it all that the journal holds. What it suggests must be the same.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from micjax.active.learner.signals import SD
from micjax.core.names import unknown_name
from micjax.core.plain import exact
from micjax.core.progress import progress
from micjax.instruments import (
    Aborted,
    Axis,
    BudgetError,
    Instrument,
    InstrumentError,
    Journal,
    JournalError,
    LimitError,
    MoveError,
    NotReady,
    Record,
    Recorded,
)
from micjax.instruments.arrival import check_standing
from micjax.instruments.base import Over, check_over, layers
from micjax.instruments.journal_reader import being_written

log = logging.getLogger("micjax")

ID = "_id"
TOO_MANY = 10  # points in a row that could not be measured
STOP = "stop"  # a file of this name in the folder of the journal stops the instrument
POLL_S = 0.2

STOPPED = "stopped on request"

Point = dict[str, Any]
Number = float | tuple[float, float]  # an outcome, or with its standard deviation
Reduce = Callable[[Record], Number | Mapping[str, Number]]
Target = Callable[[Point], Mapping[str, float]]


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
            raise ValueError(unknown_name("axis", wrong[0], axes))
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
    - `reduce`: the number that the policy learns, of a record; NaN for a bad measurement. Or the
        number and its standard deviation, which the policy learns as `y_sd`; or several of either
        by the names of outcomes.
    - `outcome`: what the policy calls it.
    - `journal`: if it holds steps, they are taken up first.
    - `batch`: so many points are suggested at a time.
    - `target`: where the instrument goes for a point, if that is not the point itself.
    - `learnt`: called whenever the policy has learnt something.

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
        batch: int = 1,
        target: Target = dict,
        learnt: Callable[[], None] = lambda: None,
    ):
        check_over(instrument.axes, instrument.modes, mode, over)
        self.instrument = Recorded(instrument, journal)
        self.policy, self.journal, self.outcome = policy, journal, outcome
        self._mode, self._over, self._reduce = mode, over, reduce
        self._batch, self._target, self._learnt = batch, target, learnt
        self.points: list[Point] = []  # all that were measured, with their outcomes
        self._failures, self._requested = 0, threading.Event()
        self._open: list[Point] = []  # suggested, in the journal, not measured yet
        self._found: list[Point] = []  # measured since the last suggestion
        self._failed: list[Point] = []
        self._record: Record | None = None  # of the first open one, when `reduce` has failed on it
        self._take_up()

    def run(self, points: int | None = None) -> str:
        """Measures until the policy has enough, `points` are measured in all, a budget is spent, or
        somebody asks for a stop by `request_stop`.

        **Returns:** why it ended.

        **Raises:** what the instrument raises, but for points that it cannot reach; everything
        measured is in the journal.
        """
        total = points or getattr(self.policy, "budget", None) or 0
        with progress("measured", total) as show, self._stops_on_request() as requested:
            while True:
                if requested.is_set():
                    return STOPPED
                stop, reason = self._enough()
                if stop:
                    return reason or "the policy has enough"
                if points is not None and len(self.points) >= points:
                    return f"{points} points are measured"
                try:
                    self._step()
                except BudgetError as error:
                    return str(error)
                except Aborted:
                    if requested.is_set():
                        return STOPPED
                    raise
                show(len(self.points), f"{self.outcome} {self._last():.6g}")

    def _enough(self) -> tuple[bool, str | None]:
        if self._open:
            return False, None
        return getattr(self.policy, "should_stop", lambda: (False, None))()

    def _step(self) -> None:
        if not self._open:
            points = self.policy.suggest(self._batch)
            for name in {n for point in points for n in point} - {ID}:
                if name not in self.instrument.axes:
                    raise LimitError(unknown_name("axis", name, self.instrument.axes))
            self.instrument.note("suggested", points=_exact(points))
            self._open = points
        point = self._open[0]
        place, before = self._place(point), self.instrument.read()
        try:
            if self._record is None:
                self._record = self._acquired(place, before)
        except (LimitError, MoveError) as error:
            if self._requested.is_set():  # where it was halted is no place that it cannot reach
                raise Aborted("the move was stopped") from error
            if isinstance(error, MoveError) and self._stands(before, place):
                raise  # a dead stage can be had nowhere
            self.instrument.note("unreachable", point=_exact(point), reason=str(error))
            self._not_measured(point, str(error))
        else:
            self._measured(point, self._record, self.journal.steps[-1].intent["at"])
        if self._failures >= TOO_MANY:
            raise InstrumentError(f"{TOO_MANY} points in a row could not be measured")

    def _place(self, point: Point) -> Point:
        return _exact(self._target(_exact({n: v for n, v in point.items() if n != ID})))

    def _acquired(self, place: Point, before: Mapping[str, float]) -> Record:
        self._others_allow(before, place)
        self.instrument.move(place)
        try:
            return self.instrument.acquire(self._mode, self._over)
        except Aborted as error:
            self._record = error.record  # which is in the journal, and not measured again
            raise

    def _others_allow(self, now: Mapping[str, float], place: Point) -> None:
        try:
            check_standing(self.instrument.axes, now, but=place)
        except LimitError as error:  # no point is to blame
            raise NotReady(str(error)) from error

    def _stands(self, before: Mapping[str, float], place: Point) -> bool:
        """Whether all axes that were to move are where they were."""
        now, axes = self.instrument.read(), self.instrument.axes
        apart = {n: axes[n].tolerance for n in place if n in axes}
        return all(abs(now[n] - before[n]) <= tol for n, tol in apart.items())

    def _learnt_at(self, point: Point, at: Mapping[str, float]) -> Point:
        """The point with the readbacks before its measurement in place of what was asked for."""
        place, learnt = self._place(point), dict(point)
        for name in set(point) & set(place) & set(self.instrument.axes):
            if place[name] == point[name] and math.isfinite(at[name]):  # in the same unit
                axis = self.instrument.axes[name]  # beyond whose ends it may be by a tolerance
                learnt[name] = min(max(float(at[name]), axis.lo), axis.hi)
        return learnt

    def _measured(self, point: Point, record: Record, at: Mapping[str, float]) -> None:
        learnt = self._learnt_at(point, at)
        numbers = self._reduce(record)
        numbers = numbers if isinstance(numbers, Mapping) else {self.outcome: numbers}
        for name, number in numbers.items():
            value, *sd = number if isinstance(number, tuple) else (number,)
            learnt[name] = float(value)
            if sd and math.isfinite(value):
                learnt[name + SD] = float(sd[0])
        self._record = None
        self._found.append(learnt)
        self.points.append(learnt)
        good = all(math.isfinite(learnt[name]) for name in numbers)
        self._failures = 0 if good else self._failures + 1
        self._next()

    def _not_measured(self, point: Point, reason: str) -> None:
        log.warning("%s could not be measured: %s", point, reason)
        self._failed.append(point)
        self._failures += 1
        self._next()

    def _next(self) -> None:
        """The policy learns a batch when all of it is done: what it says depends on that."""
        self._open = self._open[1:]
        if self._open:
            return
        measured, failed, self._found, self._failed = self._found, self._failed, [], []
        if measured:
            self.policy.ingest(measured)
        register = getattr(self.policy, "register_failures", None)
        if failed and register is not None:
            register(failed)
        self._learnt()

    def _last(self) -> float:
        return self.points[-1][self.outcome] if self.points else math.nan

    @contextlib.contextmanager
    def _stops_on_request(self) -> Iterator[threading.Event]:
        """Looks for the file that asks for it, and stops the instrument in the middle of a step."""
        request, requested, over = self.journal.folder / STOP, self._requested, threading.Event()
        requested.clear()
        request.unlink(missing_ok=True)  # asked of somebody before us

        def look():
            while not over.wait(POLL_S):
                if request.exists():
                    requested.set()
                    self.instrument.stop()
                    return

        thread = threading.Thread(target=look, name="stop requests", daemon=True)
        thread.start()
        try:
            yield requested
        finally:
            over.set()
            thread.join()
            request.unlink(missing_ok=True)

    # --- what was before ---------------------------------------------------------------------

    def _take_up(self) -> None:
        """Tells the policy all that the journal holds, in its order."""
        steps = {step.index: step for step in self.journal.steps}
        record = None
        for line in self.journal.lines:
            if line["kind"] == "suggested":
                self._open = self._suggested_again(line["points"])
            elif not self._open and line["kind"] != "intent":
                index = line.get("index")
                raise JournalError(
                    f"{self.journal.path} holds step {index}, which no campaign suggested"
                )
            elif line["kind"] == "unreachable":
                self._not_measured(self._open[0], line["reason"])
            elif line["kind"] == "result" and "failed" not in line:
                step = steps[line["index"]]
                record = self.journal.record(step)
                self._measured(self._open[0], record, step.intent["at"])
            elif line["kind"] == "result" and not line.get("again"):
                # somebody looked, and went on without
                self._not_measured(self._open[0], line["failed"])
        self._failures = 0
        for layer in layers(self.instrument):
            if hasattr(layer, "count"):  # a twin goes on with its noise
                layer.count = len(self.points)
            if hasattr(layer, "go_on_from") and record is not None:  # and with its clock
                layer.go_on_from(record)

    def _suggested_again(self, before: list[Point]) -> list[Point]:
        now = self.policy.suggest(self._batch)
        if _text(now) != _text(before):
            raise JournalError(
                f"{self.journal.path}: the campaign suggested {before} then and {now} now; policy, "
                "seed or version are not the same"
            )
        return now


def _exact(points: Any) -> Any:
    """Points as the journal holds them.

    **Raises:** `JournalError` for one that it could not give back: its campaign could not be taken
    up again.
    """
    try:
        return exact(points)
    except ValueError as error:
        raise JournalError(f"the policy suggests {points}: {error}") from error


def _text(points: list[Point]) -> str:
    return json.dumps(_exact(points), sort_keys=True)  # where NaN is NaN, and 1 is np.int64(1)


def request_stop(folder: str | os.PathLike) -> None:
    """Asks the campaign whose journal is in `folder` to stop its instrument, from any process.

    **Raises:** `ValueError` when no process writes there.
    """
    if not being_written(folder):
        raise ValueError(f"nothing is being measured in {folder}")
    (pathlib.Path(folder) / STOP).touch()

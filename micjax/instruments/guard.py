"""What no adapter can forget: limits, forbidden regions, ramps, arrival, budgets, stop, time-outs.

`Guard(instrument)` is an instrument. Everything is checked before anything moves.
"""

import contextlib
import dataclasses
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from micjax.instruments.arrival import check_arrived
from micjax.instruments.base import (
    Aborted,
    Axis,
    BudgetError,
    Frame,
    Instrument,
    InstrumentError,
    LimitError,
    LinkError,
    Mode,
    NotReady,
    Over,
    Path,
    Record,
    check_over,
    check_target,
    nearest,
    points_of,
)

Forbidden = Callable[[Mapping[str, float]], bool]
WAY = 64  # places of a straight way that are looked at
GRACE_S = 5.0  # beyond the longest that a measurement should take


class Guard:
    """Another instrument with bounds around it.

    **Arguments:**

    - `limits`: `{axis: (lo, hi)}`, narrower than those of the instrument.
    - `forbidden`: tells of a position of all axes whether it is forbidden. Asked at every step and
        at 64 places of the straight way of a move or of a leg of a path, and at every pixel of a
        frame. Who stands in the forbidden region may leave it.
    - `seconds`, `dose`: what all measurements together may take.
    - `patience`: a measurement may last so many times what its mode says, and 5 s, before the guard
        stops it. Infinity waits for ever.

    Ctrl-C while it moves or measures stops the instrument.

    **Raises:** `LimitError` for limits that are wider than the instrument's, or of no axis;
    `ValueError` for a budget or a patience that is no positive number.
    """

    def __init__(
        self,
        instrument: Instrument,
        limits: Mapping[str, tuple[float, float]] | None = None,
        *,
        forbidden: Forbidden | None = None,
        seconds: float = math.inf,
        dose: float = math.inf,
        patience: float = 5.0,
    ):
        for name, value in {"seconds": seconds, "dose": dose, "patience": patience}.items():
            if not value > 0.0:
                raise ValueError(f"{name} = {value}: must be positive")
        self.instrument = instrument
        self._axes = narrowed(instrument.axes, limits or {})
        self._forbidden = forbidden or (lambda position: False)
        self._left = [float(seconds), float(dose)]
        self._patience = patience
        self._stopped = threading.Event()

    @property
    def axes(self) -> Mapping[str, Axis]:
        return self._axes

    @property
    def modes(self) -> Mapping[str, Mode]:
        return self.instrument.modes

    @property
    def left(self) -> tuple[float, float]:
        """Seconds and dose that are not spent yet."""
        return self._left[0], self._left[1]

    def read(self) -> dict[str, float]:
        return self.instrument.read()

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        """In steps of `max_step` at most, each of which has arrived before the next begins."""
        self._alive()
        target = check_target(self._axes, target)
        now = self.read()
        for name in target:
            if not math.isfinite(now[name]):
                raise NotReady(f"{name} reads {now[name]}: where it would start from is unknown")
        steps = list(ramp(self._axes, now, target))
        self._way_allowed(now, [now | step for step in steps])
        found = now
        with self._stopped_by_interrupts():
            for step in steps:
                self._alive()
                found = self.instrument.move(step)
                check_arrived(self._axes, step, found)
        return found

    def acquire(self, mode: str, over: Over = None) -> Record:
        self._alive()
        asked = check_over(self._axes, self.modes, mode, over)
        if over is not None:
            self._over_allowed(over)
        seconds, dose = asked.cost(over)
        for left, amount, unit in zip(self._left, (seconds, dose), ("s", "of dose"), strict=True):
            if amount > left:
                raise BudgetError(f"{mode} takes {amount:g} {unit}; {left:g} {unit} are left")
        self._left = [self._left[0] - seconds, self._left[1] - dose]
        return self._watched(lambda: self.instrument.acquire(mode, over), mode, seconds)

    def stop(self) -> None:
        self._stopped.set()
        with contextlib.suppress(Exception):  # it is the last resort and must not raise
            self.instrument.stop()

    def resume(self) -> None:
        """Allows moves again after a stop; whoever calls it has looked at the instrument."""
        self._stopped.clear()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Within it Ctrl-C and SIGTERM stop the instrument before they do what they do."""

        def stopped(number, frame):
            self.stop()
            handler = before[number]
            if callable(handler):
                handler(number, frame)
            else:
                raise KeyboardInterrupt

        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number in before:
                signal.signal(number, stopped)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _stopped_by_interrupts(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self.stop()
            raise

    def _alive(self) -> None:
        if self._stopped.is_set():
            raise Aborted("the instrument was stopped; look at it, then call resume()")

    def _over_allowed(self, over: Frame | Path) -> None:
        now = self.read()
        places = [now | {"x": float(x), "y": float(y)} for x, y in points_of(over).reshape(-1, 2)]
        for place in places:
            self._allowed(place)
        if not isinstance(over, Frame):
            for start, end in zip(places, places[1:], strict=False):
                self._way_allowed(start, [end])

    def _way_allowed(self, start: dict[str, float], steps: list[dict[str, float]]) -> None:
        """From `start` straight to the last of the steps."""
        end = steps[-1]
        self._allowed(end)
        if self._forbidden(start):
            return
        shares = np.arange(1, WAY) / WAY
        between = [{n: v + s * (end[n] - v) for n, v in start.items()} for s in shares]
        for place in between + steps:
            self._allowed(place)

    def _allowed(self, position: dict[str, float]) -> None:
        if self._forbidden(position):
            where = ", ".join(f"{n} = {v:g}" for n, v in position.items())
            raise LimitError(f"{where} is in the forbidden region")

    def _watched(self, measure: Callable[[], Record], mode: str, seconds: float) -> Record:
        """In a thread of its own, which is given up when it hangs."""
        waits = math.isfinite(self._patience)
        limit = self._patience * seconds + GRACE_S if waits else None
        box: list[tuple[bool, Any]] = []

        def body():
            try:
                box.append((True, measure()))
            except BaseException as error:
                box.append((False, error))

        thread = threading.Thread(target=body, name=f"acquire {mode}", daemon=True)
        thread.start()
        with self._stopped_by_interrupts():
            thread.join(limit)
        if thread.is_alive():
            self.stop()
            raise LinkError(f"{mode} has not ended after {limit:g} s and was stopped")
        good, found = box[0]
        if good:
            return self._finished(found)
        if self._stopped.is_set() and isinstance(found, InstrumentError):
            raise Aborted("the measurement was stopped") from found
        raise found

    def _finished(self, record: Record) -> Record:
        self._alive()  # what was stopped half way is no measurement
        return record


def narrowed(
    axes: Mapping[str, Axis], limits: Mapping[str, tuple[float, float]]
) -> dict[str, Axis]:
    """The axes within further limits.

    **Raises:** `LimitError` for limits that are wider, empty, or of no axis.
    """
    found = dict(axes)
    for name, (lo, hi) in limits.items():
        if name not in axes:
            raise LimitError(nearest("axis", name, axes))
        axis = axes[name]
        if not (axis.lo <= lo <= hi <= axis.hi):
            raise LimitError(
                f"limits of {name} from {lo:g} to {hi:g} {axis.unit} do not lie within "
                f"{axis.lo:g} to {axis.hi:g} {axis.unit}"
            )
        found[name] = dataclasses.replace(axis, lo=float(lo), hi=float(hi))
    return found


def ramp(
    axes: Mapping[str, Axis], now: Mapping[str, float], target: Mapping[str, float]
) -> Iterator[dict[str, float]]:
    """Steps from `now` to `target`, all axes together, each within the `max_step` of its axis."""
    sizes = [abs(v - now[n]) / axes[n].max_step for n, v in target.items()]
    count = max(1, math.ceil(max(sizes, default=0.0) * (1.0 - 1e-12)))
    for i in range(1, count):
        yield {n: now[n] + (v - now[n]) * i / count for n, v in target.items()}
    yield dict(target)

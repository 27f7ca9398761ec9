"""What no adapter can forget: limits, forbidden regions, ramps, arrival, budgets, stop, time-outs.

`Guard(instrument)` is an instrument. Everything is checked before anything moves or is measured.
"""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from micjax.core.names import unknown_name
from micjax.instruments.arrival import check_arrived, check_standing
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
    Record,
    check_over,
    check_target,
)
from micjax.instruments.region import Forbidden, Region

GRACE_S = 5.0  # beyond the longest that a measurement should take
AGAIN_S = 0.05, 1.0  # how soon a stop is said again while something still goes on, and how seldom
MOST_STEPS = 1_000_000  # of a ramp


class Guard:
    """Another instrument with bounds around it.

    What a measurement goes over or sweeps by itself is bounded as moves are: a frame to the edges
    of its pixels, a path, the way to its first place, the ranges that its mode tells of, and where
    all other axes stand.

    **Arguments:**

    - `limits`: `{axis: (lo, hi)}`, narrower than those of the instrument. They hold for where the
        instrument is sent; it may stand beyond them by the tolerance of the axis.
    - `forbidden`: tells of a position of all axes whether it is forbidden. It is asked at places
        256 of which make up the range of an axis: what is thinner can be jumped over. With it axes
        move one after the other, in the first order whose way is free, since few instruments move
        several along a straight line. Who stands in the forbidden region may leave it, and not
        measure there.
    - `seconds`, `dose`: what all moves and measurements together may take: the seconds that their
        axes and modes tell of, or that they took, if that is more.
    - `spent`: how much of that was taken before.
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
        spent: tuple[float, float] = (0.0, 0.0),
        patience: float = 5.0,
    ):
        for name, value in {"seconds": seconds, "dose": dose, "patience": patience}.items():
            if not value > 0.0:
                raise ValueError(f"{name} = {value}: must be positive")
        if not all(0.0 <= value < math.inf for value in spent):  # less than nothing gives more
            raise ValueError(f"spent = {spent}: must be finite numbers from 0 on")
        self.instrument = instrument
        self._axes = narrowed(instrument.axes, limits or {})
        self._region = None if forbidden is None else Region(forbidden, self._axes)
        self._given, self._spent = (float(seconds), float(dose)), list(spent)
        self._patience = patience
        self._stopped = threading.Event()
        self._turn, self._doing, self._halting = threading.Lock(), "", threading.Lock()

    @property
    def axes(self) -> Mapping[str, Axis]:
        return self._axes

    @property
    def modes(self) -> Mapping[str, Mode]:
        return self.instrument.modes

    @property
    def spent(self) -> tuple[float, float]:
        """Seconds and dose of all moves and measurements so far."""
        return self._spent[0], self._spent[1]

    @property
    def left(self) -> tuple[float, float]:
        """Seconds and dose that are not spent yet."""
        seconds, dose = (max(0.0, g - s) for g, s in zip(self._given, self._spent, strict=True))
        return seconds, dose

    def read(self) -> dict[str, float]:
        return self.instrument.read()

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        """In steps of `max_step` at most, each of which has arrived before the next begins."""
        self._begin("a move")
        try:
            self._alive()
            target = check_target(self._axes, target)
            now = self.read()
            for name in target:
                if not math.isfinite(now[name]):
                    raise NotReady(f"{name} reads {now[name]}: where it would start is unknown")
            legs = [target] if self._region is None else self._region.way(now, target)
            steps = [count_steps(self._axes, now, leg) for leg in legs]  # an axis has one leg
            seconds = sum(travel_s(self._axes, now, leg) for leg in legs)
            with self._charged(seconds), self._stopped_by_interrupts():
                readings = now
                for leg, count in zip(legs, steps, strict=True):
                    for step in ramp(now, leg, count):
                        readings = self._step(step)
                return readings
        finally:
            self._turn.release()

    def acquire(self, mode: str, over: Over = None) -> Record:
        self._begin(mode)
        try:
            self._alive()
            asked = check_over(self._axes, self.modes, mode, over)
            seconds, dose = asked.cost(over)
            self._affordable(mode, seconds, dose)
            self._check_swept(mode, asked, over)
        except BaseException:
            self._turn.release()
            raise
        with self._charged(seconds, dose), self._stopped_by_interrupts():
            return self._watched(lambda: self.instrument.acquire(mode, over), mode, seconds)

    def stop(self) -> None:
        self._stopped.set()
        with contextlib.suppress(Exception):  # it is the last resort and must not raise
            self.instrument.stop()
        if self._turn.locked():
            threading.Thread(target=self._stop_again, name="stop again", daemon=True).start()

    def resume(self) -> None:
        """Allows moves again after a stop; whoever calls it has looked at the instrument.

        **Raises:** `NotReady` while what was stopped still goes on.
        """
        if self._turn.locked():
            raise NotReady(f"{self._doing} was stopped and still goes on")
        with self._halting:  # a stop that is said again is for what went on before
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

    # --- what is allowed -----------------------------------------------------------------------

    def _check_swept(self, mode: str, asked: Mode, over: Over) -> None:
        """Everything that a measurement goes over or sweeps, and where all other axes stand."""
        now, swept = self.read(), asked.swept()
        check_standing(self._axes, now, but=() if over is None else ("x", "y"))
        for name, ends in swept.items():
            for end in ends:
                try:
                    check_target(self._axes, {name: end})
                except LimitError as error:
                    raise LimitError(f"{mode} sweeps {name}: {error}") from error
        if isinstance(over, Frame):
            self._check_edges(over)
        if self._region is not None:
            self._region.measured(now, over, swept)

    def _check_edges(self, frame: Frame) -> None:
        """The ends of the instrument itself are for the centres of pixels."""
        slack = 1e-9 * max(frame.size)  # a frame that fills the limits is rounded
        for place in frame.edges():
            for name, value in zip("xy", place.tolist(), strict=True):
                axis, own = self._axes[name], self.instrument.axes[name]
                below = value < axis.lo - slack and axis.lo > own.lo
                if below or (value > axis.hi + slack and axis.hi < own.hi):
                    raise LimitError(
                        f"the frame reaches to {name} = {value:g} {axis.unit}, outside "
                        f"{axis.lo:g} to {axis.hi:g} {axis.unit}"
                    )

    def _affordable(self, mode: str, seconds: float, dose: float) -> None:
        for left, amount, unit in zip(self.left, (seconds, dose), ("s", "of dose"), strict=True):
            spent = unit == "s" and left == 0.0  # a measurement of 0 s takes time all the same
            if amount > left or spent:
                raise BudgetError(f"{mode} takes {amount:g} {unit}; {left:.2g} {unit} are left")

    @contextlib.contextmanager
    def _charged(self, seconds: float, dose: float = 0.0) -> Iterator[None]:
        """What is told of, or what was taken if that is more; of what was refused, the latter."""
        begun = time.monotonic()
        try:
            yield
        except (LimitError, NotReady, BudgetError):
            seconds = dose = 0.0
            raise
        finally:
            self._spent[0] += max(seconds, time.monotonic() - begun)
            self._spent[1] += dose

    # --- one at a time, and stopped ------------------------------------------------------------

    def _begin(self, action: str) -> None:
        self._alive()
        if not self._turn.acquire(blocking=False):
            raise NotReady(f"{action} cannot begin: {self._doing} still goes on")
        self._doing = action

    def _alive(self) -> None:
        if self._stopped.is_set():
            raise Aborted("the instrument was stopped; look at it, then call resume()")

    def _step(self, step: dict[str, float]) -> dict[str, float]:
        self._alive()
        try:
            readings = self.instrument.move(step)
        except InstrumentError as error:
            if self._stopped.is_set():  # where it was halted is no place that it cannot reach
                raise Aborted("the move was stopped") from error
            raise
        self._alive()
        check_arrived(self._axes, step, readings)
        return readings

    def _stop_again(self) -> None:
        """What was about to begin when the instrument was stopped would go on."""
        wait, longest = AGAIN_S
        while self._turn.locked() and self._stopped.is_set():
            time.sleep(wait)
            wait = min(2.0 * wait, longest)
            with self._halting:
                if self._turn.locked() and self._stopped.is_set():
                    with contextlib.suppress(Exception):
                        self.instrument.stop()

    @contextlib.contextmanager
    def _stopped_by_interrupts(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self.stop()
            raise

    def _watched(self, measure: Callable[[], Record], mode: str, seconds: float) -> Record:
        """In a thread of its own, which is given up when it hangs, and whose turn ends with it."""
        waits = math.isfinite(self._patience)
        limit = self._patience * seconds + GRACE_S if waits else None
        box: list[tuple[bool, Any]] = []

        def body():
            try:
                box.append((True, measure()))
            except BaseException as error:
                box.append((False, error))
            finally:
                self._turn.release()

        thread = threading.Thread(target=body, name=f"acquire {mode}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there are too many
            self._turn.release()
            raise
        thread.join(limit)
        if not box:
            self.stop()
            raise LinkError(f"{mode} has not ended after {limit:g} s and was stopped")
        good, result = box[0]
        if self._stopped.is_set() and good:
            raise Aborted("stopped when it had measured; the record is kept", result)
        if self._stopped.is_set() and isinstance(result, InstrumentError):
            raise Aborted(
                "the measurement was stopped", getattr(result, "record", None)
            ) from result
        if not good:
            raise result
        return result


def narrowed(
    axes: Mapping[str, Axis], limits: Mapping[str, tuple[float, float]]
) -> dict[str, Axis]:
    """The axes within further limits.

    **Raises:** `LimitError` for limits that are wider, empty, or of no axis.
    """
    within = dict(axes)
    for name, (lo, hi) in limits.items():
        if name not in axes:
            raise LimitError(unknown_name("axis", name, axes))
        axis = axes[name]
        if not (axis.lo <= lo <= hi <= axis.hi):
            raise LimitError(
                f"limits of {name} from {lo:g} to {hi:g} {axis.unit} do not lie within "
                f"{axis.lo:g} to {axis.hi:g} {axis.unit}"
            )
        within[name] = dataclasses.replace(axis, lo=float(lo), hi=float(hi), tol=axis.tolerance)
    return within


def count_steps(
    axes: Mapping[str, Axis], now: Mapping[str, float], target: Mapping[str, float]
) -> int:
    """Of a ramp whose steps are within the `max_step` of each axis.

    **Raises:** `LimitError` for more than a million.
    """
    sizes = [abs(v - now[n]) / axes[n].max_step for n, v in target.items()]
    count = max(1, math.ceil(max(sizes, default=0.0) * (1.0 - 1e-12)))
    if count > MOST_STEPS:
        raise LimitError(f"it would take {count} steps of max_step; at most {MOST_STEPS} are taken")
    return count


def ramp(
    now: Mapping[str, float], target: Mapping[str, float], count: int
) -> Iterator[dict[str, float]]:
    """Equal steps from `now` to `target`, all axes together."""
    for i in range(1, count):
        yield {n: now[n] + (v - now[n]) * i / count for n, v in target.items()}
    yield dict(target)


def travel_s(
    axes: Mapping[str, Axis], now: Mapping[str, float], target: Mapping[str, float]
) -> float:
    """Travel and settling of the slowest axis, if all move together."""
    ways = {n: abs(v - now[n]) for n, v in target.items() if v != now[n]}
    return max((way / axes[n].rate + axes[n].settle for n, way in ways.items()), default=0.0)

"""What every instrument is to micjax: two tables and four verbs.

`axes` are what can be set, x like a bias or a defocus; `modes` are what can be measured. `read`
says where everything is, `move` goes somewhere or raises before anything has moved, `acquire`
measures, `stop` ends whatever goes on, from any thread. All numbers are in SI units and radians.
Nothing is ever clamped. Limits, ramps and budgets are layers with the same protocol
(`micjax.instruments.guard`), not duties of an adapter.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from micjax.core.names import unknown_name

# --- what can go wrong --------------------------------------------------------------------------


class InstrumentError(RuntimeError):
    """Something of the instrument; the subclasses say in which state it is left."""


class LimitError(InstrumentError):
    """What was asked for is not allowed; nothing has moved."""


class MoveError(InstrumentError):
    """It moved and is not where it should be."""


class NotReady(InstrumentError):
    """It cannot be used now; nothing has moved."""


class Aborted(InstrumentError):
    """`stop` was called. `record` is what the instrument has measured all the same, or None."""

    def __init__(self, message: str = "", record: "Record | None" = None):
        super().__init__(message)
        self.record = record


class BudgetError(InstrumentError):
    """Time or dose would be overspent; nothing has moved."""


class LinkError(InstrumentError):
    """The connection failed; the state of the instrument is unknown until it is read again."""


class InDoubt(InstrumentError):
    """A measurement was begun and its result is not known; it may have changed the sample."""


UNSTATED = 1e-3  # of the range: how far an axis of no stated tolerance may be from its target

# --- tables -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Axis:
    """Something that `move` sets and `read` reads.

    **Arguments:**

    - `unit`: SI or rad; `lo`, `hi`: where it may be.
    - `rate`: units per second; `settle`: s after arrival.
    - `max_step`: the largest change that may be asked of the instrument at once.
    - `tol`: how far from its target a readback may be; where it is not stated, a thousandth of the
        range, which finds a stage that stays where it is.
    - `single`: the instrument takes float32. A target is rounded to one within the limits.

    **Raises:** `ValueError` for ends that are not finite or in the wrong order, or numbers that are
    not positive.
    """

    unit: str
    lo: float
    hi: float
    rate: float = math.inf
    settle: float = 0.0
    max_step: float = math.inf
    tol: float = math.inf
    single: bool = False

    def __post_init__(self):
        if not (math.isfinite(self.lo) and math.isfinite(self.hi)):
            raise ValueError(f"an axis from {self.lo} to {self.hi} {self.unit} is not bounded")
        if not self.lo <= self.hi:
            raise ValueError(f"an axis from {self.lo} to {self.hi} {self.unit} has no points")
        for name in ("rate", "max_step", "tol"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be positive")
        if not 0.0 <= self.settle < math.inf:
            raise ValueError(f"settle = {self.settle} s: must be a finite number from 0 on")

    @property
    def tolerance(self) -> float:
        """How far from its target a readback may be, whether that was stated or not."""
        if math.isfinite(self.tol):
            return self.tol
        return UNSTATED * (self.hi - self.lo or abs(self.lo) or 1.0)

    def sent(self, value: float) -> float:
        """What the instrument is sent for a value within the limits: never beyond them.

        **Raises:** `LimitError` where no float32 lies within the limits.
        """
        if not self.single:
            return value
        near = np.float32(value)
        if float(near) > self.hi:  # float32(0.3) is 0.3000000119
            near = np.nextafter(near, np.float32(-np.inf))
        elif float(near) < self.lo:
            near = np.nextafter(near, np.float32(np.inf))
        if not self.lo <= float(near) <= self.hi:
            raise LimitError(
                f"it takes float32, of which none lies from {self.lo} to {self.hi} {self.unit}"
            )
        return float(near)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A raster of pixel centres, `data[iy, ix]`: iy along +y, ix along +x, the fast axis.

    **Arguments:**

    - `center`, `size`: (x, y) in m. `shape`: (ny, nx).
    - `angle`: counter-clockwise, rad. `dwell`: s a pixel.

    **Raises:** `ValueError` for numbers that are not finite, sizes or shapes that are not positive.
    """

    center: tuple[float, float]
    size: tuple[float, float]
    shape: tuple[int, int]
    angle: float = 0.0
    dwell: float = 0.0

    def __post_init__(self):
        numbers = (*self.center, *self.size, self.angle, self.dwell)
        if not all(math.isfinite(v) for v in numbers) or self.dwell < 0.0:
            raise ValueError(f"a frame takes finite numbers and a dwell from 0 on: {self}")
        if any(int(n) != n for n in self.shape):
            raise ValueError(f"a frame of {self.shape} pixels: whole numbers are needed")
        if min(self.size) <= 0.0 or min(self.shape) < 1:
            raise ValueError(f"a frame of {self.size} m and {self.shape} pixels is empty")

    def points(self) -> Float[np.ndarray, "ny nx 2"]:
        """(x, y) of every pixel, m."""
        ny, nx = self.shape
        return self._places(np.arange(ny), np.arange(nx))

    def corners(self) -> Float[np.ndarray, "2 2 2"]:
        """(x, y) of the pixels at the corners, m, without making all others."""
        ny, nx = self.shape
        return self._places(np.array([0, ny - 1]), np.array([0, nx - 1]))

    def _places(self, iy: np.ndarray, ix: np.ndarray) -> Float[np.ndarray, "ny nx 2"]:
        ny, nx = self.shape
        along = ((ix + 0.5) / nx - 0.5) * self.size[0]
        down = ((iy + 0.5) / ny - 0.5) * self.size[1]
        u, v = np.meshgrid(along, down)
        c, s = math.cos(self.angle), math.sin(self.angle)
        return np.stack([self.center[0] + c * u - s * v, self.center[1] + s * u + c * v], axis=-1)

    def edges(self) -> Float[np.ndarray, "4 2"]:
        """(x, y) of the corners of the outermost pixels, m."""
        corner = Frame(self.center, self.size, (2, 2), self.angle).points().reshape(4, 2)
        return 2.0 * corner - np.asarray(self.center)  # centres of 2 x 2 pixels lie half way


KINDS = ("point", "path", "frame")
Path = Float[np.ndarray, "..."]  # [n, 2]: (x, y) of its points, m; checked by `check_over`
Over = Frame | Path | None
Amount = float | Callable[[Over], float]
Ends = tuple[float, float]
Sweeps = Mapping[str, Ends]  # an axis, and between which values a measurement takes it


@dataclasses.dataclass(frozen=True)
class Mode:
    """Something that `acquire` can do.

    **Arguments:**

    - `kind`: "point" (where the instrument is), "path" or "frame".
    - `channels`: unit by name.
    - `seconds`, `dose`: of one measurement, a number or a function of what it goes over.
    - `repeatable`: False if it changes the sample (poling, beam damage, indentation).
    - `sweeps`: axes that a measurement takes through a range by itself, `{"bias": (-1.0, 1.0)}`, or
        a function that asks the instrument for them. What a guard does not know it cannot guard.

    **Raises:** `ValueError` for another kind, or numbers that are no seconds or dose.
    """

    kind: Literal["point", "path", "frame"]
    channels: Mapping[str, str]
    seconds: Amount = 0.0
    dose: Amount = 0.0
    repeatable: bool = True
    sweeps: Sweeps | Callable[[], Sweeps] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a mode of kind {self.kind!r}; there are {', '.join(KINDS)}")
        for name in ("seconds", "dose"):
            amount = getattr(self, name)
            if not callable(amount) and not 0.0 <= amount < math.inf:
                raise ValueError(f"{name} = {amount}: must be a finite number from 0 on")

    def cost(self, over: Over = None) -> tuple[float, float]:
        """Seconds and dose of one measurement.

        **Raises:** `BudgetError` for what is no finite number from 0 on: no budget could be kept.
        """
        amounts = []
        for name in ("seconds", "dose"):
            amount = getattr(self, name)
            amount = float(amount(over) if callable(amount) else amount)
            if not 0.0 <= amount < math.inf:
                raise BudgetError(f"{name} of a measurement = {amount}: no budget can be kept")
            amounts.append(amount)
        return amounts[0], amounts[1]

    def swept(self) -> Sweeps:
        """Where a measurement takes axes by itself, asked for now."""
        return self.sweeps() if callable(self.sweeps) else self.sweeps


@dataclasses.dataclass(frozen=True)
class Record:
    """One measurement.

    **Arguments:**

    - `data`, `dims`, `units`: array, names of its axes, and unit, by channel.
    - `coords`: `(values, unit)` by name of an axis; whole arrays, since a bias goes up and down.
    - `at`: readbacks of the axes at the measurement. `t0`, `t1`: beginning and end, s since 1970.
    - `meta`: whatever else there is to say, in plain values.

    **Raises:** `ValueError` where they do not fit each other.
    """

    data: Mapping[str, np.ndarray]
    dims: Mapping[str, tuple[str, ...]]
    units: Mapping[str, str]
    coords: Mapping[str, tuple[np.ndarray, str]]
    at: Mapping[str, float]
    t0: float
    t1: float
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not set(self.data) == set(self.dims) == set(self.units):
            raise ValueError(
                f"channels {sorted(self.data)} have dims {sorted(self.dims)} and units "
                f"{sorted(self.units)}"
            )
        for name, values in self.data.items():
            dims, kind = self.dims[name], np.asarray(values).dtype.kind
            if kind not in "biufc":
                raise ValueError(f"{name}: {np.asarray(values).dtype} is no kind of number")
            if np.ndim(values) != len(dims):
                raise ValueError(f"{name}: {np.ndim(values)} axes are called {dims}")
            for dim, size in zip(dims, np.shape(values), strict=True):
                if dim in self.coords and np.shape(self.coords[dim][0]) != (size,):
                    shape = np.shape(self.coords[dim][0])
                    raise ValueError(f"{name}: {size} values along {dim}, which has {shape}")


# --- the protocol -------------------------------------------------------------------------------


@runtime_checkable
class Instrument(Protocol):
    """Two tables and four verbs. Only `stop` may be called from another thread."""

    @property
    def axes(self) -> Mapping[str, Axis]: ...

    @property
    def modes(self) -> Mapping[str, Mode]: ...

    def read(self) -> dict[str, float]:
        """Where every axis is."""
        ...

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        """Goes to `target`, axes not named stay; returns the readbacks on arrival.

        **Raises:** `LimitError` before anything moves; `MoveError`, `Aborted`, `LinkError`.
        """
        ...

    def acquire(self, mode: str, over: Over = None) -> Record:
        """One measurement; `over` for paths and frames."""
        ...

    def stop(self) -> None:
        """Ends what goes on: from any thread, any number of times, never raising."""
        ...


# --- what every adapter checks ------------------------------------------------------------------


def check_target(axes: Mapping[str, Axis], target: Mapping[str, float]) -> dict[str, float]:
    """The target as floats that the instrument can be sent, if every axis exists and allows it.

    **Raises:** `LimitError` otherwise.
    """
    checked = {}
    for name, value in target.items():
        if name not in axes:
            raise LimitError(unknown_name("axis", name, axes))
        axis = axes[name]
        try:
            value = float(value)
        except (TypeError, ValueError, OverflowError):
            raise LimitError(f"{name} = {value!r:.60} is not a number") from None
        if not math.isfinite(value):
            raise LimitError(f"{name} = {value} is not finite")
        if not axis.lo <= value <= axis.hi:
            allowed = f"{axis.lo:g} to {axis.hi:g} {axis.unit}"
            raise LimitError(f"{name} = {value:.9g} {axis.unit} is outside {allowed}")
        checked[name] = axis.sent(value)
    return checked


def check_over(axes: Mapping[str, Axis], modes: Mapping[str, Mode], mode: str, over: Over) -> Mode:
    """The mode, if it exists, is given what it goes over, and stays within x and y there.

    **Raises:** `LimitError` otherwise.
    """
    if mode not in modes:
        raise LimitError(unknown_name("mode", mode, modes))
    kind = modes[mode].kind
    if kind == "point":
        if over is not None:
            raise LimitError(f"{mode} measures a point and takes no {type(over).__name__}")
        return modes[mode]
    if kind == "frame" and not isinstance(over, Frame):
        raise LimitError(f"{mode} goes over a Frame, not {type(over).__name__}")
    if kind == "path":
        shape = getattr(over, "shape", None)
        if not isinstance(over, np.ndarray) or over.ndim != 2 or shape[1] != 2 or not len(over):
            given = f"an array {shape}" if isinstance(over, np.ndarray) else type(over).__name__
            raise LimitError(f"{mode} goes over an array of points [n, 2], not {given}")
        if over.dtype.kind not in "fiu":
            raise LimitError(f"{mode} goes over points of real numbers, not of {over.dtype}")
    # the pixels at the corners: all others lie between
    for x, y in over.corners().reshape(4, 2) if kind == "frame" else points_of(over):
        check_target(axes, {"x": x, "y": y})
    return modes[mode]


def points_of(over: Frame | Path) -> Float[np.ndarray, "... 2"]:
    """(x, y) of every pixel of a frame, or every point of a path."""
    return over.points() if isinstance(over, Frame) else np.asarray(over, dtype=float)


def layers(instrument: Instrument) -> Iterator[Instrument]:
    """The instrument and, one after the other, those that it is a layer around."""
    while instrument is not None:
        yield instrument
        instrument = getattr(instrument, "instrument", None)

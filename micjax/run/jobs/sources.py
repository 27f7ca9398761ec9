"""What an exploration measures: a recorded file, a Python function, or an instrument."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from micjax.active.campaign import Reduce
from micjax.active.learner.signals import reduced as reduced_by_name
from micjax.active.learner.signals import signal as named_signal
from micjax.active.learner.space import SearchAxis, Space
from micjax.core.names import unknown_name
from micjax.instruments import Axis, Function, Instrument
from micjax.io import Field, read
from micjax.run.jobs import fitted
from micjax.run.plans.explore import FittedSignal

Point = Mapping[str, Any]
Signal = str | FittedSignal


@dataclasses.dataclass(frozen=True)
class Source:
    """Where outcomes come from.

    **Arguments:**

    - `space`: of the learner. `instrument`, `mode`: what is measured at each of its points.
    - `reduce`: the outcome of a record, with its error where it has one.
    - `shape`: of the candidates, when they are a grid. `truth`: the outcomes of all candidates,
        when they are known.
    """

    space: Space
    instrument: Instrument
    mode: str
    reduce: Reduce
    shape: tuple[int, ...] | None = None
    truth: np.ndarray | None = None

    def target(self, point: Point) -> dict[str, float]:
        """Where the instrument goes; of a category, its number."""
        return dict(zip(self.space.names, self.space.numbers(point), strict=True))


def open_file(file: str, channel: str | None, signal: Signal) -> Source:
    """An image, or a curve at each of its points, as an instrument that has seen all of it.

    **Raises:** `ValueError`, `OSError` for what cannot be opened.
    """
    field = read(file, channel)
    truth, axes = _reduced(field, signal), field.axes[:2]
    named = [SearchAxis(a.name, a.values.min(), a.values.max(), a.unit) for a in axes]
    grid = np.stack(np.meshgrid(*(a.values for a in axes), indexing="ij"), axis=-1)
    space = Space(named, grid.reshape(-1, len(axes)))
    data = field.data.reshape(len(space.candidates), *field.data.shape[2:])

    def measure(**place: float):
        return data[space.rows([place[a.name] for a in axes])[0]]

    instrument = Function(
        measure,
        _ranges(named),
        coords={a.name: (np.asarray(a.values), a.unit) for a in field.axes[2:]},
        channel=field.name,
        unit=field.unit,
    )
    return Source(
        space,
        instrument,
        "measure",
        reduced(signal),
        truth.shape,
        truth.ravel(),
    )


def reduced(signal: Signal, channel: str | None = None) -> Reduce:
    """**Raises:** `ValueError` for a signal, or a fit, that there is not."""
    by_name = isinstance(signal, str)
    return reduced_by_name(signal, channel) if by_name else fitted.of_records(signal, channel)


def open_function(
    address: str,
    signal: Signal,
    axes: Mapping[str, Mapping[str, Any]],
    channels: Sequence[str] = (),
) -> Source:
    """`package.module:function`, of settings by the names of `axes`.

    **Arguments:**

    - `channels`: the names of all that it returns, by name, the main one first; of none one thing.

    **Raises:** `ValueError` for what cannot be imported, or no axes.
    """
    if not axes:
        raise ValueError(f"{address} needs `axes`: their names, lower and upper")
    function = imported(address)
    space = Space([SearchAxis(n, **dict(given)) for n, given in axes.items()])

    def measure(**numbers: float):
        return function(**space.settings([numbers[n] for n in space.names]))

    several = dict.fromkeys(channels, "") if channels else None
    instrument = Function(measure, _ranges(space.axes), channels=several)
    main = channels[0] if channels else None
    return Source(space, instrument, "measure", reduced(signal, main))


def open_instrument(
    device: Instrument,
    mode: str,
    channel: str | None,
    signal: Signal,
    axes: Mapping[str, Mapping[str, Any]],
    fixed: Mapping[str, float],
) -> Source:
    """An instrument in one of its modes.

    **Arguments:**

    - `axes`: those which the learner sets, with `lower` and `upper` where they are narrower than
        the instrument's; by default all but the `fixed` ones.

    **Raises:** `ValueError` for a mode, a channel or an axis that it has not.
    """
    if mode not in device.modes:
        raise ValueError(unknown_name("mode", mode, device.modes))
    if device.modes[mode].kind != "point":
        raise ValueError(f"mode {mode} goes over a {device.modes[mode].kind}; points are explored")
    channels = device.modes[mode].channels
    if channel is None and len(channels) > 1:
        raise ValueError(f"one channel of {', '.join(channels)} has to be named")
    if channel is not None and channel not in channels:
        raise ValueError(unknown_name("channel", channel, channels))
    for name in [*axes, *fixed]:
        if name not in device.axes:
            raise ValueError(unknown_name("axis", name, device.axes))
    free = [n for n, a in device.axes.items() if n not in fixed and a.lo < a.hi]
    free.sort(key=lambda n: n == "x")  # a map has x along its rows, as an image has
    chosen = axes or {n: {} for n in free}
    learnt = [_within(name, dict(given), device.axes[name]) for name, given in chosen.items()]
    return Source(Space(learnt), device, mode, reduced(signal, channel))


def _within(name: str, given: dict[str, Any], there: Axis) -> SearchAxis:
    if given.get("unit", there.unit) != there.unit or given.get("categories"):
        raise ValueError(f"axis {name} of the instrument is in {there.unit or 'no unit'}: {given}")
    return SearchAxis(
        name,
        given.get("lower", there.lo),
        given.get("upper", there.hi),
        there.unit,
        given.get("whole", False),
    )


def imported(address: str) -> Any:
    """The thing at `package.module:name`; the module may lie in the current folder.

    Importing runs it: `micjax.run.jobs.explore` asks first whether the user agrees to that.

    **Raises:** `ValueError` when it cannot be imported.
    """
    module, _, name = address.rpartition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{address} cannot be imported: {error}") from error


def device_of(address: str, options: Mapping[str, Any]) -> Instrument:
    """The instrument at `package.module:name`, or what this makes of the options.

    **Raises:** `ValueError` for what is no instrument; whatever making it raises.
    """
    device = imported(address)
    if isinstance(device, type) or not isinstance(device, Instrument):
        if not callable(device):
            raise ValueError(f"{address} is neither an instrument nor a function that makes one")
        device = device(**options)
    if not isinstance(device, Instrument):
        raise ValueError(f"{address} gave a {type(device).__name__}, which is no instrument")
    return device


def _ranges(axes) -> dict[str, Axis]:
    return {a.name: Axis(a.unit, float(a.lower), float(a.upper)) for a in axes}


def image_of(file: str, channel: str | None, signal: str, logarithm: bool) -> np.ndarray:
    """An image `[ny, nx]` that is known before anything is measured.

    **Raises:** `ValueError`, `OSError` for what cannot be opened or is no image.
    """
    image = _reduced(read(file, channel), signal)
    if image.ndim != 2:
        raise ValueError(f"{file}: shape {image.shape} is no image to look at")
    if not logarithm:
        return image
    size = np.abs(image)
    if not np.any(size > 0.0):
        raise ValueError(f"{file}: an image of zeros has no logarithm")
    return np.log10(np.maximum(size, size[size > 0.0].min()))


def _reduced(field: Field, signal: Signal) -> np.ndarray:
    """The data with a curve at each point replaced by its signal."""
    data = field.data
    if isinstance(signal, FittedSignal):
        if data.ndim != 3:
            raise ValueError(f"{field.name}: shape {data.shape}; a map of curves is fitted")
        return fitted.of_map(signal, field)[0]
    if data.dtype.kind == "c":
        raise ValueError(f"{field.name}: complex values; their size or their phase is explored")
    if data.ndim not in (1, 2, 3):
        raise ValueError(f"{field.name}: {data.ndim} axes; an image or one of curves is wanted")
    if data.ndim < 3:
        return data
    along, reduce = field.axes[2].values, named_signal(signal)
    return np.asarray([[reduce(curve, along) for curve in row] for row in data])

"""What real instruments add to a twin: layers with its protocol, for `Replay` and `Simulated`.

From the sample outwards, as they happen:

    Latency(Noisy(LineOffsets(Feedback(Dilated(Drifting(Replay(...))))))

All lots are decided by a key and by how many measurements there were before, in `count`, so that
a campaign which is taken up again meets the noise that it would have met.
"""

import dataclasses
import zlib
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.core.names import unknown_name
from micjax.instruments.base import (
    Axis,
    Frame,
    Instrument,
    LimitError,
    Mode,
    Over,
    Record,
    check_over,
    check_target,
)
from micjax.physics.probes.loop import trace_and_retrace
from micjax.physics.tips.dilation import dilate
from micjax.physics.tips.shapes import AbstractTip, FreeForm

Data = Mapping[str, np.ndarray]
Tip = AbstractTip | FreeForm


class Layer:
    """An instrument around another one, which it leaves as it is; `changed` is for subclasses."""

    def __init__(self, instrument: Instrument):
        self.instrument = instrument

    @property
    def axes(self) -> Mapping[str, Axis]:
        return self.instrument.axes

    @property
    def modes(self) -> Mapping[str, Mode]:
        return self.instrument.modes

    def read(self) -> dict[str, float]:
        return self.instrument.read()

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        return self.instrument.move(check_target(self.axes, target))

    def acquire(self, mode: str, over: Over = None) -> Record:
        check_over(self.axes, self.modes, mode, over)
        return self.changed(self.instrument.acquire(mode, over), over)

    def changed(self, record: Record, over: Over) -> Record:
        return record

    def stop(self) -> None:
        self.instrument.stop()


class Noisy(Layer):
    """Gaussian noise, independent in every value.

    **Arguments:**

    - `sd`: standard deviation by channel, in the channel's unit.

    **Raises:** `ValueError` for a channel that no mode has, or a negative number.
    """

    def __init__(self, instrument: Instrument, key: Array, sd: Mapping[str, float]):
        super().__init__(instrument)
        _check_channels(instrument, sd)
        from_zero_on(**sd)
        self._key, self._sd, self.count = key, dict(sd), 0

    def changed(self, record: Record, over: Over) -> Record:
        draws = generator(self._key, type(self).__name__, self.count)
        data = {}
        for name in (n for n in self._sd if n in record.data):
            lots = draws.standard_normal(self.shape(np.shape(record.data[name]), over))
            data[name] = np.asarray(record.data[name] + self._sd[name] * lots)
        self.count += 1
        return with_data(record, data)

    def shape(self, shape: tuple[int, ...], over: Over) -> tuple[int, ...]:
        """Of the lots drawn for a channel of this shape."""
        return shape


class LineOffsets(Noisy):
    """Each line of a frame lies higher or lower by an offset of its own; a path and a point are one
    line. Arguments as those of `Noisy`."""

    def shape(self, shape: tuple[int, ...], over: Over) -> tuple[int, ...]:
        ones = (1,) * len(shape)
        return (shape[0], *ones[1:]) if isinstance(over, Frame) else ones


class Dilated(Layer):
    """Heights as a tip sees them: `micjax.physics.tips.dilation.dilate`.

    What lies beyond the border of a frame is not touched. Points and paths would need what lies
    beside them, so modes that measure these heights there are not offered.

    **Arguments:**

    - `tip`: any of `micjax.physics.tips.shapes`; it is resampled to the pixels of each frame.
    - `channels`: names of heights in m.

    **Raises:** `ValueError` for channels that are no heights. `acquire` raises `LimitError` for a
    frame that is turned.
    """

    def __init__(self, instrument: Instrument, tip: Tip, channels: Iterable[str]):
        super().__init__(instrument)
        self._tip, self._channels = tip, _heights(instrument, channels)

    @property
    def modes(self) -> Mapping[str, Mode]:
        return {
            n: m
            for n, m in self.instrument.modes.items()
            if m.kind == "frame" or not set(self._channels) & set(m.channels)
        }

    def acquire(self, mode: str, over: Over = None) -> Record:
        if isinstance(over, Frame) and over.angle != 0.0:
            raise LimitError(f"a frame turned by {over.angle:g} rad, but the tip does not turn")
        return super().acquire(mode, over)

    def changed(self, record: Record, over: Over) -> Record:
        if not isinstance(over, Frame):
            return record
        pixel_nm = [1e9 * s / n for s, n in zip(over.size[::-1], over.shape, strict=True)]
        with jax.enable_x64(True):
            tip = self._tip.resample(pixel_nm)()
            dilated = {
                n: 1e-9 * np.asarray(_dilate(jnp.asarray(1e9 * record.data[n]), tip))
                for n in self._channels
                if n in record.data
            }
        return with_data(record, dilated)


class Feedback(Layer):
    """Heights as a loop follows them along the lines of a frame, or along a path.

    `micjax.physics.probes.loop`, less the set point. A second channel, such as "height retrace",
    has the way back. Points are measured when the loop has settled.

    **Arguments:**

    - `channels`: names of heights in m.
    - `proportional`, `integral`: gains of a sample.
    - `set_point`: deflection that the loop holds, m.
    - `samples_per_pixel`: samples of the loop from one pixel, or point of a path, to the next.

    **Raises:** `ValueError` for channels that are no heights, or negative numbers.
    """

    def __init__(
        self,
        instrument: Instrument,
        channels: Iterable[str],
        *,
        proportional: float,
        integral: float,
        set_point: float,
        samples_per_pixel: int = 16,
    ):
        super().__init__(instrument)
        from_zero_on(proportional=proportional, integral=integral, set_point=set_point)
        self._channels = _heights(instrument, channels)
        self._gains = proportional, integral, 1e9 * set_point
        self._samples = samples_per_pixel

    @property
    def modes(self) -> Mapping[str, Mode]:
        return {n: self._there_and_back(m) for n, m in self.instrument.modes.items()}

    def _there_and_back(self, mode: Mode) -> Mode:
        if mode.kind == "point":
            return mode
        back = {retrace(n): u for n, u in mode.channels.items() if n in self._channels}
        return dataclasses.replace(mode, channels={**mode.channels, **back})

    def changed(self, record: Record, over: Over) -> Record:
        names = [n for n in self._channels if n in record.data and over is not None]
        data, gains = {}, self._gains
        with jax.enable_x64(True):
            for name in names:
                heights = jnp.asarray(1e9 * record.data[name])
                both = _loop(heights, *gains, samples_per_pixel=self._samples)
                data |= {
                    n: 1e-9 * (np.asarray(z) - gains[2])
                    for n, z in zip((name, retrace(name)), both, strict=True)
                }
        back = {retrace(n): n for n in names}
        return dataclasses.replace(
            record,
            data={**record.data, **data},
            dims={**record.dims, **{n: record.dims[of] for n, of in back.items()}},
            units={**record.units, **{n: record.units[of] for n, of in back.items()}},
        )


# --- small things -------------------------------------------------------------------------------


def retrace(channel: str) -> str:
    """What the way back of a channel is called."""
    return f"{channel} retrace"


def generator(key: Array, what: str, count: int = 0) -> np.random.Generator:
    """Lots decided by all three: layers may share a key."""
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.default_rng([*words, zlib.crc32(what.encode()), count])


def from_zero_on(**numbers: float) -> None:
    """**Raises:** `ValueError` for a number that is negative or not finite."""
    for name, value in numbers.items():
        if not 0.0 <= value < np.inf:
            raise ValueError(f"{name} = {value}: must be a number from 0 on")


def with_data(record: Record, data: Data) -> Record:
    """The record with the data of some channels replaced."""
    return dataclasses.replace(record, data={**record.data, **data})


def _check_channels(instrument: Instrument, names: Iterable[str]) -> None:
    known = {n: u for m in instrument.modes.values() for n, u in m.channels.items()}
    for name in names:
        if name not in known:
            raise ValueError(unknown_name("channel", name, known))


def _heights(instrument: Instrument, names: Iterable[str]) -> list[str]:
    names = list(names)
    _check_channels(instrument, names)
    for mode in instrument.modes.values():
        for name in set(names) & set(mode.channels):
            if mode.channels[name] != "m":
                raise ValueError(f"{name} is in {mode.channels[name]!r}; heights are in m")
    return names


@jax.jit
def _dilate(heights: Float[Array, "ny nx"], tip: Float[Array, "ky kx"]) -> Float[Array, "ny nx"]:
    """Also by a tip that is larger than the frame."""
    (ny, nx), (ky, kx) = heights.shape, (n // 2 for n in tip.shape)
    wide = jnp.pad(heights, ((ky, ky), (kx, kx)), constant_values=-jnp.inf)
    return dilate(wide, tip)[ky : ky + ny, kx : kx + nx]


_loop = jax.jit(trace_and_retrace, static_argnames="samples_per_pixel")

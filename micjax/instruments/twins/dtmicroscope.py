"""The AFM twin of DTMicroscope, in this process or behind its Pyro server.

What it does otherwise than one expects is put right here: it keeps x before y, its lines run along
the other axis, it mixes up the pixels of spectral images, clamps what is out of range, takes places
in a dictionary for places in a stack, and drops names that it does not know.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from micjax.core.names import unknown_name
from micjax.instruments.arrival import check_arrived
from micjax.instruments.base import (
    Axis,
    InstrumentError,
    LinkError,
    Mode,
    NotReady,
    Over,
    Record,
    check_over,
    check_target,
)
from micjax.instruments.replay import Replay
from micjax.io import Field, FieldAxis

Artefact = tuple[str, Mapping[str, Any]]
TIMEOUT_S = 300.0  # of a server: an artefact takes it half a minute


class DTMicroscope(Replay):
    """An AFM of DTMicroscope.

    Its scan is the same at every call: it is fetched once, and images, lines and pixels are
    answered from it by the nearest pixel. Spectra are asked of the twin each time.

    **Arguments:**

    - `twin`: an `AFM_Microscope` that was set up, or the address of a server,
        "PYRO:microscope.server@localhost:9092".
    - `data_path`: the file that a server opens, as it is called there: every connection has a
        microscope of its own.
    - `channels`: the images to scan by quantity, "HeightRetrace"; by default all.
    - `artefact`: `(effect, settings)`, as in `("real_tip", {"r_tip": 0.1, "center": [0.5, 0.5]})`.
        The twin applies one, to all channels: choose the heights. The lines of "real_PID" run
        along y.
    - `swept`: name and unit of what spectra run over, which the twin does not tell.
    - `rate`: m/s along either axis. `seconds`: of each measurement at a point.

    **Raises:** `NotReady` for channels that the twin has not, no images, coordinates that it has
    dropped, or artefacts that it would apply to other channels; `LinkError` when there is nobody;
    `ValueError` for an address without `data_path`; `ImportError` for one without Pyro5.
    """

    def __init__(
        self,
        twin: Any,
        *,
        data_path: str | None = None,
        channels: Sequence[str] | None = None,
        artefact: Artefact | None = None,
        swept: tuple[str, str] = ("swept", ""),
        rate: float = math.inf,
        seconds: float = 0.0,
    ):
        self._twin, self._lost, self._remote = twin, (), isinstance(twin, str)
        try:
            if self._remote:
                self._connect(twin, data_path)
            self.axes = {n: self._axis(n, rate) for n in ("x", "y")}
            axes, info = self.axes, dict(self._ask("get_dataset_info"))
            super().__init__(self._scanned(info, channels, artefact), rate=rate, seconds=seconds)
            self.axes = axes
            self._swept, self._cloud = swept, bool(info["point_clouds"])
            spectra = info["point_clouds"] or info["spectra"]
            if spectra:
                channel = {info["signals"][spectra[0]]: info["units"][spectra[0]]}
                self.modes |= {"spectrum": Mode("point", channel, seconds=seconds)}
            if self._remote:
                self._go(self._at)  # until it is told where to go, a server cannot say where it is
        except BaseException:
            self.close()
            raise

    def read(self) -> dict[str, float]:
        return {n: float(self._ask(n)) for n in ("x", "y")}

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        target = check_target(self.axes, target)
        self._go(self.read() | target)
        arrived = self.read()
        check_arrived(self.axes, target, arrived)
        return arrived

    def acquire(self, mode: str, over: Over = None) -> Record:
        check_over(self.axes, self.modes, mode, over)
        self._at = self.read()
        return self._spectrum() if mode == "spectrum" else super().acquire(mode, over)

    def close(self) -> None:
        if self._remote and not isinstance(self._twin, str):
            self._twin._pyroClaimOwnership()
            self._twin._pyroRelease()

    def __enter__(self) -> "DTMicroscope":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _connect(self, address: str, data_path: str | None) -> None:
        if data_path is None:
            raise ValueError(f"{address}: data_path, the file that it opens, is wanted")
        try:
            import Pyro5.api
            import Pyro5.errors
        except ImportError as error:
            raise ImportError(f"{address} wants Pyro5: pip install Pyro5") from error
        self._lost = (Pyro5.errors.PyroError,)
        self._twin = Pyro5.api.Proxy(address)  # connects when it is first asked
        self._twin._pyroTimeout = TIMEOUT_S
        self._ask("initialize_microscope", "AFM", data_path=data_path)
        self._ask("setup_microscope")

    def _ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        """What an attribute is, or a method returns."""
        try:
            if self._remote:
                self._twin._pyroClaimOwnership()  # a guard measures in a thread of its own
            attribute = getattr(self._twin, name)
            return attribute(*arguments, **options) if callable(attribute) else attribute
        except self._lost as error:
            raise LinkError(f"{name}: {error}; the state of the twin is unknown") from error
        except Exception as error:
            raise InstrumentError(f"{name}: {type(error).__name__}: {error}") from error

    def _go(self, place: Mapping[str, float]) -> None:
        x, y = (float(place[n]) for n in ("x", "y"))
        if self._remote:  # at a lower end it reads a number of numpy, which Pyro does not carry
            x, y = (
                max(v, math.nextafter(self.axes[n].lo, math.inf)) for n, v in (("x", x), ("y", y))
            )
        self._ask("go_to", x, y)

    def _axis(self, name: str, rate: float) -> Axis:
        lo, hi = (float(self._ask(f"{name}_{end}")) for end in ("min", "max"))
        if (lo, hi) == (0.0, 1.0):
            raise NotReady(
                f"{name} goes from 0 to 1 m: the twin has dropped the coordinates of its file; "
                "Replay.of(file) reads them"
            )
        return Axis("m", lo, hi, rate=rate, tol=max(1e-9 * (hi - lo), 1e-15))

    def _coords(self, name: str, count: int) -> np.ndarray:
        if self._remote:  # which tells the ends alone
            return np.linspace(self.axes[name].lo, self.axes[name].hi, count)
        return np.asarray(self._ask(f"{name}_coords"), dtype=float)

    def _scanned(
        self, info: Mapping[str, list], channels: Sequence[str] | None, artefact: Artefact | None
    ) -> list[Field]:
        """The images `[iy, ix]` over x and y in m."""
        scans = info["scans"]  # where each image of the stack stands among all data
        if not scans:
            raise NotReady("the twin has no image, and so it does not tell where its pixels are")
        names = _unique([info["signals"][i] for i in scans])
        chosen = list(names if channels is None else channels)
        for name in chosen:
            if name not in names:
                raise NotReady(unknown_name("channel", name, names))
        order = [names.index(name) for name in chosen]
        if artefact is None:
            stack = _array(self._ask("get_scan"))[order]
        elif any(scans[k] != k for k in order):
            raise NotReady("other data stand before the images: the twin would scan others of them")
        else:
            effect, settings = artefact
            keys = [info["channels"][k] for k in order]
            modification = [{"effect": effect, "kwargs": _plain(settings)}]
            stack = _array(self._ask("get_scan", channels=keys, modification=modification))
        _, nx, ny = stack.shape
        self._places = {"x": self._coords("x", nx), "y": self._coords("y", ny)}
        axes = tuple(FieldAxis(n, self._places[n], "m") for n in ("y", "x"))
        units = [info["units"][scans[k]] for k in order]
        return [
            Field(image.T, axes, unit, name)
            for image, unit, name in zip(stack, units, chosen, strict=True)
        ]

    def _spectrum(self) -> Record:
        begun, at = time.time(), dict(self._at)
        if not self._cloud:
            iy, ix = (int(i) for i in self._pixel(at["x"], at["y"]))
            at = self._place(ix, iy)
            # the twin counts pixels along x first, and takes the count for one along y first
            jy, jx = divmod(ix * len(self._y) + iy, len(self._x))
            self._go(self._place(jx, jy))
        try:
            swept, values = (_array(answer) for answer in self._ask("get_spectrum"))
        finally:
            self._go(self._at)
        ((channel, unit),), (name, per) = self.modes["spectrum"].channels.items(), self._swept
        dims = (*(f"axis{i}" for i in range(values.ndim - 1)), name)
        coords = {name: (swept, per)}
        return Record(
            {channel: values}, {channel: dims}, {channel: unit}, coords, at, begun, time.time()
        )

    def _place(self, ix: int, iy: int) -> dict[str, float]:
        return {"x": float(self._places["x"][ix]), "y": float(self._places["y"][iy])}


def _array(answer: Any) -> np.ndarray:
    """An array of its own, which a server sends as (list, shape, dtype)."""
    if isinstance(answer, tuple | list) and len(answer) == 3 and isinstance(answer[2], str):
        values, shape, dtype = answer
        return np.array(values, dtype).reshape(shape)
    return np.array(answer)


def _plain(value: Any) -> Any:
    """Numbers of Python in containers of their own: the twin writes into what it is given."""
    if isinstance(value, Mapping):
        return {str(n): _plain(v) for n, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _unique(names: Sequence[str]) -> list[str]:
    """A name that comes again gets a number: `Height`, `Height #2`."""
    return [n if (k := names[:i].count(n)) == 0 else f"{n} #{k + 1}" for i, n in enumerate(names)]

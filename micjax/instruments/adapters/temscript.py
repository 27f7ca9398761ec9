"""TEMs of FEI and Thermo Fisher behind the server of temscript 2, over plain HTTP and JSON.

The server does not tell the field of view, so an image is a measurement at the place where the
microscope is, `[row, column]` in pixels, and there are no frames over metres. It answers one
request at a time and cannot halt the stage: a stop blanks the beam as soon as what goes on has
ended.
"""

import base64
import contextlib
import http.client
import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np

from micjax.core.names import unknown_name
from micjax.instruments.arrival import check_arrived, check_tolerances
from micjax.instruments.base import (
    Aborted,
    Axis,
    InstrumentError,
    LinkError,
    Mode,
    MoveError,
    NotReady,
    Over,
    Record,
    check_over,
    check_target,
)

STAGE = {"x": "x", "y": "y", "z": "z", "alpha": "a", "beta": "b"}
TOLERANCES = {"x": 5e-7, "y": 5e-7, "z": 5e-7, "alpha": 2e-3, "beta": 2e-3}
PAIRS = (
    "beam_shift",
    "beam_tilt",
    "condenser_stigmator",
    "diffraction_shift",
    "image_shift",
    "objective_stigmator",
)
SINGLES = (
    "convergence_angle",
    "defocus",
    "illuminated_area",
    "intensity",
    "probe_defocus",
    "stem_magnification",
    "stem_rotation",
)
OPTICS = {n: (n, None) for n in SINGLES} | {
    f"{n}_{xy}": (n, k) for n in PAIRS for k, xy in enumerate("xy")
}
MOVING = ("GOING", "MOVING", "WOBBLING")
POLL_S = 0.02
STOP_S = 2.0  # how long a stop waits for its answer


class Temscript:
    """A microscope behind `temscript-server`.

    **Arguments:**

    - `url`: of the server, "http://192.168.0.1:8080".
    - `stage`: axes of the stage, and how far from its target each may arrive, m and rad. Where they
        may be is asked of the server. Leave out `beta` for a holder without it.
    - `optics`: axes of lenses and deflectors, each with limits and a `tol`: the names are those of
        temscript, with `_x` and `_y` for pairs. It has beam and image shift and the defocus of the
        probe in m, tilts in rad, and the defocus of the objective in no unit or in m.
    - `detectors`: cameras and STEM detectors, and the seconds that an image of each takes. What is
        set on the microscope holds, exposure, binning and dwell, and is put into `Record.meta`.
    - `timeout_s`: how long to wait for an answer, a whole way of the stage included.

    **Raises:** `LinkError` when there is nobody; `NotReady` for an axis or a detector that the
    microscope has not; `ValueError` for another address, or an axis without `tol`.
    """

    def __init__(
        self,
        url: str,
        *,
        stage: Mapping[str, float] = TOLERANCES,
        optics: Mapping[str, Axis] | None = None,
        detectors: Mapping[str, float] | None = None,
        timeout_s: float = 60.0,
    ):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"{url!r}: an address such as http://192.168.0.1:8080 is wanted")
        self._address, self._timeout_s = (parts.hostname, parts.port or 80), timeout_s
        self._stopped = threading.Event()
        optics = dict(optics or {})
        for name, known in [(n, STAGE) for n in stage] + [(n, OPTICS) for n in optics]:
            if name not in known:
                raise NotReady(unknown_name("axis", name, known))
        self._places: dict[str, tuple[str, str | int | None]] = {
            n: ("stage_position", STAGE[n]) for n in stage
        } | {n: OPTICS[n] for n in optics}
        self.axes: Mapping[str, Axis] = self._stage_axes(stage) | optics
        check_tolerances(self.axes)
        self.modes: Mapping[str, Mode] = {
            n: Mode("point", {n: ""}, seconds=s) for n, s in (detectors or {}).items()
        }
        self._settings = self._settings_of(self.modes)

    def read(self) -> dict[str, float]:
        endpoints = dict.fromkeys(endpoint for endpoint, _ in self._places.values())
        answers = {endpoint: self._ask("GET", endpoint) for endpoint in endpoints}
        return {n: self._part(e, answers[e], key) for n, (e, key) in self._places.items()}

    def move(self, target: Mapping[str, float]) -> dict[str, float]:
        target = check_target(self.axes, target)
        self._stopped.clear()
        wanted: dict[str, dict] = {}
        for name, value in target.items():
            endpoint, key = self._places[name]
            wanted.setdefault(endpoint, {})[key] = value
        for endpoint, values in wanted.items():
            self._ask("PUT", endpoint, self._body(endpoint, values))
        if "stage_position" in wanted:
            self._wait_for_the_stage()
        arrived = self.read()
        check_arrived(self.axes, target, arrived)
        return arrived

    def acquire(self, mode: str, over: Over = None) -> Record:
        seconds = check_over(self.axes, self.modes, mode, over).cost()[0]
        self._stopped.clear()
        if self._ask("GET", "beam_blanked"):
            raise NotReady("the beam is blanked; unblank() it")
        begun = time.time()
        settings = {endpoint: self._ask("GET", endpoint) for endpoint in self._settings[mode]}
        query = urllib.parse.urlencode({"detectors": mode})
        image = self._image(mode, self._ask("GET", f"acquire?{query}", longer_s=seconds))
        if self._stopped.is_set():
            raise Aborted("stop was called; the beam was blanked")
        ended, at = time.time(), self.read()
        names = ("row", "column")
        pixels = {n: (np.arange(float(k)), "px") for n, k in zip(names, image.shape, strict=True)}
        return Record({mode: image}, {mode: names}, {mode: ""}, pixels, at, begun, ended, settings)

    def stop(self) -> None:
        self._stopped.set()
        with contextlib.suppress(InstrumentError):
            self._ask("PUT", "beam_blanked", True, timeout_s=STOP_S)

    def unblank(self) -> None:
        """The beam back on the sample, which a stop has taken from it."""
        self._ask("PUT", "beam_blanked", False)

    def _ask(
        self,
        method: str,
        endpoint: str,
        value: Any = None,
        *,
        longer_s: float = 0.0,
        timeout_s: float | None = None,
    ) -> Any:
        """One request on a connection of its own: nothing that goes wrong outlives it."""
        body = json.dumps(value) if method == "PUT" else None
        timeout_s = (self._timeout_s if timeout_s is None else timeout_s) + longer_s
        link = http.client.HTTPConnection(*self._address, timeout=timeout_s)
        late = threading.Event()
        # the time-out of a connection is for each part of an answer, this one for all of it
        alarm = threading.Timer(1.05 * timeout_s, lambda: (late.set(), _cut(link)))
        alarm.daemon = True
        alarm.start()
        try:
            link.connect()
            link.cut = link.sock  # which a response takes over
            link.request(method, f"/v1/{endpoint}", body, {"Accept": "application/json"})
            answer = link.getresponse()
            raw = answer.read()
            if answer.status not in (200, 204):
                raise http.client.HTTPException(f"HTTP {answer.status} {answer.reason}")
            return json.loads(raw) if raw else None
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = "timed out" if late.is_set() else error
            raise self._lost(f"{method} {endpoint}", why) from error
        finally:
            alarm.cancel()
            link.close()

    def _lost(self, request: str, why: object) -> LinkError:
        host, port = self._address
        why = str(why) or type(why).__name__
        return LinkError(f"{host}:{port}, {request}: {why}; the state of the microscope is unknown")

    def _part(self, endpoint: str, answer: Any, key: str | int | None) -> float:
        try:
            return float(answer if key is None else answer[key])
        except (LookupError, TypeError, ValueError) as error:
            raise self._lost(f"GET {endpoint}", f"answered {answer!r}") from error

    def _stage_axes(self, stage: Mapping[str, float]) -> dict[str, Axis]:
        limits, axes = self._ask("GET", "stage_limits"), {}
        for name, tol in stage.items():
            try:
                lo, hi = (float(end) for end in limits[STAGE[name]])
            except (LookupError, TypeError, ValueError) as error:
                raise NotReady(f"the stage has no limits of {name}, it has {limits!r}") from error
            axes[name] = Axis("rad" if name in ("alpha", "beta") else "m", lo, hi, tol=tol)
        return axes

    def _settings_of(self, names: Mapping[str, Mode]) -> dict[str, tuple[str, ...]]:
        """Where the settings of each detector are found."""
        cameras = self._ask("GET", "cameras") if names else {}
        others = self._ask("GET", "stem_detectors") if set(names) - set(cameras) else {}
        settings = {}
        for name in names:
            if name not in {*cameras, *others}:
                raise NotReady(unknown_name("detector", name, [*cameras, *others]))
            quoted = urllib.parse.quote(name, safe="")
            stem = (f"stem_detector_param/{quoted}", "stem_acquisition_param")
            settings[name] = (f"camera_param/{quoted}",) if name in cameras else stem
        return settings

    def _body(self, endpoint: str, values: dict) -> Any:
        if endpoint == "stage_position":
            return values
        if None in values:
            return values[None]
        now = self._ask("GET", endpoint)  # a pair is set as a whole: what is not named stays
        return [values[k] if k in values else self._part(endpoint, now, k) for k in (0, 1)]

    def _wait_for_the_stage(self) -> None:
        until = time.monotonic() + self._timeout_s
        while (status := self._ask("GET", "stage_status")) in MOVING:
            if self._stopped.wait(POLL_S):
                raise Aborted("stop was called; the stage cannot be halted and goes on")
            if time.monotonic() > until:
                raise MoveError(f"the stage is still {status} after {self._timeout_s:g} s")

    def _image(self, name: str, answer: Any) -> np.ndarray:
        try:
            packed = answer[name]
            order = {"LITTLE": "<", "BIG": ">"}[packed["endianness"]]
            dtype = np.dtype(packed["type"].lower()).newbyteorder(order)
            values = np.frombuffer(base64.b64decode(packed["data"], validate=True), dtype)
            return values.reshape(packed["height"], packed["width"]).astype(dtype.newbyteorder("="))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise self._lost(f"GET acquire of {name}", f"no image came back, {error!r}") from error


def _cut(link: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):  # it may not be connected yet
        link.cut.shutdown(socket.SHUT_RDWR)

"""A device of Tango for test_tango.py, in a process of its own, which ends with its stdin.

Its name comes on stderr, since Tango itself writes to stdout at any time.
"""

import sys
import time

import numpy as np
import tango
from tango.server import Device, attribute, command
from tango.test_context import DeviceTestContext


class Stage(Device):
    """x in mm is on its way for `travel` seconds, tilt in deg is there at once."""

    def init_device(self):
        super().init_device()
        self._x = self._tilt = self._start = 0.0
        self._goal, self._from, self._travel, self._offset = 0.0, 0.0, 0.0, 0.0
        self._busy, self._exposure, self._broken, self._seen = None, 0.0, False, []
        self.set_state(tango.DevState.ON)

    def _now(self):
        share = min(1.0, (time.monotonic() - self._start) / max(self._travel, 1e-9))
        return self._from + share * (self._goal - self._from)

    def dev_state(self):
        if self._broken:
            return tango.DevState.FAULT
        if self._busy is not None and time.monotonic() < self._busy:
            return tango.DevState.RUNNING
        going = time.monotonic() - self._start < self._travel
        return tango.DevState.MOVING if going else tango.DevState.ON

    @attribute(dtype=float, unit="mm", min_value=-1.0, max_value=1.0)
    def x(self):
        return self._now()

    @x.write
    def x(self, value):
        self._seen.append(value)
        self._from, self._goal, self._start = self._now(), value + self._offset, time.monotonic()

    @attribute(dtype=float, unit="deg")
    def tilt(self):
        return self._tilt, time.time(), self._quality()

    def _quality(self):
        invalid = self._tilt > 80.0
        return tango.AttrQuality.ATTR_INVALID if invalid else tango.AttrQuality.ATTR_VALID

    @tilt.write
    def tilt(self, value):
        if value > 85.0:
            tango.Except.throw_exception("Interlock", "the holder would touch", "tilt")
        self._tilt = value

    @attribute(dtype=(float,), max_dim_x=100, unit="V")
    def spectrum(self):
        return self._now() + np.arange(4.0)

    @attribute(dtype=((float,),), max_dim_x=10, max_dim_y=10)
    def image(self):
        return np.arange(6.0).reshape(2, 3)

    @attribute(dtype=(float,), max_dim_x=100_000)
    def seen(self):
        """All that x was sent."""
        return self._seen

    @attribute(dtype=(float,), max_dim_x=4)
    def faults(self):
        return [self._travel, self._offset, self._exposure, float(self._broken)]

    @faults.write
    def faults(self, values):
        self._travel, self._offset, self._exposure = values[:3]
        self._broken = bool(values[3])

    @command
    def Expose(self):
        self._busy = time.monotonic() + self._exposure

    @command(dtype_out=float)
    def Current(self):
        return 2.0 * self._now()

    @command(dtype_out=str)
    def Key(self):
        return "a key of another data base"

    @command
    def Lock(self):
        self.get_device_attr().get_attr_by_name("x").set_max_value(0.5)

    @command
    def Stop(self):
        self._from = self._goal = self._now()
        self._start, self._busy = -1e9, None


if __name__ == "__main__":
    with DeviceTestContext(Stage, process=False) as proxy:
        server = f"{proxy.get_dev_host()}:{proxy.get_dev_port()}"
        print(f"tango://{server}/{proxy.dev_name()}#dbase=no", file=sys.stderr)
        sys.stdin.read()

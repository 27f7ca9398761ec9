"""Nanonis against the loopback server, fragmented and with every fault."""

import dataclasses
import math
import socket
import struct
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micjax.instruments import (
    Aborted,
    Frame,
    Guard,
    InstrumentError,
    Journal,
    LimitError,
    LinkError,
    MoveError,
    Nanonis,
    NotReady,
    Recorded,
    check_instrument,
    consolidate,
)
from micjax.instruments.adapters import nanonis_wire
from micjax.instruments.testing import Controller, nanonis_server
from micjax.io import read_nexus

REACH = {"x": (-1e-6, 1e-6), "y": (-8e-7, 8e-7), "bias": (-2.0, 2.0)}
SCANS = {"image": ("Z (m)", "Current (A)"), "setpoint": (1e-11, 1e-9)}
FRAME = Frame((2e-7, -1e-7), (6e-7, 4e-7), (24, 48), dwell=1e-4)


@pytest.fixture
def server():
    with nanonis_server() as (controller, ports):
        yield controller, ports


def connected(ports, **options):
    options = REACH | {"spectrum": {"Current": "A"}, "timeout_s": 2.0} | options
    return Nanonis("127.0.0.1", ports, **options)


# --- the wire -------------------------------------------------------------------------------------

GET = "466F6C4D652E5859506F73476574" + 18 * "00"
SET = "466F6C4D652E5859506F73536574" + 18 * "00"


@pytest.mark.parametrize(
    ("made", "bytes_"),
    [
        (nanonis_wire.request("FolMe.XYPosGet", 1), GET + "00000004 0001 0000 00000001"),
        (
            nanonis_wire.request("FolMe.XYPosSet", 10e-9, 15e-9, 1),
            SET + "00000014 0001 0000 3E45798EE2308C3A 3E501B2B29A4692B 00000001",
        ),
        (
            nanonis_wire.response("FolMe.XYPosGet", (5e-9, -5e-9)),
            GET + "00000018 00000000 3E35798EE2308C3A BE35798EE2308C3A 00000000 00000000",
        ),
        (nanonis_wire.response("FolMe.XYPosSet", ()), SET + "00000008 00000000 00000000 00000000"),
    ],
)
def test_bytes_are_those_of_the_document(made, bytes_):
    assert made == bytes.fromhex(bytes_)


@pytest.mark.parametrize(
    ("name", "arguments", "body"),
    [
        (
            "Scan.FrameSet",
            (10e-9, -15e-9, 50e-9, 40e-9, -30.0),
            struct.pack(">5f", 10e-9, -15e-9, 50e-9, 40e-9, -30.0),
        ),
        ("Scan.BufferSet", ([0, 14], 256, 128), struct.pack(">i2iii", 2, 0, 14, 256, 128)),
        (
            "Scan.SpeedSet",
            (1e-7, 2e-7, 0.5, 0.25, 2, 2.0),
            struct.pack(">4fHf", 1e-7, 2e-7, 0.5, 0.25, 2, 2.0),
        ),
        ("Scan.Action", (0, 1), struct.pack(">HI", 0, 1)),
        ("Scan.WaitEndOfScan", (-1,), struct.pack(">i", -1)),
        ("Scan.FrameDataGrab", (14, 1), struct.pack(">II", 14, 1)),
        ("ZCtrl.SetpntSet", (1e-10,), struct.pack(">f", 1e-10)),
    ],
)
def test_arguments_of_a_scan(name, arguments, body):
    header = struct.pack(">32siHH", name.encode(), len(body), 1, 0)
    assert nanonis_wire.request(name, *arguments) == header + body


def test_results_of_a_scan():
    rows = np.arange(6.0).reshape(2, 3)
    body = struct.pack(">i5sii6fI", 5, b"Z (m)", 2, 3, *rows.ravel(), 1) + bytes(8)
    (label, found, direction), error = nanonis_wire.reply("Scan.FrameDataGrab", body)
    assert (label, direction, error) == ("Z (m)", 1, None)
    np.testing.assert_array_equal(found, rows)
    body = struct.pack(">i2iii", 2, 0, 14, 256, 128) + bytes(8)
    (channels, *size), _ = nanonis_wire.reply("Scan.BufferGet", body)
    assert list(channels) == [0, 14] and size == [256, 128]
    ended, path = nanonis_wire.reply("Scan.WaitEndOfScan", struct.pack(">Ii", 1, 0) + bytes(8))[0]
    assert (ended, path) == (1, "")


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text(max_size=300), max_size=4),
    st.integers(0, 3).flatmap(
        lambda n: st.lists(st.lists(NUMBERS, min_size=n, max_size=n), min_size=1, max_size=3)
    ),
    st.lists(NUMBERS, max_size=5),
)
def test_what_is_encoded_is_decoded(names, rows, numbers):
    spec = nanonis_wire.COMMANDS["BiasSpectr.Start"][1]
    raw = nanonis_wire.encode(spec, (names, np.array(rows, "f4"), numbers))
    (back, array, end), used = nanonis_wire.decode(spec, raw)
    assert back == names and used == len(raw)
    np.testing.assert_array_equal(array, np.array(rows, "f4"))
    np.testing.assert_array_equal(end, np.array(numbers, "f4"))
    for short in range(0, len(raw), max(1, len(raw) // 7)):
        with pytest.raises(nanonis_wire.WireError):
            nanonis_wire.decode(spec, raw[:short])


def test_errors_with_and_without_results_and_appended_results():
    def reply(raw, name="Bias.Get"):
        return nanonis_wire.reply(name, raw[40:])

    assert reply(nanonis_wire.response("Bias.Get", (0.5,))) == ((0.5,), None)
    assert reply(nanonis_wire.response("Bias.Get", (0.5,), "no")) == ((0.5,), "no")
    assert reply(nanonis_wire.response("Bias.Get", (), "no")) == ((), "no")
    later = nanonis_wire.encode("f d", (0.5, 1.0 / 3.0)) + bytes(8)
    assert nanonis_wire.reply("Bias.Get", later) == ((0.5,), None)
    with pytest.raises(nanonis_wire.WireError, match="no error block"):
        nanonis_wire.reply("Bias.Get", later[:-1])


# --- the instrument -------------------------------------------------------------------------------


@pytest.mark.parametrize("fragment", [0, 1, 7])
def test_conformance(server, fragment):
    controller, ports = server
    controller.faults.fragment = fragment
    with connected(ports, **SCANS) as inst:
        assert check_instrument(inst) and check_instrument(Guard(inst))


def test_spectra_and_signals(server):
    controller, ports = server
    with connected(ports, signals=("Current (A)", "Z (m)")) as inst:
        inst.move({"x": 4e-7, "y": -1e-7, "bias": 0.5})
        record = inst.acquire("spectrum")
        assert controller.positions == [(4e-7, -1e-7)] and record.at["bias"] == 0.5
        bias, unit = record.coords["Bias calc"]
        assert unit == "V" and record.dims == {"Current": ("Bias calc",)}
        assert bias.argmax() in (10, 11) and bias[-1] == -1.0  # up and down again
        np.testing.assert_allclose(record.data["Current"], controller.current_A(bias), rtol=1e-6)
        values = inst.acquire("signals")
        assert values.units == {"Current": "A", "Z": "m"}
        assert float(values.data["Current"]) == pytest.approx(controller.current_A(0.5), rel=1e-6)


def test_names_with_blanks_and_brackets_are_consolidated(server, tmp_path):
    with connected(server[1]) as inst, Journal(tmp_path, {}) as journal:
        Recorded(inst, journal).acquire("spectrum")
        assert consolidate(tmp_path, tmp_path / "all.nxs") == 1
    found = read_nexus(tmp_path / "all.nxs")["spectrum_Current"]
    assert [a.name for a in found.axes] == ["step", "Bias_calc"] and found.axes[1].unit == "V"


def test_an_unknown_command_is_answered_by_its_name(server):
    with socket.create_connection(("127.0.0.1", server[1][0]), 2.0) as link:
        link.sendall(nanonis_wire.REQUEST.pack(b"Scan.Nothing", 0, 1, 0))
        header = link.recv(40, socket.MSG_WAITALL)
        name, size = nanonis_wire.name_and_size(header)
        assert name == "Scan.Nothing"
        assert b"unknown command Scan.Nothing" in link.recv(size, socket.MSG_WAITALL)


def test_what_it_has_not(server):
    _, ports = server
    with pytest.raises(NotReady, match=r"no signal 'Curent \(A\)'.*nearest: Current \(A\)"):
        connected(ports, signals=("Curent (A)",))
    with (
        connected(ports, spectrum={"LI Demod": "A"}) as inst,
        pytest.raises(NotReady, match="no LI Demod"),
    ):
        inst.acquire("spectrum")


def test_nobody_is_there():
    with nanonis_server() as (_, ports):
        pass
    with pytest.raises(LinkError, match="refused"):
        connected(ports)


@pytest.mark.parametrize("bare", [True, False])
def test_an_error_of_the_controller_leaves_the_link_good(server, bare):
    controller, ports = server
    controller.faults.bare = bare
    with connected(ports) as inst:
        controller.faults.error = {"Bias.Get": "the DAC is on fire"}
        with pytest.raises(InstrumentError, match="Bias.Get: the DAC is on fire"):
            inst.read()
        controller.faults.error = {}
        assert inst.read()["bias"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("hang", "Bias.Get: timed out"),
        ("drop", "Bias.Get: closed after"),
        ("wrong_size", "Bias.Get: .*no error block"),
        ("wrong_name", "Bias.Get was asked and 'Other.Command' answered"),
    ],
)
def test_a_broken_link_is_told_and_stays_so(server, fault, message):
    controller, ports = server
    with connected(ports, timeout_s=0.3) as inst:
        setattr(controller.faults, fault, {"Bias.Get"})
        with pytest.raises(LinkError, match=message):
            inst.read()
        setattr(controller.faults, fault, set())
        with pytest.raises(LinkError, match="connect anew"):
            inst.read()
        inst.stop()  # never raises, and has a connection of its own
    assert controller.asked[-1] == "FolMe.Stop"
    with connected(ports) as inst:
        assert inst.read()["x"] == 0.0


def test_a_tip_that_does_not_move(server):
    controller, ports = server
    controller.faults.stuck = True
    with connected(ports) as inst, pytest.raises(MoveError, match="x is at 0 m, asked for 5e-07"):
        Guard(inst).move({"x": 5e-7})


def test_the_bias_goes_in_steps(server):
    _, ports = server
    with connected(ports, bias_step=0.5) as inst:
        assert Guard(inst).move({"bias": -1.6})["bias"] == pytest.approx(-1.6)


def test_the_set_point_is_an_axis_where_limits_are_given(server):
    controller, ports = server
    with connected(ports) as inst:
        assert "setpoint" not in inst.axes and "setpoint" not in inst.read()
    with connected(ports, setpoint=(1e-11, 1e-9), setpoint_unit="A") as inst:
        assert inst.axes["setpoint"].unit == "A"
        assert Guard(inst).move({"setpoint": 2e-10})["setpoint"] == pytest.approx(2e-10, rel=1e-6)
        with pytest.raises(LimitError, match="setpoint = 2e-09 A is outside"):
            inst.move({"setpoint": 2e-9})
        assert controller.setpoint == pytest.approx(2e-10, rel=1e-6)


# --- frames ---------------------------------------------------------------------------------------


class Downwards(Controller):
    """Scans down whatever it is asked."""

    def _Scan_Action(self, action, direction):
        return super()._Scan_Action(action, 0)


class FromTheTop(Controller):
    def _Scan_FrameDataGrab(self, *arguments):
        label, rows, direction = super()._Scan_FrameDataGrab(*arguments)
        return label, rows[::-1], direction


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.5])
@pytest.mark.parametrize(
    ("make", "rows"), [(Controller, "scanned"), (Downwards, "scanned"), (FromTheTop, "top")]
)
def test_a_frame_is_the_surface_at_its_points(make, rows, angle):
    frame = dataclasses.replace(FRAME, angle=angle)
    with nanonis_server(make) as (controller, ports), connected(ports, rows=rows, **SCANS) as inst:
        record = Guard(inst).acquire("image", frame)
        x, y = np.moveaxis(frame.points(), -1, 0)
        height = controller.height_m(x, y)
        np.testing.assert_allclose(record.data["Z"], height, atol=1e-4 * np.ptp(height))
        assert record.units == {"Z": "m", "Current": "A"} and record.dims["Z"] == ("y", "x")
        current = controller.current_A(0.1, x, y)
        np.testing.assert_allclose(record.data["Current"], current, rtol=1e-4)
        assert ("x" in record.coords) == (angle == 0.0)
        assert controller.frame[4] == pytest.approx(-math.degrees(angle))
        assert controller.buffer == ([0, 2], 48, 24)
        assert controller.speed[2] == pytest.approx(48 * 1e-4)


def refused(controller, ports, frame, message):
    with connected(ports, **SCANS) as inst:
        with pytest.raises(LimitError, match=message):
            inst.acquire("image", frame)
    assert controller.scans == 0


def test_a_frame_that_cannot_be_had_is_not_scanned(server):
    controller, ports = server
    other = dataclasses.replace(FRAME, shape=(24, 40))
    refused(controller, ports, other, r"it would take .*\(24, 32\).* not .*\(24, 40\)")
    refused(controller, ports, dataclasses.replace(FRAME, dwell=0.0), "takes a dwell")
    with connected(ports, **SCANS) as inst, pytest.raises(LimitError, match="goes over a Frame"):
        inst.acquire("image")
    controller.asked.clear()
    far = dataclasses.replace(FRAME, angle=math.pi / 4.0, center=(2e-7, -6e-7))
    refused(controller, ports, far, "y = .* is outside")
    assert "Scan.FrameSet" not in controller.asked
    controller.faults.stuck = True
    moved = dataclasses.replace(FRAME, center=(0.0, 0.0))
    refused(controller, ports, moved, r"it would take .*, not .*center=\(0.0, 0.0\)")


def test_a_controller_with_another_speed_is_found_out():
    class Slower(Controller):
        def _Scan_SpeedSet(self, *speed):
            return super()._Scan_SpeedSet(speed[0], speed[1], 2.0 * speed[2], *speed[3:])

    with nanonis_server(Slower) as (controller, ports):
        refused(controller, ports, FRAME, "it would take .*dwell=0.0002")


def test_a_controller_that_records_other_channels_is_found_out():
    class Few(Controller):
        def _Scan_BufferSet(self, channels, pixels, lines):
            return super()._Scan_BufferSet(channels[:1], pixels, lines)

    with nanonis_server(Few) as (controller, ports):
        refused(controller, ports, FRAME, r"it would record the channels .*0.*, not .*0, 2")


def test_a_frame_takes_its_dwell_there_and_back(server):
    with connected(server[1], **SCANS) as inst:
        seconds, _ = inst.modes["image"].cost(FRAME)
        assert seconds == pytest.approx(2.0 * 24 * 48 * 1e-4)


def test_stop_ends_a_frame_through_the_other_port():
    with nanonis_server(lambda: Controller(scan_s=20.0)) as (controller, ports):
        with connected(ports, **SCANS) as inst:
            guard = Guard(inst, patience=math.inf)
            for device in (inst, guard):
                threading.Timer(0.3, device.stop).start()
                begun = time.perf_counter()
                with pytest.raises(Aborted):
                    device.acquire("image", FRAME)
                assert time.perf_counter() - begun < 5.0
                assert controller._Scan_StatusGet() == (0,)
            guard.resume()
            controller.scan_s = 0.3  # longer than one wait for its end
            assert guard.acquire("image", FRAME).data["Z"].shape == (24, 48)


def test_a_stop_that_comes_before_the_start_holds():
    class Late(Controller):
        def _Scan_SpeedSet(self, *speed):
            self.instrument.stop()
            return super()._Scan_SpeedSet(*speed)

    with nanonis_server(lambda: Late(scan_s=20.0)) as (controller, ports):
        with connected(ports, **SCANS) as inst:
            controller.instrument = inst
            with pytest.raises(Aborted):
                inst.acquire("image", FRAME)
            assert controller._Scan_StatusGet() == (0,)


def test_errors_while_scanning_are_told(server):
    controller, ports = server
    with connected(ports, **SCANS) as inst:
        controller.faults.error = {"Scan.FrameSet": "no such place"}
        with pytest.raises(InstrumentError, match="Scan.FrameSet: no such place"):
            inst.acquire("image", FRAME)
        assert controller.scans == 0
        controller.faults.error = {}
        controller.faults.drop = {"Scan.FrameDataGrab"}
        with pytest.raises(LinkError, match="Scan.FrameDataGrab: closed after"):
            inst.acquire("image", FRAME)


def test_another_channel_than_asked_is_found_out():
    class Mistaken(Controller):
        def _Scan_FrameDataGrab(self, *arguments):
            return "Bias (V)", *super()._Scan_FrameDataGrab(*arguments)[1:]

    with nanonis_server(Mistaken) as (_, ports), connected(ports, **SCANS) as inst:
        with pytest.raises(LinkError, match=r"Bias \(V\) \(24, 48\) came for Z"):
            inst.acquire("image", FRAME)


def test_stop_ends_a_spectrum_through_the_other_port():
    with nanonis_server(lambda: Controller(spectrum_s=20.0)) as (_, ports):
        with connected(ports, timeout_s=30.0) as inst:
            guard = Guard(inst)
            threading.Timer(0.2, guard.stop).start()
            begun = time.perf_counter()
            with pytest.raises(Aborted):
                guard.acquire("spectrum")
            assert time.perf_counter() - begun < 5.0
            with pytest.raises(Aborted):
                guard.move({"x": 0.0})


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_proposal_leaves_the_limits_and_none_is_clamped(server, count):
    """Proposals, in and out of range: all that the controller was sent is within limits."""
    controller, ports = server
    rng = np.random.default_rng(0)
    with connected(ports) as inst:
        guard = Guard(inst, {"x": (-5e-7, 5e-7)})
        wanted = []
        for _ in range(count):
            point = {n: float(rng.uniform(-1.5e-6, 1.5e-6)) for n in ("x", "y")}
            if rng.uniform() < 0.02:
                point["y"] = float(rng.choice([math.nan, math.inf, -math.inf]))
            try:
                guard.move(point)
                wanted.append((point["x"], point["y"]))
            except LimitError:
                assert not (abs(point["x"]) <= 5e-7 and abs(point["y"]) <= 8e-7)
        assert controller.positions == wanted and len(wanted) > count / 10
        assert np.all(np.abs(wanted) <= [5e-7, 8e-7])

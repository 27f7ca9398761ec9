"""Nanonis against the loopback server, fragmented and with every fault."""

import math
import socket
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from micjax.instruments import (
    Aborted,
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
    nanonis_wire,
)
from micjax.instruments.testing import Controller, nanonis_server
from micjax.io import read_nexus

REACH = {"x": (-1e-6, 1e-6), "y": (-8e-7, 8e-7), "bias": (-2.0, 2.0)}


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
    with connected(ports) as inst:
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
    with pytest.raises(NotReady, match=r"no signal 'Curent \(A\)'.*did you mean Current \(A\)"):
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


def test_no_proposal_leaves_the_limits_and_none_is_clamped(server):
    """10,000 proposals, in and out of range: all that the controller was sent is within limits."""
    controller, ports = server
    rng = np.random.default_rng(0)
    with connected(ports) as inst:
        guard = Guard(inst, {"x": (-5e-7, 5e-7)})
        wanted = []
        for _ in range(10_000):
            point = {n: float(rng.uniform(-1.5e-6, 1.5e-6)) for n in ("x", "y")}
            if rng.uniform() < 0.02:
                point["y"] = float(rng.choice([math.nan, math.inf, -math.inf]))
            try:
                guard.move(point)
                wanted.append((point["x"], point["y"]))
            except LimitError:
                assert not (abs(point["x"]) <= 5e-7 and abs(point["y"]) <= 8e-7)
        assert controller.positions == wanted and len(wanted) > 1000
        assert np.all(np.abs(wanted) <= [5e-7, 8e-7])

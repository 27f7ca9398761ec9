"""Manual, with a human who follows a script."""

import math
import threading

import numpy as np
import pytest

from micjax.instruments import (
    Aborted,
    Axis,
    Guard,
    LimitError,
    LinkError,
    Manual,
    Mode,
    MoveError,
    check_instrument,
)
from micjax.io import Field, FieldAxis, write_nexus

AXES = {"x": Axis("m", -1e-3, 1e-3, tol=1e-6), "tilt": Axis("rad", -0.5, 0.5, tol=1e-3)}
MODES = {
    "meter": Mode("point", {"current": "A"}, seconds=1.0),
    "picture": Mode("point", {"height": "m", "phase": "rad"}),
}


class Human:
    """Answers in turn, and then always the same; remembers what was asked and said."""

    def __init__(self, *answers, then=None):
        self.answers, self.then, self.asked, self.said = list(answers), then, [], []

    def __call__(self, prompt):
        self.asked.append(prompt)
        answer = self.answers.pop(0) if self.answers else self.then
        if answer is None:
            raise EOFError
        return answer() if callable(answer) else answer


def manual(*answers, then=None):
    human = Human(*answers, then=then)
    return Manual(AXES, MODES, human, human.said.append), human


class Diligent(Human):
    """Does all that it is told."""

    def __call__(self, prompt):
        super().__call__(prompt)
        return "ok" if prompt.startswith("Set") else "0"


def test_conformance():
    def diligent():
        human = Diligent(then="")
        return Manual(AXES, MODES, human, human.said.append)

    assert check_instrument(diligent()) and check_instrument(Guard(diligent()))


def test_what_is_asked_and_what_is_believed():
    inst, human = manual("0", " 0.1 ", "2.505e-4", "ok", "3e-9")
    assert inst.read() == {"x": 0.0, "tilt": 0.1} == inst.read()
    assert inst.move({"x": 2.5e-4}) == {"x": 2.505e-4, "tilt": 0.1}
    assert inst.move({"tilt": -0.2})["tilt"] == -0.2
    record = inst.acquire("meter")
    assert float(record.data["current"]) == 3e-9 and record.at == inst.read()
    assert human.asked == [
        "Where is x, in m? ",
        "Where is tilt, in rad? ",
        "Set x to 0.00025 m: ok, or what was reached in m? ",
        "Set tilt to -0.2 rad: ok, or what was reached in rad? ",
        "Measure meter: current in A, numbers or a file? ",
    ]
    assert human.said == []


def test_what_is_not_understood_is_asked_again():
    inst, human = manual("here", "ok", "1,5", "nan", "0", "0", "yes", "1 2", "inf", "OK")
    inst.read()
    assert human.said[:3] == [
        "'here' is not understood: a number in m, or stop",
        "'ok' is not understood: a number in m, or stop",
        "'1,5' is not understood: a number in m, or stop",
    ]
    assert human.said[3] == "'nan': numbers have to be finite"
    assert inst.move({"x": 1e-4})["x"] == 1e-4
    assert human.said[4] == "'yes' is not understood: ok, a number in m, or stop"
    assert len(human.said) == 7


def test_who_did_not_arrive_says_so():
    inst, human = manual("5e-4", "0", "0", "0", then="ok")
    with pytest.raises(MoveError, match="x is at 0.0005 m, asked for 0.0006; 1e-06 m are"):
        inst.move({"x": 6e-4, "tilt": 0.1})
    assert len(human.asked) == 1  # the tilt is left alone
    assert inst.read()["x"] == 5e-4
    with pytest.raises(LimitError, match="x = 0.002 m is outside"):
        inst.move({"x": 2e-3})
    assert len(human.asked) == 2  # where the tilt is, and nothing else


@pytest.mark.parametrize("answer", ["", "  ", "stop", "Stop"])
def test_the_human_breaks_off(answer):
    inst, human = manual("0", "0", answer, "1e-4", "0", then="ok")
    inst.read()
    with pytest.raises(Aborted, match="Set x to 0.0001 m"):
        inst.move({"x": 1e-4})
    assert inst.read()["x"] == 1e-4 and human.asked[-1] == "Where is x, in m? "  # asked anew


def test_nobody_answers():
    inst, _ = manual()
    with pytest.raises(LinkError, match="the input has ended"):
        inst.read()


def test_stop_from_another_thread():
    def stopped():
        thread = threading.Thread(target=inst.stop)
        thread.start()
        thread.join()
        return "ok"

    inst, human = manual("0", "0", stopped, then="ok")
    inst.read()
    with pytest.raises(Aborted, match=r"resume\(\)"):
        inst.move({"x": 1e-4})
    assert human.said == ["STOP: leave everything as it is."]
    for verb in (lambda: inst.move({"x": 0.0}), lambda: inst.acquire("meter"), inst.read):
        with pytest.raises(Aborted):
            verb()
    assert len(human.asked) == 3
    inst.resume()
    assert inst.move({"x": 1e-4})["x"] == 1e-4


def test_measurements_come_as_numbers_or_in_files(tmp_path):
    y, x = FieldAxis("y", np.array([0.0, 5.0]), "nm"), FieldAxis("x", np.arange(3.0), "nm")
    height = Field(np.arange(6.0).reshape(2, 3), (y, x), "m", "height")
    phase = Field(-height.data, (y, x), "rad", "phase")
    other = Field(height.data[:, :2], (y, FieldAxis("x", np.arange(2.0), "nm")), "rad", "phase")
    both, alone = tmp_path / "both.nxs", tmp_path / "alone.nxs"
    write_nexus(both, {"height": height, "phase": phase})
    write_nexus(alone, {"phase": other})
    inst, human = manual(
        *(
            "0",
            "0",
            "absent.nxs",
            str(alone),
            str(both),
            str(alone),
            str(both),
            "1,5",
            "1 2.5 -3e-9",
        )
    )
    record = inst.acquire("picture")
    np.testing.assert_array_equal(record.data["height"], height.data)
    np.testing.assert_array_equal(record.data["phase"], phase.data)
    assert record.dims == {"height": ("y", "x"), "phase": ("y", "x")}
    np.testing.assert_array_equal(record.coords["y"][0], [0.0, 5.0])
    missing, unit, axis = human.said
    assert "no such file: absent.nxs; allowed are numbers in m, the path of a file, or" in missing
    assert "phase is in 'rad', not in 'm'" in unit and "its x is not that of the other" in axis
    meter = inst.acquire("meter")
    assert human.said[3].startswith(
        "no such file: 1,5; allowed are numbers in A"
    )  # 1.5, or 1 and 5
    np.testing.assert_array_equal(meter.data["current"], [1.0, 2.5, -3e-9])
    assert meter.dims == {"current": ("step",)}


def test_bad_input():
    with pytest.raises(ValueError, match="axis x has no tol"):
        Manual({"x": Axis("m", 0.0, 1.0)}, MODES)
    with pytest.raises(ValueError, match="a human measures at a point"):
        Manual(AXES, {"image": Mode("frame", {"height": "m"})})


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_proposal_leaves_the_limits_and_none_is_clamped(count):
    """Proposals, in and out of range: all that the human was told is within limits."""
    human, rng = Diligent(then=""), np.random.default_rng(0)
    guard = Guard(Manual(AXES, MODES, human, human.said.append), {"x": (-4e-4, 4e-4)})
    guard.read()
    wanted = []
    for _ in range(count):
        point = {"x": float(rng.uniform(-2e-3, 2e-3)), "tilt": float(rng.uniform(-1.0, 1.0))}
        if rng.uniform() < 0.02:
            point["tilt"] = float(rng.choice([math.nan, math.inf, -math.inf]))
        try:
            assert guard.move(point) == point
            wanted += [f"Set x to {point['x']:.6g} m", f"Set tilt to {point['tilt']:.6g} rad"]
        except LimitError:
            assert not (abs(point["x"]) <= 4e-4 and abs(point["tilt"]) <= 0.5)
    assert [p.split(":")[0] for p in human.asked[2:]] == wanted and len(wanted) > count / 10

"""Every number of every plan has a range: nonsense is refused before anything is computed."""

import math
import typing

import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

from micjax.__main__ import main
from micjax.core.ranges import ANY, NAMES, check_ranges, range_of
from micjax.physics.probes.loop import WINDOW, stable
from micjax.problems import feedback
from micjax.run.jobs.job import engine_settings, float_leaves, prepare
from micjax.run.plans.explore import ExplorePlan
from micjax.run.plans.plan import make_plan
from micjax.run.plans.priors import check_prior, parse_prior
from micjax.run.plans.settings import checked, settings_of
from micjax.run.plans.simulate import SimulatePlan
from micjax.run.registry import find, listed

PROBLEMS = [p.name for p in listed()]
BY_UNIT_ONLY = (
    "amplitude",
    "mean",
)  # in units of the data, of either sign: any number float32 can hold


def holds_numbers(kind, default):
    """Whether a setting of this annotation and default is a number, or holds some."""
    if kind is bool or isinstance(default, bool):
        return False
    if isinstance(default, int | float | list):
        return True
    return any(k in (int, float, list, dict) for k in (kind, *typing.get_args(kind)))


def numeric_settings():
    for name in PROBLEMS:
        entry = find(name)
        functions = [entry.function(f) for f in ("problem", "example", "load")]
        for settings in [*map(settings_of, filter(None, functions)), engine_settings(entry)]:
            for setting in settings.values():
                if holds_numbers(setting.kind, setting.default):
                    yield pytest.param(setting, id=f"{name}.{setting.name}")


SETTINGS = list(numeric_settings())


def shaped(setting, number):
    """The number as the setting takes it: alone, in a list, in a mapping."""
    kinds = (setting.kind, *typing.get_args(setting.kind))
    if any(k in (int, float) for k in kinds) or isinstance(setting.default, int | float):
        return number
    return {"C10": number} if dict in kinds else [number]


def test_there_are_many():
    assert len(SETTINGS) > 120 and {p.id.split(".")[0] for p in SETTINGS} == set(PROBLEMS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_a_problem(setting):
    """It has a range, its default lies in it, and NaN, infinity and what lies outside do not."""
    allowed = range_of("C10" if "dict" in str(setting.kind) else setting.name)
    assert (allowed == ANY) == (setting.name in BY_UNIT_ONLY)
    check_ranges(setting.name, setting.default)
    wrong = [math.nan, math.inf, -math.inf, allowed.low - max(1.0, abs(allowed.low))]
    for number in [*wrong, 10.0 * allowed.high]:
        with pytest.raises(ValueError, match="allowed|valid|finite"):
            checked("option", {setting.name: shaped(setting, number)}, {setting.name: setting})


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_values_of_a_problem_are_in_their_ranges(name):
    for leaf, value in float_leaves(find(name).module.problem()).items():
        check_ranges(leaf, value)


def numbers_of(model, before=()):
    """(path, kind of list or number) of every numeric field of a plan, sections included."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *typing.get_args(field.annotation)]
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, pydantic.BaseModel)]
        for section in sections:
            yield from numbers_of(section, (*before, name))
        text = str(field.annotation)
        if not sections and ("float" in text or "int" in text) and "Any" not in text:
            yield pytest.param((*before, name), field.annotation, id=".".join((*before, name)))


def as_kind(annotation, number):
    """`number` as the annotation takes it: `dict[str, tuple[float, float]]` wants two of them."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is dict:
        return {"C10": as_kind(inner[1], number)}
    if origin is tuple:
        count = 1 if inner[-1] is ... else len(inner)
        return [number] * count
    if origin is not None and origin is not typing.Annotated:
        taken = [k for k in inner if k is not type(None)]
        return as_kind(taken[0], number)
    return number


def nested(path, value):
    for name in reversed(path):
        value = {name: value}
    return value


NONSENSE = pytest.mark.parametrize("number", [math.nan, math.inf, -1e35])
REASON = "allowed|finite|valid|greater|less|integer"


@NONSENSE
@pytest.mark.parametrize("path, annotation", [*numbers_of(SimulatePlan)])
def test_a_setting_of_a_simulation(path, annotation, number):
    given = {"what": "stem", "structure": "no.cif"} | nested(path, as_kind(annotation, number))
    with pytest.raises(ValueError, match=REASON):
        make_plan({"kind": "simulate"} | given, "here")


@NONSENSE
@pytest.mark.parametrize("path, annotation", [*numbers_of(ExplorePlan)])
def test_a_setting_of_an_exploration(path, annotation, number):
    given = {"kind": "explore", "measure": "no.npy"} | nested(path, as_kind(annotation, number))
    if path[0] in ("axes", "outcomes"):
        given[path[0]] = {"x": given[path[0]]}
    if path[0] == "mean":
        given["mean"]["problem"] = "edge"
    with pytest.raises(ValueError, match=REASON):
        make_plan(given, "here")


def test_what_the_user_has_named_has_to_be_a_number():
    """An axis of a function may have any name, and with it any meaning."""
    axes = {"energy_keV": {"lower": 0.0, "upper": 2.0}, "steps": {"lower": -5, "upper": 5}}
    options = {"tile": 0.5, "names": ["a", "b"]}
    plan = {"kind": "explore", "measure": "mylab:f", "axes": axes, "options": options}
    assert make_plan(plan, "here").axes["steps"].lower == -5
    for change in ({"options": {"gain": [1.0, math.nan]}}, {"at": {"z": math.inf}}):
        with pytest.raises(ValueError, match="allowed"):
            make_plan(plan | change, "here")


@pytest.mark.parametrize(
    "command, message",
    [
        ("simulate stem no.cif --set u_A2=nan", "u_A2 is nan: numbers from 0 to 1 are allowed"),
        ("simulate stem no.cif --set u_A2=-0.01", "u_A2 is -0.01"),
        ("simulate stem no.cif --set u_A2.Sr=nan", "u_A2.Sr is nan"),
        ("simulate cbed no.cif --set tilt_mrad=[0,400]", "tilt_mrad[1] is 400: numbers from -60"),
        ("simulate stem no.cif --set energy_keV=0.001", "energy_keV is 0.001: numbers from 10 to"),
        ("simulate stem no.cif --set slice_A=50", "slice_A is 50"),
        ("simulate stem no.cif --set detectors.haadf=[60,1e4]", "detectors.haadf[1] is 10000"),
        ("demo tip --set line_sigma_nm=-1", "line_sigma_nm is -1"),
        ("demo tip --set pixel_nm=[1,nan]", "pixel_nm[1] is nan"),
        ("demo edge --set engine.steps=-3", "steps is -3: whole numbers from 1 to 10000000"),
        ("demo edge --set engine.steps=0", "steps is 0"),
        ("demo edge --set engine.tolerance=nan", "tolerance is nan"),
        ("demo edge --set seed=5000000000", "seed is 5000000000"),
        ("demo edge --set values.forward.width_nm=-1", "values.forward.width_nm is -1"),
        ("demo edge --set values.noise.sigma=.inf", "values.noise.sigma is inf"),
        ("demo cbed --set energy_keV=0.001", "energy_keV is 0.001"),
        ("demo cbed --set u_A2=nan", "u_A2 is nan"),
        ("demo structure --set tile=[1,1.5,1]", "tile[1] is 1.5: whole numbers"),
        ("demo edge --set priors.noise.sigma=LogNormal(300,0.5)", "there is no density"),
        ("demo edge --set priors.noise.sigma=Uniform(5,1)", "there is no density"),
        (
            "demo edge --set priors.noise.sigma=Normal(-3,1)",
            "the middle of the prior of noise.sigma",
        ),
        ("demo edge --set priors.noise.sigma=Normal(0,1e999)", "a number is inf"),
    ],
)
def test_on_the_command_line(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    out, err = capsys.readouterr()
    assert message in err and "Traceback" not in err and out == ""
    assert list(tmp_path.iterdir()) == []  # told before there is a folder


# --- the table -----------------------------------------------------------------------------------


def test_the_outermost_name_and_the_innermost_unit_decide():
    assert range_of("u_A2.Sr") == NAMES["u_A2"] and range_of("detectors.steps[1]").high == 1000.0
    assert range_of("forward.aberrations_A.C12a").high == 1e6
    assert range_of("x.line_sigma_nm").low == 0.0 and range_of("x.offset_nm").low < 0.0
    assert range_of("height") == ANY


def test_words_without_a_unit_are_only_ours():
    assert range_of("numbers", ours=False) == ANY and range_of("numbers").whole
    assert range_of("energy_keV", ours=False) == range_of("energy_keV")


def test_no_name_of_the_table_is_hidden_behind_another():
    for words, allowed in NAMES.items():
        for word in words.split():
            if "[" not in word:
                assert range_of(word) == allowed, word
                assert allowed.low < allowed.high and math.isfinite(allowed.high - allowed.low)


@pytest.mark.parametrize(
    "value, where",
    [
        (np.array([1.0, np.nan]), "u_A2[1] is nan"),
        (np.array([[0.1, 2.0]], np.float32), "u_A2[0][1] is 2"),
        (jnp.array(-1.0), "u_A2 is -1"),
        (np.float32(np.inf), "u_A2 is inf"),
        ((0.1, [0.2, "nan"]), "u_A2[1][1] is nan"),
        (10**400, "u_A2 is a number too long"),
    ],
    ids=["array", "second axis", "jax", "numpy", "text in a list", "long"],
)
def test_every_element_is_looked_at(value, where):
    with pytest.raises(ValueError) as error:
        check_ranges("u_A2", value)
    assert where in str(error.value)


def test_whole_numbers_in_an_array():
    check_ranges("tile", np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"tile\[1\] is 2.5: whole numbers"):
        check_ranges("tile", np.array([1.0, 2.5, 3.0]))


def test_what_is_no_number_is_passed_over():
    check_ranges("u_A2", [True, None, "Sr", {"x": "y"}, np.array(["a"]), np.array([])])


# --- who may say otherwise -----------------------------------------------------------------------


def test_a_module_may_state_limits_of_its_own():
    def function(energy_keV: typing.Annotated[float, pydantic.Field(ge=0.1, le=9.0)] = 1.0): ...

    allowed = settings_of(function)
    assert checked("option", {"energy_keV": 0.5}, allowed) == {"energy_keV": 0.5}
    for wrong in (10.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="option 'energy_keV' is"):
            checked("option", {"energy_keV": wrong}, allowed)


def test_a_default_is_the_word_of_the_function():
    """A resolved plan names every default: it has to be taken as it stands."""

    def function(steps: int = 0, tilt_mrad: float = 90.0): ...

    allowed = settings_of(function)
    assert checked("option", {"steps": 0, "tilt_mrad": 90.0}, allowed)["steps"] == 0
    with pytest.raises(ValueError, match="tilt_mrad is 91"):
        checked("option", {"tilt_mrad": 91.0}, allowed)


@pytest.mark.parametrize(
    "prior", ["HalfCauchy(2)", "Cauchy(0, 1)", "Gamma(2, 1)", "LogNormal(3, 1)"]
)
def test_priors_of_a_radius(prior):
    check_prior("forward.tip.radius_nm", parse_prior(prior), True)


def test_a_prior_of_values_that_make_no_sense():
    with pytest.raises(ValueError, match="the middle of the prior of energy_keV is 0.5"):
        check_prior("energy_keV", parse_prior("Uniform(0, 1)"), True)
    assert parse_prior("TruncatedNormal(5, 1, low=3)").support(4.0)


# --- feedback ------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 10, WINDOW])
def test_stable_gains_against_closed_forms(window):
    limit = 2 * np.sin(np.pi / (2 * window)) ** 2  # of I alone
    assert stable(0.0, 0.999 * limit, window) and not stable(0.0, 1.001 * limit, window)
    assert stable(1.999, 1e-12, window) and not stable(2.001, 0.0, window)  # of P alone
    assert not stable(0.1, -0.2, window)


def test_stable_gains_against_the_loop():
    """The error of the plain recursion grows, or dies away, as the roots say."""
    for proportional, integral in [(0.02, 1e-3), (0.05, 4e-3), (0.02, 8e-3), (0.5, 0.05)]:
        errors = [1.0]
        for _ in range(2000):
            errors.append((1 - proportional) * errors[-1] - integral * sum(errors[-WINDOW:]))
        assert (abs(errors[-1]) + abs(errors[-7]) < 1.0) == stable(proportional, integral)


def test_unstable_gains_are_refused():
    with pytest.raises(ValueError, match="integral = 0.02 is not stable"):
        feedback.problem(integral=0.02)
    unstable = feedback.problem().at({"forward.integral": 0.02})
    with pytest.raises(ValueError, match="is not stable"):
        feedback.stages(unstable, jnp.arange(1), jnp.zeros((1, 2, 32, 96)))


def test_numbers_of_a_plan_in_lists():
    plan = make_plan({"problem": "edge", "values": {"noise.sigma": [1e40]}}, "here")
    with pytest.raises(ValueError, match=r"values.noise.sigma\[0\] is 1e\+40"):
        prepare(plan)

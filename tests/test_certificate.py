"""Whether intervals hold the truth as often as they say: certificates."""

import functools
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

import micjax
from micjax.__main__ import main
from micjax.core.problem import InverseProblem, drawn_data, parameter
from micjax.inference import check
from micjax.inference.calibration import ranks
from micjax.inference.calibration.certificate import Certificate, certify
from micjax.inference.calibration.ranks import claim
from micjax.inference.calibration.stored import place_of, quoted, store
from micjax.physics.noise import Gaussian
from micjax.problems import edge


def normal_ranks(runs, numbers=1, wider=1.0, seed=0):
    z = np.random.default_rng(seed).normal(size=(runs, numbers)) * wider
    return list(scipy.stats.norm.cdf(z))


def test_a_true_claim():
    c = claim(normal_ranks(400))
    assert c.holds() and abs(c.half - 0.5) < 0.08 and c.p_value > 0.01
    assert c.widening == pytest.approx(1.0, abs=0.12)


def test_errors_too_small_are_found():
    """By 1.5, in nine of ten certificates of 200 runs."""
    told = [not claim(normal_ranks(200, wider=1.5, seed=s)).holds() for s in range(50)]
    assert np.mean(told) > 0.9
    alarms = [not claim(normal_ranks(200, seed=s)).holds() for s in range(50)]
    assert np.mean(alarms) < 0.05
    assert claim(normal_ranks(2000, wider=1.5)).widening == pytest.approx(1.5, abs=0.1)


def test_numbers_of_a_run_need_not_be_independent():
    rng = np.random.default_rng(0)
    alike = [np.full(50, u) for u in rng.uniform(size=40)]
    apart = normal_ranks(40, 50)
    assert claim(alike).ninety_sd > 5.0 * claim(apart).ninety_sd
    assert claim([np.empty(0)]) is None


@pytest.fixture(scope="module")
def of_edge():
    return certify(edge, 24, engine={"steps": 400})


def test_a_problem(of_edge, tmp_path):
    claims = of_edge.claims()
    assert set(claims) == set(edge.problem().unknowns())
    # what is not identified is no claim
    assert all(0 < c.runs <= 24 for c in claims.values()), claims
    assert len(of_edge.rows()) == 9 and of_edge.sentences()
    of_edge.save(tmp_path / "c.json")
    again = Certificate.load(tmp_path / "c.json")
    assert again.sentences() == of_edge.sentences()
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match="no certificate"):
        Certificate.load(tmp_path / "c.json")


def test_going_on(tmp_path):
    path = tmp_path / "c.json"
    certify(edge, 3, path=path, engine={"steps": 400})
    gone_on = certify(edge, 5, path=path, resume=True, engine={"steps": 400})
    at_once = certify(edge, 5, engine={"steps": 400})
    for name, u in gone_on.ranks["clean"].items():
        np.testing.assert_allclose(
            np.concatenate(u), np.concatenate(at_once.ranks["clean"][name]), atol=1e-5
        )


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["certify", "edge", "--draws", "2"]) == 0
    out = capsys.readouterr().out
    assert "forward.edge_nm" in out and "edge-certificate.json" in out
    assert main(["certify", "edge", "--draws", "2"]) == 2
    assert main(["certify", "edge", "--draws", "3", "--resume"]) == 0
    assert Certificate.load(tmp_path / "edge-certificate.json").runs["clean"] == 3
    assert main(["certify", "resonance", "--out", "edge-certificate.json", "--resume"]) == 2
    assert "the certificate of" in capsys.readouterr().err
    assert main(["certify", "edge", "--draws", "0", "--out", "b.json"]) == 2


def test_stress_and_no_errors():
    def stress(key, truth, x):
        y = truth.forward(x)
        return {"five times the noise": y + 0.25 * jax.random.normal(key, y.shape)}

    module = types.ModuleType("stressed")
    module.problem, module.example, module.stress = edge.problem, edge.example, stress
    of = certify(module, 2, engine={"steps": 100})
    assert set(of.runs) == {"clean", "five times the noise"}
    assert "too few" in of.sentences()[0]
    module.stages = lambda problem, x, y: []
    with pytest.raises(ValueError, match="states the errors"):
        certify(module, 1)


def test_what_a_report_quotes(of_edge, tmp_path, monkeypatch):
    module = types.ModuleType("mine")
    module.__file__ = str(tmp_path / "mine.py")
    names = set(edge.problem().unknowns())
    assert quoted(module, names) is None
    assert store(of_edge, module, "micjax certify mine").name == "mine.certificate.json"
    text = quoted(module, names)
    assert "of 24 runs" in text and "90 % intervals held it in" in text
    assert "; with a drift in" in text
    assert quoted(module, {"forward.else"}) is None
    # errors too small by 1.5 are named, with the factor
    wrong = Certificate(facts=of_edge.facts)
    for u in normal_ranks(200, wider=1.5):
        wrong.add("clean", {"forward.a": u, "forward.b": u * 0.0 + 0.5})
    store(wrong, module, "")
    told = quoted(module, {"forward.a"})
    factor = wrong.claims()["forward.a"].widening
    assert f"least a {100 * wrong.claims()['forward.a'].ninety:.0f} % (should be" in told
    assert f"{factor:.2g} times as wide" in told
    place_of(module).write_text("{}")
    assert quoted(module, names) is None
    package = types.ModuleType("mine")
    package.__file__ = str(tmp_path / "__init__.py")
    assert place_of(package).name == "certificate.json"


class Line(eqx.Module):
    slope: jax.Array = parameter(default=0.0)

    def __call__(self, x):
        return self.slope * x


def straight(wrong=1.0):
    """A module whose data have a noise that is larger than it says."""
    module = types.ModuleType("straight")

    def problem(sigma=0.3):
        priors = {"forward.slope": dist.Normal(0.0, 1.0)}
        return InverseProblem(Line(), Gaussian(sigma), priors)

    def example(key):
        truth, x = problem(0.3 * wrong), jnp.linspace(-1.0, 1.0, 9)
        return truth, x, drawn_data(truth, x, key)

    module.problem, module.example = problem, example
    return module


def test_check_finds_noise_that_is_wrong(monkeypatch):
    monkeypatch.setattr(check, "certify", functools.partial(certify, draws=24))
    told = str(micjax.check(straight(), calibrate=True))
    assert "errors hold the truth as often as they say  holds" in told
    with pytest.raises(check.ContractError, match="90 % intervals of forward.slope hold it in"):
        micjax.check(straight(4.0), calibrate=True)


@pytest.mark.slow
def test_check_finds_it_nine_times_in_ten():
    """Noise that is 1.5 times as large as it is said to be."""
    told = []
    for seed in range(10):
        try:
            micjax.check(straight(1.5), jax.random.key(seed), calibrate=True)
            told.append(False)
        except check.ContractError:
            told.append(True)
    assert np.mean(told) >= 0.9


def test_angles_are_the_same_a_turn_further():
    difference = np.array([6.2, -6.3, 0.1, 3.0, 12.6])
    turned = ranks._apart("forward.phase_rad", difference)
    np.testing.assert_allclose(turned, difference - 2.0 * np.pi * np.array([1, -1, 0, 0, 2]))
    np.testing.assert_array_equal(ranks._apart("forward.f0_kHz", difference), difference)
    assert ranks._apart("forward.tip.turn_deg", np.array([361.0])) == pytest.approx(1.0)

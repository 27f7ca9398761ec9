"""Several data sets as one problem: what is tied is one unknown, and contradictions are told."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import micjax
from micjax import Gaussian, InverseProblem, Stage
from micjax.__main__ import main
from micjax.core.joint import joint_data, part, pieces
from micjax.core.problem import log_likelihood, neg_log_joint
from micjax.inference.runner import run
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.inference.tension import tension
from micjax.problems import edge, resonance

SHARED = {"width_nm": ("a.forward.width_nm", "b.forward.width_nm")}
X_NM = jnp.linspace(-4.0, 4.0, 40)


def edges():
    return micjax.joint({"a": edge.problem(), "b": edge.problem()}, SHARED)


def data(seed, width_a=0.6, width_b=0.6):
    keys, seen = jax.random.split(jax.random.key(seed)), {}
    for name, key, at, width in zip("ab", keys, (1.2, -0.7), (width_a, width_b), strict=True):
        truth = edge.problem(at, width)
        seen[name] = X_NM, truth.noise(truth.forward(X_NM)).sample(key)
    return seen


def test_the_objective_is_that_of_the_parts():
    problem, seen = edges(), data(0)
    x, y = joint_data(problem, seen)
    values = {n: v + 0.1 for n, v in problem.values().items()}
    problem = problem.at(values)
    assert sorted(values) == [
        "forward.a.forward.edge_nm",
        "forward.a.noise.sigma",
        "forward.b.forward.edge_nm",
        "forward.b.noise.sigma",
        "forward.shared.width_nm",
    ]
    parts = {n: part(problem, n) for n in "ab"}
    expected = -sum(float(log_likelihood(parts[n], *seen[n])) for n in "ab")
    expected -= sum(float(p.log_prob(values[n])) for n, p in problem.unknowns().items())
    found = eqx.filter_jit(neg_log_joint)(problem.unconstrain(values), problem, x, y)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert all(float(p.forward.width_nm) == pytest.approx(1.1) for p in parts.values())
    assert set(parts["b"].unknowns()) == set(edge.problem().unknowns())


def test_draws_and_pieces_have_the_shapes_of_the_parts():
    problem = micjax.joint({"a": edge.problem(), "r": resonance.problem()})
    x = {"a": X_NM, "r": resonance.example(jax.random.key(0))[1]}
    law = problem.noise(problem.forward(x))
    draws = law.sample(jax.random.key(0), (3,))
    pieces = law.split(draws)
    assert pieces["a"].shape == (3, 40) and law.mean.shape == draws.shape[1:]
    np.testing.assert_array_equal(
        jnp.concatenate([pieces[n].reshape(3, -1) for n in "ar"], axis=1), draws
    )


def test_two_data_sets_tell_more_than_one():
    problem, seen = edges(), data(1)
    x, y = joint_data(problem, seen)
    best = micjax.fit(problem, x, y, LBFGS(), steps=200).problem
    together = micjax.laplace(best, x, y).sd()["forward.shared.width_nm"]
    alone = [micjax.laplace(part(best, n), *seen[n]).sd()["forward.width_nm"] for n in "ab"]
    # information adds up, but for the prior that is counted once
    assert together == pytest.approx(np.sum(np.square(alone) ** -1.0) ** -0.5, rel=0.02)


@pytest.mark.parametrize(("width_b", "told"), [(0.6, False), (1.2, True)])
def test_contradictions_are_told(width_b, told):
    problem = edges()
    x, y = joint_data(problem, data(2, 0.6, width_b))
    best = micjax.fit(problem, x, y, LBFGS(), steps=200).problem
    found = tension(best, x, y)
    assert found.degrees_of_freedom == pytest.approx(1.0, abs=0.15)
    assert (found.p_value < 1e-3, found.p_value > 0.01) == (told, not told)
    assert bool(found.statements()) == told
    if told:
        assert "width_nm: 0." in found.statements()[0] and "in b" in found.statements()[0]


@pytest.mark.slow
def test_the_p_value_is_one():
    """Uniform where nothing contradicts: 60 repeats, by the test of Kolmogorov and Smirnov."""
    problem, p_values = edges(), []
    for seed in range(60):
        x, y = joint_data(problem, data(seed))
        best = micjax.fit(problem, x, y, LBFGS(), steps=200).problem
        p_values.append(tension(best, x, y).p_value)
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("parts", "shared", "message"),
    [
        ("a", {}, "two or more names"),
        (("a", "shared"), {}, "none of them 'shared'"),
        ("ab", {"w": ("a.forward.width_nm",)}, "two or more parts share it"),
        ("ab", {"w": ("a.forward.width_nm", "b.forward.wdth_nm")}, "nearest: b.forward.width_nm"),
        ("ab", {"w": ("a.forward.width_nm", "b.forward.edge_nm")}, "differ in shape or prior"),
        ("ab", {"w": ("a.forward.width_nm",) * 2}, "two or more parts share it"),
        ("ab", {"": SHARED["width_nm"]}, "a name of letters"),
    ],
)
def test_ties_that_are_none(parts, shared, message):
    with pytest.raises(ValueError, match=message):
        micjax.joint({n: edge.problem() for n in parts}, shared)


def test_the_order_of_the_parts_is_that_of_their_data():
    parts = {n: edge.problem(at) for n, at in (("z", -2.0), ("a", 2.0))}
    problem = micjax.joint(parts)
    seen = {n: (X_NM[: 30 + i], parts[n].forward(X_NM[: 30 + i])) for i, n in enumerate(parts)}
    x, y = joint_data(problem, seen)
    for found in (pieces(problem, x, y), problem.noise(problem.forward(x)).split(y)):
        for name in parts:
            np.testing.assert_array_equal(found[name], seen[name][1])


def test_a_misfit_is_told_in_any_unit():
    """One part is explained, the other is not; chi^2 knows both whatever they are measured in."""
    (x, good), told = data(0)["a"], []
    for unit in (1.0, 1e-9, 1e9):
        wrong = InverseProblem(edge.EdgeScan(1.2, 0.6, 1.5 * unit), Gaussian(0.05 * unit), {})
        parts = {"a": edge.problem(1.2, 0.6), "b": wrong}
        problem = micjax.joint(parts)
        found = run(
            problem,
            *joint_data(problem, {"a": (x, good), "b": (x, unit * good)}),
            [Stage(LBFGS(), 30)],
            key=jax.random.key(0),
        )
        told.append(found.metrics["chi_squared_per_datum"])
        assert "does not explain" in " ".join(found.statements)
        assert "residual_rms" not in found.metrics
    assert told == pytest.approx([told[0]] * 3, rel=1e-3)


def test_data_go_to_their_parts():
    problem, seen = edges(), data(0)
    x, y = joint_data(problem, dict(reversed(seen.items())))  # whatever order they come in
    assert list(x) == ["a", "b"]
    np.testing.assert_array_equal(y, np.concatenate([seen["a"][1], seen["b"][1]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"a": d["a"]}, "data of .'a'.; the parts are .'a', 'b'."),
        (lambda d: d | {"b": (X_NM, d["b"][1][:30])}, "b: the data have the shape .30,."),
        (lambda d: d | {"b": (X_NM, [])}, "b: there are no data"),
        (lambda d: d | {"b": (X_NM, np.ma.masked_greater(d["b"][1], 0.5))}, "b: .*masked"),
        (lambda d: d | {"b": (X_NM, 1j * d["b"][1])}, "b: .*real numbers are needed"),
    ],
)
def test_data_of_other_parts(change, message):
    with pytest.raises(ValueError, match=message):
        joint_data(edges(), change(data(0)))


def test_what_has_no_tension():
    x, y = joint_data(edges(), data(0))
    with pytest.raises(ValueError, match="nothing to contradict"):
        tension(edge.problem(), x, y)
    apart = micjax.joint({"a": edge.problem(), "b": edge.problem()})
    with pytest.raises(ValueError, match="share nothing"):
        tension(apart, x, y)
    with pytest.raises(ValueError, match="no part 'c'"):
        part(apart, "c")


PLAN = """problem: joint
parts:
  a: {problem: edge, options: {width_nm: 0.9}}
  b: {problem: edge}
shared: {width_nm: [a.forward.width_nm, b.forward.width_nm]}
"""


def test_a_plan_of_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "joint.yaml").write_text(PLAN)
    for words, message in (
        ("parts.a.options.widht_nm=1", "parts.a: no option of edge 'widht_nm' (nearest: width_nm)"),
        ("parts.a.fil=x", "no key 'parts.a.fil' (nearest: parts.a.file)"),
        ("problem=edge", "parts and shared are tables of `problem: joint`"),
        ("file=x.npy", "parts.PART.file"),
        ("options.steps=1", "parts.PART.options"),
    ):
        assert main(["validate", "joint.yaml", "--set", words]) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1
    moved = ["--set", "parts.b.values.forward.edge_nm=0.5"]
    assert main(["run", "joint.yaml", *moved, "--out", "first"]) == 0
    assert main(["run", "first/plan.resolved.json", "--out", "second"]) == 0
    first, second = (micjax.load(f"{n}/values.h5").values() for n in ("first", "second"))
    assert first["forward.shared.width_nm"] == pytest.approx(0.6, abs=0.15)
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


def test_a_file_may_not_name_any_module():
    from micjax.problems import joint as of_parts

    with pytest.raises(ValueError, match="to import a module runs its code"):
        of_parts.problem({"a": {"problem": "antigravity"}, "b": {"problem": "edge"}})

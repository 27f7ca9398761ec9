"""The inverse problem: names, priors, shapes, and that the objective is NumPyro's density."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpyro.infer.util import log_density, potential_energy

from micjax import Gaussian, InverseProblem, free, neg_log_joint, parameter
from micjax.core.precision import in_float64
from micjax.core.tree import named_leaves, replace
from micjax.inference.errors.density import potential
from micjax.inference.errors.nuts import model
from micjax.problems import edge


class Tip(eqx.Module):
    radius_nm: jax.Array = parameter()
    weights: jax.Array = parameter()


class Network(eqx.Module):
    """A network of Flax inside an Equinox module, beside a plain parameter."""

    tip: Tip
    net: nnx.Linear

    def __call__(self, x):
        return self.net(x)[:, 0] * self.tip.radius_nm + x @ self.tip.weights


def network(priors):
    net = nnx.Linear(2, 1, param_dtype=float, rngs=nnx.Rngs(0))
    return InverseProblem(Network(Tip(2.0, [1.0, 2.0]), net), Gaussian(0.1), priors)


@pytest.mark.parametrize(
    "name, near",
    [
        ("forward.tip.radius", "forward.tip.radius_nm"),
        ("forward.tip", "forward.tip.radius_nm"),  # a subtree frees nothing
        ("forward.net.kernl", "forward.net.kernel"),
        ("noise", "noise.sigma"),
    ],
)
def test_a_prior_on_nothing_gives_the_nearest_names(name, near):
    with pytest.raises(ValueError, match=f"no float array or network.*{near}"):
        network({name: free()})


def test_two_priors_on_one_leaf():
    with pytest.raises(ValueError, match="'forward.net.bias' has two priors"):
        network({"forward.net": dist.Normal(), "forward.net.bias": dist.Normal()})


@pytest.mark.parametrize("prior", [dist.Normal(jnp.zeros(3), 1.0), dist.Dirichlet(jnp.ones(3))])
def test_a_prior_of_another_shape(prior):
    with pytest.raises(ValueError, match=r"prior 'forward.tip.weights' .*shape"):
        network({"forward.tip.weights": prior})


def test_a_network_is_freed_by_its_name():
    problem = network({"forward.net": dist.Normal(0.0, 1.0)})
    assert set(problem.unknowns()) == {"forward.net.kernel", "forward.net.bias"}
    changed = problem.at({"forward.net.bias": jnp.array([3.0])})
    x = jnp.ones((4, 2))
    np.testing.assert_allclose(changed.forward(x) - problem.forward(x), 2.0 * 3.0)
    assert problem.values()["forward.net.bias"] == 0.0  # the old one is as it was


def test_at_refuses_names_that_do_not_exist():
    with pytest.raises(ValueError, match="no such leaves: .'forward.widht_nm'."):
        edge.problem().at({"forward.widht_nm": 1.0})


def test_given_frees_and_fixes():
    problem = edge.problem().given({"forward.height": dist.Normal(1.0, 0.1), "noise.sigma": None})
    assert set(problem.unknowns()) == {"forward.edge_nm", "forward.width_nm", "forward.height"}


def test_parameters_are_strong_float_arrays():
    leaves = named_leaves(edge.problem(edge_nm=1))
    assert all(a.dtype == jnp.result_type(float) and not a.weak_type for a in leaves.values())


def test_replace_keeps_the_structure():
    problem = network({"forward.net": dist.Normal()})
    same = replace(problem, problem.values())
    assert jax.tree.structure(same) == jax.tree.structure(problem)


SUPPORTS = {
    "real": dist.Normal(0.5, 2.0),
    "positive": dist.LogNormal(0.0, 1.0),
    "interval": dist.Uniform(0.0, 4.0),
    "improper": free(dist.constraints.positive),
    "simplex": dist.Dirichlet(jnp.array([2.0, 3.0])),
}


@pytest.mark.parametrize("support", SUPPORTS)
def test_the_objective_is_numpyros_density(support):
    priors = {"forward.tip.weights": SUPPORTS[support], "forward.net": dist.Normal(0.0, 1.0)}
    problem = in_float64(network(priors).at({"forward.tip.weights": jnp.array([0.3, 0.7])}))
    x = jax.random.normal(jax.random.key(1), (5, 2))
    y = jnp.arange(5.0)
    theta = problem.unconstrain(problem.values())
    log_p, _ = log_density(model, (problem, x, y), {}, problem.values())
    np.testing.assert_allclose(neg_log_joint(theta, problem, x, y), -log_p, rtol=1e-12)
    energy = potential_energy(model, (problem, x, y), {}, theta)
    np.testing.assert_allclose(potential(theta, problem, x, y), energy, rtol=1e-12)


def test_constrain_undoes_unconstrain():
    problem = edge.problem(edge_nm=-2.0, width_nm=3.0)
    back = problem.constrain(problem.unconstrain(problem.values()))
    for name, value in problem.values().items():
        np.testing.assert_allclose(back[name], value, rtol=1e-12)

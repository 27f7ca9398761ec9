"""A model that does not explain the data is told, and one that does is not, whatever their law."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

import micjax
from micjax import parameter
from micjax.inference.runner import run
from micjax.inference.solvers.first_order import Adam
from micjax.inference.stage import Stage

X = jnp.linspace(-1.0, 1.0, 400)
# the law, the level, and how far a few data lie elsewhere
LAWS = {
    "gaussian": (micjax.Gaussian(0.1), 1.0, 2.0),
    "outliers": (micjax.StudentT(0.1, 2.5), 1.0, 100.0),  # terms of chi^2 without a variance
    "counts": (micjax.Poisson(1.0), 50.0, 150.0),
    "rare counts": (micjax.Poisson(1.0), 0.003, 2.0),  # a single count is a term of 300
}


class Level(eqx.Module):
    level: jax.Array = parameter()

    def __call__(self, x):
        return jnp.full_like(x, self.level)


@pytest.fixture(
    params=[pytest.param(n, marks=[pytest.mark.slow] if n == "outliers" else []) for n in LAWS]
)
def law(request):
    noise, level, elsewhere = LAWS[request.param]
    scale = dist.LogNormal(jnp.log(level), 0.1)
    return micjax.InverseProblem(Level(level), noise, {"forward.level": scale}), elsewhere


def told(problem, y) -> bool:
    solution = run(problem, X, y, [Stage(Adam(1e-3), 1)], key=jax.random.key(0))
    return any("does not explain" in sentence for sentence in solution.statements)


def test_data_of_the_model_are_explained(law):
    problem, _ = law
    draw = jax.jit(lambda key: problem.noise(problem.forward(X)).sample(key))
    assert not any(told(problem, draw(jax.random.key(seed)).astype(float)) for seed in range(10))


def test_a_few_large_outliers_are_told(law):
    """They scatter so much that their own spread excuses them: what is asked is that of the law."""
    problem, elsewhere = law
    y = problem.noise(problem.forward(X)).sample(jax.random.key(1)).astype(float)
    assert told(problem, y.at[30:42].add(elsewhere))

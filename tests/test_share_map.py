"""Maps whose pixels have some unknowns in common."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from micjax.core.problem import InverseProblem, parameter
from micjax.inference.maps.each import each_pixel
from micjax.inference.maps.fit import fit_map
from micjax.inference.maps.spatial.shared import share_map
from micjax.inference.maps.stage import fit_each_pixel, fitted_together, map_fit
from micjax.inference.maps.status import STATUS
from micjax.inference.runner import run
from micjax.physics.noise import Gaussian

X = np.linspace(0.0, 1.0, 9)
SHAPE = (3, 5)
SIGMA = 0.1


class Line(eqx.Module):
    slope: jax.Array = parameter(default=1.0)
    floor: jax.Array = parameter(default=0.0)

    def __call__(self, x):
        return self.slope * x + self.floor


PRIORS = {"forward.slope": dist.Normal(0.0, 3.0), "forward.floor": dist.Normal(0.0, 0.5)}


def problem():
    return InverseProblem(Line(), Gaussian(SIGMA), PRIORS)


def fitted(over, seed=0, floors=0.3):
    slopes = np.random.default_rng(1).uniform(-1.0, 2.0, SHAPE)
    noise = np.random.default_rng(seed).normal(0.0, SIGMA, (*SHAPE, len(X)))
    y = slopes[..., None] * X + np.broadcast_to(floors, SHAPE)[..., None] + noise
    own = fit_map(problem(), X, y, covariance=True)
    return y, own, share_map(problem(), X, y, own, {"forward.floor": over}, tolerance=1e-9)


@pytest.mark.parametrize("over", ["map", "row", "column"])
def test_of_lines_it_is_the_regression(over):
    """Ridge regression of all pixels at once has the same values and errors; the prior of what is
    shared counts once."""
    y, _, fit = fitted(over)
    rows, columns = np.indices(SHAPE)
    group = {"map": np.zeros(SHAPE, int), "row": rows, "column": columns}[over]
    count, pixels = group.max() + 1, group.size
    design = np.zeros((pixels, len(X), pixels + count))
    for p, g in enumerate(group.ravel()):
        design[p, :, p], design[p, :, pixels + g] = X, 1.0
    flat = design.reshape(-1, pixels + count) / SIGMA
    prior = np.r_[np.full(pixels, 3.0), np.full(count, 0.5)]
    covariance = np.linalg.inv(flat.T @ flat + np.diag(prior**-2.0))
    expected, sd = covariance @ flat.T @ y.ravel() / SIGMA, np.sqrt(np.diag(covariance))
    for name, values in (
        ("forward.slope", expected[:pixels].reshape(SHAPE)),
        ("forward.floor", expected[pixels:][group]),
    ):
        np.testing.assert_allclose(fit.values[name], values, atol=2e-5)
    np.testing.assert_allclose(fit.sd["forward.slope"].ravel(), sd[:pixels], rtol=1e-4)
    np.testing.assert_allclose(fit.sd["forward.floor"], sd[pixels:][group], rtol=1e-4)
    assert (fit.status == STATUS.index("converged")).all()


def test_what_is_shared_helps_the_others_and_lost_pixels_do_no_harm():
    y, own, fit = fitted("map")
    assert np.median(fit.sd["forward.slope"] / own.sd["forward.slope"]) < 0.6
    y[0, 0] = np.nan
    own = fit_map(problem(), X, y, covariance=True)
    again = share_map(problem(), X, y, own, {"forward.floor": "map"})
    with pytest.raises(ValueError, match="real ones of"):
        share_map(problem(), X, y[:, :2], own, {"forward.floor": "map"})
    with pytest.raises(ValueError, match="real ones of"):
        share_map(problem(), X, y + 0j, own, {"forward.floor": "map"})
    masked = np.ma.array(np.where(np.isnan(y), 1e9, y), mask=np.isnan(y))
    hidden = share_map(problem(), X, masked, own, {"forward.floor": "map"})
    np.testing.assert_allclose(hidden.values["forward.floor"], again.values["forward.floor"])
    # the prior counts once, whatever was lost
    rest = share_map(
        problem(), X, y[1:], fit_map(problem(), X, y[1:], covariance=True), {"forward.floor": "row"}
    )
    y[0] = np.nan
    lost = fit_map(problem(), X, y, covariance=True)
    lost = share_map(problem(), X, y, lost, {"forward.floor": "row"})
    np.testing.assert_allclose(lost.sd["forward.floor"][1:], rest.sd["forward.floor"], rtol=1e-5)
    assert np.isnan(again.values["forward.floor"][0, 0])
    assert again.status[0, 0] == STATUS.index("no data")
    assert abs(again.values["forward.floor"][1, 1] - fit.values["forward.floor"][1, 1]) < 0.05


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ({"forward.floor": "all"}, "over 'all'; one of map, row, column"),
        ({"forward.roof": "map"}, "unknown 'forward.roof'"),
        ({}, "0 names"),
    ],
)
def test_what_cannot_be_shared(shared, message):
    y, own, _ = fitted("map")
    with pytest.raises(ValueError, match=message):
        share_map(problem(), X, y, own, shared)


class Curved(eqx.Module):
    """A decay: what is shared is no linear unknown."""

    height: jax.Array = parameter(default=1.0)
    rate: jax.Array = parameter(default=2.0)

    def __call__(self, x):
        return self.height * jnp.exp(-self.rate * x)


def test_one_rate_for_each_column():
    rng = np.random.default_rng(5)
    rates, heights = rng.uniform(1.0, 4.0, 5), rng.uniform(0.5, 2.0, SHAPE)
    y = heights[..., None] * np.exp(-rates[:, None] * X)
    y = y + 0.02 * rng.normal(size=y.shape)
    priors = {
        "forward.height": dist.LogNormal(0.0, 1.0),
        "forward.rate": dist.LogNormal(0.7, 1.0),
    }
    decay = InverseProblem(Curved(), Gaussian(0.02), priors)
    own = fit_map(decay, X, y, covariance=True)
    fit = share_map(decay, X, y, own, {"forward.rate": "column"})
    assert (fit.status == STATUS.index("converged")).all()
    found, sd = fit.values["forward.rate"], fit.sd["forward.rate"]
    np.testing.assert_array_equal(found[0], found[2])
    assert np.all(np.abs(found[0] - rates) < 4.0 * sd[0])
    assert np.all(sd < 0.8 * own.sd["forward.rate"])


def test_as_a_stage_of_a_problem():
    y, _, fit = fitted("row")
    whole = each_pixel(problem(), SHAPE)
    stage = fit_each_pixel(shared={"floor": "row"}, neighbours=0)
    solution = run(whole, X, y, [stage], key=jax.random.key(0))
    there = map_fit(solution).values["forward.floor"]
    np.testing.assert_allclose(there, fit.values["forward.floor"], atol=1e-3)
    np.testing.assert_array_equal(there[:, 0], there[:, 4])
    assert fitted_together(solution) == {"floor": "row"}
    with pytest.raises(ValueError, match="is one of them"):
        fit_each_pixel(shared={"floor": "row"}, smooth=["slope"])

"""Maps whose neighbouring pixels are alike."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from micjax.core.problem import InverseProblem, parameter
from micjax.inference.maps.fit import fit_map
from micjax.inference.maps.result import MapFit
from micjax.inference.maps.spatial import smooth as module
from micjax.inference.maps.spatial.links import differences, pulled, strain, strength, tied
from micjax.inference.maps.spatial.smooth import smooth_map
from micjax.inference.maps.spatial.whole import PixelEquations
from micjax.inference.maps.spatial.widths import TRIED, least_risk, smoothed
from micjax.inference.maps.status import STATUS
from micjax.physics.noise import Poisson

X = np.linspace(-3.0, 3.0, 20)


class Peak(eqx.Module):
    """On two counts of background."""

    centre: jax.Array = parameter(default=0.0)
    height: jax.Array = parameter(default=12.0)

    def __call__(self, x):
        return self.height * jnp.exp(-((x - self.centre) ** 2) / 0.9) + 2.0


@pytest.fixture(scope="module")
def links():
    """Of a map of 5 x 4 pixels, and the matrix they stand for."""
    rng = np.random.default_rng(0)
    ny, nx = 5, 4
    weights = rng.uniform(1.0, 9.0, (1, ny - 1, nx)), rng.uniform(1.0, 9.0, (1, ny, nx - 1))
    index, matrix = np.arange(ny * nx).reshape(ny, nx), np.zeros((ny * nx, ny * nx))
    pairs = [(index[:-1], index[1:], weights[0][0]), (index[:, :-1], index[:, 1:], weights[1][0])]
    for first, second, weight in pairs:
        for a, b, w in zip(first.ravel(), second.ravel(), weight.ravel(), strict=True):
            matrix[[a, b], [a, b]] += w
            matrix[[a, b], [b, a]] -= w
    return tuple(map(jnp.asarray, weights)), matrix


def test_links_are_their_matrix(links):
    weights, matrix = links
    v = jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 4)))
    flat = matrix @ np.ravel(v)
    np.testing.assert_allclose(np.ravel(tied(weights, v)), flat, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.ravel(strength(weights)), np.diag(matrix), rtol=1e-6)
    np.testing.assert_allclose(strain(weights, v, v).sum(), np.ravel(v) @ flat, rtol=1e-5)
    rng = np.random.default_rng(2)
    links = [jnp.asarray(rng.normal(size=w.shape)) for w in weights]
    both = sum((a * b).sum() for a, b in zip(links, differences(v, 2), strict=True))
    np.testing.assert_allclose((pulled(links) * v).sum(), both, rtol=1e-5)


def test_draws_and_covariance_are_those_of_the_inverse(links):
    weights, matrix = links
    rng, where = np.random.default_rng(3), np.array([1])
    roots = rng.normal(size=(2, 2, 5, 4))
    curvature = np.einsum("ik...,jk...->ij...", roots, roots) + 0.5 * np.eye(2)[..., None, None]
    whole = np.zeros((2, 20, 2, 20))
    for i in range(2):
        for j in range(2):
            whole[i, :, j] = np.diag(curvature[i, j].ravel())
    whole[1, :, 1] += matrix
    inverse = np.linalg.inv(whole.reshape(40, 40))
    here = PixelEquations(*jnp.zeros((2, 5, 4)), jnp.zeros((2, 5, 4)), jnp.asarray(curvature))
    with jax.enable_x64(True):
        draws = module._draws(jax.random.key(0), here, weights, where, (3000, 2))
        covariance = module._covariance(here, weights, where, draws)
    variances = np.diag(inverse).reshape(2, 5, 4)
    np.testing.assert_allclose(np.var(draws, axis=0), variances, rtol=0.15)
    np.testing.assert_allclose(covariance[[0, 1], [0, 1]], variances, rtol=0.05)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_the_least_risk_is_near_the_least_error(slope):
    """Of a map with an edge, flat or rising beside it by so many standard deviations a pixel."""
    y, x = np.indices((24, 24))
    truth = slope * (x + y) + 10.0 * (x > 11)
    noisy = jnp.asarray(truth + np.random.default_rng(0).normal(size=truth.shape))
    ones = jnp.ones(truth.shape)
    with jax.enable_x64(True):
        width, edge, excess = least_risk(noisy, ones, jax.random.key(0))
        maps = jax.jit(jax.vmap(lambda r: smoothed(noisy, ones, r)[0]))(jnp.asarray(TRIED))
    errors = np.mean((maps - truth) ** 2, axis=(1, 2))
    chosen = errors[np.isclose(TRIED, float(width))]
    assert chosen.shape == (1,) and chosen[0] < 1.25 * errors.min()
    assert float(edge) > float(width) and 1.0 <= float(excess) < 1.5


def spectra(shape, seed):
    """Peaks whose place has two values, with a drift; true places, counts."""
    y, x = np.indices(shape) / max(shape)
    centre = np.where(x > 0.5, 0.8, -0.8) + 0.2 * y
    rate = 2.0 + 15.0 * np.exp(-((X - centre[..., None]) ** 2) / 0.9)
    return centre, np.random.default_rng(seed).poisson(rate).astype(float)


PRIORS = {
    "forward.centre": dist.Normal(0.0, 2.0),
    "forward.height": dist.LogNormal(2.5, 1.0),
}


def problem():
    return InverseProblem(Peak(), Poisson(1.0), PRIORS)


@pytest.fixture(scope="module")
def fits():
    centre, y = spectra((20, 20), 0)
    y[3, 4] = np.nan
    own = fit_map(problem(), X, y, covariance=True)
    return centre, y, own, smooth_map(problem(), X, y, own, ["forward.centre"])


def test_half_the_error_and_edges_stay(fits):
    centre, _, own, together = fits
    off = [np.abs(f.values["forward.centre"] - centre) for f in (own, together)]
    rms = [np.sqrt(np.nanmean(o**2)) for o in off]
    assert rms[1] < 0.5 * rms[0]
    columns = np.nanmean(off[1], axis=0)
    assert columns[[9, 10]].max() < 0.25  # 1.6 apart
    inside = np.nanmean(off[1] < 1.645 * together.sd["forward.centre"])
    assert 0.82 < inside < 0.98
    assert together.sd["forward.centre"][10, 3] < 0.7 * own.sd["forward.centre"][10, 3]


def test_a_pixel_without_data_stays_without(fits):
    _, _, own, together = fits
    assert together.status[3, 4] == STATUS.index("no data")
    assert np.isnan(together.values["forward.centre"][3, 4])
    assert np.isfinite(np.delete(together.values["forward.centre"].ravel(), 64)).all()
    assert together.counts()["converged"] >= 398
    again = MapFit.of_rows(together.rows(), (20, 20))
    np.testing.assert_array_equal(again.status, together.status)
    np.testing.assert_array_equal(again.sd["forward.height"], together.sd["forward.height"])


@pytest.mark.parametrize(
    ("names", "message"),
    [(["forward.place"], "unknown 'forward.place'"), ([], "0 names and a map of")],
)
def test_what_cannot_be_alike(fits, names, message):
    _, y, own, _ = fits
    with pytest.raises(ValueError, match=message):
        smooth_map(problem(), X, y, own, names)

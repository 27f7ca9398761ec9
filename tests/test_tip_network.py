"""The network of the tip problem: what it sees, the bound it keeps, its intervals; made-up tips."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx

import micjax
from micjax.nets.unet import UNet
from micjax.nets.weights import save_network
from micjax.physics.tips.dilation import dilate, erode
from micjax.problems import tip as module
from micjax.problems.tip import fill as module_fill
from micjax.problems.tip import network as net
from micjax.problems.tip.network import FEATURES, OF_A_PASS, Example, Sight, mean_near, sight
from micjax.problems.tip.scenes import KNOWN, surface, tips
from micjax.run.jobs.job import prepare
from micjax.run.plans.settings import checked, settings_of
from micjax.run.plans.solve import SolvePlan

OPTIONS = {"channels_in": FEATURES, "channels_out": 2, "width": 8, "depth": 1}
look = jax.jit(sight)


@pytest.fixture(scope="module")
def scan():
    """Truth, image with noise, tip, noise."""
    truth = jax.jit(surface, static_argnums=1)(jax.random.key(4), 48)
    place = jnp.arange(-5.0, 6.0)
    tip = -0.06 * (place[:, None] ** 2 + place**2)
    noise = 0.02 * jax.random.normal(jax.random.key(5), truth.shape)
    return truth, dilate(truth, tip) + noise, tip, jnp.asarray(0.02)


def network_that_says_something(folder, passes: int) -> str:
    """Never mind what."""
    path = folder / f"network{passes}.h5"
    options = OPTIONS | {"channels_in": FEATURES + (OF_A_PASS if passes > 1 else 0)}
    network = UNet(**options, rngs=nnx.Rngs(0))
    kernel = network.last.kernel
    kernel.set_value(0.3 * jax.random.normal(jax.random.key(1), kernel.get_value().shape))
    save_network(path, network, options, {"problem": "tip", "factor": 2.0, "passes": passes})
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return network_that_says_something(tmp_path_factory.mktemp("net"), 1)


def test_made_up_surfaces_and_tips():
    surfaces = jax.jit(jax.vmap(lambda k: surface(k, 32)))(jax.random.split(jax.random.key(0), 40))
    np.testing.assert_allclose(surfaces.std(axis=(1, 2)), 1.0, rtol=1e-4)
    np.testing.assert_allclose(surfaces.mean(axis=(1, 2)), 0.0, atol=1e-5)
    true, told = jax.jit(jax.vmap(tips))(jax.random.split(jax.random.key(1), 400))
    for heights in (true, told):
        np.testing.assert_array_equal(heights.max(axis=(1, 2)), 0.0)
        assert np.isfinite(heights).all()
    same = np.all(np.asarray(true) == np.asarray(told), axis=(1, 2)).mean()
    assert abs(same - KNOWN) < 4 * np.sqrt(KNOWN * (1 - KNOWN) / 400)


@pytest.mark.parametrize("width", [5, 9])
def test_a_mean_near_by(width):
    image = np.random.default_rng(0).normal(size=(20, 30))
    expected = scipy.ndimage.uniform_filter(image, width, mode="nearest")
    np.testing.assert_allclose(mean_near(jnp.asarray(image), width), expected, atol=1e-5)


def test_the_network_sees_the_same_in_any_unit(scan):
    _, image, tip, sigma = scan
    seen = look(image, tip, sigma)
    for unit in (1e-9, 1e9):
        again = look(unit * image, unit * tip, unit * sigma)
        # a contact at the very edge of the tolerance may be rounded to the other side
        same = np.isclose(again.features, seen.features, atol=1e-3)
        assert same.mean() > 0.999
        np.testing.assert_allclose(again.unit, unit * seen.unit, rtol=1e-4)


def said(seen: Sight, numbers):
    return net.estimated(lambda features: jnp.asarray(numbers), seen)


def test_whatever_the_network_says_the_bound_holds(scan):
    truth, image, tip, sigma = scan
    seen = look(image, tip, sigma)
    numbers = 30.0 * np.random.default_rng(1).normal(size=(*image.shape, 2)).astype(np.float32)
    estimate = said(seen, numbers)
    np.testing.assert_allclose(estimate.bound, erode(image, tip) + 4 * sigma, rtol=1e-5)
    assert np.all(estimate.surface <= estimate.bound)
    sure = np.asarray(seen.sure)
    assert 0.02 < sure.mean() < 0.98
    off = np.abs(estimate.surface - seen.upper)
    assert off[sure].max() <= 4.001 * float(sigma) < off[~sure].max()
    assert np.mean(truth <= estimate.bound) > 0.999
    assert np.mean(np.abs(truth - seen.upper)[sure] < 4 * sigma) > 0.99
    nothing = said(seen, np.zeros((*image.shape, 2), np.float32))
    np.testing.assert_array_equal(nothing.surface, seen.upper)
    assert np.all(nothing.scale > 0)


def test_the_loss_is_least_at_the_truth(scan):
    truth, *known = scan
    seen = look(*known)
    batch = Example(jax.tree.map(lambda a: a[None], seen), truth[None])
    right = (truth - seen.upper) / seen.unit

    def loss(fill, scale):
        numbers = jnp.stack([fill, jnp.full_like(fill, scale)], axis=-1)[None]
        return float(net.loss(lambda features: numbers, batch))

    assert loss(right, -3.0) < loss(0.8 * right, -3.0) < loss(0.5 * right, -3.0)
    error = jnp.abs(0.5 * right - right).mean()
    fitting = float(jnp.log(error)) + 1.0
    assert loss(0.5 * right, fitting) < min(loss(0.5 * right, fitting + d) for d in (-1.5, 1.5))


def test_the_certificate_is_that_of_the_training():
    training = net.training(examples=2, edge_px=40, width=8, depth=1)
    network = training.network
    facts = net.certificate(training, network, jax.random.key(7))
    run = jax.jit(lambda k: net.scores(network, training.draw(k, None)))
    other = np.stack([run(k) for k in jax.random.split(jax.random.key(8), 16)])
    assert facts["level"] == 0.9 and np.mean(other <= facts["factor"]) == pytest.approx(
        0.9, abs=0.06
    )


def test_an_unrolled_network_sees_what_its_surface_leaves(scan):
    truth, image, tip, sigma = scan
    seen, shown = look(image, tip, sigma), []

    def says(features):  # at once the truth, then nothing new
        shown.append(np.asarray(features))
        return jnp.stack([(truth - seen.upper) / seen.unit, jnp.zeros_like(truth)], axis=-1)

    estimate = net.estimated(says, seen, passes=3)
    assert [f.shape[-1] for f in shown] == 3 * [FEATURES + OF_A_PASS]
    np.testing.assert_array_equal(shown[0][..., :FEATURES], seen.features)
    np.testing.assert_array_equal(shown[0][..., FEATURES], 0.0)  # first the erosion
    opened = dilate(erode(image, tip), tip)
    np.testing.assert_allclose(
        np.sinh(shown[0][..., -1]), (image - opened) / sigma, rtol=1e-3, atol=1e-3
    )
    # what the true surface leaves of a scan is its noise
    rest = np.sinh(shown[1][..., -1])
    assert np.std(rest) == pytest.approx(1.0, abs=0.1)
    np.testing.assert_array_equal(shown[1], shown[2])
    free = truth - seen.upper < 4 * sigma
    off = np.abs(estimate.surface - truth)[np.asarray(free & ~seen.sure)]
    assert off.max() < 1e-4
    with pytest.raises(ValueError, match="passes is 0"):
        net.training(passes=0)


@pytest.mark.parametrize("edge_px", [36, 24])
def test_edges_that_do_not_fit(edge_px):
    with pytest.raises(ValueError, match="edge_px = "):
        net.training(edge_px=edge_px)


# --- as a stage of the fit ----------------------------------------------------------------------


def known_tip(scan):
    _, image, tip, sigma = scan
    options = {"ny": 48, "nx": 48, "sigma_nm": float(sigma)}
    return module.problem(**options, tip_heights_nm=np.asarray(tip).tolist()), image


@pytest.mark.parametrize("passes", [1, 2])
def test_a_fit_with_the_network(scan, passes, tmp_path):
    problem, image = known_tip(scan)
    weights = network_that_says_something(tmp_path, passes)
    how = {"key": jax.random.key(0), "fill": "network", "net": weights}
    solution = micjax.solve(module, problem, jnp.arange(1), image[None], **how)
    surface, half = (solution.results[n].data for n in ("surface", "half_width"))
    assert surface.shape == half.shape == image.shape and np.all(half > 0)
    bound = erode(image, problem.forward.tip()) + 4 * problem.noise.sigma
    assert np.all(surface <= bound) and np.std(surface - bound) > 0
    assert any("made-up surfaces" in s for s in solution.statements)
    assert solution.metrics["mean_half_width_nm"] == pytest.approx(half.mean(), rel=1e-5)


def refused(scan, **engine):
    problem, image = known_tip(scan)
    return module.stages(problem, jnp.arange(1), image[None], **engine)


def test_settings_that_are_refused(scan, weights, tmp_path):
    with pytest.raises(ValueError, match="'fill' is 'net'"):
        checked("engine setting", {"fill": "net"}, settings_of(module.stages))
    with pytest.raises(ValueError, match="used with fill = network only"):
        refused(scan, net=weights)
    with pytest.raises(FileNotFoundError, match="no such network"):
        refused(scan, fill="network", net=str(tmp_path / "none.h5"))
    other = tmp_path / "other.h5"
    save_network(other, UNet(**OPTIONS, rngs=nnx.Rngs(0)), OPTIONS, {"problem": "denoise"})
    with pytest.raises(ValueError, match="of micjax train tip is needed"):
        refused(scan, fill="network", net=str(other))
    assert len(refused(scan)) == 1


def test_weights_of_other_pixels(scan, tmp_path, caplog):
    file = tmp_path / "fine.h5"
    facts = {"factor": 2.0, "pixel_nm": 0.1}
    save_network(file, UNet(**OPTIONS, rngs=nnx.Rngs(0)), OPTIONS, facts)
    refused(scan, fill="network", net=str(file))
    assert "pixels of 0.1 nm, these are of 2 nm" in caplog.text


def test_the_weights_of_an_engine_are_inputs(weights, tmp_path, monkeypatch):
    """Known by what is in them, and found from any folder."""
    monkeypatch.chdir(pathlib.Path(weights).parent)
    engine = {"fill": "network", "net": pathlib.Path(weights).name}
    options = {"ny": 32, "nx": 32, "tip_size": 9}
    job = prepare(SolvePlan(problem="tip", options=options, engine=engine))
    assert job.inputs["engine.net"]["path"] == job.plan.engine["net"] == weights


def test_below_a_needle_the_surface_is_the_image(scan, weights):
    _, image, _, sigma = scan
    needle = jnp.full((5, 5), -1e3).at[2, 2].set(0.0)
    surface, half = module_fill.surface_of(module_fill.network_of(weights), image, needle, sigma)
    np.testing.assert_array_equal(surface, image)
    np.testing.assert_allclose(half, 1.645 * float(sigma), rtol=1e-6)

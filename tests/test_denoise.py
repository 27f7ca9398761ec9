"""`denoise`: made-up scenes, parts of the quanta, drift, and what is said of the image."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import nnx

import micjax
from micjax.io import Field
from micjax.io.fields import image_axes
from micjax.nets.unet import UNet
from micjax.nets.weights import save_network
from micjax.problems import denoise
from micjax.problems.denoise import network as net
from micjax.problems.denoise.data import noise_sd
from micjax.problems.denoise.drift import drift_of, moved_back, sd_between
from micjax.problems.denoise.model import shifted
from micjax.problems.denoise.network import HANDS, NoiseLaw, held_out_of, paired
from micjax.problems.denoise.scenes import intensity, lattice, scene
from micjax.problems.denoise.stages import parts_of
from micjax.problems.denoise.trust import looked_up

LAST = jnp.arange(HANDS) >= HANDS - held_out_of(HANDS)


def two_parts(law, rng, y):
    return paired(law, jnp.asarray(law.dealt(rng, np.asarray(y, float))), ~LAST, LAST)


@pytest.fixture(scope="module")
def images():
    draw = jax.jit(jax.vmap(lambda k: scene(k, 64)))
    return np.asarray(draw(jax.random.split(jax.random.key(5), 4)))


# --- scenes -----------------------------------------------------------------------------------


def test_a_scene_is_bright_on_average_and_never_dark_below(images):
    assert images.min() >= 0.0
    np.testing.assert_allclose(images.mean(axis=(1, 2)), 1.0, rtol=1e-5)
    assert np.abs(images[0] - images[1]).max() > 0.5


def test_a_lattice_repeats_and_its_cell_has_a_mean_of_one():
    cells = jax.vmap(lattice)(jax.random.split(jax.random.key(1), 20))
    cells = cells._replace(defects=jnp.zeros(20))
    shares = np.stack(np.meshgrid(*2 * [np.arange(40) / 40], indexing="ij"), -1)

    def of_cell(cell, moved):
        here = jax.tree.map(lambda a: jnp.broadcast_to(a, (40, 40, *a.shape)), cell)
        return intensity((shares + moved) @ cell.vectors_px, here)

    run = jax.jit(jax.vmap(of_cell, (0, None)))
    first, later = run(cells, jnp.zeros(2)), run(cells, jnp.array([3.0, -2.0]))
    np.testing.assert_allclose(first, later, atol=1e-4 * float(first.max()))
    np.testing.assert_allclose(first.mean(axis=(1, 2)), 1.0, rtol=0.03)
    turned = cells.vectors_px @ cells.inverse_perpx
    np.testing.assert_allclose(turned, np.broadcast_to(np.eye(2), (20, 2, 2)), atol=1e-6)


# --- parts of the quanta ------------------------------------------------------------------------


@pytest.mark.parametrize("law", [NoiseLaw(), NoiseLaw(2.5, False)])
def test_parts_are_independent_and_add_up(law):
    """Covariances of all pairs of parts, over 40,000 pixels of one brightness."""
    rng = np.random.default_rng(0)
    mean, shape = 6.0, (200, 200)
    y = rng.poisson(mean, shape) * 1.0 if law.counted else mean + 2.5 * rng.standard_normal(shape)
    hands = law.dealt(rng, y)
    whole = hands.sum(axis=0) if law.counted else hands.mean(axis=0)
    np.testing.assert_allclose(whole, y, atol=1e-4)
    covariance = np.cov(hands.reshape(HANDS, -1))
    expected = mean / HANDS if law.counted else HANDS * 2.5**2
    np.testing.assert_allclose(np.diag(covariance), expected, rtol=0.05)
    off = covariance[~np.eye(HANDS, dtype=bool)] / expected
    assert np.abs(off).max() < 5.0 / 200.0  # standard error of each: 1 / 200


@pytest.mark.parametrize("law", [NoiseLaw(), NoiseLaw(2.5, False)])
def test_a_pair_has_the_laws_of_its_parts(law):
    rng = np.random.default_rng(1)
    y = rng.poisson(40.0, (100, 100)) if law.counted else rng.normal(40.0, 2.5, (100, 100))
    pair = two_parts(law, rng, y)
    kept, other = np.asarray(pair.kept), np.asarray(pair.other)
    assert other.mean() == pytest.approx(float(pair.ratio) * kept.mean(), rel=0.01)
    spread = kept.std(), other.std()
    if law.counted:
        np.testing.assert_allclose(spread, np.sqrt([32.0, 8.0]), rtol=0.05)
        assert np.std(pair.law.seen(pair.kept)) == pytest.approx(1.0, rel=0.05)
    else:
        np.testing.assert_allclose(spread, [pair.law.sigma, pair.law_of_other.sigma], rtol=0.05)
        np.testing.assert_allclose(spread, 2.5 / np.sqrt([0.8, 0.2]), rtol=0.05)


def test_the_loss_is_least_at_the_truth(images):
    """Of networks that add a constant to what is seen, the best one adds nothing."""
    law, rng = NoiseLaw(), np.random.default_rng(2)
    pair = two_parts(law, rng, rng.poisson(50.0 * images[0]))
    truth = pair._replace(kept=jnp.asarray(0.8 * 50.0 * images[0]))
    losses = [float(net.loss(lambda s, c=c: c + 0.0 * s, truth)) for c in (-0.3, 0.0, 0.3)]
    assert losses[1] < min(losses[0], losses[2])


# --- drift ---------------------------------------------------------------------------------------


def test_a_shift_is_exact_for_quadratics():
    y, x = np.indices((20, 30), float)

    def quadratic(y, x):
        return 3.0 + 0.2 * y - 0.4 * x + 0.03 * y**2 + 0.02 * x * y - 0.01 * x**2

    moved = shifted(jnp.asarray(quadratic(y, x)), jnp.array([1.3, -2.6]))
    inside = np.s_[3:-4, 4:-4]
    np.testing.assert_allclose(moved[inside], quadratic(y + 1.3, x - 2.6)[inside], atol=1e-9)


def test_drift_of_noisy_frames(images):
    rng = np.random.default_rng(3)
    true = np.array([[2, -3], [5, -4], [3, 1]])
    frames = [images[1]] + [scipy.ndimage.shift(images[1], -d, order=1) for d in true]
    noisy = rng.poisson(8.0 * np.maximum(frames, 0.0)).astype(float)
    np.testing.assert_array_equal(drift_of(noisy, 8), [[0, 0], *true])
    back = moved_back(frames[1], true[0])
    np.testing.assert_allclose(back[8:-8, 8:-8], images[1][8:-8, 8:-8], atol=1e-5)


# --- trust ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [NoiseLaw(), NoiseLaw(2.0, False)])
def test_the_error_is_that_of_the_image(images, law):
    """An image that is off by three hundredths of its brightness, blindly found to be."""
    rng = np.random.default_rng(4)
    truth = 20.0 * np.tile(images[2], (4, 4)) + 5.0
    y = rng.poisson(truth) if law.counted else rng.normal(truth, 2.0)
    pair = two_parts(law, rng, y)
    share = 0.8 if law.counted else 1.0
    spread = 0.03 * truth
    wrong = share * (truth + 2.0 * spread * rng.standard_normal(truth.shape))
    told = looked_up(wrong, spread, pair)
    assert np.sqrt(np.mean(told["sd"] ** 2)) == pytest.approx(
        2.0 * np.sqrt(np.mean(spread**2)), rel=0.2
    )
    assert (told["filters"][:, 1] > 2.0 * told["filters"][:, 2]).all()


def test_what_is_made_up_is_told(images):
    rng, law = np.random.default_rng(5), NoiseLaw()
    truth = 3.0 * scipy.ndimage.gaussian_filter(images[3], 3.0)
    pair = two_parts(law, rng, rng.poisson(truth))
    invented = 0.8 * (truth * (1.0 + 0.8 * np.sin(np.arange(64))))
    filters = looked_up(invented, 0.1 * truth, pair)["filters"]
    assert filters[:, 1].min() < -2.0 * filters[filters[:, 1].argmin(), 2]
    said = list(denoise.conclusion._statements({"filters": filters}))
    assert said[0].startswith("NOT TO BE TRUSTED")


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.ones((40, 40)), {}, "frame 0 is constant"),
        (np.ones((0, 40)), {}, "there are no pixels"),
        (np.where(np.eye(40), np.nan, 1.0), {}, "40 of 1600 values are not finite"),
        (np.random.default_rng(0).random((20, 40)), {}, "frames of 20 x 40 pixels"),
        (np.random.default_rng(0).random((40, 40)), {"noise": "poisson"}, "which are no counts"),
        (np.random.default_rng(0).random((2, 3, 40, 40)), {}, "an image or a stack of frames"),
    ],
)
def test_files_that_are_no_images(tmp_path, values, options, message):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=message):
        denoise.load(tmp_path / "a.npy", **options)


def test_both_edges_of_a_pixel_are_used(tmp_path):
    axes = image_axes((40, 50), (1.0, 4.0), "nm")
    field = Field(np.random.default_rng(0).random((40, 50)), axes, "", "scan")
    options, x, y = denoise.load(field)
    assert options["pixel_A"] == (10.0, 40.0)
    assert denoise.problem(64, 64, pixel_A=2.0).forward.pixel_A == (2.0, 2.0)


def test_a_training_on_nothing():
    for nothing in ({"examples": 0}, {"edge_px": 0}):
        with pytest.raises(ValueError, match="is 0: whole numbers from 1"):
            net.training(**nothing)


def test_a_network_that_is_none_is_told_before_anything_is_computed(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such network"):
        denoise.problem(64, 64, net=str(tmp_path / "none.h5"))
    (tmp_path / "text.h5").write_text("nothing")
    with pytest.raises(ValueError, match="is no network of micjax"):
        denoise.problem(64, 64, net=str(tmp_path / "text.h5"))


def test_counts_are_told_from_whole_numbers(tmp_path):
    """Whole numbers of a camera whose noise is not that of counts are values."""
    rng, smooth = np.random.default_rng(6), 20.0 + 5.0 * np.sin(np.arange(64) / 9.0)
    counts = rng.poisson(np.tile(smooth, (64, 1)))
    for values, noise in ((counts, "poisson"), (100 * counts, "normal"), (counts / 7.0, "normal")):
        np.save(tmp_path / "a.npy", values)
        options, x, y = denoise.load(tmp_path / "a.npy")
        assert options["noise"] == noise and y.shape == (1, 64, 64)
    assert options["sigma"] == pytest.approx(np.sqrt(20.0) / 7.0, rel=0.05)


def test_noise_that_has_been_smeared_is_seen_between_frames(images):
    """And frames are parts by themselves, whose noise says nothing of the noise of others."""
    rng = np.random.default_rng(12)
    noise = scipy.ndimage.gaussian_filter1d(rng.normal(size=(5, 64, 64)), 1.0, axis=2)
    frames = 4.0 * images[1] + 3.0 * noise / noise.std()
    assert sd_between(frames) == pytest.approx(3.0, rel=0.05)
    assert noise_sd(frames[0]) < 2.0
    problem = denoise.problem(64, 64, 5, "normal", sigma=3.0, level=4.0)
    parts = parts_of(problem, jnp.asarray(frames), jax.random.key(0))
    np.testing.assert_allclose(parts, frames, rtol=1e-6)
    few = parts_of(denoise.problem(64, 64, 2, "normal"), jnp.asarray(frames[:2]), jax.random.key(0))
    assert len(few) == HANDS


def test_noise_of_an_image():
    image = np.random.default_rng(7).normal(0.0, 3.0, (128, 128)) + np.arange(128)
    assert noise_sd(image) == pytest.approx(3.0, rel=0.05)


# --- all of it ------------------------------------------------------------------------------------


TINY = {"width": 8, "depth": 1, "fold": 2}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A network that has learned nothing."""
    file = tmp_path / "tiny.h5"
    save_network(file, UNet(**TINY, rngs=nnx.Rngs(0)), TINY, {})
    monkeypatch.setattr(sys.modules["micjax.problems.denoise.stages"], "SHIPPED", file)


def solved(y, noise="poisson", steps=60, learning_rate=1e-2, **options):
    problem = denoise.problem(*y.shape[1:], len(y), noise, **options)
    x, engine = jnp.arange(len(y)), {"steps": steps, "learning_rate": learning_rate}
    return micjax.solve(denoise, problem, x, jnp.asarray(y), key=jax.random.key(2), **engine)


def test_an_image_gets_better_and_says_by_how_much(images, monkeypatch):
    """By the network as it is shipped, which two steps hardly change, seen in two ways of eight."""
    module = sys.modules["micjax.problems.denoise.stages"]
    monkeypatch.setattr(module, "TURNED", [(False, 1, 1), (True, -1, 1)])
    rng, truth = np.random.default_rng(8), 5.0 * np.tile(images[1], (2, 2))
    y = rng.poisson(truth)[None].astype(float)
    solution = solved(y, steps=2, learning_rate=1e-4, pixel_A=[10.0, 40.0])
    assert all(of.pixel_nm == pytest.approx((1.0, 4.0)) for of in solution.results.values())
    image, errors = solution.results["image"].data, solution.results["image"].metadata["errors"]
    off = np.sqrt(np.mean((image - truth) ** 2))
    assert off < 0.7 * np.sqrt(np.mean((y[0] - truth) ** 2))
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(off, rel=0.3)
    assert "never saw" in solution.statements[0]
    rows = denoise.compare(
        solution, None, y, denoise.problem(128, 128).at({"forward.image": truth})
    )
    assert [r["rms error"] for r in rows][2] == pytest.approx(off)
    for figure in denoise.figures(solution, None, y).values():
        figure()


@pytest.mark.slow
def test_the_unit_of_the_values_does_not_matter(small, images):
    rng = np.random.default_rng(9)
    y = 5.0 * images[:1] + rng.normal(0.0, 1.0, (1, 64, 64))
    results = [
        solved(scale * y, "normal", 10, sigma=scale, level=scale).results["image"].data / scale
        for scale in (1.0, 1e-9, 1e9)
    ]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_drifting_stack(images):
    rng, drift = np.random.default_rng(10), np.array([[0.0, 0.0], [2.4, -1.3], [3.6, -3.1]])
    truth = denoise.problem(64, 64, 3).at(
        {"forward.image": 20.0 * images[1] + 1.0, "forward.drift_px": drift}
    )
    y = rng.poisson(np.maximum(truth.forward(jnp.arange(3)), 0.0)).astype(float)
    solution = solved(y, steps=2, learning_rate=1e-4)
    told = [[row["drift y (px)"], row["drift x (px)"]] for row in solution.table]
    np.testing.assert_allclose(told, drift[1:], atol=0.1)


def test_weights_that_the_network_begins_with(tmp_path, caplog):
    file = tmp_path / "net.h5"
    save_network(file, UNet(**TINY, rngs=nnx.Rngs(3)), TINY, {"pixel_A": 0.1})
    problem = denoise.problem(64, 64, net=str(file), pixel_A=0.15)
    assert caplog.text == ""
    denoise.problem(64, 64, net=str(file), pixel_A=0.5)
    assert "learned from pixels of 0.01 nm, these are of 0.05 nm" in caplog.text
    stages = sys.modules["micjax.problems.denoise.stages"]
    begun = stages.checked_network(problem.forward.net, (64, 64)).network
    kernels = [n.first.kernel.get_value() for n in (begun, UNet(**TINY, rngs=nnx.Rngs(3)))]
    np.testing.assert_allclose(*kernels, rtol=1e-6)
    other = tmp_path / "other.h5"
    more = TINY | {"channels_in": 3}
    save_network(other, UNet(**more, rngs=nnx.Rngs(3)), more, {})
    with pytest.raises(ValueError, match="a UNet from one channel to one"):
        denoise.problem(64, 64, net=str(other))
    with pytest.raises(ValueError, match="needs at least 4 x 4"):
        denoise.problem(3, 64, net=str(file))

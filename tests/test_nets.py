"""Networks: what they see, how they are kept, and an image through them tile by tile."""

import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from micjax.core.tree import replace
from micjax.nets.layers import doubled, folded, halved, in_bfloat16, unfolded
from micjax.nets.tiles import tiled
from micjax.nets.train import weights_of
from micjax.nets.unet import UNet
from micjax.nets.weights import Network, load_network, save_network, warn_of_pixels

SMALL = {"width": 8, "depth": 1, "fold": 2}


def shaken(network, seed=0):
    """The layers that begin at zero as well."""
    rng = np.random.default_rng(seed)
    new = {n: a + 0.3 * rng.standard_normal(a.shape) for n, a in weights_of(network).items()}
    return replace(network, {n: jnp.asarray(a, float) for n, a in new.items()})


@pytest.fixture(scope="module")
def network():
    return shaken(UNet(**SMALL, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(1).standard_normal((16, 24, 1))


def test_a_fold_and_its_inverse(image):
    squares = folded(jnp.asarray(image), 4)
    assert squares.shape == (4, 6, 16)
    np.testing.assert_array_equal(squares[1, 2], image[4:8, 8:12, 0].ravel())
    np.testing.assert_array_equal(unfolded(squares, 4), image)


def test_halving_and_doubling(image):
    np.testing.assert_allclose(halved(jnp.asarray(image))[1, 2, 0], image[2:4, 4:6, 0].mean())
    np.testing.assert_allclose(halved(doubled(jnp.asarray(image))), image)


def test_an_untrained_network_says_nothing(image):
    network = UNet(**SMALL, rngs=nnx.Rngs(0))
    assert not np.any(jax.jit(lambda im: network(im))(jnp.asarray(image)))


def test_edges_that_are_no_multiple(network, image):
    with pytest.raises(ValueError, match="14 x 24 pixels: multiples of 4 are needed"):
        network(jnp.asarray(image[:14]))


def test_channels_that_are_no_multiple_of_eight():
    with pytest.raises(ValueError, match="12 channels: a multiple of 8 is needed"):
        UNet(width=12, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("blocks", [1, 2])
def test_how_far_a_pixel_sees(monkeypatch, blocks):
    monkeypatch.setattr(nnx.GroupNorm, "__call__", lambda self, h: h)  # which sees all
    net = shaken(UNet(**SMALL, blocks=blocks, rngs=nnx.Rngs(0)))
    size = 64 + 32 * blocks
    middle = size // 2
    slopes = jax.jit(
        jax.vmap(jax.grad(lambda im, i: net(im[..., None])[middle + i, middle, 0]), (None, 0))
    )(jnp.ones((size, size)), jnp.arange(net.multiple))
    rows = [np.flatnonzero(np.any(np.asarray(s) != 0, axis=1)) for s in slopes]
    seen = max(max(middle + i - r.min(), r.max() - middle - i) for i, r in enumerate(rows))
    assert seen == net.reach


def test_a_circular_network_moves_with_the_image(image):
    net = shaken(UNet(width=8, depth=1, circular=True, rngs=nnx.Rngs(0)))
    run = jax.jit(lambda im: net(im))
    moved = run(jnp.asarray(np.roll(image, (2, 4), (0, 1))))
    np.testing.assert_allclose(moved, np.roll(run(jnp.asarray(image)), (2, 4), (0, 1)), atol=1e-9)


def test_a_network_is_told_a_condition(image):
    net = shaken(UNet(width=8, depth=1, condition=3, rngs=nnx.Rngs(0)))
    run = jax.jit(lambda vector: net(jnp.asarray(image), vector))
    first, second = (run(jnp.asarray(v)) for v in ([1.0, 0, 0], [0.0, 1, 0]))
    assert float(jnp.abs(first - second).max()) > 1e-3


def test_layers_compute_in_sixteen_bits(network, image):
    half = in_bfloat16(network)
    out, exact = jax.jit(lambda im: (half(im), network(im)))(jnp.asarray(image))
    assert out.dtype == jnp.asarray(image).dtype
    assert 1e-4 < float(jnp.abs(out - exact).max() / jnp.abs(exact).max()) < 0.1
    assert {a.dtype for a in weights_of(half).values()} == {jnp.dtype(jnp.result_type(float))}


# --- files ----------------------------------------------------------------------------------------


def test_a_network_as_a_file(tmp_path, network, image):
    file = tmp_path / "net.h5"
    save_network(file, network, SMALL, {"pixel_A": 0.2})
    saved = load_network(file)
    assert (saved.architecture, saved.options, saved.facts) == ("UNet", SMALL, {"pixel_A": 0.2})
    out, exact = jax.jit(lambda im: (saved.network(im), network(im)))(jnp.asarray(image))
    np.testing.assert_allclose(out, exact, rtol=1e-4, atol=1e-5)


def test_pixels_that_a_network_has_not_learned_from(caplog):
    def told(here_nm, **facts):
        caplog.clear()
        warn_of_pixels("net.h5", Network(None, "UNet", {}, facts), here_nm)
        return caplog.text

    assert "net.h5 has learned from pixels of 0.1 nm, these are of 0.2 nm" in told(
        0.2, pixel_nm=0.1
    )
    assert "from pixels of 0.02 nm, these are of 0.01 nm" in told(0.01, pixel_A=0.2)
    assert "these are of 0.1 x 0.3 nm" in told(np.array([0.1, 0.3]), pixel_nm=0.1)
    for quiet in (
        told(0.19, pixel_nm=0.1),
        told(None, pixel_nm=0.1),
        told(0.2),
        told(5, pixel_px=1),
    ):
        assert quiet == ""
    for size in ("small", -1.0, float("nan"), True, [0.1]):
        with pytest.raises(ValueError, match="net.h5: pixel_nm is .* a positive number is needed"):
            told(0.2, pixel_nm=size)


def test_half_the_bytes(tmp_path, network):
    for dtype in ("float32", "float16"):
        save_network(tmp_path / dtype, network, SMALL, {}, dtype)
    weights = [weights_of(load_network(tmp_path / d).network) for d in ("float32", "float16")]
    for name, array in weights[0].items():
        np.testing.assert_allclose(weights[1][name], array, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("architecture", "os.system", "no architecture 'os.system'"),
        ("options", json.dumps(SMALL | {"width": 16}), "of shape .*, not"),
        ("options", json.dumps({"wide": 8}), "no UNet of"),
        ("options", json.dumps(SMALL | {"depth": 2}), "is missing"),
        ("options", "{", "is no network of micjax"),
        ("format", "another", "is no network of micjax"),
    ],
)
def test_a_file_of_another_network(tmp_path, network, attribute, value, message):
    file = tmp_path / "net.h5"
    save_network(file, network, SMALL, {})
    with h5py.File(file, "r+") as opened:
        opened.attrs[attribute] = value
    with pytest.raises(ValueError, match=message):
        load_network(file)


def test_no_network(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such network"):
        load_network(tmp_path / "net.h5")
    (tmp_path / "net.h5").write_text("nothing")
    with pytest.raises(ValueError, match="is no network of micjax"):
        load_network(tmp_path / "net.h5")


# --- tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 70), (33, 16), (16, 16), (9, 100)])
def test_tiles_of_what_each_pixel_does_alone(shape):
    image = np.random.default_rng(2).standard_normal((*shape, 2))
    out = tiled(lambda w, im: w * im[..., :1], 3.0, image, multiple=4, tile=16, overlap=6)
    np.testing.assert_allclose(out, 3.0 * image[..., :1], rtol=1e-5)


def test_tiles_hide_what_they_do_at_their_edges():
    """A blur that ends at the edge of a tile: blended it is near that of the whole."""
    image = np.random.default_rng(3).standard_normal((64, 64, 1)) + 5.0

    def blurred(weights, im):
        return jax.scipy.signal.convolve(im[..., 0], weights, mode="same")[..., None]

    kernel = jnp.ones((5, 5)) / 25.0
    whole = np.asarray(blurred(kernel, jnp.asarray(image)))
    inside = np.s_[4:-4, 4:-4]
    wrong = [
        np.abs(tiled(blurred, kernel, image, 4, 32, overlap) - whole)[inside].max()
        for overlap in (0, 12)
    ]
    assert wrong[0] > 1.0 and wrong[1] < 0.35 * wrong[0]


def test_tiles_that_do_not_fit(image):
    with pytest.raises(ValueError, match="a multiple of 8, and less than half of it"):
        tiled(lambda w, im: im, None, image, 8, 20, 4)
    with pytest.raises(ValueError, match="16 x 24 pixels: the network needs at least 33"):
        tiled(lambda w, im: im, None, image, 64, 128, 4)


def test_a_file_holds_only_what_can_be_loaded(tmp_path):
    options = {"width": 8, "depth": 1}
    network = UNet(**options, rngs=nnx.Rngs(0))
    network.last.kernel.set_value(jnp.full_like(network.last.kernel.get_value(), 1e6))
    with pytest.raises(ValueError, match="not finite as float16"):
        save_network(tmp_path / "net.h5", network, options, {}, dtype="float16")
    with pytest.raises(ValueError, match="float32 or float16"):
        save_network(tmp_path / "net.h5", network, options, {}, dtype="int8")
    with pytest.raises(ValueError, match="a Linear cannot be kept"):
        save_network(tmp_path / "net.h5", nnx.Linear(2, 2, rngs=nnx.Rngs(0)), {}, {})
    assert not (tmp_path / "net.h5").exists()
    save_network(tmp_path / "net.h5", network, options, {"factor": jnp.float32(2.0)})
    assert load_network(tmp_path / "net.h5").facts == {"factor": 2.0}
    with h5py.File(tmp_path / "net.h5", "r+") as file:
        file["weights/0"][...] = np.nan
    with pytest.raises(ValueError, match="are not finite"):
        load_network(tmp_path / "net.h5")
    for wrong in ({"depth": -1}, {"width": 0}, {"fold": 0}):
        with pytest.raises(ValueError, match="are needed"):
            UNet(**options | wrong, rngs=nnx.Rngs(0))

"""`particles`: tables of instances at the edge and of pixels that are not square, settings that
are refused, and labels of another program."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import micjax
from micjax.nets.unet import UNet
from micjax.nets.weights import save_network
from micjax.problems import particles
from micjax.problems.particles.instances.table import shapes
from micjax.problems.particles.segmentation import heads_of

TINY = {"channels_in": 3, "channels_out": 4, "width": 8, "depth": 1, "fold": 4}

# --- sizes ----------------------------------------------------------------------------------------


def test_the_edge_of_the_image_is_a_rim():
    labels = np.zeros((48, 48), int)
    labels[:, :24] = 1
    labels[28:, 28:] = 2
    of = shapes(labels)
    np.testing.assert_allclose(of.shortest_px, [24.0, 20.0], rtol=1e-6)
    np.testing.assert_allclose(of.longest_px, [np.hypot(48, 24), np.hypot(20, 20)], rtol=1e-2)
    np.testing.assert_allclose(of.solidity, 1.0, rtol=1e-2)
    whole = shapes(np.ones((40, 30), int))
    assert whole.shortest_px[0] == pytest.approx(30.0) and whole.cut.all()


def test_pixels_that_are_not_square():
    """A disc and a tilted ellipse, as a scan of 1 x 4 sees them: what they are in nm stays."""
    y, x = np.indices((160, 40)) * np.array([1.0, 4.0])[:, None, None]
    labels = np.zeros((160, 40), int)
    labels[np.hypot(y - 40, x - 40) < 30.0] = 1
    along, across = ((y - 110) + (x - 100)) / np.sqrt(2), ((y - 110) - (x - 100)) / np.sqrt(2)
    labels[np.hypot(along / 40.0, across / 20.0) < 1.0] = 2
    of, edge = shapes(labels, (1.0, 4.0)), 2.0
    np.testing.assert_allclose(edge * of.diameter_px, [60.0, np.sqrt(80.0 * 40.0)], rtol=0.02)
    np.testing.assert_allclose(edge * of.longest_px, [60.0, 80.0], atol=4.2)
    np.testing.assert_allclose(edge * of.shortest_px, [60.0, 40.0], atol=4.2)
    np.testing.assert_allclose(of.aspect, [1.0, 2.0], rtol=0.05)
    assert of.solidity.min() > 0.9
    square, larger = shapes(labels), shapes(labels, (4e-9, 4e-9))
    for value, other in zip(square, larger, strict=True):
        np.testing.assert_allclose(other, value)
    block = np.zeros((40, 30), int)
    block[10:22, 10:18] = 1  # 12 by 8 pixels are 12 by 32 nm
    of = shapes(block, (1.0, 4.0))
    assert edge * of.shortest_px[0] == pytest.approx(12.0)
    assert edge * of.perimeter_px[0] == pytest.approx(np.pi / 4 * 2 * (12 + 32))


# --- settings -------------------------------------------------------------------------------------


def test_both_edges_of_a_pixel_of_a_file_are_used(tmp_path, caplog):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((40, 50)))
    options, _, _ = particles.load(tmp_path / "a.npy", pixel_nm=[1.0, 4.0])
    assert options["pixel_nm"] == (1.0, 4.0)
    assert particles.load(tmp_path / "a.npy")[0]["pixel_nm"] is None


def test_small_images_are_for_labels_only(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((20, 4)))
    with pytest.raises(ValueError, match="20 x 4 pixels; the network needs at least 33 x 33"):
        particles.load(tmp_path / "a.npy")
    assert particles.load(tmp_path / "a.npy", labels="mine:blobs")[2].shape == (20, 4)


@pytest.mark.parametrize(
    ("zoom", "size", "message"),
    [
        (0.3, 200, "zoom = 0.3: one of 0.25, 0.5, 1, 2 is needed"),
        (0.25, 40, "10 x 10 of 40 x 40 pixels.*least 33 x 33: zooms from 1 on fit"),
        (0.5, 64, "32 x 32 of 64 x 64 pixels.*zooms from 1 on fit"),
    ],
)
def test_zooms_that_are_none(zoom, size, message):
    problem = particles.problem(size, size)
    with pytest.raises(ValueError, match=message):
        particles.stages(problem, jnp.zeros(1, int), jnp.zeros((size, size)), zoom=zoom)
    for fits in (1.0, 2.0):
        assert particles.stages(problem, jnp.zeros(1, int), jnp.zeros((size, size)), zoom=fits)


def test_the_smallest_image_at_a_zoom_is_what_the_network_takes():
    network = UNet(3, 4, width=8, depth=1, rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).random((40, 33))
    assert heads_of(network, image).shape == (40, 33, 4)
    with pytest.raises(ValueError, match="the network needs at least 33"):
        heads_of(network, image[:, :32])


def test_trainings_on_nothing_and_on_another_network_than_that_of_the_file(tmp_path):
    for examples, edge_px in ((0, 64), (4, 0)):
        with pytest.raises(ValueError, match="is 0: whole numbers from 1"):
            particles.training(examples, 0, edge_px)
    with pytest.raises(ValueError, match="films = 3: at most all of the 2 examples"):
        particles.training(examples=2)
    save_network(tmp_path / "a.h5", UNet(**TINY, rngs=nnx.Rngs(0)), TINY, {})
    net = str(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="width = 16: the network of .*a.h5 has width = 8"):
        particles.training(net=net, width=16)
    assert particles.training(net=net, width=8, fold=4).options == TINY
    assert particles.training().options["width"] == 16


# --- labels of a function -------------------------------------------------------------------------


def one_instance(image):
    return np.ones(image.shape, int)


def none_at_all(image):
    image[:] = 0.0  # what it is given is its own
    return np.zeros(image.shape, int)


@pytest.mark.parametrize(("function", "number"), [(one_instance, 1), (none_at_all, 0)])
def test_labels_of_the_whole_image_and_of_nothing(monkeypatch, function, number):
    monkeypatch.setattr(
        sys.modules["micjax.problems.particles.stages"], "trusted_labels", lambda _: function
    )
    monkeypatch.setattr(particles, "trusted_labels", lambda _: function)
    image = np.random.default_rng(6).normal(0.0, 0.1, (128, 128))
    problem = particles.problem(128, 128, 0.1, labels="mine:f", pixel_nm=[1.0, 4.0])
    solution = micjax.solve(
        particles, problem, jnp.zeros(1, int), jnp.asarray(image), key=jax.random.key(0)
    )
    assert len(solution.table) == number
    np.testing.assert_allclose(solution.results["image"].data, image, rtol=1e-6, atol=1e-6)
    assert solution.results["labels"].pixel_nm == (1.0, 4.0)
    if number:
        row = solution.table[0]
        assert row["cut by the edge"] and row["shortest diameter (nm)"] == pytest.approx(128.0)
        assert [row["y (nm)"], row["x (nm)"]] == pytest.approx([63.5, 4 * 63.5])
    else:
        assert "nothing here that mine:f takes for an instance" in solution.statements[0]

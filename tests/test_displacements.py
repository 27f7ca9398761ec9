"""Polar displacements against images that were made with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.patches.features import displacements as polar

CELL_A, SAMPLING_A, WIDTH_A, RATIO, SIZE = 4.0, 0.4, 0.45, 0.3, 80
CENTRES = np.array([24.0, 36.3, 50.9])
Y, X = (np.mgrid[:SIZE, :SIZE] * SAMPLING_A).astype(float)


def crystal(shift_A, turn_deg: float = 0.0, ratio: float = RATIO, place_A=(0.7, -1.1)):
    """Gaussian columns: strong ones, and weak ones off the middle by (y, x)."""
    turn = np.deg2rad(turn_deg)
    axes = CELL_A * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    cells = np.stack(np.meshgrid(*2 * [np.arange(-4, 12)], indexing="ij"), -1).reshape(-1, 2)
    strong = cells @ axes + np.asarray(place_A)
    weak = strong + 0.5 * axes.sum(0) + np.asarray(shift_A)
    image = np.zeros((SIZE, SIZE))
    for columns, height in ((strong, 1.0), (weak, ratio)):
        down, across = (
            np.exp(-0.5 * ((v - c[:, None]) / WIDTH_A) ** 2)
            for v, c in zip((Y[:, 0], X[0]), columns.T, strict=True)
        )
        image += height * down.T @ across
    return image, np.linalg.inv(axes).T


COLUMNS = polar.Columns(jnp.asarray(RATIO), jnp.asarray(WIDTH_A))
STRAIGHT = np.eye(2) / CELL_A


@jax.jit
def solved(image):
    local = polar.reflections(
        image, STRAIGHT, SAMPLING_A, (CENTRES, CENTRES), 3 * CELL_A / SAMPLING_A
    )
    return polar.displacements(local, STRAIGHT, COLUMNS), polar.columns(local, STRAIGHT)


@pytest.mark.parametrize("shift_A", [(0.0, 0.0), (0.25, -0.2), (-0.3, -0.3), (0.0, 0.4)])
def test_displacements_are_those_of_the_image(shift_A):
    ours, _ = solved(crystal(shift_A)[0])
    np.testing.assert_allclose(ours.shift_A, np.broadcast_to(shift_A, (3, 3, 2)), atol=1e-4)


def test_origin_brightness_and_contrast_change_nothing():
    wanted, _ = solved(crystal((0.2, 0.1))[0])
    other, _ = solved(5e8 + 1e9 * crystal((0.2, 0.1), place_A=(2.2, 1.3))[0])
    np.testing.assert_allclose(other.shift_A, wanted.shift_A, atol=2e-4)
    small, _ = solved((1e-9 * crystal((0.2, 0.1))[0]).astype(np.float32))
    assert small.shift_A.dtype == jnp.float32
    np.testing.assert_allclose(small.shift_A, wanted.shift_A, atol=1e-4)


def test_a_turned_lattice_is_found_and_its_displacements_are_of_the_image():
    image, reciprocal = crystal((0.25, -0.1), turn_deg=7.0)
    ours = polar.reciprocal_lattice(image, SAMPLING_A, 3.9)
    # a frequency of the whole image is known to a part of 1 / 32 Å; signs and order are free
    for wave in ours:
        off = np.minimum(*(np.linalg.norm(reciprocal + s * wave, axis=1) for s in (1, -1)))
        assert off.min() < 0.004
    assert abs(np.linalg.det(ours)) > 0.9 / CELL_A**2
    local = jax.jit(
        lambda v: polar.displacements(
            polar.reflections(v, ours, SAMPLING_A, (CENTRES, CENTRES), 30.0), ours, COLUMNS
        )
    )(image)
    np.testing.assert_allclose(local.shift_A, np.broadcast_to((0.25, -0.1), (3, 3, 2)), atol=0.01)


def test_ratio_and_width_of_the_columns():
    _, flat = solved(crystal((0.0, 0.0))[0])
    np.testing.assert_allclose(flat.ratio, RATIO, atol=1e-3)
    np.testing.assert_allclose(flat.width_A, WIDTH_A, atol=1e-3)


@pytest.mark.parametrize("ratio", [0.1, 0.6])
def test_displacements_hardly_change_with_the_estimate_of_the_ratio(ratio):
    shift_A = (0.25, -0.3)

    @jax.jit
    def blind(image):
        local = polar.reflections(image, STRAIGHT, SAMPLING_A, (CENTRES, CENTRES), 30.0)
        column = polar.columns(local, STRAIGHT)
        return polar.displacements(local, STRAIGHT, column).shift_A, column.ratio

    ours, estimate = blind(crystal(shift_A, ratio=ratio)[0])
    assert 0.75 * ratio < estimate < 0.98 * ratio
    np.testing.assert_allclose(ours, np.broadcast_to(shift_A, (3, 3, 2)), rtol=0.01)


def test_errors_are_those_of_noise():
    rng, electrons_per_px = np.random.default_rng(0), 40.0
    image = 0.2 + crystal((0.2, 0.1))[0]
    off, sd = [], []
    for _ in range(60):
        noisy, _ = solved(rng.poisson(image * electrons_per_px) / electrons_per_px)
        off.append(noisy.shift_A - np.array([0.2, 0.1]))
        sd.append(noisy.sd_A)
    # neighbouring windows overlap: some 250 independent ones, and t with 19 degrees of freedom
    np.testing.assert_allclose(np.std(np.divide(off, sd)), np.sqrt(19 / 17), rtol=0.2)
    assert abs(np.mean(off)) < 0.15 * np.std(off)


def test_gradients_are_those_of_finite_differences():
    image, other = (jnp.asarray(crystal(u)[0]) for u in ((0.2, 0.1), (0.1, 0.2)))

    def along(t):
        return solved(image + t * (other - image))[0].shift_A[1, 1]

    _, exact = jax.jvp(along, (0.0,), (1.0,))
    finite = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(exact, finite, rtol=1e-4)
    np.testing.assert_allclose(finite, [-0.1, 0.1], rtol=0.1)


def test_no_contrast_is_no_displacement():
    ours, _ = solved(jnp.ones((SIZE, SIZE)))
    np.testing.assert_array_equal(ours.shift_A, 0.0)
    assert np.all(np.isfinite(ours.sd_A))


@pytest.mark.parametrize(
    "what, message",
    [
        (lambda v: reflected(v, np.array([[0.25, 0.0], [0.5, 0.0]])), "along one line"),
        (lambda v: reflected(v, STRAIGHT, 1.5), "do not resolve"),
        (lambda v: reflected(v, STRAIGHT, SAMPLING_A, 0.0), "size_px"),
        (lambda v: polar.reciprocal_lattice(v, SAMPLING_A, 10.0), "less than four cells"),
        (lambda v: polar.reciprocal_lattice(v, SAMPLING_A, 2.0), "no two reflections"),
    ],
)
def test_what_is_refused(what, message):
    with pytest.raises(ValueError, match=message):
        what(X)


def reflected(image, reciprocal, sampling_A=SAMPLING_A, size_px=30.0):
    return polar.reflections(
        jnp.asarray(image), reciprocal, sampling_A, (CENTRES, CENTRES), size_px
    )

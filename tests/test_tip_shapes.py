"""Tip shapes: closed forms, resampling, gradients, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from micjax.physics.tips.dilation import dilate
from micjax.physics.tips.shapes import (
    Cone,
    Double,
    Ellipsoid,
    FreeForm,
    Multiple,
    Paraboloid,
    Pyramid,
    ReflectedTip,
    SphereCone,
)


def two_paraboloids(**kwargs):
    apex = Paraboloid(2.0)
    return Multiple((apex, apex), [[0.0, 6.0]], [1.5], **kwargs)


# --- closed forms ---------------------------------------------------------------------------------

Y, X = np.mgrid[-7:8, -7:8] * 1.0
R = np.hypot(Y, X)


def test_an_ellipsoid_of_equal_axes_is_a_sphere():
    heights = Ellipsoid(12.0, 12.0, 12.0, size=15)()
    np.testing.assert_allclose(heights, np.sqrt(12.0**2 - R**2) - 12, atol=1e-12)
    # a blunt cone has the same sphere down to its tangent
    np.testing.assert_allclose(heights, SphereCone(12.0, 10.0, size=15)(), atol=1e-12)


def test_an_ellipsoid_has_its_axes_and_turns():
    tip = Ellipsoid(4.0, 30.0, 8.0, size=7)
    heights = np.asarray(tip())
    at_2 = 8 * (np.sqrt(1 - (2 / 4) ** 2) - 1), 8 * (np.sqrt(1 - (2 / 30) ** 2) - 1)
    np.testing.assert_allclose((heights[5, 3], heights[3, 5]), at_2)
    turned = Ellipsoid(4.0, 30.0, 8.0, 90.0, size=7)()
    np.testing.assert_allclose(turned, heights.T, atol=1e-12)
    # beyond the equator it goes on down, ever steeper than inside
    narrow = np.asarray(Ellipsoid(2.0, 2.0, 8.0, size=9)())[4, 4:]
    assert np.all(np.diff(narrow) < 0) and narrow[-1] < -8


def test_a_sphere_cone_is_a_sphere_then_its_tangent():
    depth = SphereCone(3.0, 20.0).depth_nm
    r, joint = np.linspace(0, 9, 901), 3 * np.cos(np.deg2rad(20))
    profile = np.asarray(depth(jnp.zeros(901), jnp.asarray(r)))
    inside = r < joint
    np.testing.assert_allclose(profile[inside], 3 - np.sqrt(9 - r[inside] ** 2), atol=1e-12)
    slopes = np.diff(profile) / np.diff(r)
    np.testing.assert_allclose(slopes[r[:-1] > joint], 1 / np.tan(np.deg2rad(20)), rtol=1e-9)
    assert np.all(np.diff(slopes) > -1e-9)  # no corner at the joint: convex throughout


def test_a_cone_is_the_limit_of_a_sharp_sphere_cone():
    sharp = SphereCone(1e-9, 25.0, size=15)()
    np.testing.assert_allclose(Cone(25.0, size=15)(), sharp, atol=1e-7)
    np.testing.assert_allclose(sharp, -R / np.tan(np.deg2rad(25)), atol=1e-7)


def test_a_pyramid_of_many_sides_is_a_cone():
    round_one = SphereCone(2.0, 30.0, size=15)()
    np.testing.assert_allclose(Pyramid(2.0, 30.0, sides=720, size=15)(), round_one, atol=2e-4)
    # four sides: the depth along the normals of a cone, along the edges that of 1 / sqrt(2)
    square = np.asarray(Pyramid(2.0, 30.0, sides=4, size=15)())
    np.testing.assert_allclose(square[7], round_one[7], atol=1e-12)
    np.testing.assert_allclose(square, -np.maximum(-square[7][None], -square[:, 7:8]), atol=1e-12)
    turned = Pyramid(2.0, 30.0, 90.0, sides=4, size=15)()
    np.testing.assert_allclose(turned, square, atol=1e-12)
    three = np.asarray(Pyramid(2.0, 30.0, 90.0, sides=3, size=15)())  # a face towards +y
    np.testing.assert_allclose(three[:, ::-1], three, atol=1e-12)
    assert three[14, 7] < three[0, 7]


def test_the_second_apex_stands_where_it_was_put():
    heights = np.asarray(Double(2.0, 15.0, [2.0, -5.0], 1.5, size=15)())
    assert heights[7, 7] == 0 and heights[9, 2] == -1.5
    single = SphereCone(2.0, 15.0, size=15)()
    np.testing.assert_array_equal(Double(2.0, 15.0, [2.0, -5.0], 1e6, size=15)(), single)
    both = Multiple((SphereCone(2.0, 15.0), SphereCone(2.0, 15.0)), [[2.0, -5.0]], [1.5], size=15)
    np.testing.assert_array_equal(both(), heights)
    off = Double(2.0, 15.0, [2.0, -5.0], 1.5, (0.25, 0.5), size=15)()
    assert -0.1 < off.max() < 0


@pytest.mark.parametrize(
    "tip",
    [Paraboloid(3.0), SphereCone(3.0, 20.0), Cone(20.0), Pyramid(3.0, 20.0), two_paraboloids()],
    ids=lambda tip: type(tip).__name__,
)
def test_pixels_need_not_be_square(tip):
    """[iy, ix] with (dy, dx): every second column of a tip of half the pixel size along x."""
    kwargs = {field: getattr(tip, field) for field in tip.__dataclass_fields__}
    wide = type(tip)(**kwargs | {"pixel_nm": (1.0, 1.0), "size": (9, 11)})()
    fine = type(tip)(**kwargs | {"pixel_nm": (1.0, 0.5), "size": (9, 21)})()
    assert wide.shape == (9, 11) and fine.shape == (9, 21)
    np.testing.assert_allclose(fine[:, ::2], wide, atol=1e-12)


# --- resampling and reflection --------------------------------------------------------------------


def test_a_formula_is_resampled_there_and_back():
    tip = two_paraboloids(size=(9, 15))
    finer = tip.resample((0.5, 0.4))
    assert finer.size == (17, 37)  # 7 / 0.4 = 17.5: the grid grows to reach as far
    np.testing.assert_allclose(finer()[::2, 18], tip()[:, 7], atol=1e-12)
    back = finer.resample(1.0)
    np.testing.assert_allclose(back()[:, 1:-1], tip(), atol=1e-12)
    np.testing.assert_array_equal(tip.resample(1.0)(), tip())


def test_a_free_form_is_resampled_there_and_back():
    tip = FreeForm(SphereCone(3.0, 20.0, size=(13, 9))())
    fine = tip.resample((0.5, 0.25))
    assert fine().shape == (25, 33)
    np.testing.assert_allclose(fine()[::2, ::4], tip(), atol=1e-12)
    np.testing.assert_allclose(fine.resample(1.0)(), tip(), atol=1e-12)
    np.testing.assert_allclose(fine()[1, ::4], (tip()[0] + tip()[1]) / 2, atol=1e-12)


@pytest.mark.parametrize("pixel", [0.7, 1.3, (0.3, 2.0), 4.0])
def test_resampling_keeps_the_apex(pixel):
    heights = FreeForm(SphereCone(3.0, 20.0, size=13)()).resample(pixel)()
    ky, kx = heights.shape
    assert ky % 2 == kx % 2 == 1
    assert heights.max() == heights[ky // 2, kx // 2] == 0
    assert heights.min() > -1e3  # nothing beyond the known tip was made up


def test_reflection_swaps_the_frames():
    tip = two_paraboloids(size=(5, 15))
    reflected = tip.reflected()
    assert isinstance(reflected, ReflectedTip) and not callable(reflected)
    np.testing.assert_array_equal(reflected.heights_nm, tip()[::-1, ::-1])
    np.testing.assert_array_equal(reflected.reflected()(), tip())
    np.testing.assert_array_equal(FreeForm(tip()).reflected().reflected()(), tip())


# --- gradients ------------------------------------------------------------------------------------

FAMILIES = {
    "Paraboloid": (lambda p: Paraboloid(p[0], 1.0, 9), [3.0]),
    "SphereCone": (lambda p: SphereCone(p[0], p[1], 1.0, 9), [3.0, 20.0]),
    "Cone": (lambda p: Cone(p[0], 1.0, 9), [20.0]),
    "Pyramid": (lambda p: Pyramid(p[0], p[1], p[2], 3, 1.0, 9), [2.9, 20.0, 11.0]),
    "Ellipsoid": (lambda p: Ellipsoid(p[0], p[1], p[2], p[3], 1.0, 9), [3.0, 9.0, 5.0, 17.0]),
    "Multiple": (
        lambda p: Multiple((Cone(p[0]), Paraboloid(p[1])), p[2:4][None], p[4:5], 1.0, 9),
        [30.0, 2.0, 0.3, 2.6, 0.4],
    ),
    "Double": (
        lambda p: Double(p[0], p[1], p[2:4], p[4], p[5:7], 1.0, 9),
        [2.0, 20.0, 0.3, 2.6, 0.4, 0.1, -0.2],
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_in_the_shape_the_apex_included(family):
    build, values = FAMILIES[family]
    heights = jax.jit(lambda p: build(p)())
    p = jnp.asarray(values)
    slopes = np.asarray(jax.jit(jax.jacrev(heights))(p))
    assert np.all(np.isfinite(slopes))
    for k, step in enumerate(1e-6 * np.eye(len(values))):
        difference = (heights(p + step) - heights(p - step)) / 2e-6
        np.testing.assert_allclose(slopes[..., k], difference, rtol=1e-4, atol=1e-6)
    curvature = jax.jit(jax.hessian(lambda p: jnp.sum(heights(p) ** 2)))(p)
    assert np.all(np.isfinite(curvature))


def test_gradients_reach_the_image():
    surface = jnp.asarray(np.random.default_rng(0).normal(size=(16, 16)))

    @jax.jit
    def loss(radius, angle):
        return jnp.sum(dilate(surface, SphereCone(radius, angle, 1.0, 9)()) ** 2)

    slopes = jax.grad(loss, (0, 1))(3.0, 20.0)
    differences = (
        (loss(3.0 + 1e-6, 20.0) - loss(3.0 - 1e-6, 20.0)) / 2e-6,
        (loss(3.0, 20.0 + 1e-6) - loss(3.0, 20.0 - 1e-6)) / 2e-6,
    )
    np.testing.assert_allclose(slopes, differences, rtol=1e-4, atol=1e-6)
    assert slopes[0] != 0


def test_single_precision_without_x64():
    with jax.enable_x64(False):
        narrow = [np.asarray(build(jnp.asarray(p))()) for build, p in FAMILIES.values()]
    for (build, p), heights in zip(FAMILIES.values(), narrow, strict=True):
        assert heights.dtype == np.float32
        np.testing.assert_allclose(heights, build(jnp.asarray(p))(), rtol=1e-4, atol=1e-4)


# --- bad input ------------------------------------------------------------------------------------

CONE = Cone(20.0)
BAD = {
    "radius_nm = -3.0: must be positive": lambda: Paraboloid(-3.0),
    "radius_nm = 0.0: must be positive": lambda: SphereCone(0.0, 20.0),
    "radius_nm = nan: must be positive": lambda: Pyramid(jnp.nan, 20.0),
    "half_angle_deg = 90.0: must be between 0 and 90": lambda: Cone(90.0),
    "half_angle_deg = -1.0: must be between 0 and 90": lambda: SphereCone(3.0, -1.0),
    "half_angle_deg = 0.0: must be between": lambda: Pyramid(3.0, 0.0),
    "a pyramid of 2 sides: at least 3": lambda: Pyramid(3.0, 20.0, sides=2),
    "semi_x_nm = 0.0: must be positive": lambda: Ellipsoid(1.0, 0.0, 1.0),
    "semi_z_nm = -1.0: must be positive": lambda: Ellipsoid(1.0, 1.0, -1.0),
    "tip size 4: allowed are odd numbers": lambda: Paraboloid(3.0, size=4),
    "tip size -3: allowed": lambda: Paraboloid(3.0, size=-3),
    "tip size 5.5: allowed": lambda: Paraboloid(3.0, size=5.5),
    r"tip size \(5, 4\): allowed": lambda: Paraboloid(3.0, size=(5, 4)),
    r"tip size \(5, 5, 5\): allowed": lambda: Paraboloid(3.0, size=(5, 5, 5)),
    "pixel size 0.0 nm must be positive": lambda: Paraboloid(3.0, pixel_nm=0.0),
    r"pixel size \(1.0, -1.0\) nm must be positive": lambda: CONE.resample((1.0, -1.0)),
    r"2 tips need offsets_nm of shape \(1, 2\).* found \(2, 2\)": lambda: Multiple(
        (CONE, CONE), jnp.zeros((2, 2)), [0.0]
    ),
    r"2 tips need .* drops_nm of shape \(1,\), found .* \(2,\)": lambda: Multiple(
        (CONE, CONE), [[0.0, 1.0]], [0.0, 0.0]
    ),
    "1 tips need": lambda: Multiple((CONE,), jnp.zeros((0, 2)), jnp.zeros(0)),
    "must not be negative": lambda: Multiple((CONE, CONE), [[0.0, 1.0]], [-1.0]),
    "drop_nm = -1.0: must not be negative": lambda: Double(2.0, 20.0, [0.0, 1.0], -1.0),
    "heights_nm: the apex is 0, everything else below it": lambda: FreeForm(jnp.ones((3, 3))),
    r"tip size \(4, 3\): allowed": lambda: FreeForm(jnp.zeros((4, 3))),
    r"pixel size -1.0 nm must be positive": lambda: FreeForm(jnp.zeros((3, 3))).resample(-1.0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_sizes_of_numpy_are_sizes():
    assert Paraboloid(3.0, size=np.int64(5)).size == (5, 5)
    assert Paraboloid(3.0, size=[3, np.int32(5)])().shape == (3, 5)


def test_the_checks_let_traced_values_pass():
    curvatures = jax.vmap(lambda r: -Paraboloid(r, size=3)()[1, 2])(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(curvatures, [0.5, 0.25])

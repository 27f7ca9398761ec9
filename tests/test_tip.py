"""Dilation, erosion, the certainty map and the soft variants: SciPy, algebra and gradients."""

import functools
import importlib.util
import io
import json
import pathlib

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from micjax.physics.tips import dilation as physics
from micjax.physics.tips.shapes import Paraboloid

dilate = jax.jit(physics.dilate, static_argnames="edge")
erode = jax.jit(physics.erode, static_argnames="edge")
opening = jax.jit(physics.opening, static_argnames="edge")
certain = jax.jit(physics.certain)
soft_dilate = jax.jit(physics.soft_dilate, static_argnames="edge")
soft_erode = jax.jit(physics.soft_erode, static_argnames="edge")

# --- SciPy and the definition ---------------------------------------------------------------------

SHAPE = (12, 14)
TIP_SHAPES = [(3, 5), (5, 1), (1, 7), (5, 5), (11, 13)]  # few, so that few are compiled


def random_pair(tip_shape, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    tip = -rng.uniform(0, 3, tip_shape)
    tip[tip_shape[0] // 2, tip_shape[1] // 2] = 0
    return 2 * rng.normal(size=shape), tip


@pytest.mark.parametrize("tip_shape", TIP_SHAPES)
def test_scipys_grey_morphology(tip_shape):
    surface, tip = random_pair(tip_shape)
    kwargs = {"structure": tip[::-1, ::-1], "mode": "nearest"}
    expected = scipy.ndimage.grey_dilation(surface, **kwargs)
    np.testing.assert_allclose(dilate(surface, tip, "replicate"), expected, atol=1e-12)
    expected = scipy.ndimage.grey_erosion(surface, **kwargs)
    np.testing.assert_allclose(erode(surface, tip, "replicate"), expected, atol=1e-12)


@pytest.mark.parametrize("tip_shape", TIP_SHAPES)
def test_open_edges_follow_the_definition(tip_shape):
    surface, tip = random_pair(tip_shape)
    hy, hx = tip_shape[0] // 2, tip_shape[1] // 2
    expected = np.full(SHAPE, -np.inf)
    for y, x in np.ndindex(SHAPE):
        for i, j in np.ndindex(tip_shape):
            if 0 <= y + i - hy < SHAPE[0] and 0 <= x + j - hx < SHAPE[1]:
                met = surface[y + i - hy, x + j - hx] + tip[i, j]
                expected[y, x] = max(expected[y, x], met)
    np.testing.assert_array_equal(dilate(surface, tip), expected)


def test_a_tip_of_one_corner_shifts_the_surface():
    """Where that corner hangs outside the scan, nothing is touched and nothing is known."""
    surface, tip = random_pair((3, 5))
    corner = np.full_like(tip, -np.inf)
    corner[0, 0] = 0.0
    image = np.full(SHAPE, -np.inf)
    image[1:, 2:] = surface[:-1, :-2]
    np.testing.assert_array_equal(dilate(surface, corner), image)
    upper = np.full(SHAPE, np.inf)
    upper[:-1, :-2] = surface[:-1, :-2]
    np.testing.assert_array_equal(erode(image, corner), upper)


# --- the algebra of the two operators -------------------------------------------------------------

# eighths of a nm add without rounding, so everything below is exact, ties included
eighths = st.integers(-80, 80).map(lambda n: n / 8)
below = st.one_of(st.integers(-80, 0).map(lambda n: n / 8), st.sampled_from([-np.inf, -1e9]))
images = hnp.arrays(float, SHAPE, elements=eighths)
tips = st.sampled_from(TIP_SHAPES).flatmap(lambda shape: hnp.arrays(float, shape, elements=below))
few = settings(max_examples=25, deadline=None, database=None)


@few
@given(images, tips, images, st.sampled_from(["open"]))
def test_erosion_is_the_adjoint_of_dilation(surface, tip, other, edge):
    """D(S) <= I holds exactly where S <= E(I) does, for images above, below and anywhere."""
    image = np.asarray(dilate(surface, tip, edge))
    touched = np.unravel_index(np.argmax(np.where(np.isfinite(image), other, -np.inf)), SHAPE)
    lower = image.copy()
    lower[touched] -= 1.0
    for candidate in (image, image + np.abs(other), lower, other):
        dilation_below = np.all(image <= candidate)
        assert dilation_below == np.all(surface <= erode(candidate, tip, edge))


@few
@given(images, tips)
def test_opening_and_closing(image, tip):
    opened = np.asarray(opening(image, tip))
    assert np.all(opened <= image)  # the border included
    np.testing.assert_array_equal(opening(opened, tip), opened)
    assert np.all(erode(dilate(image, tip), tip) >= image)
    # a dilation is a possible image of its tip: nothing is lost by erosion and dilation
    taken = np.asarray(dilate(image, tip))
    np.testing.assert_array_equal(opening(taken, tip), taken)


@few
@given(images, tips, images, eighths)
def test_monotone_and_vertical_shift(surface, tip, other, shift):
    for operator in (dilate, erode):
        result = np.asarray(operator(surface, tip))
        assert np.all(operator(surface + np.abs(other), tip) >= result)
        np.testing.assert_array_equal(operator(surface + shift, tip), result + shift)
    blunter = np.minimum(tip + np.abs(shift), 0.0)
    assert np.all(dilate(surface, blunter) >= dilate(surface, tip))
    assert np.all(erode(surface, blunter) <= erode(surface, tip))


@few
@given(images, tips, st.tuples(st.integers(0, 3), st.integers(0, 3)), st.sampled_from([0, 1]))
def test_translation_in_the_interior(surface, tip, by, which):
    operator = (dilate, erode)[which]
    moved = np.roll(surface, by, (0, 1))
    keep = tuple(
        slice(d + n // 2, size - n // 2) for d, n, size in zip(by, tip.shape, SHAPE, strict=True)
    )
    expected = np.roll(operator(surface, tip), by, (0, 1))
    np.testing.assert_array_equal(np.asarray(operator(moved, tip))[keep], expected[keep])


# --- certainty, contacts --------------------------------------------------------------------------

SPIKE = jnp.array([[0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0]])
ROOF = jnp.array([[-1.0, 0.0, -1.0]])


def test_contacts_by_eye():
    image, upper = dilate(SPIKE, ROOF), erode(dilate(SPIKE, ROOF), ROOF)
    np.testing.assert_array_equal(image, [[0, 0, 2, 3, 2, 0, 0]])
    np.testing.assert_array_equal(upper, [[0, 0, 1, 3, 1, 0, 0]])
    multiplicity, contact = physics.contacts(image, upper, ROOF, 1e-9)
    # at pixels 1 and 5 the tip meets the plane below and the flank of the reconstruction
    np.testing.assert_array_equal(multiplicity, [[1, 2, 1, 1, 1, 2, 1]])
    np.testing.assert_array_equal(contact[0, 2:5], [2, 1, 0])
    mask, again = physics.certain(image, ROOF)
    np.testing.assert_array_equal(mask, [[0, 0, 0, 1, 0, 0, 0]])  # only the spike
    np.testing.assert_array_equal(again, multiplicity)
    # everything within 3 nm touches; at the two borders one pixel of the tip hangs outside
    np.testing.assert_array_equal(
        physics.contacts(image, upper, ROOF, 3.0)[0], [[2, 3, 3, 3, 3, 3, 2]]
    )


def test_touching_tip_pixels_by_eye():
    np.testing.assert_array_equal(
        physics.touching_tip_pixels(dilate(SPIKE, ROOF), ROOF), [[True, True, True]]
    )
    deep = jnp.array([[-9.0, 0.0, -1.0]])  # deeper than the spike is high
    np.testing.assert_array_equal(
        physics.touching_tip_pixels(dilate(SPIKE, deep), deep), [[False, True, True]]
    )
    flat = jnp.zeros_like(SPIKE)
    np.testing.assert_array_equal(physics.touching_tip_pixels(flat, ROOF), [[False, True, False]])


def smooth_surface(dtype):
    noise = np.random.default_rng(1).normal(size=(40, 40))
    return jnp.asarray(10 * scipy.ndimage.gaussian_filter(noise, 2.0), dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_pixels_without_a_tip_do_not_spoil_the_certainty(dtype):
    """-1e9 nm stands for "no tip here", as -inf does, and must not set the tolerance."""
    surface, tip = smooth_surface(dtype), Paraboloid(3.0, 1.0, 9)().astype(dtype)
    fractions = []
    for nothing in (-1e9, -np.inf):
        void = tip.at[0].set(nothing).at[:, 0].set(nothing)
        fractions.append(float(certain(dilate(surface, void), void)[0].mean()))
    assert fractions[0] == fractions[1] > 0.15


def test_a_larger_tolerance_certifies_less():
    surface, tip = smooth_surface("float64"), Paraboloid(3.0, 1.0, 9)()
    image = dilate(surface, tip)
    counts = [int(certain(image, tip, t)[0].sum()) for t in (1e-9, 0.05, 0.5, 5.0)]
    assert counts == sorted(counts, reverse=True) and counts[0] > 0 and counts[-1] == 0


def test_even_and_too_large_tips_are_refused():
    surface, even = jnp.zeros((20, 24)), jnp.zeros((12, 12))
    for operator in (dilate, erode, opening, soft_dilate):
        extra = (0.1,) if operator is soft_dilate else ()
        with pytest.raises(ValueError, match="12 x 12 pixels: sizes must be odd"):
            operator(surface, even, *extra)
        with pytest.raises(ValueError, match=r"tip of \(21, 3\) pixels is larger than the image"):
            operator(surface, jnp.zeros((21, 3)), *extra)
    with pytest.raises(ValueError, match="odd"):
        certain(surface, even)
    with pytest.raises(ValueError, match="larger"):
        physics.contacts(surface, surface, jnp.zeros((3, 25)), 0.1)


# --- gradients ------------------------------------------------------------------------------------

PAIR = tuple(jnp.asarray(a) for a in random_pair((3, 3), (5, 6)))
grads = functools.partial(check_grads, modes=("fwd", "rev"), eps=1e-6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("operator", "edge"),
    [
        (dilate, "open"),
        pytest.param(erode, "replicate", marks=pytest.mark.slow),
        pytest.param(opening, "open", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_finite_differences(operator, edge):
    grads(jax.jit(lambda s, t: operator(s, t, edge)), PAIR, order=2)


@pytest.mark.slow
def test_gradients_of_the_soft_dilation():
    """In the surface, the tip and the temperature; at open edges, past a hole in the tip."""
    surface, tip = PAIR

    def function(s, t, tau):
        return soft_dilate(s, t.at[0, 2].set(-jnp.inf), tau)

    grads(jax.jit(function), (surface, tip, jnp.asarray(0.5)), order=1)
    # second order: differences of the (now proven) gradient; some are 10, hence atol
    check_grads(
        jax.jit(jax.grad(lambda s, t, tau: jnp.sum(function(s, t, tau) ** 2), (0, 1, 2))),
        (surface, tip, jnp.asarray(0.5)),
        order=1,
        modes=("fwd",),
        eps=1e-6,
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("edge", ["open", "replicate"])
def test_a_tie_has_one_winner(edge):
    """Plane on plane, everything touches: each image pixel follows one surface and tip pixel."""
    by_surface, by_tip = jax.jacrev(functools.partial(dilate, edge=edge), (0, 1))(
        jnp.zeros((5, 6)), jnp.zeros((3, 3))
    )
    np.testing.assert_array_equal(by_surface.sum((2, 3)), np.ones((5, 6)))
    np.testing.assert_array_equal(by_tip.sum((2, 3)), np.ones((5, 6)))
    assert set(np.unique(by_surface)) == set(np.unique(by_tip)) == {0.0, 1.0}
    np.testing.assert_array_equal(by_tip[1:, 1:, 0, 0], np.ones((4, 5)))  # the first in row order


@pytest.mark.parametrize("tip_shape", [(3, 5), pytest.param((3, 17), marks=pytest.mark.slow)])
def test_frames_together_are_frames_one_by_one(tip_shape):
    """Tips of fewer than 16 columns did not compile under vmap (XLA for CPU, jaxlib 0.10.1)."""
    shape = (9, 18)
    frames = jnp.stack([jnp.asarray(random_pair(tip_shape, shape, k)[0]) for k in range(2)])
    tip = jnp.asarray(random_pair(tip_shape, shape)[1])

    def all_of_it(frame):
        value = jax.value_and_grad(lambda f, t: jnp.sum(physics.dilate(f, t) ** 2), (0, 1))
        return physics.certain(frame, tip), value(frame, tip), physics.soft_dilate(frame, tip, 0.3)

    together = jax.tree.leaves(jax.jit(jax.vmap(all_of_it))(frames))
    one = jax.jit(all_of_it)
    for k, frame in enumerate(frames):
        for ours, alone in zip(together, jax.tree.leaves(one(frame)), strict=True):
            np.testing.assert_allclose(ours[k], alone, rtol=1e-12)


# --- soft variants --------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", ["open", "replicate"])
def test_soft_operators_stay_within_their_bias(edge):
    surface, tip = (jnp.asarray(a) for a in random_pair((5, 5)))
    high, low = dilate(surface, tip, edge), erode(surface, tip, edge)
    before = np.inf
    for tau in (1.0, 0.3, 0.1, 0.03, 0.01):
        bias = physics.soft_bias_nm(tip, tau)
        above = soft_dilate(surface, tip, tau, edge) - high
        under = low - soft_erode(surface, tip, tau, edge)
        for difference in (above, under):
            assert difference.min() >= -1e-12 and difference.max() <= bias
        assert above.max() < before
        before = above.max()
    assert before < 0.02
    np.testing.assert_allclose(soft_dilate(surface, tip, 1e-6, edge), high, atol=1e-5)


def test_soft_dilation_of_equal_contacts_is_their_logarithm():
    soft = soft_dilate(np.zeros((5, 6)), np.zeros((3, 3)), 0.5, "replicate")
    np.testing.assert_allclose(soft, 0.5 * np.log(9), rtol=1e-14)


def test_every_tip_pixel_has_a_soft_gradient():
    surface, tip = PAIR
    hard = jax.grad(lambda t: jnp.sum(dilate(surface, t) ** 2))(tip)
    soft = jax.grad(lambda t: jnp.sum(soft_dilate(surface, t, 0.5) ** 2))(tip)
    assert np.any(hard == 0) and np.all(soft != 0)


# --- precision ------------------------------------------------------------------------------------


def test_single_precision_without_x64():
    surface, tip = random_pair((5, 5))
    image, upper = dilate(surface, tip), erode(surface, tip)
    soft = soft_dilate(surface, tip, 0.3)
    with jax.enable_x64(False):
        s, t = jnp.asarray(surface, jnp.float32), jnp.asarray(tip, jnp.float32)
        results = (dilate(s, t), erode(s, t), soft_dilate(s, t, 0.3))
        gradient = jax.jit(jax.grad(lambda s: jnp.sum(physics.dilate(s, t))))(s)
        mask, multiplicity = certain(results[0], t)
    for ours, expected in zip(results, (image, upper, soft), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, atol=2e-5)
    assert gradient.dtype == jnp.float32 and float(gradient.sum()) == np.prod(SHAPE)
    assert mask.dtype == bool and multiplicity.dtype == jnp.int32


def test_mixed_precision_takes_the_wider():
    surface, tip = random_pair((5, 5))
    for narrow in ((surface.astype("f4"), tip), (surface, tip.astype("f4"))):
        for result in (dilate(*narrow), erode(*narrow), soft_dilate(*narrow, 0.3)):
            assert result.dtype == jnp.float64


# --- the benchmark script -------------------------------------------------------------------------


def test_the_benchmark_prints_its_rows():
    path = pathlib.Path(__file__).parents[1] / "benchmarks/tip.py"
    spec = importlib.util.spec_from_file_location("benchmark_tip", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out = io.StringIO()
    bench = script.Bench(calls=1, seconds=0.0, out=out)
    script.dilation(bench, 16, 5, "float32")
    script.gradient(bench, 16, 5)
    script.feedback(bench, 16, 2)
    rows = [json.loads(line) for line in out.getvalue().splitlines()]
    assert len(rows) == 5
    for row in rows:
        assert list(row) == ["name", "value", "unit", "peer", "peer_value", "ratio", "note"]
    assert rows[-1]["ratio"] == pytest.approx(rows[-1]["value"] / rows[-1]["peer_value"], rel=0.01)

"""Drift, the feedback loop, line offsets and noise: closed forms, plain Python, differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from micjax.physics.probes import lines as scanner

feedback = jax.jit(scanner.feedback)
drift = jax.jit(scanner.drift)
IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(6, 11)))


# --- drift ----------------------------------------------------------------------------------------


def test_no_drift_is_no_change():
    np.testing.assert_array_equal(drift(IMAGE, jnp.zeros(2)), IMAGE)


def test_whole_pixels_of_drift_shift_the_lines():
    """The surface moves by +dx a line, so line n shows it n dx further to the right."""
    moved = drift(IMAGE, jnp.array([0.0, 2.0]))
    for n, line in enumerate(moved):
        beyond = np.repeat(IMAGE[n, 0], min(2 * n, 11))  # the border pixel goes on
        np.testing.assert_allclose(line, np.concatenate([beyond, IMAGE[n, : 11 - len(beyond)]]))
    back = drift(IMAGE, jnp.array([0.0, -2.0]))
    np.testing.assert_allclose(back[:, ::-1], drift(IMAGE[:, ::-1], jnp.array([0.0, 2.0])))


def test_a_surface_as_fast_as_the_scan_shows_one_line():
    np.testing.assert_allclose(drift(IMAGE, jnp.array([1.0, 0.0])), np.tile(IMAGE[0], (6, 1)))
    doubled = drift(IMAGE, jnp.array([-1.0, 0.0]))  # against the scan: every second line
    np.testing.assert_allclose(doubled[:3], IMAGE[::2])


def test_drift_of_part_of_a_pixel_interpolates():
    by = jnp.array([0.0, 0.25])
    expected = 0.75 * IMAGE[1, 1:] + 0.25 * IMAGE[1, :-1]
    np.testing.assert_allclose(drift(IMAGE, by)[1, 1:], expected)
    check_grads(drift, (IMAGE, jnp.array([0.1, 0.23])), order=1, eps=1e-6, rtol=1e-4)


# --- the feedback loop ----------------------------------------------------------------------------


def python_loop(height, proportional, integral):
    """One line there and back, the controller never stopping."""
    z, before, out = height[0], 0.0, []
    for h in [*height, *height[::-1]]:
        out.append(z)
        e = h - z
        z, before = z + integral * e + proportional * (e - before), e
    n = len(height)
    return out[:n], out[n:][::-1]


@pytest.mark.parametrize("gains", [(0.0, 0.4), (0.2, 0.5), (-0.1, 1.2)])
def test_feedback_is_the_loop(gains):
    trace, retrace = feedback(IMAGE, *gains)
    for n, line in enumerate(IMAGE.tolist()):
        for ours, expected in zip((trace[n], retrace[n]), python_loop(line, *gains), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


def test_no_gain_stays_where_it_started():
    for run in feedback(IMAGE, 0.0, 0.0):
        np.testing.assert_array_equal(run, np.repeat(IMAGE[:, :1], 11, axis=1))


def test_unit_integral_gain_is_a_delay_of_one_pixel():
    trace, retrace = feedback(IMAGE, 0.0, 1.0)
    np.testing.assert_allclose(trace[:, 1:], IMAGE[:, :-1], atol=1e-14)
    np.testing.assert_allclose(retrace[:, :-1], IMAGE[:, 1:], atol=1e-14)
    np.testing.assert_array_equal(trace[:, 0], IMAGE[:, 0])
    np.testing.assert_allclose(retrace[:, -1], IMAGE[:, -1], atol=1e-14)


def test_a_step_is_approached_exponentially():
    step = jnp.zeros((1, 20)).at[:, 5:].set(2.0)
    trace, _ = feedback(step, 0.0, 0.3)
    np.testing.assert_allclose(trace[0, 5:], 2 * (1 - 0.7 ** np.arange(15)), atol=1e-14)


def test_retrace_mirrors_the_trace_of_a_symmetric_line():
    x = np.linspace(-8, 8, 101)  # flat ends, where the loop settles
    line = jnp.asarray(np.exp(-(x**2)))[None, :]
    trace, retrace = feedback(line, 0.1, 0.5)
    np.testing.assert_allclose(retrace[:, ::-1], trace, atol=1e-9)
    assert np.abs(trace - line).max() > 0.05  # and it did lag


def test_feedback_is_differentiable():
    arguments = (IMAGE[:3], jnp.asarray(0.1), jnp.asarray(0.6))
    check_grads(feedback, arguments, order=1, eps=1e-6, rtol=1e-4)
    # z_1 = h_0 + integral (h_0 - h_0), z_2 = z_1 + integral (h_1 - z_1): d z_2 / d integral
    slope = jax.jacfwd(feedback, 2)(*arguments)[0][:, 2]
    np.testing.assert_allclose(slope, IMAGE[:3, 1] - IMAGE[:3, 0], rtol=1e-12)


def test_gains_of_another_precision_keep_the_images():
    trace, _ = feedback(IMAGE.astype(jnp.float32), jnp.asarray(0.1), jnp.asarray(0.5))
    assert trace.dtype == jnp.float32


# --- lines and noise ------------------------------------------------------------------------------


def test_line_offsets_and_slopes_are_undone():
    rng = np.random.default_rng(1)
    offsets, slopes = jnp.asarray(rng.normal(size=6)), jnp.asarray(rng.normal(size=6))
    lifted = scanner.add_lines(IMAGE, offsets, slopes, 0.7)
    np.testing.assert_allclose(scanner.add_lines(lifted, -offsets, -slopes, 0.7), IMAGE)
    # a slope turns a line about its middle
    np.testing.assert_allclose(lifted.mean(1), (IMAGE + offsets[:, None]).mean(1))
    difference = np.diff(lifted - IMAGE, axis=1)
    np.testing.assert_allclose(difference, np.tile(0.7 * slopes[:, None], (1, 10)))
    lifted = scanner.add_lines(IMAGE, offsets)
    np.testing.assert_allclose(lifted - IMAGE, np.tile(offsets[:, None], (1, 11)))


def test_noise_has_the_rms_it_says():
    shape = (64, 63)
    white = scanner.noise_nm(jax.random.key(0), shape, 0.3)
    pink = scanner.noise_nm(jax.random.key(0), shape, 0.0, 0.2)
    both = scanner.noise_nm(jax.random.key(0), shape, 0.3, 0.2)
    assert white.shape == pink.shape == shape
    assert float(white.std()) == pytest.approx(0.3, rel=0.05)
    assert float(pink.std()) == pytest.approx(0.2, rel=1e-6)
    np.testing.assert_allclose(both, white + pink, atol=1e-12)
    again = scanner.noise_nm(jax.random.key(0), shape, 0.3)
    np.testing.assert_array_equal(white, again)


def test_pink_noise_falls_with_the_frequency():
    """Power over frequency: a slope of -1, and lines that stand at different heights."""
    pink = np.asarray(scanner.noise_nm(jax.random.key(2), (128, 128), 0.0, 1.0))
    power = np.abs(np.fft.rfft(pink.ravel()))[1:] ** 2
    frequency = np.arange(1, power.size + 1)
    edges = np.logspace(1, np.log10(power.size), 12)
    bins = [(frequency >= a) & (frequency < b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    levels = [np.log(power[b].mean()) for b in bins]
    centres = [np.log(frequency[b]).mean() for b in bins]
    assert np.polyfit(centres, levels, 1)[0] == pytest.approx(-1, abs=0.15)
    white = np.random.default_rng(0).normal(size=pink.shape)
    assert pink.mean(1).std() > 4 * white.mean(1).std()

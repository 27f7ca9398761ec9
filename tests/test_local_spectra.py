import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from micjax.physics.patches.local_spectra import (
    LocalSpectra,
    noise_variance,
    over_strips,
)
from micjax.physics.patches.windows import GaussianWindow, Hann, Kaiser

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(3.0, 1.0, size=(30, 41))
HOLES = (RNG.uniform(size=IMAGE.shape) > 0.3).astype(float)
WINDOWS = {"hann": Hann(), "gaussian": GaussianWindow(0.35), "kaiser": Kaiser(6.0)}
PLAIN = {
    "hann": lambda t: np.cos(np.pi * t / 2) ** 2,
    "gaussian": lambda t: np.exp(-(t**2) / (2 * 0.35**2)),
    "kaiser": lambda t: np.i0(6.0 * np.sqrt(1 - t**2)) / np.i0(6.0),
}


def power(spectra):
    return spectra.power


def by_definition(name, image, measured, size, step, ky, kx):
    t = (np.arange(size) + 0.5) * 2.0 / size - 1.0
    window = np.outer(PLAIN[name](t), PLAIN[name](t))
    r = np.arange(size) - 0.5 * (size - 1)
    down, across = np.exp(-2j * np.pi * np.outer(ky, r)), np.exp(-2j * np.pi * np.outer(kx, r))
    powers, noise, mean, filled = {}, {}, {}, {}
    for i, y in enumerate(range(0, image.shape[0] - size + 1, step)):
        for j, x in enumerate(range(0, image.shape[1] - size + 1, step)):
            part = (slice(y, y + size), slice(x, x + size))
            w = window * measured[part]
            mean[i, j] = (w * image[part]).sum() / w.sum()
            spectrum = down @ (w * (image[part] - mean[i, j])) @ across.T / w.sum()
            powers[i, j] = np.abs(spectrum) ** 2
            noise[i, j] = (w**2).sum() / w.sum() ** 2
            filled[i, j] = w.sum() / window.sum()
    shape = (1 + max(i for i, _ in mean), 1 + max(j for _, j in mean))
    return [
        np.array([d[k] for k in np.ndindex(shape)]).reshape(*shape, *np.shape(d[0, 0]))
        for d in (powers, noise, mean, filled)
    ]


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_spectra_are_those_of_their_definition(name, holes):
    local = LocalSpectra(WINDOWS[name], 12, 5, 0.5, 0.7, 2)
    measured = HOLES if holes else None
    image = np.where(HOLES > 0, IMAGE, np.nan) if holes else IMAGE
    found = local(jnp.asarray(image), None if measured is None else jnp.asarray(measured))
    wanted = by_definition(
        name, IMAGE, HOLES if holes else np.ones_like(IMAGE), 12, 5, *local.cycles
    )
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)
    assert local.frequencies_perA[1][-1] == pytest.approx(8 / 12)  # the last not above 0.7


def test_a_wave_has_half_its_amplitude_whatever_the_window():
    y, x = np.mgrid[:48, :48] * 0.25
    wave = 5.0 + 0.8 * np.cos(2 * np.pi * (0.5 * y - 1.0 * x) + 1.0)
    for window in WINDOWS.values():
        local = LocalSpectra(window, 32, 16, 0.25, 1.5)
        spectra = local(jnp.asarray(wave))
        ky, kx = local.frequencies_perA
        at = np.argmin(np.abs(ky + 0.5)), np.argmin(np.abs(kx - 1.0))
        np.testing.assert_allclose(np.sqrt(spectra.power[:, :, *at]), 0.4, rtol=2e-3)
        np.testing.assert_allclose(spectra.mean, 5.0, atol=0.03)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_noise_is_measured_where_nothing_else_is(dtype):
    noise = RNG.normal(0.0, 0.7, size=(120, 120)).astype(dtype)
    y = np.arange(120)[:, None]
    image = (noise + 2.0 * np.cos(2 * np.pi * 0.1 * y) + 1e3).astype(dtype)
    with jax.enable_x64(dtype is np.float64):
        spectra = LocalSpectra(Hann(), 24, 24, 1.0, 0.5)(jnp.asarray(image))
        variance = np.asarray(noise_variance(spectra))
    assert variance.dtype == dtype
    # 16 patches of some 60 independent frequencies
    assert variance.mean() == pytest.approx(0.49, rel=0.15)
    assert spectra.power.mean() > 1.5 * 0.49 * spectra.noise.mean()  # of the wave


def test_strips_are_the_whole():
    local = LocalSpectra(Hann(), 10, 3, 1.0, 0.3)
    whole = local(jnp.asarray(IMAGE), jnp.asarray(HOLES)).power
    for rows in (1, 3, 50):
        found = over_strips(local, IMAGE, HOLES, power, rows)
        np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-14)


def test_derivatives_are_finite_differences():
    def contrast(width, beta, image):
        total = 0.0
        for window in (GaussianWindow(width), Kaiser(beta)):
            total += jnp.sum(jnp.sqrt(LocalSpectra(window, 8, 6, 1.0, 0.5)(image).power + 1e-3))
        return total

    given = (jnp.asarray(0.4), jnp.asarray(5.0), jnp.asarray(IMAGE[:14, :14]))
    check_grads(jax.jit(contrast), given, order=1, modes=["rev"], eps=1e-6, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="64 pixels does not fit into an image of 30 x 41"):
        LocalSpectra(Hann(), 64, 8, 1.0, 0.3)(jnp.asarray(IMAGE))
    with pytest.raises(ValueError, match="here 8, 0, 2"):
        LocalSpectra(Hann(), 8, 0, 1.0, 0.3)
    with pytest.raises(ValueError, match="here 1 and -0.3"):
        LocalSpectra(Hann(), 8, 2, 1.0, -0.3)


def test_counts_of_a_camera_are_an_image():
    counts = RNG.poisson(30.0, size=(24, 26)).astype(np.uint16)
    local = LocalSpectra(Hann(), 12, 6, 1.0, 0.4)
    for measured in (None, np.ones(counts.shape)):
        found, wanted = (
            over_strips(local, image, measured, power) for image in (counts, counts.astype(float))
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_gaps_and_other_masks_are_refused():
    local = LocalSpectra(Hann(), 12, 6, 1.0, 0.4)
    gaps = np.where(HOLES > 0, IMAGE, np.nan)
    with pytest.raises(ValueError, match="of 1230 pixels are not finite: `measured` is 0 in holes"):
        over_strips(local, gaps, None, power)
    with pytest.raises(ValueError, match=r"of shape \(30,\), the image of \(30, 41\)"):
        over_strips(local, IMAGE, HOLES[:, 0], power)
    with pytest.raises(ValueError, match="two axes, .y, x.; here 3"):
        over_strips(local, IMAGE[None], None, power)

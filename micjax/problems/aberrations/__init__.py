"""All aberrations of a probe up to third order, from a defocus series of an unknown object.

    image_k = Poisson(dose (object * |probe(aberrations + setting_k, shifted by drift_k)|^2))

The law of the counts integrates the object out (`micjax.physics.electrons.phase_diversity`), so
anything with fine detail will do: gold on carbon, an amorphous film. Whatever blurs all images
alike, the size of the source or a detector, belongs to the object. The likelihood has many maxima
along defocus and two-fold astigmatism: fits begin everywhere, and register the images as
they go.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from micjax.core.problem import InverseProblem
from micjax.core.ranges import not_negative, positive
from micjax.io import read
from micjax.physics.electrons import optics
from micjax.physics.electrons.phase_diversity import Images, ProbeSeries, UnknownObject
from micjax.problems.aberrations.model import FOUND, NAMES, DriftingProbes
from micjax.problems.aberrations.show import compare as compare
from micjax.problems.aberrations.show import defocus_A as defocus_A
from micjax.problems.aberrations.show import figures as figures
from micjax.problems.aberrations.stages import conclude as conclude
from micjax.problems.aberrations.stages import stages as stages
from micjax.problems.autofocus.twin import clusters, nanoparticles
from micjax.problems.shared.focus import C10_changes_A

MORE_FOCI, MOST_FOCI = 4, 15
SPECIMENS = {"clusters": clusters, "particles": nanoparticles}
BEYOND = 0.05  # part of the frequencies that no probe transfers, which is enough to tell the noise


def problem(
    images: int = 4,
    ny: int = 128,
    nx: int = 128,
    sampling_A: float = 0.25,
    energy_keV: float = 200.0,
    semiangle_mrad: float = 25.0,
    mean_counts: float = 100.0,
    focal_spread_A: float = 0.0,
    drift_sd_A: float = 1.0,
    C10_sd_A: float = 60.0,
    C12_sd_A: float = 30.0,
    C2_sd_A: float = 700.0,
    C30_sd_A: float = 3e4,
    C3_sd_A: float = 1.5e4,
) -> InverseProblem:
    """The aberrations of a probe to third order, Cartesian, within normal priors about 0.

    **Arguments:**

    - `images`: of the series, in the order in which they were taken.
    - `ny`: lines of an image.
    - `nx`: pixels of a line.
    - `sampling_A`: pixel size; wavelength / (4 semiangle) resolves all that a probe can.
    - `energy_keV`: of the electrons.
    - `semiangle_mrad`: of convergence.
    - `mean_counts`: electrons counted per pixel; in other units, the variance of their noise.
    - `focal_spread_A`: 1/e half-width of the foci, chromatic aberration x energy spread; known.
    - `drift_sd_A`: of an image against the first, along y and x; 0 if they are registered.
    - `C10_sd_A`: of the defocus at the setting 0.
    - `C12_sd_A`: of each component of two-fold astigmatism.
    - `C2_sd_A`: of each component of coma and three-fold astigmatism.
    - `C30_sd_A`: of spherical aberration.
    - `C3_sd_A`: of each component of star aberration and four-fold astigmatism.

    **Raises:** `ValueError` for numbers that are not positive, fewer than two images, pixels that
    are too coarse for the aperture, a focal spread too large for it.
    """
    positive(
        ny=ny,
        nx=nx,
        sampling_A=sampling_A,
        energy_keV=energy_keV,
        semiangle_mrad=semiangle_mrad,
        mean_counts=mean_counts,
        C10_sd_A=C10_sd_A,
        C12_sd_A=C12_sd_A,
        C2_sd_A=C2_sd_A,
        C30_sd_A=C30_sd_A,
        C3_sd_A=C3_sd_A,
    )
    if images < 2:
        raise ValueError(f"images = {images}: a series has two at least")
    not_negative(focal_spread_A=focal_spread_A, drift_sd_A=drift_sd_A)
    wavelength_A = float(optics.wavelength_A(energy_keV))
    needed_A = 1e3 * wavelength_A / (2.0 * semiangle_mrad)
    if sampling_A > needed_A:
        raise ValueError(
            f"sampling_A = {sampling_A:.4g}: a probe of {semiangle_mrad:.4g} mrad needs pixels of "
            f"{needed_A:.4g} Å at most, and {needed_A / 2:.4g} Å to be resolved"
        )
    # optics.focal_nodes_A holds up to this phase, at the edge of the aperture; some more to be sure
    blurred = np.pi / wavelength_A * focal_spread_A * (1e-3 * semiangle_mrad) ** 2
    foci = (int(np.ceil(blurred**2)) + MORE_FOCI) | 1 if focal_spread_A > 0 else 1
    if foci > MOST_FOCI:
        allowed_A = focal_spread_A * np.sqrt(MOST_FOCI - MORE_FOCI) / blurred
        raise ValueError(
            f"focal_spread_A = {focal_spread_A:.4g}: at most {allowed_A:.3g} Å at this aperture"
        )
    law = UnknownObject(
        mean_counts,
        particles=1e4,
        corner_per_px=0.024 * sampling_A,
        atoms=100.0,
        atom_px=0.5 / sampling_A,
        scatter=2.5,
        model_error=0.03,
    )
    widths_A = {"C10": C10_sd_A, "C12": C12_sd_A, "C30": C30_sd_A}
    others_A = {"2": C2_sd_A, "3": C3_sd_A}
    priors = {
        "noise.particles": dist.LogNormal(np.log(1e4), 4.0),
        "noise.corner_per_px": dist.LogNormal(np.log(0.024 * sampling_A), 1.0),
        "noise.atoms": dist.LogNormal(np.log(100.0), 4.0),
        "noise.scatter": dist.Uniform(0.01, 4.0),
        # narrow: what shares nothing with the other images would be explained by anything
        "noise.model_error": dist.LogNormal(np.log(0.03), 0.5),
    }
    for name, coefficient in zip(NAMES, FOUND, strict=True):
        width_A = widths_A.get(coefficient[:3], others_A.get(coefficient[1]))
        priors[name] = dist.Normal(0.0, width_A)
    if drift_sd_A > 0:
        priors["forward.drift_A"] = dist.Normal(0.0, drift_sd_A)
    forward = DriftingProbes(
        dict.fromkeys(FOUND, 0.0),
        np.zeros((images - 1, 2)),
        focal_spread_A,
        sampling_A,
        energy_keV,
        semiangle_mrad,
        (ny, nx),
        foci,
    )
    return InverseProblem(forward, law, priors)


def example(
    key, ny: int = 128, nx: int = 128, mean_counts: float = 100.0, specimen: str = "clusters"
) -> tuple[InverseProblem, ProbeSeries, Images]:
    """Four images of gold on carbon, which goes on beyond the borders; the aberrations and the
    drift are drawn from their priors.

    **Arguments:**

    - `ny`, `nx`: of an image.
    - `mean_counts`: electrons counted per pixel.
    - `specimen`: "clusters", many of 3 to 6 Å radius, or "particles", few of 8 to 22 Å.

    **Raises:** `ValueError` for another specimen.
    """
    if specimen not in SPECIMENS:
        raise ValueError(f"specimen {specimen!r}; there are {', '.join(SPECIMENS)}")
    object_key, truth_key, noise_key = jax.random.split(key, 3)
    truth = problem(4, ny, nx, mean_counts=mean_counts)
    keys = jax.random.split(truth_key, len(truth.priors))
    drawn = {
        name: prior.variance**0.5 * jax.random.normal(k, truth.values()[name].shape)
        for k, (name, prior) in zip(keys, truth.priors.items(), strict=True)
        if name.startswith("forward.")
    }
    truth = truth.at(drawn)
    x = series(np.array([-150.0, -50.0, 50.0, 150.0]))
    seed = int(jax.random.randint(object_key, (), 0, 1 << 30))
    large = dataclasses.replace(truth.forward, shape=(2 * ny, 2 * nx))
    object_ = SPECIMENS[specimen](np.random.default_rng(seed), large.shape, float(large.sampling_A))
    spectrum = jnp.fft.fft2(jnp.asarray(object_, dtype=float)) * jnp.fft.fft2(large(x))
    seen = jnp.fft.ifft2(spectrum).real[:, ny // 2 : ny // 2 + ny, nx // 2 : nx // 2 + nx]
    rate = mean_counts * jnp.maximum(seen, 0.0) / jnp.mean(seen)
    return truth, x, jax.random.poisson(noise_key, rate).astype(float)


def series(defocus_change_A) -> ProbeSeries:
    """Settings of a series through focus: what was added to C10, Å; minus the defocus."""
    change = jnp.asarray(defocus_change_A, dtype=float)
    settings = jnp.zeros((len(change), 3)).at[:, 0].set(change)
    return ProbeSeries(settings, jnp.ones(len(change)))


def load(
    file,
    channel: str | None = None,
    changes_A: list | None = None,
    pixel_nm: float | None = None,
    energy_keV: float = 200.0,
    semiangle_mrad: float = 25.0,
) -> tuple[dict[str, Any], ProbeSeries, Images]:
    """A stack of images through focus, in any unit, from a microscope's file.

    How much noise is in them is seen at the frequencies that no probe transfers; where the pixels
    are too coarse for that, the values have to be counted electrons.

    **Arguments:**

    - `channel`: which stack of the file, `[images, y, x]`.
    - `changes_A`: what was added to C10 for each image (minus the change of defocus), where the
        first axis of the stack is no length called C10 or defocus.
    - `pixel_nm`: pixel size, where the file has none.
    - `energy_keV`: of the electrons.
    - `semiangle_mrad`: of convergence.

    **Raises:** `ValueError` for what is no stack of finite, square pixels, an image of one value, a
    focus or a pixel size that is not known, besides what `micjax.io.read` raises.
    """
    field = read(file, channel, pixel_nm)
    if field.data.ndim != 3 or min(field.data.shape) < 2:
        raise ValueError(f"{field.name}: shape {field.data.shape} is no series [images, y, x]")
    if field.data.dtype.kind != "f":
        raise ValueError(f"{field.name}: {field.data.dtype} values are no images")
    if not np.all(np.isfinite(field.data)):
        raise ValueError(f"{field.name}: {np.sum(~np.isfinite(field.data))} values are not finite")
    if changes_A is None:
        changes_A = C10_changes_A(field, "changes_A").tolist()
    if len(changes_A) != len(field.data):
        raise ValueError(f"changes_A: {len(changes_A)} values for {len(field.data)} images")
    if not np.all(np.isfinite(changes_A)) or np.ptp(changes_A) == 0:
        raise ValueError(f"changes_A = {changes_A}: finite values are needed, not all the same")
    if np.any(flat := np.ptp(field.data, axis=(1, 2)) == 0):
        raise ValueError(f"{field.name}: image {np.argmax(flat)} is the same everywhere")
    dy, dx = (10.0 * p for p in field.pixel_nm)
    if abs(dy / dx - 1.0) > 1e-3:
        raise ValueError(f"{field.name}: pixels of {dy:.4g} x {dx:.4g} Å are not square")
    images, ny, nx = field.data.shape
    options = {
        "images": images,
        "ny": ny,
        "nx": nx,
        "sampling_A": dy,
        "energy_keV": energy_keV,
        "semiangle_mrad": semiangle_mrad,
    }
    y = jnp.asarray(field.data, dtype=float)
    return options | {"mean_counts": noise_variance(y, problem(**options))}, series(changes_A), y


def noise_variance(y: Images, problem: InverseProblem) -> float:
    """Variance of the noise of a pixel, from the frequencies beyond 2 semiangle / wavelength; the
    mean of the counts where there are too few of them."""
    forward = problem.forward
    limit = 2e-3 * forward.semiangle_mrad / optics.wavelength_A(forward.energy_keV)
    ny, nx = forward.shape
    ky, kx = jnp.fft.fftfreq(ny)[:, None], jnp.fft.rfftfreq(nx)
    beyond = np.asarray(jnp.hypot(ky, kx) > limit * forward.sampling_A)
    if beyond.mean() < BEYOND:
        if not jnp.min(y) >= 0 or not jnp.mean(y) > 0:
            raise ValueError(
                "the pixels are too coarse to see the noise, and values from "
                f"{float(jnp.min(y)):.3g} to {float(jnp.max(y)):.3g} are no counted electrons"
            )
        return float(jnp.mean(y))
    seen = problem.at({"noise.mean_counts": 1.0}).noise(jnp.zeros(y.shape)).windowed(y)
    power = np.abs(np.asarray(seen)[:, beyond]) ** 2  # exponentially distributed
    return float(np.median(power) / np.log(2.0))

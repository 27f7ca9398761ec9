"""All aberrations of a probe up to third order, from a defocus series of an unknown object.

    image_k = Poisson(dose (object * |probe(aberrations + setting_k, shifted by drift_k)|^2))

The law of the counts integrates the object out (`micjax.physics.electrons.phase_diversity`), so
anything with fine detail will do: gold on carbon, an amorphous film. Whatever blurs all images
alike, the size of the source or a detector, belongs to the object. The likelihood has many maxima
along defocus and two-fold astigmatism: `solve` looks everywhere first, and registers the images as
it goes.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.checks import not_negative, positive
from micjax.core.problem import InverseProblem, parameter
from micjax.inference.attempt import attempt
from micjax.inference.checkpoint import StopReason
from micjax.inference.errors.laplace import laplace
from micjax.inference.solution import Solution
from micjax.inference.solve import fit_stages
from micjax.io import read
from micjax.physics.electrons import optics
from micjax.physics.electrons.phase_diversity import KNOBS, Images, Series, UnknownObject
from micjax.physics.electrons.stem import placed
from micjax.problems.aberrations.fit import left_over, stages
from micjax.problems.autofocus.twin import clusters, nanoparticles
from micjax.problems.shared.focus import C10_changes_A
from micjax.report.figures import captioned, image_row

FOUND = [n for n in optics.CARTESIAN if int(n[1]) <= 3]
NAMES = [f"forward.aberrations_A.{n}" for n in FOUND]
MORE_FOCI, MOST_FOCI = 4, 15
SPECIMENS = {"clusters": clusters, "particles": nanoparticles}
WRONG = 0.2  # error of a transfer function beyond which the model is none
UNEXPLAINED = (
    "The images agree with the model only to within {:.2g} of each transfer function: the values "
    "are not to be trusted. The residuals show where."
)
AMBIGUOUS = (
    "C10 = {:.4g} Å explains the images almost as well as {:.4g} Å: one more image, at another "
    "defocus, would tell."
)
NEAR, FAR_A = 5.0, 20.0  # in nats but not in C10: another explanation
BEYOND = 0.05  # part of the frequencies that no probe transfers, which is enough to tell the noise


class DriftingProbes(eqx.Module):
    """|probe|^2 at each setting, adding up to 1, where the stage has taken it."""

    aberrations_A: dict[str, Float[Array, ""]] = eqx.field(
        converter=lambda values: {n: jnp.asarray(v, dtype=float) for n, v in values.items()}
    )
    drift_A: Float[Array, "images-1 2"] = parameter()  # (y, x), against the first image
    focal_spread_A: Float[Array, ""] = parameter()  # 1/e half-width
    sampling_A: Float[Array, ""] = parameter()
    energy_keV: Float[Array, ""] = parameter()
    semiangle_mrad: Float[Array, ""] = parameter()
    shape: tuple[int, int] = eqx.field(static=True)
    foci: int = eqx.field(static=True)

    def __call__(self, x: Series) -> Images:
        wavelength_A = optics.wavelength_A(self.energy_keV)
        angles = optics.angles_mrad(self.shape, self.sampling_A, wavelength_A)
        foci_A, weights = optics.focal_nodes_A(self.focal_spread_A, self.foci)

        def at(setting_A, drift_A):
            added = dict(zip(KNOBS, setting_A, strict=True))
            total_A = {n: c + added.get(n, 0.0) for n, c in self.aberrations_A.items()}

            def of(focus_A):
                changed_A = {**total_A, "C10": total_A["C10"] + focus_A}
                wave = optics.probe(angles, self.semiangle_mrad, changed_A, wavelength_A)
                wave = placed(wave, drift_A[None], (self.sampling_A, self.sampling_A))[0]
                return wave.size * (wave.real**2 + wave.imag**2)

            return jnp.tensordot(weights.astype(drift_A.dtype), jax.vmap(of)(foci_A), 1)

        drifts_A = jnp.concatenate([jnp.zeros((1, 2)), self.drift_A])
        return x.present[:, None, None] * jax.vmap(at)(x.settings_A, drifts_A)


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
) -> tuple[InverseProblem, Series, Images]:
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
    thing = SPECIMENS[specimen](np.random.default_rng(seed), large.shape, float(large.sampling_A))
    spectrum = jnp.fft.fft2(jnp.asarray(thing, dtype=float)) * jnp.fft.fft2(large(x))
    seen = jnp.fft.ifft2(spectrum).real[:, ny // 2 : ny // 2 + ny, nx // 2 : nx // 2 + nx]
    rate = mean_counts * jnp.maximum(seen, 0.0) / jnp.mean(seen)
    return truth, x, jax.random.poisson(noise_key, rate).astype(float)


def series(defocus_change_A) -> Series:
    """Settings of a series through focus: what was added to C10, Å; minus the defocus."""
    change = jnp.asarray(defocus_change_A, dtype=float)
    settings = jnp.zeros((len(change), 3)).at[:, 0].set(change)
    return Series(settings, jnp.ones(len(change)))


def load(
    file,
    channel: str | None = None,
    changes_A: list | None = None,
    pixel_nm: float | None = None,
    energy_keV: float = 200.0,
    semiangle_mrad: float = 25.0,
) -> tuple[dict[str, Any], Series, Images]:
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


def solve(
    problem: InverseProblem,
    x: Series,
    y: Images,
    *,
    key,
    checkpoint=None,
    resume: bool = False,
    on_chunk=None,
) -> Solution:
    """The best of several fits, from the likeliest defoci and astigmatisms; Laplace errors.

    **Raises:** `ValueError` for images of another number or size than the problem's.
    """
    y = jnp.asarray(y, dtype=float)
    expected = (len(problem.forward.drift_A) + 1, *problem.forward.shape)
    if y.shape != expected or len(x.settings_A) != len(y):
        raise ValueError(
            f"images of the shape {y.shape} at {len(x.settings_A)} settings; the problem has "
            f"{expected}"
        )
    run = {"key": key, "checkpoint": checkpoint, "resume": resume, "on_chunk": on_chunk}
    found = fit_stages(problem, x, y, stages(), **run)
    if found.stop_reason is StopReason.INTERRUPTED:
        return Solution(found.problem, fit=found)
    error = float(found.problem.noise.model_error)
    # its own value where it is held
    best_A = float(found.problem.forward.aberrations_A["C10"])
    C10_A = [float(problem.at(v).forward.aberrations_A["C10"]) for v in found.starts_values]
    others_A = [
        c
        for c, loss in zip(C10_A, found.starts_losses, strict=True)
        if loss < found.loss + NEAR and abs(c - best_A) > FAR_A
    ]
    return Solution(
        found.problem,
        fit=found,
        laplace=attempt("Laplace errors", laplace, found.problem, x, y),
        metrics={"model_error": error},
        statements=[
            *([UNEXPLAINED.format(error)] if error > WRONG else []),
            *(AMBIGUOUS.format(c, best_A) for c in others_A),
        ],
    )


def defocus_A(errors_A: dict[str, float], semiangle_mrad: float) -> dict[str, float]:
    """The change of defocus that is as large at the edge of the aperture as each aberration:
    C_n alpha^(n+1) / (n+1) = C_1 alpha^2 / 2."""
    alpha = 1e-3 * semiangle_mrad
    return {
        name: 2.0 * error_A * alpha ** (int(name[1]) - 1) / (int(name[1]) + 1)
        for name, error_A in errors_A.items()
    }


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Each aberration against the truth, the error also as a change of defocus."""
    true, best = truth.forward.aberrations_A, solution.problem.forward.aberrations_A
    sd = {} if solution.laplace is None else solution.laplace.sd()
    error = {c: float(best[c] - true[c]) for c in FOUND}
    as_defocus = defocus_A(error, float(truth.forward.semiangle_mrad))
    return [
        {
            "quantity": f"{c} (Å)",
            "truth": float(true[c]),
            "estimate": float(best[c]),
            "sd": float(sd.get(n, np.nan)),
            "error as defocus (Å)": as_defocus[c],
        }
        for c, n in zip(FOUND, NAMES, strict=True)
    ]


def figures(solution: Solution, x, y, truth: InverseProblem | None = None) -> dict[str, Any]:
    """The images, what the model leaves of them, and the phases over the aperture."""
    best = solution.problem
    counts, change_A = np.asarray(y), np.asarray(x.settings_A)[:, 0]
    titles = [f"C10 {'+' if c >= 0 else '-'} {abs(c):.4g} Å" for c in change_A]
    pixel_nm = float(best.forward.sampling_A) / 10.0

    def images():
        figure = image_row(dict(zip(titles, counts, strict=True)), pixel_nm=pixel_nm, shared=False)
        return captioned(figure, "The images as they came.")

    def residuals():
        left = np.asarray(left_over(best, x, jnp.asarray(y, dtype=float)))
        row = dict(zip(titles, left, strict=True))
        figure = image_row(row, pixel_nm=pixel_nm, residuals=titles)
        return captioned(
            figure,
            "What no object explains of the images, in units of the noise, darker towards the "
            "borders by the window: structure here is what the model lacks.",
        )

    def phases():
        row = {"estimate": _phase(best)}
        if truth is not None:
            row |= {"truth": _phase(truth), "difference": row["estimate"] - _phase(truth)}
        figure = image_row(row, residuals=["difference"])
        return captioned(figure, "Phase of the aberrations over the aperture, in rad.")

    return {"Images": images, "Residuals": residuals, "Aberrations": phases}


def _phase(problem: InverseProblem, pixels: int = 128) -> np.ndarray:
    forward = problem.forward
    wavelength_A = optics.wavelength_A(forward.energy_keV)
    along = jnp.linspace(-1.0, 1.0, pixels) * forward.semiangle_mrad
    angles = along[:, None], along[None, :]
    phase = optics.chi(angles, forward.aberrations_A, wavelength_A)
    inside = jnp.hypot(*angles) <= forward.semiangle_mrad
    return np.asarray(jnp.where(inside, phase, jnp.nan))

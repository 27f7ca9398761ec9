"""The true surface and the tip from scanning-probe images, with what is certain marked.

    image = dilate(surface, tip) + line offsets + noise

With a known tip the surface is the maximum a posteriori under a curvature prior. Without one the
tip comes first: the bluntest that the images admit (`micjax.physics.tips.blind.search`).
"""

import dataclasses
import logging
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from micjax.core.checks import not_negative, positive
from micjax.core.problem import InverseProblem, parameter
from micjax.core.progress import progress
from micjax.inference.attempt import attempt
from micjax.inference.errors.laplace import laplace
from micjax.inference.errors.nuts import nuts
from micjax.inference.solution import Solution
from micjax.inference.solve import fit
from micjax.inference.solvers.first_order import Adam
from micjax.io import Axis, Field, check_image, read
from micjax.io.fields import with_pixel
from micjax.physics.noise import Gaussian
from micjax.physics.probes.lines import add_lines
from micjax.physics.regularisers import Curvature
from micjax.physics.tips.blind.search import BlindTip, blind
from micjax.physics.tips.dilation import certain, dilate, erode, touching_tip_pixels
from micjax.physics.tips.evidence import admissible, misfit, noise_sigma_nm
from micjax.physics.tips.shapes import AbstractTip, Double, FreeForm, size_pair
from micjax.problems.shared.heights import heights_nm
from micjax.problems.tip.show import figures as figures

log = logging.getLogger("micjax")

CERTAIN_SIGMAS = 2.0  # two contacts closer than this are not told apart


class Reshaped(eqx.Module):
    """A parametric tip and what a free-form estimate adds to it, pixel by pixel."""

    shape: AbstractTip
    residual_nm: Float[Array, "ky kx"] = parameter()

    def __call__(self) -> Float[Array, "ky kx"]:
        return self.shape() + self.residual_nm


class TipScan(eqx.Module):
    """Images of several surfaces taken with one tip. `x` says which of the surfaces to image."""

    surface_nm: Float[Array, "frames ny nx"] = parameter()
    tip: Reshaped | FreeForm
    line_offsets_nm: Float[Array, "frames ny"] = parameter()

    def __call__(self, x: Int[Array, " n"]) -> Float[Array, "n ny nx"]:
        tip = self.tip()
        images = jax.vmap(lambda s: dilate(s, tip))(self.surface_nm[x])
        return jax.vmap(add_lines)(images, self.line_offsets_nm[x])


def problem(
    frames: int = 1,
    ny: int = 128,
    nx: int = 128,
    pixel_nm: float | list = 2.0,
    tip_size: int = 21,
    tip_heights_nm: list | None = None,
    sigma_nm: float = 0.15,
    curvature_nm: float | None = None,
    line_sigma_nm: float = 0.0,
) -> InverseProblem:
    """Surfaces of `frames` x `ny` x `nx` pixels below one tip.

    **Arguments:**

    - `frames`: number of images taken with the same tip.
    - `ny`: lines of an image.
    - `nx`: pixels of a line.
    - `pixel_nm`: pixel size, a number or [dy, dx].
    - `tip_size`: pixels of the unknown tip along each side, odd.
    - `tip_heights_nm`: the tip if it is known, rows of heights, the apex 0 and highest.
    - `sigma_nm`: rms noise (a file's is estimated from the image if it is not given).
    - `curvature_nm`: typical curvature of the surface, nm per pixel^2; 10 sigma if not given.
    - `line_sigma_nm`: rms of line offsets to be fitted; 0 if the lines stand at one height.

    **Raises:** `ValueError` for even tip sizes, tips larger than the image, sizes and noise that
    are not positive.
    """
    pixel = np.broadcast_to(np.asarray(pixel_nm, float), (2,))
    if curvature_nm is None:
        curvature_nm = 10 * sigma_nm
    positive(frames=frames, ny=ny, nx=nx, pixel_nm=pixel_nm)
    positive(sigma_nm=sigma_nm, curvature_nm=curvature_nm)
    not_negative(line_sigma_nm=line_sigma_nm)
    known = tip_heights_nm is not None
    size = size_pair(np.shape(tip_heights_nm) if known else tip_size)
    if size[0] > ny or size[1] > nx:
        raise ValueError(f"the tip of {size} pixels is larger than the image of {(ny, nx)}")
    shape = (frames, ny, nx)
    priors: dict[str, dist.Distribution] = {
        "forward.surface_nm": Curvature(curvature_nm, sigma_nm, shape),
        "noise.sigma": dist.LogNormal(np.log(sigma_nm), 0.5),
    }
    if known:
        tip: Reshaped | FreeForm = FreeForm(tip_heights_nm, pixel)
    else:
        reach = float(np.min(np.array(size) // 2 * pixel))
        tip = Reshaped(
            Double(reach / 3, 20.0, (0.0, reach / 2), reach / 4, pixel_nm=pixel, size=size),
            np.zeros(size),
        )
        priors |= {
            "forward.tip.shape.radius_nm": dist.LogNormal(np.log(reach / 3), 1.5),
            "forward.tip.shape.half_angle_deg": dist.TruncatedNormal(
                25.0, 20.0, low=5.0, high=80.0
            ),
            "forward.tip.shape.offset_nm": dist.Normal(0.0, reach),
            "forward.tip.shape.drop_nm": dist.HalfNormal(reach),
            "forward.tip.shape.origin_nm": dist.Normal(0.0, reach),
            "forward.tip.residual_nm": dist.Normal(0.0, reach),
        }
    if line_sigma_nm > 0:
        priors["forward.line_offsets_nm"] = dist.Normal(0.0, line_sigma_nm)
    forward = TipScan(np.zeros(shape), tip, np.zeros((frames, ny)))
    return InverseProblem(forward, Gaussian(sigma_nm), priors)


def particles(key, ny: int, nx: int, pixel_nm: float) -> Float[Array, "ny nx"]:
    """Heights (nm) of hemispheres of 4 to 11 nm on a self-affine ground (Hurst exponent 0.9)."""
    ground_key, place_key, size_key = jax.random.split(key, 3)
    k = jnp.hypot(jnp.fft.fftfreq(ny)[:, None], jnp.fft.fftfreq(nx)[None, :])
    spectrum = (
        jnp.fft.fft2(jax.random.normal(ground_key, (ny, nx))) * jnp.maximum(k, 1 / 48) ** -1.9
    )
    ground = jnp.real(jnp.fft.ifft2(spectrum))
    ground = 1.2 * ground / jnp.std(ground)
    count = max(4, ny * nx // 180)
    centre = jax.random.uniform(place_key, (count, 2)) * jnp.array([ny, nx])
    radius = jax.random.uniform(size_key, (count,), minval=4.0, maxval=11.0)
    y, x = jnp.arange(ny)[:, None], jnp.arange(nx)[None, :]

    def add(surface, particle):
        (cy, cx), r = particle
        cap = r**2 - pixel_nm**2 * ((y - cy) ** 2 + (x - cx) ** 2)
        foot = ground[cy.astype(int), cx.astype(int)]
        top = foot + jnp.sqrt(jnp.maximum(cap, 0.0))
        return jnp.where(cap > 0, jnp.maximum(surface, top), surface), None

    surface, _ = jax.lax.scan(add, ground, (centre, radius))
    return surface - jnp.min(surface)


def example(
    key, ny: int = 128, nx: int = 128, pixel_nm: float = 2.0, tip_size: int = 21
) -> tuple[InverseProblem, Int[Array, " n"], Float[Array, "n ny nx"]]:
    """Particles under a blunt double tip: radius 8 nm, a second apex 15 nm away and 3 nm lower."""
    surface_key, noise_key = jax.random.split(key)
    scale = pixel_nm * (tip_size // 2) / 20.0  # the tip keeps its place on smaller grids
    truth = problem(1, ny, nx, pixel_nm, tip_size, sigma_nm=0.15).at(
        {
            "forward.surface_nm": particles(surface_key, ny, nx, pixel_nm)[None],
            "forward.tip.shape.radius_nm": 8.0 * scale,
            "forward.tip.shape.half_angle_deg": 22.0,
            "forward.tip.shape.offset_nm": jnp.array([5.0, 14.0]) * scale,
            "forward.tip.shape.origin_nm": jnp.array([-2.0, -6.0]) * scale,
            "forward.tip.shape.drop_nm": 3.0 * scale,
        }
    )
    x = jnp.arange(1)
    return truth, x, truth.noise(truth.forward(x)).sample(noise_key)


def load(
    file,
    channel: str | None = None,
    pixel_nm: float | list | None = None,
    known_tip: str | None = None,
    tip_size: int | None = None,
    tip_channel: str | None = None,
    sigma_nm: float | None = None,
    tip_reflected: bool = False,
    height_unit: str | None = None,
) -> tuple[dict[str, Any], Int[Array, " n"], Float[Array, "n ny nx"]]:
    """The height image of a microscope's file.

    **Arguments:**

    - `channel`: which image of the file; the height if not given.
    - `pixel_nm`: pixel size where the file does not state one.
    - `known_tip`: a file with the image of the tip, apex up, of the same pixel size.
    - `tip_size`: pixels of the unknown tip, odd; 25, or what fits into a small image.
    - `tip_channel`: which image of the tip's file.
    - `sigma_nm`: rms noise; estimated from the image if not given.
    - `tip_reflected`: the known tip is a blind estimate of Gwyddion or another program in
        Villarrubia's frame, turned by 180 degrees against the tip itself.
    - `height_unit`: of the values where the file states none; nm if they can be that.

    **Raises:** `ValueError` for NaN or constant images, pixel sizes that differ, tips that do not
    fit, besides what `micjax.io.read` raises.
    """
    field = check_image(read(file, channel, pixel_nm))
    heights = heights_nm(field, height_unit)
    pixel = field.pixel_nm
    ny, nx = heights.shape
    # where the sample stands means nothing; its slope is part of the surface
    y = jnp.asarray(heights - heights.mean(), dtype=float)[None]
    sigma = float(noise_sigma_nm(y)) if sigma_nm is None else sigma_nm
    if not sigma > 0 and sigma_nm is not None:
        raise ValueError(f"sigma_nm = {sigma_nm}: must be positive")
    options: dict[str, Any] = {
        "frames": 1,
        "ny": ny,
        "nx": nx,
        "pixel_nm": [float(p) for p in pixel],
        # smooth made-up images have no noise but their rounding
        "sigma_nm": max(sigma, 1e-4 * float(np.ptp(heights))),
    }
    log.info("noise %.3g nm rms%s", options["sigma_nm"], " (estimated)" if sigma_nm is None else "")
    if known_tip is not None:
        options["tip_heights_nm"] = _known_tip(
            known_tip, tip_channel, pixel, heights.shape, tip_reflected, height_unit
        )
    else:
        fits = min(ny, nx) // 3 // 2 * 2 - 1
        if fits < 3:
            raise ValueError(f"image of {ny} x {nx} pixels: too small to hold a tip of 3 x 3")
        options["tip_size"] = min(25, fits) if tip_size is None else tip_size
    return options, jnp.arange(1), y


def _known_tip(path, channel, pixel, image_shape, reflected: bool, height_unit) -> list:
    # one without a pixel size of its own has the image's
    tip = check_image(with_pixel(read(path, channel), pixel))
    if not np.allclose(tip.pixel_nm, pixel, rtol=1e-3):
        raise ValueError(
            f"{path}: pixels of {tip.pixel_nm} nm, the image has {pixel}; resample the tip first "
            "(micjax.physics.tips.shapes.FreeForm.resample)"
        )
    heights = heights_nm(tip, None if tip.unit else height_unit)
    size_pair(heights.shape)
    if heights.shape[0] > image_shape[0] or heights.shape[1] > image_shape[1]:
        raise ValueError(
            f"the image of {image_shape} pixels is smaller than the tip {heights.shape}"
        )
    heights = heights[::-1, ::-1] if reflected else heights
    return (heights - heights.max()).tolist()


def line_offsets(images: Float[Array, "n ny nx"]) -> Float[Array, "n ny"]:
    """Line offsets by the median of differences between neighbouring lines.

    Their sum wanders with the surface, so that only what is faster than about 15 lines counts.
    """
    steps = jnp.median(jnp.diff(images, axis=1), axis=2)
    offsets = jnp.concatenate([jnp.zeros_like(steps[:, :1]), jnp.cumsum(steps, axis=1)], axis=1)
    window = jnp.hanning(17)[1:-1]
    smooth = jax.vmap(lambda o: jnp.convolve(o, window, mode="same"))(offsets)
    return offsets - smooth / jnp.convolve(jnp.ones(offsets.shape[1]), window, mode="same")


def solve(
    problem: InverseProblem,
    x: Int[Array, " n"],
    y: Float[Array, "n ny nx"],
    *,
    key,
    checkpoint=None,
    resume: bool = False,
    on_chunk=None,
    steps: int = 300,
    tip_steps: int = 300,
    threshold_sigmas: float = 4.0,
    tip_radii: int = 18,
    posterior: str = "laplace",
) -> Solution:
    """Tip, surface, certainty.

    **Arguments:**

    - `steps`: of the surface fit.
    - `tip_steps`: of the free-form part of the blind tip; 0 keeps the parametric tip.
    - `threshold_sigmas`: threshold of the classical estimate, for comparison, in sigma.
    - `tip_radii`: how many radii of the tip are tried; 45 where the noise is low.
    - `posterior`: of the tip's parameters given the surface: laplace, nuts or none.
    """
    if posterior not in ("laplace", "nuts", "none"):
        raise ValueError(f"posterior {posterior!r}: allowed are laplace, nuts, none")
    y = jnp.asarray(y, dtype=float)
    known = isinstance(problem.forward.tip, FreeForm)
    problem = _with_lines(problem, y)
    flat = jax.vmap(add_lines)(y, -problem.forward.line_offsets_nm[x])

    found = None
    if not known:
        problem, found = _with_blind_tip(problem, flat, key, tip_steps, threshold_sigmas, tip_radii)
    tip = problem.forward.tip()
    start = jax.vmap(lambda i: erode(i, tip))(flat)
    problem = problem.at({"forward.surface_nm": start})
    fitted = _fit_surface(problem, x, y, steps, checkpoint, resume, on_chunk)
    problem = fitted.problem

    return Solution(
        problem,
        fit=fitted,
        **_tip_posterior(problem, x, y, posterior, found, key),
        **_outputs(problem, x, y, found),
    )


def _with_lines(problem: InverseProblem, y) -> InverseProblem:
    """Start values of the line offsets, where they are unknown."""
    if "forward.line_offsets_nm" not in problem.priors:
        return problem
    return problem.at({"forward.line_offsets_nm": line_offsets(y)})


def _with_blind_tip(problem, images, key, tip_steps, threshold_sigmas, tip_radii):
    window = problem.forward.tip.shape
    with progress("tip", 100) as show:
        found = blind(
            images,
            problem.noise.sigma,
            window.pixel_nm,
            window.size,
            key,
            steps=tip_steps,
            threshold_sigmas=threshold_sigmas,
            radii=tip_radii,
            report=lambda share, text: show(int(100 * share), text),
        )
    log.info("tip: %s", _describe(found))
    found = _apex_in_the_middle(found, 1.05 * float(jnp.max(jnp.ptp(images, axis=(1, 2)))))
    tip = Reshaped(found.shape, found.heights_nm - found.shape())
    return eqx.tree_at(lambda p: p.forward.tip, problem, tip), found


def _apex_in_the_middle(found: BlindTip, depth_nm: float) -> BlindTip:
    """The same tip in a larger window, its highest pixel in the middle, so that the surface is not
    shifted against the image, and no line at the border was touched from outside the scan."""
    heights, shape = found.heights_nm, found.shape
    ny, nx = heights.shape
    top = np.unravel_index(int(jnp.argmax(heights)), heights.shape)
    dy, dx = ny // 2 - int(top[0]), nx // 2 - int(top[1])
    sides = ((max(2 * dy, 0), max(-2 * dy, 0)), (max(2 * dx, 0), max(-2 * dx, 0)))
    heights = jnp.pad(heights, sides, constant_values=-depth_nm)
    origin_nm = shape.origin_nm + jnp.array([dy, dx]) * shape.pixel_nm
    shape = Double(
        shape.radius_nm,
        shape.half_angle_deg,
        shape.offset_nm,
        shape.drop_nm,
        origin_nm,
        shape.pixel_nm,
        size=heights.shape,
    )
    return found._replace(heights_nm=heights, shape=shape)


def _describe(found) -> str:
    shape = found.shape
    text = (
        f"radius {float(shape.radius_nm):.3g} nm, half-angle {float(shape.half_angle_deg):.0f} deg"
    )
    if found.double:
        dy, dx = (float(v) for v in shape.offset_nm)
        text += f", second apex at (y {dy:.3g}, x {dx:.3g}) nm, {float(shape.drop_nm):.3g} nm lower"
    return text + (", reshaped pixel by pixel" if found.free_form else "")


def _fit_surface(problem, x, y, steps, checkpoint, resume, on_chunk):
    """The surface (and line offsets) below the tip and noise as they are."""
    unknown = {"forward.surface_nm", "forward.line_offsets_nm"}
    fitted = fit(
        problem.given({n: None for n in problem.priors if n not in unknown}),
        x,
        y,
        Adam(0.5 * problem.noise.sigma, steps),
        steps=steps,
        chunk=min(50, steps),
        checkpoint=checkpoint,
        resume=resume,
        on_chunk=on_chunk,
    )
    return dataclasses.replace(fitted, problem=problem.at(fitted.problem.values()))


def _tip_posterior(problem, x, y, kind, found, key) -> dict[str, Any]:
    """Of the tip's parameters and the noise, given the surface: what the scatter alone leaves open.

    A reshaped tip has no parameters, and a single one no second apex.
    """
    if kind == "none" or found is None or found.free_form:
        return {}
    names = ["forward.tip.shape.radius_nm", "forward.tip.shape.half_angle_deg", "noise.sigma"]
    if found.double:
        names += ["forward.tip.shape.offset_nm", "forward.tip.shape.drop_nm"]
    names = [n for n in names if n in problem.priors]
    if kind == "laplace":
        return {"laplace": attempt("Laplace errors", laplace, problem, x, y, names)}
    given = problem.given({n: None for n in problem.priors if n not in names})
    counts = {"samples": 300, "warmup": 300}
    return {"posterior": attempt("posterior draws", nuts, given, x, y, key, **counts)}


def _outputs(problem, x, y, found) -> dict[str, Any]:
    """Maps, numbers and sentences of the solved problem."""
    forward, sigma = problem.forward, problem.noise.sigma
    tip = forward.tip()
    flat = jax.vmap(add_lines)(y, -forward.line_offsets_nm[x])
    clean = jax.vmap(lambda s: dilate(s, tip))(forward.surface_nm[x])
    upper = jax.vmap(lambda i: erode(i, tip))(clean)
    sure, contacts = jax.vmap(lambda i: certain(i, tip, CERTAIN_SIGMAS * sigma))(clean)
    if found is not None:
        # The true tip lies between the estimate and a needle, and so does its surface: a point is
        # certain only where the two agree.
        sure = sure & (_below_needle(clean, tip) - upper <= sigma)
    touching = jnp.any(jax.vmap(lambda i: touching_tip_pixels(i, tip))(clean), axis=0)
    classical = tip  # with a known tip the classical answer is its erosion
    if found is not None:
        classical = found.classical_nm
    classical_surface = jax.vmap(lambda i: erode(i, classical))(flat)

    maps = {
        "surface": forward.surface_nm[x],
        "image": y,
        "upper_bound": upper,
        "certain": sure,
        "contact_multiplicity": contacts,
        "residual": y - forward(x),
        "classical_surface": classical_surface,
    }
    pixel = np.asarray(_pixel(forward), float)
    results = {
        name: _field(np.asarray(data), pixel, name, frames=len(x)) for name, data in maps.items()
    }
    results["tip"] = _field(np.asarray(tip), pixel, "tip")
    results["tip_touches"] = _field(np.asarray(touching), pixel, "tip_touches")
    results["classical_tip"] = _field(np.asarray(classical), pixel, "classical_tip")
    if "forward.line_offsets_nm" in problem.priors:
        lines = Axis("line", np.arange(y.shape[1]), "")
        axes = (Axis("frame", np.arange(len(x)), ""), lines)
        offsets = np.asarray(forward.line_offsets_nm[x])
        results["line_offsets"] = Field(offsets, axes, "nm", "line_offsets")

    share = float(jnp.mean(sure))
    metrics = {
        "noise_nm": float(sigma),
        "residual_rms_nm": float(jnp.sqrt(jnp.mean((y - forward(x)) ** 2))),
        "certain_fraction": share,
        "tip_pixels_touching": float(jnp.mean(touching)),
        "taken_off_nm": float(jnp.mean(flat - forward.surface_nm[x])),
    }
    return {
        "results": results,
        "metrics": metrics,
        "table": _table(flat, sigma, tip, classical, found),
        "statements": _statements(found, share, float(jnp.mean(touching))),
        "extra": {"found": found, "tip": np.asarray(tip), "classical_tip": np.asarray(classical)},
    }


def _below_needle(images, tip) -> Float[Array, "n ny nx"]:
    """The surfaces if the tip were nothing but its highest pixel."""
    needle = jnp.where(jnp.arange(tip.size) == jnp.argmax(tip), 0.0, -jnp.inf).reshape(tip.shape)
    return jax.vmap(lambda i: erode(i, needle.astype(i.dtype)))(images)


def _pixel(forward: TipScan) -> Float[Array, "2"]:
    tip = forward.tip
    return tip.shape.pixel_nm if isinstance(tip, Reshaped) else tip.pixel_nm


def _field(data: np.ndarray, pixel: np.ndarray, name: str, frames: int = 0) -> Field:
    """A map with its axes in nm; one frame alone is a plain image."""
    data = data[0] if frames == 1 else data
    y, x = (
        Axis(n, np.arange(k) * float(d), "nm")
        for n, k, d in zip("yx", data.shape[-2:], pixel, strict=True)
    )
    axes = (y, x) if data.ndim == 2 else (Axis("frame", np.arange(frames), ""), y, x)
    unit = "" if data.dtype == bool or name == "contact_multiplicity" else "nm"
    return Field(data, axes, unit, name)


def _table(flat, sigma, tip, classical, found) -> list[dict[str, Any]]:
    """The tips in question, with what the image says of them."""
    flat_tip = jnp.zeros_like(tip).at[...].set(-1e6).at[tip.shape[0] // 2, tip.shape[1] // 2].set(0)
    rows = []
    for name, heights in (
        ("no tip correction", flat_tip),
        ("known tip", tip) if found is None else ("classical (Villarrubia)", classical),
        *([] if found is None else [("micjax", tip)]),
    ):
        seen, floor, bluntness = map(float, misfit(flat, heights, sigma, jax.random.key(0)))
        own = found is not None and name == "micjax"  # a double tip has an allowance of its own
        passes = found.passes if own else admissible(seen, floor)
        rows.append(
            {
                "tip": name,
                "opening misfit (sigma^2)": seen,
                "expected of noise alone": floor,
                "admissible": "yes" if passes else "no",
                "taken off the image (nm)": round(bluntness, 6) * float(sigma),
            }
        )
    return rows


def _statements(found, share: float, touching: float) -> list[str]:
    for_any_tip = "" if found is None else " and the same for every admissible tip"
    said = [
        f"{100 * share:.0f} % of the surface is measured (touched at one point only, nothing else "
        f"within {CERTAIN_SIGMAS:.0f} sigma{for_any_tip}); elsewhere the surface is an estimate "
        "below the upper bound.",
        "There is no lower bound where the tip did not touch: pits may be deeper than shown.",
        f"{100 * touching:.0f} % of the tip's pixels touched the surface; the others are not "
        "identified by this scan.",
    ]
    if found is None:
        return said
    said.insert(0, f"Blind estimate of the tip: {_describe(found)}.")
    said.insert(
        1,
        "A blind estimate is the bluntest tip that the image admits. Sharper ones, down to a "
        "needle, may have taken the image as well: the scan alone does not identify the tip from "
        "below, nor its place below the image.",
    )
    if not found.passes:
        said.insert(
            0,
            "NOT IDENTIFIED: no tip of this size and kind is admissible within the noise. The tip "
            "may have changed during the scan, be larger than the window (tip_size), or the noise "
            "be larger than assumed (sigma_nm).",
        )
    elif found.bluntness < 0.1:
        said.insert(
            0,
            "NOT IDENTIFIED: within the noise assumed the image shows no trace of the tip, which "
            "is then sharper than a pixel. Where lag of the feedback or drift between lines move "
            "the heights by more than that noise, state it as sigma_nm.",
        )
    if not found.free_form:
        said.append(
            "Errors of the tip's parameters are those of the noise alone, with the surface as "
            "estimated; how blunt the tip is at all is the larger question."
        )
    else:
        said.append(
            "The tip was reshaped pixel by pixel, so it has no parameters with error bars; "
            "tip_steps=0 keeps the parametric tip."
        )
    return said


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Surface errors against the truth, after the shift that no blind method can know."""
    surface = np.asarray(truth.forward.surface_nm[x])
    tip = truth.forward.tip()
    oracle = jax.vmap(lambda i: erode(i, tip))(y)
    margin = min(20, min(surface.shape[1:]) // 6)
    candidates = {
        "image as it is": np.asarray(y),
        "classical (Villarrubia)": solution.results["classical_surface"].data,
        "erosion with the true tip": np.asarray(oracle),
        "micjax": solution.results["surface"].data,
    }
    rows = []
    for name, estimate in candidates.items():
        error = aligned_error(estimate.reshape(surface.shape), surface, margin)
        rms = float(np.sqrt(np.mean(error**2)))
        peak = float(np.ptp(surface))
        rows.append(
            {"surface": name, "rms error (nm)": rms, "PSNR (dB)": 20 * np.log10(peak / rms)}
        )
    return rows


def aligned_error(estimate: np.ndarray, truth: np.ndarray, margin: int) -> np.ndarray:
    """estimate - truth without its mean, at the best shift by whole pixels, `margin` pixels from
    the border; arrays `[frames, iy, ix]`."""
    frames, ny, nx = truth.shape
    inner = truth[:, margin : ny - margin, margin : nx - margin]
    best = None
    for dy in range(-margin, margin + 1):
        for dx in range(-margin, margin + 1):
            moved = estimate[:, margin + dy : ny - margin + dy, margin + dx : nx - margin + dx]
            error = moved - inner
            error = error - error.mean()
            if best is None or np.mean(error**2) < np.mean(best**2):
                best = error
    return best

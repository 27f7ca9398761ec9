"""How `micjax.problems.tip` is solved: the tip first, then the surface below it."""

import logging
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem, Values
from micjax.inference.errors.estimates import NUTS, LaplaceErrors
from micjax.inference.solve import Fit
from micjax.inference.solvers.first_order import Adam
from micjax.inference.stage import Arrays, Search, Stage
from micjax.physics.tips.blind.search import BlindTip, improving
from micjax.physics.tips.dilation import erode
from micjax.physics.tips.shapes import Double, FreeForm
from micjax.problems.tip.fill import SURFACE, filled, levelled, network_of, with_filled
from micjax.problems.tip.model import Reshaped

log = logging.getLogger("micjax")

LINES = "forward.line_offsets_nm"
SHAPE = ("radius_nm", "half_angle_deg", "offset_nm", "drop_nm", "origin_nm", "pixel_nm")
FILLS = ("prior", "network")
ARRAYS = ("heights_nm", "classical_nm", "bound_nm")
NUMBERS = ("double", "free_form", "passes", "bluntness", "corroborated")


class Found(NamedTuple):
    """The blind estimate of a tip: see `micjax.physics.tips.blind.search.BlindTip`."""

    shape: Double
    heights_nm: Float[Array, "ky kx"]
    classical_nm: Float[Array, "ly lx"]
    double: bool
    free_form: bool
    passes: bool
    bluntness: float
    corroborated: float
    bound_nm: Float[Array, "ly lx"]


def stages(
    problem: InverseProblem,
    x: Int[Array, " n"],
    y: Float[Array, "n ny nx"],
    *,
    steps: int = 300,
    tip_steps: int = 300,
    threshold_sigmas: float = 4.0,
    tip_radii: int = 18,
    posterior: Literal["laplace", "nuts", "none"] = "laplace",
    fill: Literal["prior", "network"] = "prior",
    net: str | None = None,
) -> list:
    """The tip, if it is not known; the surface below it; errors of the tip's parameters.

    **Arguments:**

    - `steps`: of the surface fit.
    - `tip_steps`: of the free-form part of the blind tip; 0 keeps the parametric tip.
    - `threshold_sigmas`: threshold of the classical estimate, for comparison, in sigma.
    - `tip_radii`: how many radii of the tip are tried; 45 where the noise is low.
    - `posterior`: of the tip's parameters given the surface: laplace, nuts or none.
    - `fill`: what says how the surface goes on where nothing is certain: `prior`, its curvature, or
        `network`, which also says how sure that is.
    - `net`: a file of weights of `micjax train tip` instead of those of micjax.

    **Raises:** `ValueError` for another posterior or fill, weights that are not of this network,
        and weights without `fill` = network; `FileNotFoundError`.
    """
    errors = {
        "laplace": [LaplaceErrors(parameters)],
        "nuts": [NUTS(300, 300, 1, parameters)],
        "none": [],
    }
    if posterior not in errors:
        raise ValueError(f"posterior {posterior!r}: allowed are laplace, nuts, none")
    if fill not in FILLS:
        raise ValueError(f"fill = {fill!r}: one of {', '.join(FILLS)} is needed")
    if net is not None and fill != "network":
        raise ValueError(f"net = {net!r} is used with fill = network only, not with {fill}")
    # tip and noise are as they are
    free = [n for n in (SURFACE, LINES) if n in problem.priors]
    adam = Adam(0.5 * problem.noise.sigma, steps)
    below = [Stage(adam, steps, min(50, steps), starts=_eroded, free=free)]
    if fill == "network":
        # levels of lines come from the curvature, the surface does not
        below = below if LINES in problem.priors else []
        tip = problem.forward.tip
        pixel_nm = (tip if isinstance(tip, FreeForm) else tip.shape).pixel_nm
        network = network_of(net, pixel_nm)
        below.append(Search(partial(filled, network=network), with_filled, "network"))
    if isinstance(problem.forward.tip, FreeForm):
        return below

    def search(problem, x, y, key, report, before):
        """Arrays of the tip, as often as it is a better one; `before` is not gone on from."""
        window, images = problem.forward.tip.shape, levelled(y, _starting_offsets(problem, x, y))
        depth_nm = 1.05 * float(jnp.max(jnp.ptp(images, axis=(1, 2))))
        for estimate in improving(
            images,
            problem.noise.sigma,
            window.pixel_nm,
            window.size,
            key,
            steps=tip_steps,
            threshold_sigmas=threshold_sigmas,
            radii=tip_radii,
            report=report,
        ):
            heights, shape = _apex_in_the_middle(estimate.heights_nm, estimate.shape, depth_nm)
            numbers = {n: getattr(estimate, n) for n in (*ARRAYS, *NUMBERS)}
            surface = jax.vmap(lambda i, tip=heights: erode(i, tip))(images)
            yield (
                numbers
                | {"heights_nm": heights, "eroded_nm": surface}
                | {f"shape_{n}": getattr(shape, n) for n in SHAPE}
            )
        log.info("tip: %s", describe(estimate))

    return [Search(search, _with_tip, "tip", goes_on=True), *below, *errors[posterior]]


def found_in(arrays: Arrays) -> Found | None:
    """What the search has found; None where the tip is known."""
    if "shape_radius_nm" not in arrays:
        return None
    shape = {n: arrays[f"shape_{n}"] for n in SHAPE}
    heights, classical, bound = (jnp.asarray(arrays[n]) for n in ARRAYS)
    numbers = [arrays[n].item() for n in NUMBERS]
    return Found(Double(**shape, size=heights.shape), heights, classical, *numbers, bound)


def _with_tip(problem: InverseProblem, arrays: Arrays) -> InverseProblem:
    estimate = found_in(arrays)
    tip = Reshaped(estimate.shape, estimate.heights_nm - estimate.shape())
    problem = eqx.tree_at(lambda p: p.forward.tip, problem, tip)
    return problem.at({SURFACE: arrays["eroded_nm"]})  # the best so far, should nothing follow


def _eroded(problem: InverseProblem, x, y, candidates, key) -> list[Values]:
    """The surface as the tip would have left it."""
    offsets, tip = _starting_offsets(problem, x, y), problem.forward.tip()
    surface = jax.vmap(lambda i: erode(i, tip))(levelled(y, offsets))
    return [{SURFACE: surface} | ({LINES: offsets} if LINES in problem.priors else {})]


def _starting_offsets(problem: InverseProblem, x, y) -> Float[Array, "n ny"]:
    known = LINES not in problem.priors
    return problem.forward.line_offsets_nm[x] if known else line_offsets(y)


def line_offsets(images: Float[Array, "n ny nx"]) -> Float[Array, "n ny"]:
    """Line offsets by the median of differences between neighbouring lines.

    Their sum wanders with the surface, so that only what is faster than about 15 lines counts.
    """
    steps = jnp.median(jnp.diff(images, axis=1), axis=2)
    offsets = jnp.concatenate([jnp.zeros_like(steps[:, :1]), jnp.cumsum(steps, axis=1)], axis=1)
    window = jnp.hanning(17)[1:-1]
    smooth = jax.vmap(lambda o: jnp.convolve(o, window, mode="same"))(offsets)
    return offsets - smooth / jnp.convolve(jnp.ones(offsets.shape[1]), window, mode="same")


def parameters(fit: Fit) -> list[str]:
    """The unknowns whose errors are told: the tip's parameters and the noise, given the surface;
    what the scatter alone leaves open.

    A reshaped tip has no parameters, and a single one no second apex.
    """
    estimate = found_in(fit.arrays)
    if estimate.free_form:
        return []
    names = ["forward.tip.shape.radius_nm", "forward.tip.shape.half_angle_deg", "noise.sigma"]
    if estimate.double:
        names += ["forward.tip.shape.offset_nm", "forward.tip.shape.drop_nm"]
    return [n for n in names if n in fit.problem.priors]


def _apex_in_the_middle(heights, shape: Double, depth_nm: float) -> tuple[Array, Double]:
    """The same tip in a larger window, its highest pixel in the middle, so that the surface is not
    shifted against the image, and no line at the border was touched from outside the scan."""
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
    return heights, shape


def describe(estimate: Found | BlindTip) -> str:
    """In some words."""
    shape = estimate.shape
    text = (
        f"radius {float(shape.radius_nm):.3g} nm, half-angle {float(shape.half_angle_deg):.0f} deg"
    )
    if estimate.double:
        dy, dx = (float(v) for v in shape.offset_nm)
        text += f", second apex at (y {dy:.3g}, x {dx:.3g}) nm, {float(shape.drop_nm):.3g} nm lower"
    return text + (", reshaped pixel by pixel" if estimate.free_form else "")

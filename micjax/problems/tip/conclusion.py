"""What is told of a surface and a tip: maps, what is certain, and what the scan leaves open."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from micjax.inference.solution import Solution
from micjax.io import Field, FieldAxis
from micjax.physics.tips.dilation import certain, dilate, erode, touching_tip_pixels
from micjax.physics.tips.evidence import admissible, misfit, noise_along_line
from micjax.problems.tip.fill import levelled
from micjax.problems.tip.model import Reshaped, TipScan
from micjax.problems.tip.network import LEVEL
from micjax.problems.tip.stages import LINES, Found, describe, found_in

CORROBORATED = 0.6  # share of the image that must refute a tip 10 % flatter than the blind one
ALL_IDENTIFIED = "All unknowns are identified by these data."  # of the runner
NO_TRACE = 0.1  # sigma that the tip takes off the image, on average, below which it left no trace
BOUND_AGREES = 0.5  # share of the certain pixels at which the bound of any shape must say the same
LAGS = 0.1  # correlation of the noise along the lines, above which an image lags behind
BOUND_SIGMAS = 4.0  # within which it says the same
CERTAIN_SIGMAS = 2.0  # two contacts closer than this are not told apart


def conclude(solution: Solution, x: Int[Array, " n"], y: Float[Array, "n ny nx"]) -> Solution:
    """With the maps, numbers and sentences of surface and tip."""
    problem, estimate = solution.problem, found_in(solution.fit.arrays)
    forward, sigma, doubt = problem.forward, problem.noise.sigma, None
    tip = forward.tip()
    flat = levelled(y, forward.line_offsets_nm[x])
    clean = jax.vmap(lambda s: dilate(s, tip))(forward.surface_nm[x])
    upper = jax.vmap(lambda i: erode(i, tip))(clean)
    sure, contacts = jax.vmap(lambda i: certain(i, tip, CERTAIN_SIGMAS * sigma))(clean)
    if estimate is not None:
        # only where the estimate and a needle agree, and of a tip that is more than a bound
        sure = sure & identified(estimate) & (_below_needle(clean, tip) - upper <= sigma)
        sure, doubt = _borne_out(sure, clean, estimate, sigma, float(noise_along_line(flat)))
    touching = jnp.any(jax.vmap(lambda i: touching_tip_pixels(i, tip))(clean), axis=0)
    classical = tip  # with a known tip the classical answer is its erosion
    if estimate is not None:
        classical = estimate.classical_nm
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
    half = solution.fit.arrays.get("half_width_nm")
    if half is not None:
        maps["half_width"] = half[np.asarray(x)]
    pixel = np.asarray(_pixel(forward), float)
    results = {
        name: _field(np.asarray(data), pixel, name, frames=len(x)) for name, data in maps.items()
    }
    results["tip"] = _field(np.asarray(tip), pixel, "tip")
    results["tip_touches"] = _field(np.asarray(touching), pixel, "tip_touches")
    results["classical_tip"] = _field(np.asarray(classical), pixel, "classical_tip")
    if LINES in problem.priors:
        lines = FieldAxis("line", np.arange(y.shape[1]), "")
        axes = (FieldAxis("frame", np.arange(len(x)), ""), lines)
        offsets = np.asarray(forward.line_offsets_nm[x])
        results["line_offsets"] = Field(offsets, axes, "nm", "line_offsets")

    share = float(jnp.mean(sure))
    metrics = {n: v for n, v in solution.metrics.items() if n != "residual_rms"} | {
        "noise_nm": float(sigma),
        "residual_rms_nm": float(jnp.sqrt(jnp.mean((y - forward(x)) ** 2))),
        "certain_fraction": share,
        "tip_pixels_touching": float(jnp.mean(touching)),
        "taken_off_nm": float(jnp.mean(flat - forward.surface_nm[x])),
    }
    statements = _statements(estimate, share, float(jnp.mean(touching)), doubt)
    if not np.any(np.asarray(classical)):
        statements.append(
            "The classical estimate is flat, and its surface no estimate: no maximum of the images "
            "lies a tip away from their borders."
        )
    of_the_fit = solution.statements
    if estimate is not None:
        # of the errors given this tip; the tip itself is bounded from one side only
        of_the_fit = [s for s in of_the_fit if s != ALL_IDENTIFIED]
    if half is not None:
        metrics["mean_half_width_nm"] = float(half.mean())
        statements.append(
            "Where nothing is certain a network that has learned from made-up surfaces says how "
            "the surface goes on. half_width is that of intervals that hold "
            f"{100 * LEVEL:.0f} % of the points of such surfaces; other surfaces it does not know."
        )
    return dataclasses.replace(
        solution,
        results=results,
        metrics=metrics,
        table=_table(flat, sigma, tip, classical, estimate),
        statements=[*statements, *of_the_fit],
        laplace=solution.laplace if estimate is None or identified(estimate) else None,
        extra={"found": estimate, "tip": np.asarray(tip), "classical_tip": np.asarray(classical)},
    )


def _borne_out(
    sure: Bool[Array, "n ny nx"],
    clean: Float[Array, "n ny nx"],
    estimate: Found,
    sigma,
    along_line: float,
) -> tuple[Bool[Array, "n ny nx"], str | None]:
    """What remains certain of `sure` as the tip itself is an estimate, and why if nothing does.

    A blind tip is as blunt as a family of shapes can be, and the true one may be blunter where it
    is of no such shape. Either the whole image bears it out, or the classical bound of any shape
    finds most of the same pixels touched, of which these are kept. Noise that is correlated along
    the lines went through the loop of the scanner, and so did the image, which lags behind.
    """
    if along_line > LAGS:
        return jnp.zeros_like(sure), (
            f"the noise of neighbours along the lines is alike (a correlation of {along_line:.2f}) "
            "as that behind a feedback loop, and such an image lags behind the surface"
        )
    if estimate.corroborated >= CORROBORATED:
        return sure, None
    agrees = clean - jax.vmap(lambda i: erode(i, estimate.bound_nm))(clean) <= BOUND_SIGMAS * sigma
    share = float(jnp.sum(sure & agrees) / jnp.maximum(jnp.sum(sure), 1))
    if share >= BOUND_AGREES:
        return sure & agrees, None
    return jnp.zeros_like(sure), (
        f"a tip 10 % flatter is refuted in {100 * estimate.corroborated:.0f} % of the image only "
        f"({100 * CORROBORATED:.0f} % are asked for), and the classical bound for tips of any "
        f"shape agrees with {100 * share:.0f} % of what would be certain only "
        f"({100 * BOUND_AGREES:.0f} % are asked for), so that the tip may be another one"
    )


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
        FieldAxis(n, np.arange(k) * float(d), "nm")
        for n, k, d in zip("yx", data.shape[-2:], pixel, strict=True)
    )
    axes = (y, x) if data.ndim == 2 else (FieldAxis("frame", np.arange(frames), ""), y, x)
    unit = "" if data.dtype == bool or name == "contact_multiplicity" else "nm"
    return Field(data, axes, unit, name)


def _table(flat, sigma, tip, classical, estimate) -> list[dict[str, Any]]:
    """The tips in question, with what the image says of them."""
    flat_tip = jnp.zeros_like(tip).at[...].set(-1e6).at[tip.shape[0] // 2, tip.shape[1] // 2].set(0)
    rows = []
    for name, heights in (
        ("no tip correction", flat_tip),
        ("known tip", tip) if estimate is None else ("classical (Villarrubia)", classical),
        *([] if estimate is None else [("micjax", tip)]),
    ):
        seen, floor, bluntness = map(float, misfit(flat, heights, sigma, jax.random.key(0)))
        own = estimate is not None and name == "micjax"  # a double tip has an allowance of its own
        passes = estimate.passes if own else admissible(seen, floor)
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


def identified(estimate: Found) -> bool:
    """Whether the images say anything of the tip: if not, nothing is called measured."""
    return estimate.passes and estimate.bluntness >= NO_TRACE


def _not_identified(estimate: Found) -> str:
    if not estimate.passes:
        return (
            "NOT IDENTIFIED: no tip of this size and kind is admissible within the noise, and "
            "nothing is called measured. The tip may have changed during the scan, be larger than "
            "the window (tip_size), or the noise be larger than assumed (sigma_nm)."
        )
    return (
        "NOT IDENTIFIED: within the noise assumed the image shows no trace of the tip. Either it "
        "is sharper than a pixel, or the image too smooth: without creases between two contacts, "
        "or with so few that a blunt tip would rest on them alone; nothing is called measured. "
        "Where lag of the feedback or drift between lines move the heights by more than that "
        "noise, state it as sigma_nm."
    )


def _statements(estimate, share: float, touching: float, doubt: str | None) -> list[str]:
    if estimate is not None and not identified(estimate):
        return [_not_identified(estimate), f"The tip nearest to it: {describe(estimate)}."]
    if doubt is not None:
        measured = f"Nothing is called measured: {doubt}. The surface is an estimate."
    else:
        how = "" if estimate is None else ", and the same below a needle"
        measured = (
            f"{100 * share:.2g} % of the surface is measured (touched at one point only, nothing "
            f"else within {CERTAIN_SIGMAS:.0f} sigma{how}); elsewhere the surface is an estimate "
            "below the upper bound."
        )
    statements = [
        measured,
        "There is no lower bound where the tip did not touch: pits may be deeper than shown.",
        f"{100 * touching:.0f} % of the tip's pixels touched the surface; the others are only "
        "known to be low enough.",
    ]
    if estimate is None:
        return statements
    statements.insert(0, f"Blind estimate of the tip: {describe(estimate)}.")
    statements.insert(
        1,
        "A blind estimate is the bluntest tip that the image admits. Sharper ones, down to a "
        "needle, may have taken the image as well: a scan bounds the tip from the blunt side only, "
        "and tells nothing of its place below the image.",
    )
    if not estimate.free_form:
        statements.append(
            "Errors of the tip's parameters are those of the noise alone, with the surface as "
            "estimated; how blunt the tip is at all is the larger question."
        )
    else:
        statements.append(
            "The tip was reshaped pixel by pixel, so it has no parameters with error bars; "
            "tip_steps=0 keeps the parametric tip."
        )
    return statements

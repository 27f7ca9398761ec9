"""What is told of a denoised image: its error, and whether it is to be trusted."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem
from micjax.inference.solution import Solution
from micjax.io import Field, FieldAxis
from micjax.io.fields import image_axes
from micjax.physics.noise import Poisson

SURE = 2.0  # standard errors


def conclude(solution: Solution, x: Int[Array, "n"], y: Float[Array, "n h w"]) -> Solution:
    """With the image, its error, the drift, and what the held-out quanta say."""
    problem, arrays = solution.problem, solution.fit.arrays
    if "image" not in arrays:
        return solution  # interrupted before
    unit = "counts" if isinstance(problem.noise, Poisson) else ""
    axes = _axes(problem)
    frames = len(y) if unit else 1
    errors = {"errors": arrays["sd"] / frames} if "sd" in arrays else {}
    image = Field(np.asarray(problem.forward.image, float), axes, unit, "image", errors)
    measured = Field(np.asarray(y, float).mean(axis=0), axes, unit, "measured")
    law = problem.noise(problem.forward(x))
    off = np.sum((np.asarray(y) - law.mean) / np.sqrt(law.variance), axis=0) / np.sqrt(len(y))
    residual = Field(np.asarray(off, float), axes, "standard deviations", "residual")
    return dataclasses.replace(
        solution,
        results={"image": image, "measured": measured, "residual": residual},
        metrics=dict(solution.metrics)
        | {"held_out_loss": float(np.nanmin(arrays["net.held_out"]))},
        table=_drift_rows(np.asarray(problem.forward.drift_px)),
        statements=[*_statements(arrays), *solution.statements],
        extra={n: arrays[n] for n in ("net.losses", "net.held_out", "filters") if n in arrays},
    )


def intervals(truth: InverseProblem, solution: Solution) -> dict[str, tuple]:
    """Of the image, what it is in truth."""
    image = solution.results.get("image")
    if image is None or "errors" not in image.metadata:
        return {}
    return {"image": (image.data, image.metadata["errors"], np.asarray(truth.forward.image))}


def _axes(problem: InverseProblem) -> tuple[FieldAxis, ...]:
    pixel, shape = problem.forward.pixel_A, problem.forward.image.shape
    if pixel is None:
        return image_axes(shape)
    return image_axes(shape, (0.1 * pixel[0], 0.1 * pixel[1]), "nm")


def _drift_rows(drift_px) -> list[dict[str, Any]]:
    """Of each later frame against the first: the image itself may lie anywhere within a pixel."""
    later = enumerate(drift_px[1:] - drift_px[0], start=1)
    return [
        {"frame": i, "drift y (px)": float(dy), "drift x (px)": float(dx)} for i, (dy, dx) in later
    ]


def _statements(arrays):
    if "filters" not in arrays:
        yield "Interrupted: how good the image is was not looked up."
        return
    width, gain, error = arrays["filters"][np.argmin(arrays["filters"][:, 1])]
    rival = f"a Gaussian filter of {width:g} px, the best of them"
    told = f"{abs(gain):.3g} nats (standard error {error:.2g})"
    if gain > SURE * error:
        yield f"Quanta that the network never saw are foretold better than by {rival}, by {told}."
    elif gain < -SURE * error:
        yield (
            f"NOT TO BE TRUSTED: quanta that the network never saw are foretold worse than by "
            f"{rival}, by {told}: what it shows beyond that filter is made up."
        )
    else:
        yield (
            f"NOT SURE: quanta that the network never saw are foretold as well as by {rival}, "
            f"{told}: what it shows beyond that filter may be made up."
        )

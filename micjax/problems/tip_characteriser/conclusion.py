"""What is told of a tip and its characteriser: maps, error bars, and which fits went astray."""

import dataclasses
import logging
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from micjax.core.problem import InverseProblem, Values
from micjax.inference.errors.nuts import Posterior
from micjax.inference.solution import Solution
from micjax.inference.solve import Fit
from micjax.io import Field, FieldAxis
from micjax.physics.tips.dilation import contacts, dilate
from micjax.problems.tip_characteriser.model import CharacteriserScan
from micjax.problems.tip_characteriser.stages import NEAR, SPREAD, best_basin

log = logging.getLogger("micjax")


def conclude(solution: Solution, x: Int[Array, " n"], y: Float[Array, "n ny nx"]) -> Solution:
    """At the mean of the posterior, with the maps of image and tip, and which starts were wrong."""
    fit, posterior, problem = solution.fit, solution.posterior, solution.problem
    good = best_basin(fit)
    log.info("%d of %d starts end within %g nats of the best", good.sum(), len(good), NEAR)
    guess = problem.at(fit.begun[0]).forward.tip()
    if posterior is not None:
        problem = problem.at({n: v.astype(float) for n, v in posterior.mean().items()})
    forward = problem.forward
    tip, model = np.asarray(forward.tip()), np.asarray(forward(x))
    image = np.asarray(y)
    classical = characterised(y[0] - forward.height_nm, forward.surface_nm[x[0]], tip.shape)
    errors = {} if posterior is None else {"errors": _tip_sd(problem, posterior)}
    pixel = np.asarray(forward.tip.pixel_nm, float)
    maps = {"image": image, "model": model, "residual": image - model}
    results = {"tip": _field(tip, pixel, "tip", errors)}
    results |= {n: _field(a[0] if len(a) == 1 else a, pixel, n) for n, a in maps.items()}
    results["classical_tip"] = _field(np.asarray(classical), pixel, "classical_tip")
    results["tip_touches"] = _field(touched(forward, x), pixel, "tip_touches")
    metrics = {n: v for n, v in solution.metrics.items() if n != "residual_rms"} | {
        "noise_nm": float(problem.noise.sigma),
        "residual_rms_nm": float(np.sqrt(np.mean(maps["residual"] ** 2))),
        "tip_pixels_touching": float(results["tip_touches"].data.mean()),
    }
    return dataclasses.replace(
        solution,
        problem=problem,
        results=results,
        metrics=metrics,
        table=[] if posterior is None else _table(posterior),
        statements=[*_statements(fit, good, posterior), *solution.statements],
        extra={
            "good": good,
            "near": NEAR,
            "guess": np.asarray(guess),
            "from": _offsets(fit.begun),
            "to": _offsets(fit.starts_values),
        },
    )


def _offsets(values: list[Values]) -> Float[np.ndarray, "starts 2"]:
    return np.array([np.asarray(v["forward.tip.offset_nm"]) for v in values])


def _statements(fit: Fit, good, posterior: Posterior | None) -> list[str]:
    statements = [_of_starts(fit.starts_losses, good)]
    if posterior is None:
        return [*statements, "The posterior was not sampled: there are no error bars."]
    return [*statements, f"The chains began {SPREAD:.0f} times wider than the posterior."]


def _of_starts(losses: np.ndarray, good) -> str:
    n = len(losses)
    text = f"{good.sum()} of {n} starts end within {NEAR:.0f} nats of the best loss"
    if not good.all():
        above = np.min(losses[~good]) - losses.min()
        which = ", ".join(str(i) for i in np.flatnonzero(~good))
        text += f"; starts {which} end in other basins, the nearest {above:.3g} nats above"
    text += "."
    if n > 1 and good.sum() < 2:
        text += " The best was found once only, there may be a better one: distrust it, or raise "
        text += "the number of starts."
    return text


def characterised(
    image: Float[Array, "ny nx"], surface: Float[Array, "ny nx"], size: tuple[int, int]
) -> Float[Array, "ky kx"]:
    """The classical estimate: the image eroded by the characteriser, min_x I(x) - S(x + u).

    An upper bound of the tip T(u) without noise (Villarrubia 1997, J. Res. NIST 102, 425, sec. 5);
    the apex is put at 0, which takes away most of the bias of a minimum over noise.
    """
    pad = [(n // 2, n // 2) for n in size]
    padded = jnp.pad(surface, pad, constant_values=-jnp.inf)
    offsets = jnp.stack(jnp.meshgrid(*map(jnp.arange, size), indexing="ij"), -1).reshape(-1, 2)

    def bound(offset):
        return jnp.min(image - jax.lax.dynamic_slice(padded, offset, image.shape))

    heights = jax.lax.map(bound, offsets).reshape(size)
    return heights - jnp.max(heights)


def touched(forward: CharacteriserScan, x: Int[Array, " n"]) -> Bool[np.ndarray, "ky kx"]:
    """Tip pixels that touch the characteriser somewhere; the scan says nothing of the others."""
    tip = forward.tip()

    def last(surface):
        image = dilate(surface, tip)
        rounding = 32 * jnp.finfo(image.dtype).eps * jnp.max(jnp.abs(image))
        return contacts(image, surface, tip, rounding)[1]

    touched_pixels = np.zeros(tip.size, bool)
    touched_pixels[np.unique(np.asarray(jax.vmap(last)(forward.surface_nm[x])))] = True
    return touched_pixels.reshape(tip.shape)


def _tip_sd(problem: InverseProblem, posterior: Posterior) -> Float[np.ndarray, "ky kx"]:
    """Posterior standard deviation of each height of the tip (nm), from 200 draws."""
    flat = posterior.flat()
    some = np.linspace(0, len(next(iter(flat.values()))) - 1, 200).astype(int)
    draws = {n: jnp.asarray(d[some], dtype=float) for n, d in flat.items()}
    heights = eqx.filter_jit(jax.vmap(lambda v: problem.at(v).forward.tip()))(draws)
    return np.asarray(jnp.std(heights, axis=0))


def _field(data: np.ndarray, pixel: np.ndarray, name: str, metadata=None) -> Field:
    axes = [
        FieldAxis(n, np.arange(k) * float(d), "nm")
        for n, k, d in zip("yx", data.shape[-2:], pixel, strict=True)
    ]
    if data.ndim == 3:
        axes.insert(0, FieldAxis("frame", np.arange(len(data)), ""))
    return Field(data, tuple(axes), "" if data.dtype == bool else "nm", name, metadata or {})


def _table(posterior: Posterior) -> list[dict[str, Any]]:
    kept = ("mean", "sd", "r_hat", "ess")
    return [
        {"quantity": row["name"].removeprefix("forward.")} | {c: row[c] for c in kept}
        for row in posterior.summary()
    ]

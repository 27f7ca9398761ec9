"""The tip, with error bars, from the scan of a known characteriser: a double tip in five numbers.

    image = dilate(known surface, Double(radius, half-angle, offset, drop)) + noise

The posterior has wrong basins: a second apex on the wrong side, or one that touches nothing, has no
gradient to the right place. So many points are drawn from the priors, the best of them are fitted
side by side, the fits that end above the best loss are set aside, and the NUTS chains start spread
about the others.
"""

import dataclasses
import logging
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Bool, Float, Int

from micjax.core.checks import not_negative, positive
from micjax.core.problem import InverseProblem, Values, parameter
from micjax.inference.attempt import attempt
from micjax.inference.errors.laplace import laplace
from micjax.inference.errors.nuts import Posterior, nuts
from micjax.inference.solution import Solution
from micjax.inference.solve import Fit, fit
from micjax.inference.solvers.first_order import Adam
from micjax.inference.starts.draw import draw_starts
from micjax.io import Axis, Field, check_image, read
from micjax.physics.noise import Gaussian
from micjax.physics.tips.dilation import contacts, dilate
from micjax.physics.tips.shapes import Double, size_pair
from micjax.problems.shared.heights import heights_nm
from micjax.problems.tip_characteriser.show import figures as figures

log = logging.getLogger("micjax")

NEAR = 5.0  # nats above the best loss, within which another end point is as good an explanation
SPREAD = 3.0  # chains start so many Laplace standard deviations about where the fits ended
SETTLED = 1.01  # r_hat above which chains do not agree


class CharacteriserScan(eqx.Module):
    """Scans of known surfaces with one tip. `x` says which of the surfaces to image.

    `height_nm` is where the scan's zero stands above that of the surface.
    """

    surface_nm: Float[Array, "frames ny nx"] = parameter()
    tip: Double
    height_nm: Float[Array, ""] = parameter(default=0.0)

    def __call__(self, x: Int[Array, " n"]) -> Float[Array, "n ny nx"]:
        tip = self.tip()
        return jax.vmap(lambda s: dilate(s, tip))(self.surface_nm[x]) + self.height_nm


def sharp_cones(
    ny: int, nx: int, pixel_nm, pitch_nm: float, height_nm: float, half_angle_deg: float
) -> Float[Array, "ny nx"]:
    """Heights (nm) of sharp cones on a flat ground in a square lattice, like a TGT1 grating."""
    away = []
    for n, step in zip((ny, nx), np.broadcast_to(pixel_nm, (2,)), strict=True):
        place = jnp.arange(n) * float(step) / pitch_nm
        away.append(pitch_nm * (place % 1.0 - 0.5))  # from the cone in the middle of the cell
    r = jnp.hypot(away[0][:, None], away[1][None, :])
    return jnp.maximum(height_nm - r / jnp.tan(jnp.deg2rad(half_angle_deg)), 0.0)


def problem(
    ny: int = 48,
    nx: int = 48,
    pixel_nm: float | list = 1.0,
    tip_size: int = 17,
    sigma_nm: float = 0.3,
    pitch_nm: float = 24.0,
    cone_height_nm: float = 12.0,
    cone_half_angle_deg: float = 14.0,
    characteriser: str | None = None,
    registration_nm: float = 0.0,
) -> InverseProblem:
    """A double tip above a known surface of `ny` x `nx` pixels.

    The second apex is the lower one (`drop_nm` >= 0), which tells the two apart: exchanged labels
    are the same tip only in the limit of no drop, and with a registered scan not even there.

    **Arguments:**

    - `ny`: lines of the image.
    - `nx`: pixels of a line.
    - `pixel_nm`: pixel size, a number or [dy, dx].
    - `tip_size`: pixels of the tip along each side, odd.
    - `sigma_nm`: rms noise, as far as it is known; it is fitted.
    - `pitch_nm`: distance of the cones of the made-up characteriser.
    - `cone_height_nm`: their height.
    - `cone_half_angle_deg`: between their axis and flank.
    - `characteriser`: a file with the heights of the known surface, in place of the cones.
    - `registration_nm`: how well scan and surface are laid upon each other, rms, in all three
        directions; above 0 the place of the tip is fitted too.

    **Raises:** `ValueError` for even tip sizes, tips larger than the image, sizes and noise that
    are not positive, and a characteriser of another shape or pixel size.
    """
    pixel = np.broadcast_to(np.asarray(pixel_nm, float), (2,))
    not_negative(registration_nm=registration_nm)
    positive(
        ny=ny,
        nx=nx,
        pixel_nm=pixel_nm,
        sigma_nm=sigma_nm,
        pitch_nm=pitch_nm,
        cone_height_nm=cone_height_nm,
    )
    if not 0 < cone_half_angle_deg < 90:
        raise ValueError(f"cone_half_angle_deg = {cone_half_angle_deg}: must be between 0 and 90")
    size = size_pair(tip_size)
    if size[0] > ny or size[1] > nx:
        raise ValueError(f"the tip of {size} pixels is larger than the image of {(ny, nx)}")
    if characteriser is None:
        surface = sharp_cones(ny, nx, pixel, pitch_nm, cone_height_nm, cone_half_angle_deg)
    else:
        surface = _known_surface(characteriser, (ny, nx), pixel)

    reach = float(np.min(np.array(size) // 2 * pixel))
    tip = Double(reach / 2, 20.0, (0.0, reach / 2), reach / 4, pixel_nm=pixel, size=size)
    priors: dict[str, dist.Distribution] = {
        "forward.tip.radius_nm": dist.LogNormal(np.log(reach / 2), 0.7),
        "forward.tip.half_angle_deg": dist.TruncatedNormal(20.0, 10.0, low=3.0, high=60.0),
        "forward.tip.offset_nm": dist.Normal(0.0, reach / 2),
        "forward.tip.drop_nm": dist.HalfNormal(reach / 2),
        "noise.sigma": dist.LogNormal(np.log(sigma_nm), 1.0),
    }
    if registration_nm > 0:
        priors["forward.tip.origin_nm"] = dist.Normal(0.0, registration_nm)
        priors["forward.height_nm"] = dist.Normal(0.0, registration_nm)
    return InverseProblem(CharacteriserScan(surface[None], tip), Gaussian(sigma_nm), priors)


def _known_surface(file: str, shape: tuple[int, int], pixel: np.ndarray) -> np.ndarray:
    """Heights (nm) of the file, above their lowest."""
    field = check_image(read(file, None, [float(p) for p in pixel]))
    if field.data.shape != shape:
        raise ValueError(
            f"{file}: {field.data.shape} pixels, the scan has {shape}; the characteriser must be "
            "given on the pixels of the scan"
        )
    heights = heights_nm(field)
    return heights - heights.min()


def example(
    key, ny: int = 48, nx: int = 48, sigma_nm: float = 0.3
) -> tuple[InverseProblem, Int[Array, " n"], Float[Array, "n ny nx"]]:
    """Cones of 12 nm under a tip of 3 nm radius with a second apex 4.3 nm away and 1 nm lower."""
    truth = problem(ny, nx, sigma_nm=sigma_nm).at(
        {
            "forward.tip.radius_nm": 3.0,
            "forward.tip.half_angle_deg": 18.0,
            "forward.tip.offset_nm": jnp.array([1.5, 4.0]),
            "forward.tip.drop_nm": 1.0,
        }
    )
    x = jnp.arange(1)
    return truth, x, truth.noise(truth.forward(x)).sample(key)


def load(
    file,
    characteriser: str,
    channel: str | None = None,
    pixel_nm: float | list | None = None,
    registration_nm: float = 1.0,
    height_unit: str | None = None,
) -> tuple[dict[str, Any], Int[Array, " n"], Float[Array, "n ny nx"]]:
    """A levelled scan of a known surface, and that surface on the same pixels.

    **Arguments:**

    - `characteriser`: a file with the heights of the known surface.
    - `channel`: which image of the scan's file; the height if not given.
    - `pixel_nm`: pixel size where the scan's file does not state one.
    - `registration_nm`: how well the two are laid upon each other, rms.
    - `height_unit`: of the scan's values where its file states none; nm if they can be that.

    **Raises:** `ValueError` for NaN or constant images, besides what `micjax.io.read` raises.
    """
    field = check_image(read(file, channel, pixel_nm))
    heights, pixel = heights_nm(field, height_unit), np.asarray(field.pixel_nm, float)
    surface = _known_surface(characteriser, heights.shape, pixel)
    # the zero of a scan means nothing; the ground is where the tip loses least
    heights = heights - np.median(heights) + np.median(surface)
    options = {
        "ny": heights.shape[0],
        "nx": heights.shape[1],
        "pixel_nm": [float(p) for p in pixel],
        "characteriser": str(characteriser),
        "registration_nm": registration_nm,
    }
    return options, jnp.arange(1), jnp.asarray(heights, dtype=float)[None]


# --- solving ------------------------------------------------------------------------------------


def solve(
    problem: InverseProblem,
    x: Int[Array, " n"],
    y: Float[Array, "n ny nx"],
    *,
    key,
    checkpoint=None,
    resume: bool = False,
    on_chunk=None,
    draws: int = 256,
    starts: int = 12,
    steps: int = 600,
    chains: int = 4,
    samples: int = 500,
    warmup: int = 500,
) -> Solution:
    """Fits from everywhere, then chains about the best of them.

    **Arguments:**

    - `draws`: how many points to draw from the priors.
    - `starts`: how many fits side by side: from the given values, and from those draws with the
        smallest residual.
    - `steps`: of each fit.
    - `chains`: how many chains; 0 for the fits alone.
    - `samples`: draws of each chain after the warm-up.
    - `warmup`: transitions of each chain before them.
    """
    y = jnp.asarray(y, dtype=float)
    start_key, spread_key, sample_key = jax.random.split(key, 3)
    drawn = screened_starts(start_key, problem, x, y, draws, starts)
    found = fit(
        problem,
        x,
        y,
        Adam(0.1, steps),
        steps=steps,
        starts=drawn,
        checkpoint=checkpoint,
        resume=resume,
        on_chunk=on_chunk,
    )
    good = best_basin(found)
    log.info("%d of %d starts end within %g nats of the best", good.sum(), starts, NEAR)

    posterior = None
    if chains and found.stop_reason != "interrupted":
        keys, counts = (spread_key, sample_key), (chains, samples, warmup)
        posterior = attempt("posterior draws", _sample, found, good, x, y, *keys, *counts)
    best = found.problem
    if posterior is not None:
        best = best.at({n: v.astype(float) for n, v in posterior.mean().items()})
    return Solution(
        best,
        fit=found,
        posterior=posterior,
        statements=_statements(found, good, posterior),
        extra={
            "good": good,
            "near": NEAR,
            "guess": np.asarray(problem.forward.tip()),
            "from": _offsets(drawn),
            "to": _offsets(found.starts_values),
        },
        **_outputs(best, posterior, x, y),
    )


def screened_starts(key: Array, problem: InverseProblem, x, y, draws: int, n: int) -> list[Values]:
    """The given values, and those `n` - 1 of `draws` points of the priors with the smallest
    residual: most of the others lead into wrong basins.

    Each starts with the noise that its residual looks like: with less, the misfit of a wrong tip
    would be steeper than any step.
    """
    keys = jax.random.split(key, max(draws, n))
    points, rms = _drawn(keys, problem, x, y)
    chosen = np.argsort(np.asarray(rms))[: n - 1]  # NaN comes last
    drawn = [_with_noise({name: v[i] for name, v in points.items()}, rms[i]) for i in chosen]
    return [problem.values(), *drawn]


def _with_noise(point: Values, rms) -> Values:
    return point | {n: jnp.full_like(v, rms) for n, v in point.items() if n == "noise.sigma"}


@eqx.filter_jit
def _drawn(keys: Array, problem: InverseProblem, x, y) -> tuple[Values, Float[Array, " n"]]:
    """Points of the priors, one a key, and the rms of the residual there."""

    def point(key):
        # the second of two starts, the first is always the given values
        values = draw_starts(key, problem, 2)[1]
        return values, jnp.sqrt(jnp.mean((y - problem.at(values).forward(x)) ** 2))

    return jax.lax.map(point, keys)


def best_basin(found: Fit) -> Bool[np.ndarray, " starts"]:
    """Which starts ended within `NEAR` nats of the best; the others are in wrong basins."""
    return found.starts_losses <= found.starts_losses.min() + NEAR


def _offsets(values: list[Values]) -> Float[np.ndarray, "starts 2"]:
    return np.array([np.asarray(v["forward.tip.offset_nm"]) for v in values])


def spread_starts(
    found: Fit, good: Bool[np.ndarray, " starts"], x, y, key: Array, n: int
) -> list[Values]:
    """`n` points wider apart than the posterior, about the ends of the good fits in turn.

    Draws of the Laplace approximation at the best one, `SPREAD` times as wide.
    """
    curvature = laplace(found.problem, x, y)
    ends = [v for v, is_good in zip(found.starts_values, good, strict=True) if is_good]
    drawn = []
    for i, k in enumerate(jax.random.split(key, n)):
        about = dataclasses.replace(
            curvature,
            mean=_flat(found.problem, ends[i % len(ends)], curvature.names),
            covariance=SPREAD**2 * curvature.covariance,
        )
        drawn.append({name: jnp.asarray(v[0]) for name, v in about.sample(k, 1).items()})
    return drawn


def _flat(problem: InverseProblem, values: Values, names: list[str]) -> np.ndarray:
    theta = problem.unconstrain(values)
    return np.concatenate([np.ravel(theta[n]).astype(float) for n in names])


def _sample(found, good, x, y, spread_key, sample_key, chains, samples, warmup) -> Posterior:
    return nuts(
        found.problem,
        x,
        y,
        sample_key,
        samples=samples,
        warmup=warmup,
        chains=chains,
        starts=spread_starts(found, good, x, y, spread_key, chains),
    )


def _statements(found: Fit, good, posterior: Posterior | None) -> list[str]:
    said = [_of_starts(found.starts_losses, good)]
    if posterior is None:
        return [*said, "The posterior was not sampled: there are no error bars."]
    chains, samples = next(iter(posterior.draws.values())).shape[:2]
    worst = max(float(np.nanmax(r)) for r in posterior.r_hat().values())
    fewest = min(float(np.nanmin(e)) for e in posterior.ess().values())
    said.append(
        f"{chains} chains of {samples} draws from starts {SPREAD:.0f} times wider than the "
        f"posterior: r_hat at most {worst:.4f}, at least {fewest:.0f} independent draws."
    )
    if posterior.divergences:
        said.append(f"{posterior.divergences} transitions diverged: distrust the draws.")
    else:
        said.append("No transition diverged.")
    if not worst <= SETTLED:
        said.append("The chains do not agree yet: sample longer.")
    return said


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


# --- what is shown ------------------------------------------------------------------------------


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

    found = np.zeros(tip.size, bool)
    found[np.unique(np.asarray(jax.vmap(last)(forward.surface_nm[x])))] = True
    return found.reshape(tip.shape)


def _outputs(problem: InverseProblem, posterior: Posterior | None, x, y) -> dict[str, Any]:
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
    return {
        "results": results,
        "metrics": {
            "noise_nm": float(problem.noise.sigma),
            "residual_rms_nm": float(np.sqrt(np.mean(maps["residual"] ** 2))),
            "tip_pixels_touching": float(results["tip_touches"].data.mean()),
        },
        "table": [] if posterior is None else _table(posterior),
    }


def _tip_sd(problem: InverseProblem, posterior: Posterior) -> Float[np.ndarray, "ky kx"]:
    """Posterior standard deviation of each height of the tip (nm), from 200 draws."""
    flat = posterior.flat()
    some = np.linspace(0, len(next(iter(flat.values()))) - 1, 200).astype(int)
    draws = {n: jnp.asarray(d[some], dtype=float) for n, d in flat.items()}
    heights = eqx.filter_jit(jax.vmap(lambda v: problem.at(v).forward.tip()))(draws)
    return np.asarray(jnp.std(heights, axis=0))


def _field(data: np.ndarray, pixel: np.ndarray, name: str, metadata=None) -> Field:
    axes = [
        Axis(n, np.arange(k) * float(d), "nm")
        for n, k, d in zip("yx", data.shape[-2:], pixel, strict=True)
    ]
    if data.ndim == 3:
        axes.insert(0, Axis("frame", np.arange(len(data)), ""))
    return Field(data, tuple(axes), "" if data.dtype == bool else "nm", name, metadata or {})


def _table(posterior: Posterior) -> list[dict[str, Any]]:
    kept = ("mean", "sd", "r_hat", "ess")
    return [
        {"quantity": row["name"].removeprefix("forward.")} | {c: row[c] for c in kept}
        for row in posterior.summary()
    ]


def compare(solution: Solution, x, y, truth: InverseProblem) -> list[dict[str, Any]]:
    """Each number against the truth in standard deviations, then tips by their heights where the
    true tip touches, up to a constant."""
    rows, true = [], truth.values()
    if solution.posterior is not None:
        mean, sd = solution.posterior.mean(), solution.posterior.sd()
        for name, index, label in elements(true):
            value, m, s = (float(np.asarray(a[name])[index]) for a in (true, mean, sd))
            rows.append(
                {"quantity": label, "truth": value, "mean": m, "sd": s, "z": (m - value) / s}
            )
    tip = np.asarray(truth.forward.tip())
    touching = touched(truth.forward, x)
    tips = {
        "first guess (the given values)": solution.extra["guess"],
        "classical (image eroded by the characteriser)": solution.results["classical_tip"].data,
        "micjax": solution.results["tip"].data,
    }
    for name, heights in tips.items():
        # without the mean, which charges no method with the bias of its zero
        error = float(np.std((heights - tip)[touching]))
        rows.append({"quantity": f"tip: {name}", "rms error (nm)": error})
    return rows


def elements(values: Values) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, index, short label) of each scalar in `values`."""
    return [
        (n, i, n.removeprefix("forward.") + (f"[{','.join(map(str, i))}]" if i else ""))
        for n, v in values.items()
        for i in np.ndindex(np.shape(v))
    ]

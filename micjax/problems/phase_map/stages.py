"""How `micjax.problems.phase_map` is solved: templates first, then the map of the whole image."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem
from micjax.inference.solvers.first_order import Adam
from micjax.inference.stage import Arrays, Search, Stage
from micjax.physics.patches.mapping import PatchScale, phase_map, scaled
from micjax.physics.patches.unmixing import equivariant, phases
from micjax.problems.phase_map.model import PatchMixture, SampledPatches

SCALE = PatchScale(1.0, 0.05, 1.0)  # what is weaker by more is not scaled up to a crystal's
TINY = 1e-3  # where a logarithm is taken of what may be nothing
LEARNING = {"starts": 2, "trial_steps": 4, "steps": 12}
TEMPLATE, WEIGHT, ANGLE = (f"forward.{n}" for n in ("template", "weight", "angle_rad"))
SIGMA, MODEL_ERROR = "noise.sigma", "noise.model_error"
UNKNOWNS = (TEMPLATE, WEIGHT, ANGLE, SIGMA, MODEL_ERROR)


def stages(
    problem: InverseProblem, x: SampledPatches, y: Float[Array, "n r t"], *, steps: int = 20
) -> list:
    """Templates and the number of phases; weights, angles and noise by gradient; the map.

    **Arguments:**

    - `steps`: of Adam, on weights, angles and noise, with the templates as they were found.
    """
    free = [n for n in UNKNOWNS[1:] if n in problem.priors]
    refine = Stage(Adam(2e-3, steps), steps, min(20, steps), free=free)
    return [Search(_dictionary, _with_dictionary, "phases"), refine, Search(_mapped, title="map")]


def _dictionary(problem: InverseProblem, x: SampledPatches, y, key, report) -> Arrays:
    """The templates, as many as are wanted or as there are, and the atoms of each patch."""
    forward = problem.forward
    most, wanted = len(forward.template), forward.phases
    above = _above_noise(problem, y)
    rings = scaled(above, SCALE)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    tried, learnt = [], []
    if wanted == 0:
        for trial, dictionary in phases.trials(rings, most + 1, rng, **LEARNING):
            tried.append(trial)
            learnt.append(dictionary)
            report(0.9 * len(tried) / (most + 1), f"{trial.count}: residual {trial.residual:.3g}")
        wanted = min(phases.chosen(tried), most)
    else:
        learnt = wanted * [equivariant.learn(rings, wanted, rng, **LEARNING)]
    templates, _ = strongest_at_zero(learnt[wanted - 1].templates)
    code, turns = equivariant.located(rings, templates)
    half = templates.shape[-1] / 2
    angle = ((turns + half) % (2 * half) - half) * np.pi / (2 * half)
    # the patches as they are, not of length 1
    length = jnp.sqrt(jnp.sum(above**2, axis=(1, 2)) / jnp.sum(rings**2, axis=(1, 2)))
    weight = jnp.maximum(code.weight * length[:, None], TINY)
    smallest = _smallest(forward)
    padded = jnp.full_like(forward.template, smallest)
    padded = padded.at[:wanted].set(jnp.maximum(templates, smallest))
    values = {TEMPLATE: padded, WEIGHT: weight, ANGLE: angle}
    start = eqx.tree_at(lambda p: p.forward.phase, problem.at(values), code.phase)
    sigma, model_error = _noise_of(start, x, y)
    arrays = {
        "template": padded,
        "weight": weight,
        "angle_rad": angle,
        "phase": code.phase,
        "sigma": sigma,
        "model_error": model_error,
        "tried": np.array([tuple(t) for t in tried]).reshape(-1, len(phases.Trial._fields)),
    }
    return {name: np.asarray(array) for name, array in arrays.items()}


def _above_noise(problem: InverseProblem, y) -> Float[Array, "n r t"]:
    """Without the noise that the outermost radii show, see `noise_variance`."""
    polar = problem.forward.polar
    rim = max(1, round(0.1 * polar.radii))
    power = (y / polar.area)[:, -rim:] ** 2
    return polar.above(y, jnp.median(power, axis=(1, 2)) / np.log(2.0))


def _noise_of(problem: InverseProblem, x, y) -> tuple[Float[Array, "r 1"], Float[Array, ""]]:
    """Noise where the prediction is next to nothing, what is beyond it where it is large."""
    prediction, sigma = problem.forward(x), problem.noise.sigma
    dark, bright = prediction < sigma, prediction > 5.0 * sigma
    # Rayleigh's law has its median at sigma (2 log 2)^1/2
    median = jnp.nanmedian(jnp.where(dark, y, jnp.nan), axis=(0, 2))[:, None] / np.sqrt(np.log(4.0))
    sigma = jnp.where(jnp.isfinite(median) & (median > 0.0), median, sigma)
    excess = jnp.where(bright, (y - prediction) ** 2 - sigma**2, 0.0)
    share = jnp.sum(excess) / jnp.maximum(jnp.sum(jnp.where(bright, prediction**2, 0.0)), 1e-30)
    return sigma, jnp.sqrt(jnp.clip(share, 1e-4, 1.0))


def strongest_at_zero(
    templates: Float[Array, "k r t"],
) -> tuple[Float[Array, "k r t"], Int[Array, "k"]]:
    """Turned so that the strongest reflection is along x, and by how many steps each was turned.

    Then an angle is that of a direction in the image.
    """
    by = templates.shape[-1] // 2 - jnp.argmax(jnp.max(templates, axis=1), axis=-1)
    return equivariant.turned(templates, by), by


def _with_dictionary(problem: InverseProblem, arrays: Arrays) -> InverseProblem:
    phase = jnp.asarray(arrays["phase"])
    problem = eqx.tree_at(lambda p: p.forward.phase, problem, phase)
    return problem.at({n: arrays[n.rpartition(".")[2]] for n in UNKNOWNS})


def templates_of(forward: PatchMixture) -> Float[Array, "k r t"]:
    """Those that are of a phase."""
    count = int(np.sum(np.asarray(forward.template).max((1, 2)) > 2 * _smallest(forward)))
    return forward.template[:count]


def _smallest(forward: PatchMixture) -> float:
    return float(TINY / np.sqrt(forward.template[0].size))


def _mapped(problem: InverseProblem, x: SampledPatches, y, key, report) -> Arrays:
    """Phase, angle and residuals of each pixel of the image."""
    forward = problem.forward
    templates = templates_of(forward)
    code, _ = equivariant.located(scaled(_above_noise(problem, y), SCALE), templates)
    scale = SCALE._replace(weight=float(np.quantile(np.asarray(code.weight).sum(axis=1), 0.9)))
    mapped = phase_map(
        np.asarray(x.image),
        None if x.measured is None else np.asarray(x.measured),
        forward.polar,
        templates,
        scale,
        forward.cell_A / forward.polar.local.sampling_A,
        lambda share: report(share, "tiles"),
    )
    return {f"map_{name}": array for name, array in mapped._asdict().items()}

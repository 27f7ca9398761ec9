"""Phases and grains in an image of crystals at atomic resolution, whatever their orientations.

    |F_p(r, t)| = sum_i weight_pi template_k(p,i)(r, t - angle_pi), with Rician noise

The spectrum of a patch is a sum of few templates, one for each phase, turned by angles of their
own. Templates are learnt from patches that lie within one grain; then each grain predicts the
pixels around it by its own waves, and those it predicts best are its own.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem
from micjax.core.ranges import positive
from micjax.physics.patches.polycrystal import PlaneLattice, Polycrystal, polycrystal
from micjax.physics.patches.unmixing.equivariant import turned
from micjax.problems.phase_map.conclusion import conclude as conclude
from micjax.problems.phase_map.data import load as load
from micjax.problems.phase_map.data import polar_for
from micjax.problems.phase_map.data import prepare as prepare
from micjax.problems.phase_map.model import (
    PatchMixture,
    RicianWithModelError,
    SampledPatches,
    Truth,
)
from micjax.problems.phase_map.naming import candidates
from micjax.problems.phase_map.show import compare as compare
from micjax.problems.phase_map.show import figures as figures
from micjax.problems.phase_map.stages import stages as stages
from micjax.problems.phase_map.stages import strongest_at_zero


def problem(
    phases: int = 0,
    most_phases: int = 6,
    patches: int = 160,
    pixel_A: float = 0.3125,
    window_px: int = 64,
    step_px: int = 8,
    cell_A: float = 5.9,
    k_min_perA: float | None = None,
    k_max_perA: float = 0.8,
    radii: int = 32,
    angles: int = 90,
    noise_sd: float = 0.002,
    structures: str | None = None,
) -> InverseProblem:
    """SampledPatches of an image, each with two atoms of a phase at an angle.

    **Arguments:**

    - `phases`: how many; 0: as many as the patches show.
    - `most_phases`: how many there are at most, if it is not known.
    - `patches`: how many are learnt from.
    - `pixel_A`: edge of a pixel.
    - `window_px`: edge of a patch.
    - `step_px`: distance of neighbouring patches of the map.
    - `cell_A`: about the edge of a unit cell; borders are drawn over a fifth of it.
    - `k_min_perA`: the lowest frequency, slower ones being thickness; by default one of which a
        window holds two periods and a half.
    - `k_max_perA`: the highest frequency.
    - `radii`: of the polar spectra.
    - `angles`: of the polar spectra, over half a turn.
    - `noise_sd`: of the real and of the imaginary part of a spectrum, over the length of that of a
        patch of one grain; within a factor of two.
    - `structures`: a file of a crystal (CIF and others), or a folder of such files, to name the
        phases by.

    **Raises:** `ValueError` for more phases than patches, numbers that are not positive, and
    frequencies that are none of these pixels.
    """
    positive(patches=patches, most_phases=most_phases, cell_A=cell_A, noise_sd=noise_sd)
    most = most_phases if phases == 0 else phases
    if most > patches and phases:
        raise ValueError(f"{phases} phases of {patches} patches: there are more phases")
    polar = polar_for(
        {
            "pixel_A": pixel_A,
            "window_px": window_px,
            "step_px": step_px,
            "k_min_perA": k_min_perA,
            "k_max_perA": k_max_perA,
            "radii": radii,
            "angles": angles,
        }
    )
    even = 1.0 / np.sqrt(radii * angles)
    forward = PatchMixture(
        np.full((most, radii, angles), even),
        np.tile([0.9, 0.1], (patches, 1)),
        np.zeros((patches, 2)),
        jnp.zeros((patches, 2), int),
        polar,
        cell_A,
        phases,
        known=None if structures is None else candidates(structures, polar),
    )
    sigma = noise_sd * polar.area
    return InverseProblem(
        forward,
        RicianWithModelError(sigma, 0.05),
        {
            "forward.template": dist.HalfNormal(even),
            "forward.weight": dist.HalfNormal(1.0),
            "forward.angle_rad": dist.Normal(0.0, 0.5 * np.pi),
            "noise.sigma": dist.LogNormal(np.log(sigma), 0.7),
            "noise.model_error": dist.LogNormal(np.log(0.05), 1.0),
        },
    )


def palladium_selenides() -> list[PlaneLattice]:
    """PdSe2 along c (Pbca), and a lattice like that of Pd2Se3; columns as bright as Z^1.7."""
    pd, se = 46.0**1.7, 34.0**1.7
    first = [[0.0, 0.0], [0.5, 0.5], [0.388, 0.883], [0.612, 0.117], [0.888, 0.617], [0.112, 0.383]]
    second = [[0.25, 0.0], [0.75, 0.0], [0.25, 0.5], [0.75, 0.5], [0.0, 0.25], [0.5, 0.75]]
    second += [[0.0, 0.8], [0.5, 0.2], [0.0, 0.62], [0.5, 0.38]]
    return [
        PlaneLattice(np.diag([5.75, 5.87]), np.array(first), np.array(2 * [pd] + 4 * [se])),
        PlaneLattice(np.diag([5.98, 6.08]), np.array(second), np.array(4 * [pd] + 6 * [se])),
    ]


def example(
    key,
    ny: int = 512,
    nx: int = 512,
    grains: int = 8,
    electrons_per_px: float = 60.0,
    window_px: int = 64,
    step_px: int = 8,
    patches: int = 160,
    radii: int = 32,
    angles: int = 90,
) -> tuple[InverseProblem, SampledPatches, Float[Array, "n r t"]]:
    """Grains of two palladium selenides at random angles, as bright as each other."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    lattices = palladium_selenides()
    crystal = polycrystal(rng, lattices, (ny, nx), grains=grains, electrons_per_px=electrons_per_px)
    options, x, y = prepare(
        crystal.image,
        0.3125,
        phases=len(lattices),
        window_px=window_px,
        step_px=step_px,
        cell_A=5.9,
        k_max_perA=0.8,
        patches=patches,
        radii=radii,
        angles=angles,
    )
    return _known(problem(**options), crystal, x, y), x, y


def _known(truth: InverseProblem, crystal: Polycrystal, x: SampledPatches, y) -> InverseProblem:
    """With what is known of a polycrystal; the templates are means of its own patches."""
    forward = truth.forward
    polar, angles = forward.polar, forward.template.shape[-1]
    share, grain = _largest_two(crystal.grain, np.asarray(x.corner_px), polar.local)
    phase, turn = crystal.phase_of_grain[grain], crystal.angle_rad[grain]
    rings = polar.above(y, 2.0 * float(jnp.mean((truth.noise.sigma / polar.area) ** 2)))
    straight = turned(rings, jnp.asarray(-np.round(turn[:, 0] / np.pi * angles).astype(int)))
    alone = (share[:, 0] > 0.95)[:, None] * (phase[:, :1] == np.arange(len(forward.template)))
    template = jnp.einsum("nk,nrt->krt", jnp.asarray(alone, float), straight)
    template, at = strongest_at_zero(jnp.maximum(template, 1e-3 * template.max()))
    template = template / jnp.sqrt(jnp.sum(template**2, axis=(1, 2), keepdims=True))
    # from where the grain's axes are to where its strongest reflection is
    angle = (turn - np.asarray(at)[phase] * np.pi / angles + 0.5 * np.pi) % np.pi - 0.5 * np.pi
    known = Truth(jnp.asarray(crystal.phase), jnp.asarray(crystal.angle_rad[crystal.grain], float))
    truth = eqx.tree_at(lambda p: p.forward.phase, truth, jnp.asarray(phase))
    truth = eqx.tree_at(lambda p: p.forward.truth, truth, known, is_leaf=lambda v: v is None)
    return truth.at(
        {
            "forward.template": template,
            "forward.weight": np.maximum(share, 1e-3),
            "forward.angle_rad": angle,
        }
    )


def _largest_two(grain, corners, local) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the window of each patch, and the grains that have them."""
    along = np.asarray(local.weights(), float)
    window = np.outer(along, along).ravel() / along.sum() ** 2
    shares = np.stack(
        [
            np.bincount(
                grain[y : y + local.size, x : x + local.size].ravel(), window, grain.max() + 1
            )
            for y, x in corners
        ]
    )
    order = np.argsort(-shares, axis=1)[:, :2]
    return np.take_along_axis(shares, order, axis=1), order

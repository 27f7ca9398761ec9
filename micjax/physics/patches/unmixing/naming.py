"""Which of some known crystals a template is of, by the law of the magnitudes of its reflections.

A crystal says where reflections are, and about how strong. With intensities p of the template, t of
the crystal and w of reflections of one strength at the same places, all of mean 1 (over the plane
of frequencies),

    p = |N|^2,   N complex normal about ((1 - c) a t)^1/2 of variance (1 - c) (1 - a) w + c

which is the law of magnitudes where a part of a structure is known (Sim 1959; Srinivasan &
Ramachandran 1965, whose sigma_A^2 is a): strengths that nobody knows, a = 0, leave that of Wilson
(1949). The agreement a, the share c of what is no reflection, and the width of a column are
averaged over.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import i0e, logsumexp
from jaxtyping import Array, Float

from micjax.physics.patches.polar import Polar
from micjax.physics.patches.polycrystal import PlaneLattice, polycrystal
from micjax.physics.patches.projection import primitive
from micjax.physics.patches.unmixing.equivariant import correlations, turned

ELECTRONS = 1e4  # a pixel: a simulated image has hardly any noise
WIDTH_A = 0.55  # standard deviation of a column in it
AGREEMENTS = (0.0, 0.3, 0.6, 0.85, 0.95, 0.99)
BACKGROUNDS = (0.002, 0.012, 0.07, 0.4)
WIDTHS_A = (0.4, 0.55, 0.75, 1.0)
# amplitudes that a window resolves, for each that counts as one: crystals are not known so well
# that their errors are independent; see experiments/phase_map/naming.py
TEMPER = 2.38


class Pattern(NamedTuple):
    """What a crystal along an axis predicts, for each area of the plane of frequencies."""

    amplitude: Float[Array, "*c r t"]  # of its reflections
    power: Float[Array, "*c r t"]  # if all of them had one strength


class Named(NamedTuple):
    """Of each template and each crystal."""

    log_evidence: Float[np.ndarray, "k c"]  # of a template given a crystal
    agreement: Float[np.ndarray, "k c"]  # the mean of a, given both


def pattern(lattice: PlaneLattice, polar: Polar) -> Pattern:
    """Of a crystal, and of one column in its cell."""
    alone = PlaneLattice(primitive(lattice), np.zeros((1, 2)), np.ones(1))
    amplitude, even = (lattice_template(v, polar) / polar.area for v in (lattice, alone))
    return Pattern(amplitude, even**2)


def lattice_template(
    lattice: PlaneLattice, polar: Polar, width_A: float = WIDTH_A
) -> Float[Array, "r t"]:
    """Of patches of one crystal, of length 1.

    `width_A`: standard deviation of a column in the image.
    """
    edge = 2 * polar.local.size
    options = {"sampling_A": polar.local.sampling_A, "width_A": width_A, "grains": 1}
    rng = np.random.default_rng(0)
    image = polycrystal(rng, [lattice], (edge, edge), electrons_per_px=ELECTRONS, **options).image
    mean = mean_rings(jnp.asarray(image - image.mean()), polar)
    return mean / jnp.sqrt(jnp.sum(mean**2))


@eqx.filter_jit
def mean_rings(image: Float[Array, "h w"], polar: Polar) -> Float[Array, "r t"]:
    """Amplitudes of an image of one crystal: the mean of all its patches."""
    return jnp.mean(polar(polar.local(image)), axis=(0, 1))


def resolved(polar: Polar) -> float:
    """How many amplitudes the window tells apart in half the plane of frequencies."""
    window, radius = np.asarray(polar.local.weights(), float), polar.grid.radius_perA
    # the area over that of the squared correlation of noise, by Parseval's theorem
    edge_A = np.sum(window**2) ** 2 / np.sum(window**4) * polar.local.sampling_A
    return float(0.5 * np.pi * (radius[-1] ** 2 - radius[0] ** 2) * edge_A**2)


def compared(templates: Float[Array, "k r t"], crystals: Pattern, polar: Polar) -> Named:
    """Each template with each crystal and its mirror image (a crystal may lie either way up), at
    the angle that suits best.

    **Arguments:**

    - `templates`: amplitudes as `polar` gives them.
    """
    radius = jnp.asarray(polar.grid.radius_perA)[:, None]
    area = jnp.broadcast_to(radius, templates.shape[1:])
    counts = area / jnp.sum(area) * resolved(polar) / TEMPER
    rows = [_each(v, crystals, counts, radius) for v in jnp.asarray(templates) / polar.area]
    return Named(*(np.stack(of) for of in zip(*rows, strict=True)))


@jax.jit
def _each(template, crystals: Pattern, counts, radius):
    return jax.lax.map(lambda crystal: _evidence(template, crystal, counts, radius), crystals)


def _evidence(template, crystal: Pattern, counts, radius):
    """Log evidence and mean agreement: averages over agreement, background and width."""
    amplitude, power = _aligned(template, crystal, counts)
    observed = _of_mean_1(template**2, counts)

    def log_likelihood(of):
        agreement, background, width_A = of
        # narrower or wider columns than those that were simulated
        blur = jnp.exp(-4.0 * np.pi**2 * radius**2 * (width_A**2 - WIDTH_A**2))
        known = (1.0 - background) * agreement * _of_mean_1(amplitude**2 * blur, counts)
        spread = (1.0 - agreement) * _of_mean_1(power * blur, counts)
        variance = (1.0 - background) * spread + background
        apart = (jnp.sqrt(observed) - jnp.sqrt(known)) ** 2 / variance
        bessel = jnp.log(i0e(2.0 * jnp.sqrt(observed * known) / variance))
        return jnp.max(jnp.sum(counts * (bessel - apart - jnp.log(variance)), axis=(1, 2)))

    grids = jnp.meshgrid(*map(jnp.asarray, (AGREEMENTS, BACKGROUNDS, WIDTHS_A)), indexing="ij")
    each = jax.lax.map(log_likelihood, tuple(g.ravel() for g in grids))
    mean = jnp.sum(jax.nn.softmax(each) * grids[0].ravel())
    return logsumexp(each) - jnp.log(each.size), mean


def _of_mean_1(power, counts):
    mean = jnp.sum(counts * power, axis=(-2, -1), keepdims=True) / jnp.sum(counts)
    return power / jnp.where(mean > 0.0, mean, 1.0)


def _aligned(
    template, crystal: Pattern, counts
) -> tuple[Float[Array, "n r t"], Float[Array, "n r t"]]:
    """The crystal and its mirror image at the two angles at which it correlates best with the
    template, and the two at which its lattice does."""
    amplitude, power = (jnp.stack([v, v[..., ::-1]]) for v in crystal)
    turns = [
        jax.lax.top_k(correlations((counts * template)[None], shapes)[0], 2)[1]
        for shapes in (amplitude, jnp.sqrt(power))
    ]
    turn = jnp.concatenate(turns, axis=1)  # (2, 4)
    each = jnp.repeat(jnp.arange(2), turn.shape[1])
    return turned(amplitude[each], turn.ravel()), turned(power[each], turn.ravel())

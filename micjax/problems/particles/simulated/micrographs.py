"""Micrographs of particles of which no two are alike, drawn inside `jit`, to learn from.

Bright particles (dark ones are seen as their negative) that overlap as projections do, on supports
of larger and softer shapes, with the granular contrast of amorphous carbon, lattice fringes, the
Fresnel fringe of an edge out of focus, diffraction contrast, blur, noise, and what a file keeps of
it. No pixel is pasted from another image. All lengths are in pixels.

Some are looked at too closely or from too far: particles far smaller or larger than what the
network is asked for are background to it, so that it is silent where another zoom speaks (scale
normalisation for image pyramids, Singh and Davis 2018).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.problems.particles.simulated.recorded import ENLARGED, enlarged, halved, stored
from micjax.problems.particles.simulated.shapes import CHANCES, Outlines, outlines, seen_from

PARTICLES, SUPPORTS = 40, 12  # of an image, at most
DIAMETER_PX = (4.5, 85.0)  # the middle one of an image
ASKED_PX = (5.5, 72.0)  # of instances that are looked for
SURELY_NOT_PX = (4.0, 96.0)  # beyond them they are background; between, nothing is asked
LEAST_SEEN = 0.2  # of the area of a particle, or it is not asked for
APART_STEPS = 8


class Micrograph(NamedTuple):
    """An image, and which pixel belongs to which particle; 0: none."""

    image: Float[Array, "y x"]
    labels: Int[Array, "y x"]


class Body(NamedTuple):
    """What is projected: a particle, or a part of the support."""

    outline: Outlines
    place_px: Float[Array, "2"]
    brightness: Float[Array, ""]
    edge_px: Float[Array, ""]
    round: Float[Array, ""]  # 0: a plate, 1: a sphere
    wave: Float[Array, "3"]  # of which fringes inside
    number: Float[Array, ""]  # 0: support


def between(chance, low, high):
    return low + (high - low) * chance


def log_between(chance, low, high):
    return jnp.exp(between(chance, jnp.log(low), jnp.log(high)))


def apart(place: Float[Array, "n 2"], least: Float[Array, "n n"]) -> Float[Array, "n 2"]:
    """Moved until hardly any two are closer than `least`."""

    def step(_, place):
        away = place[:, None] - place[None]
        distance = jnp.sqrt((away**2).sum(-1) + 1e-6)
        push = jnp.maximum(least / distance - 1.0, 0.0) * (1.0 - jnp.eye(len(place)))
        return place + 0.35 * (away * push[..., None]).sum(axis=1).clip(-10.0, 10.0)

    return jax.lax.fori_loop(0, APART_STEPS, step, place)


def smooth(field: Float[Array, "y x"], width_px) -> Float[Array, "y x"]:
    """By a Gaussian; an image goes on at its other side."""
    return _damped(field, _gaussian(field, width_px))


def granular(white: Float[Array, "y x"], width_px) -> Float[Array, "y x"]:
    """White noise of a deviation of one, smoothed, and again of a deviation of one.

    By what is known of the Gaussian: means over smoothed images take minutes to compile.
    """
    gaussian = _gaussian(white, width_px)
    return _damped(white, gaussian) / jnp.sqrt((_gaussian(white, width_px, whole=True) ** 2).mean())


def _gaussian(field, width_px, whole: bool = False):
    frequency = np.fft.fftfreq(field.shape[0])
    other = frequency if whole else np.fft.rfftfreq(field.shape[1])
    return jnp.exp(-2.0 * (jnp.pi * width_px) ** 2 * (frequency[:, None] ** 2 + other**2))


def _damped(field, by):
    return jnp.fft.irfft2(jnp.fft.rfft2(field) * by, s=field.shape)


def micrograph(key: Array, size: int) -> Micrograph:
    """Particles of a mean contrast of about one."""
    of_chance, of_normal = jax.random.split(key)
    # all at once: each call of the generator takes a second to compile
    bodies, each = PARTICLES + SUPPORTS, CHANCES + 9
    uniform = jax.random.uniform(of_chance, (50 + bodies * each,))
    u, own = uniform[:50], uniform[50:].reshape(bodies, each)
    normal = jax.random.normal(of_normal, (5 * size * size + bodies * 2,))
    fields, spread = normal[: 5 * size**2].reshape(5, size, size), normal[5 * size**2 :]
    spread = spread.reshape(bodies, 2)
    # what is drawn is computed once, and not again wherever it is used
    u, own, fields, spread = jax.lax.optimization_barrier((u, own, fields, spread))
    body = jax.lax.optimization_barrier(_bodies(u, own, spread, size))
    thickness, ground, labels = _projected(body, _waves(u, size), size)

    fresnel = jnp.where(u[0] < 0.5, 0.0, between(u[1], -0.8, 0.8))
    ring = thickness - smooth(thickness, between(u[2], 1.0, 4.0))
    particles = thickness + fresnel * ring
    patch = granular(fields[0], log_between(u[4], 12.0, 50.0)) + between(u[5], -1.0, 2.0)
    support = jnp.where(u[6] < 0.4, 1.0, jax.nn.sigmoid(between(u[3], 1.0, 6.0) * patch))
    grain_px = log_between(u[7], 0.6, 4.0)
    grains = granular(fields[1], grain_px) - 0.5 * granular(fields[1], 2.0 * grain_px)
    clouds = granular(fields[2], log_between(u[8], 6.0, 40.0))
    image = particles + ground
    image += support * between(u[9] ** 2, 0.0, 2.0)
    image += support * between(u[10] ** 3, 0.0, 0.5) * grains
    image += support * between(u[11] ** 2, 0.0, 0.8) * clouds
    tilt = (jnp.arange(size) / size - 0.5) * between(u[12] ** 2, 0.0, 4.0)
    image += tilt[:, None] * (u[13] - 0.5) + tilt * (u[14] - 0.5)
    blur = jnp.where(u[40] < 0.4, 0.12 * u[41] * middle_of(u), 0.0)  # small ones out of focus
    image = smooth(image, between(u[15] ** 2, 0.4, 2.0) + jnp.minimum(blur, 4.0))
    noise = log_between(u[16], 0.015, 0.9)
    # counts: less where there is less, down to a vacuum of hardly any
    dark = log_between(u[42], 0.003, 1.0)
    counts = jnp.maximum(image - jnp.minimum(image.min(), 0.0), 0.0) + dark
    noise = noise * jnp.where(u[17] < 0.4, 1.0, jnp.sqrt(counts / (counts.mean() + 1e-6)))
    noisy = granular(fields[3], jnp.where(u[18] < 0.5, 0.0, between(u[19], 0.2, 1.2)))
    lines = jnp.where(u[20] < 0.15, 0.3 * u[21], 0.0) * fields[4, :, :1]
    image = image + noise * noisy + lines
    white = image.min() + between(u[22], 0.4, 1.0) * jnp.ptp(image)  # of the camera
    image = jnp.where(u[23] < 0.1, jnp.minimum(image, white), image)
    levels, coarse = log_between(u[43], 24.0, 256.0), jnp.where(u[44] < 0.5, 0.0, u[45])
    half = halved(image)
    recorded = [jnp.where(u[46] < 0.5, a, stored(a, levels, coarse)) for a in (image, half)]
    image = jnp.where(u[47] < ENLARGED, enlarged(recorded[1]), recorded[0])
    return Micrograph(image, _asked(body, labels))


def middle_of(u) -> Float[Array, ""]:
    return log_between(u[24], *DIAMETER_PX)


def _asked(body: Body, labels):
    """Labels of what is looked for; -1: nothing is asked there."""
    whole = jnp.pi * (body.outline.radius_px**2).mean(axis=-1)
    diameter = 2.0 * jnp.sqrt(whole / jnp.pi)
    visible = jnp.zeros(len(whole) + 1).at[labels].add(1.0)[1:]
    far = (diameter < SURELY_NOT_PX[0]) | (diameter > SURELY_NOT_PX[1])
    unclear = (diameter < ASKED_PX[0]) | (diameter > ASKED_PX[1]) | (visible < LEAST_SEEN * whole)
    number = jnp.arange(1, len(whole) + 1)
    asked = jnp.where(far, 0, jnp.where(unclear, -1, number))
    return jnp.concatenate([jnp.zeros(1, asked.dtype), asked])[labels]


def _waves(u, size: int) -> Float[Array, "3 y x"]:
    """Lattice fringes of three orientations."""
    angle = 2.0 * jnp.pi * (u[39] + jnp.arange(3) / 3.0 + 0.1)
    place = jnp.arange(size) * 2.0 * jnp.pi / between(u[35], 2.5, 8.0)
    y, x = jnp.cos(angle)[:, None] * place, jnp.sin(angle)[:, None] * place
    return jnp.sin(y[:, :, None] + x[:, None, :])


def _bodies(u, own, spread, size: int) -> Body:
    number = jnp.arange(PARTICLES + SUPPORTS)
    particle = number < PARTICLES
    middle = middle_of(u)
    diameter = middle * jnp.exp(between(u[25], 0.05, 0.55) * spread[:, 0])
    large = jnp.maximum(2.5 * middle, 16.0) * log_between(own[:, CHANCES], 1.0, 3.0)
    diameter = jnp.where(particle, jnp.clip(diameter, 3.0, 140.0), large)
    cover = between(u[26] ** 1.3, 0.05, 0.8)
    count = jnp.clip(cover * (1.3 * size) ** 2 / (0.8 * middle**2), 1.0, PARTICLES)
    there = jnp.where(
        particle, (number < count) & (u[29] > 0.05), number - PARTICLES < SUPPORTS * u[27]
    )
    place = size * between(own[:, CHANCES + 1 : CHANCES + 3], -0.15, 1.15)
    heap = size * own[:3, CHANCES + 3 : CHANCES + 5]  # some lie in heaps
    near = heap[number % 3] + spread * diameter[:, None] * 1.5
    place = jnp.where((own[:, CHANCES + 5] < u[28] ** 2)[:, None] & particle[:, None], near, place)
    touching = 0.5 * (diameter[:, None] + diameter[None]) * between(u[29], 0.45, 1.15)
    both = (particle & there)[:, None] & (particle & there)[None]
    place = apart(place, jnp.where(both, touching, 0.0))
    outline = outlines(own[:, :CHANCES], u[30] ** 2 * jnp.where(particle, 1.0, 0.3), 0.5 * diameter)
    rough = jnp.exp(between(u[31], 0.0, 0.5) * spread[:, 1])
    bright = rough * (diameter / middle) ** jnp.where(u[32] < 0.5, 0.0, u[33])
    holes = jnp.where(own[:, CHANCES + 6] < 0.2, -1.0, 1.0)
    ground = holes * between(u[34], 0.1, 1.6) * own[:, CHANCES + 7]
    soft = diameter * between(own[:, CHANCES + 7], 0.02, 0.2)
    strength = jnp.where(u[36] < 0.4, between(u[37], 0.0, 0.6), 0.0) * own[:, CHANCES + 7]
    which = jax.nn.one_hot((3.0 * own[:, CHANCES + 8]).astype(int), 3)
    wave = jnp.where(particle, strength, 0.0)[:, None] * which
    return Body(
        outline,
        place,
        jnp.where(there, jnp.where(particle, bright, ground), 0.0),
        jnp.where(particle, 0.5, soft),
        jnp.where(particle, u[38], 1.0),
        wave,
        jnp.where(particle & there, number + 1.0, 0.0),
    )


def _projected(body: Body, waves, size: int):
    """Thickness of particles and of the support; a pixel of several particles is of that whose edge
    is furthest, where a small one counts more, so that it is seen on a large one."""
    y, x = jnp.meshgrid(*2 * [jnp.arange(float(size))], indexing="ij")

    def add(carry, one_body: Body):
        thickness, ground, deepest, labels = carry
        dy, dx = y - one_body.place_px[0], x - one_body.place_px[1]
        share, inside = seen_from(one_body.outline, dy, dx)
        dome = jnp.sqrt(jnp.maximum(1.0 - share**2, 0.0))
        profile = (
            one_body.round * dome + (1.0 - one_body.round) + jnp.tensordot(one_body.wave, waves, 1)
        )
        edge = jnp.clip(0.5 + 0.5 * inside / one_body.edge_px, 0.0, 1.0)
        drawn = one_body.brightness * profile * edge
        particle = one_body.number > 0
        depth = inside / one_body.outline.inner_px**2
        nearer = particle & (inside > 0) & (depth > deepest)
        return (
            thickness + jnp.where(particle, drawn, 0.0),
            ground + jnp.where(particle, 0.0, drawn),
            jnp.where(nearer, depth, deepest),
            jnp.where(nearer, one_body.number.astype(int), labels),
        ), None

    none = jnp.zeros((size, size))
    carry = (none, none, none, none.astype(int))
    (thickness, ground, _, labels), _ = jax.lax.scan(add, carry, body)
    return thickness, ground, labels

"""Parametric tips in stacks: made on grids, held against images, moved downhill together.

All are `Double` tips with a leading axis in every parameter; a single one has its second apex out
of reach.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Key

from micjax.physics.tips.evidence import (
    RESOLUTION,
    Frames,
    Kernel,
    Scalar,
    admissible,
    misfit,
    misfits,
)
from micjax.physics.tips.shapes import Double

Report = Callable[[str], None]  # says how far it is

_AT_ONCE = 40  # tips in a compiled call, in which no Ctrl-C is heard


class Candidates(NamedTuple):
    """Tips that were tried, in parallel arrays; `shapes` has a leading axis in every parameter."""

    shapes: Double
    misfit: Float[Array, " n"]
    floor: Float[Array, " n"]
    bluntness: Float[Array, " n"]

    def best(self, *allowances: float) -> int:
        """The bluntest one that the first of the allowances admits at which any is, or the nearest
        to admissible."""
        for allowance in allowances:
            passes = admissible(self.misfit, self.floor, allowance)
            if bool(jnp.any(passes)):
                return int(jnp.argmax(jnp.where(passes, self.bluntness, -jnp.inf)))
        return int(jnp.argmin(self.misfit / (self.floor + RESOLUTION)))

    def shape(self, k: int) -> Double:
        return chosen(self.shapes, k)


def single_tips(height_nm: float, pixel_nm, size: tuple[int, int], radii: int = 18) -> Double:
    """Sphere-cones from flat to sharp for features of `height_nm`, as one stacked `Double`.

    `radii` radii, five cone angles, and the apex on a pixel or half a pixel off it, which matters
    for tips as sharp as a pixel.
    """
    pixel = np.broadcast_to(np.asarray(pixel_nm, float), (2,))
    reach_nm = float(np.min(np.array(size) // 2 * pixel))
    # the depth at the edge of the tip in units of the features: 0.05 is nearly flat, 60 a needle
    tried_nm = reach_nm**2 / (2 * height_nm * np.geomspace(0.05, 60, radii))
    halves = (0.0, 0.5)
    grid = np.array(
        [
            (r, a, y * pixel[0], x * pixel[1])
            for r in tried_nm
            for a in (8.0, 15.0, 30.0, 50.0, 70.0)
            for y in halves
            for x in halves
        ]
    )
    n = len(grid)
    return _stacked(
        grid[:, 0],
        grid[:, 1],
        np.zeros((n, 2)),
        np.full(n, 4 * height_nm),
        grid[:, 2:],
        pixel,
        size,
    )


def finer(tip: Double) -> Double:
    """The same tip up to twice as blunt in the radius, and of other cone angles, stacked."""
    angle = float(tip.half_angle_deg)
    grid = [(r, a) for r in np.geomspace(1.0, 2.0, 8) for a in angle * np.geomspace(0.7, 2.0, 6)]
    radius, angles = np.array([(1.0, angle)] + [(r, a) for r, a in grid if a < 80]).T
    n = len(radius)

    def same(values):
        return np.broadcast_to(np.asarray(values), (n, *np.shape(values)))

    return _stacked(
        float(tip.radius_nm) * radius,
        angles,
        same(tip.offset_nm),
        same(tip.drop_nm),
        same(tip.origin_nm),
        np.asarray(tip.pixel_nm),
        tip.size,
    )


def around(tip: Double) -> Double:
    """Starts for the last refinement of a double tip whose place is known, stacked."""
    radius = np.array([0.7, 0.85, 1.0, 1.15, 1.3])
    angle = np.full(len(radius), max(float(tip.half_angle_deg), 15.0))
    same = [
        jnp.broadcast_to(v, (len(radius), *v.shape))
        for v in (tip.offset_nm, tip.drop_nm, tip.origin_nm)
    ]
    return _stacked(float(tip.radius_nm) * radius, angle, *same, np.asarray(tip.pixel_nm), tip.size)


def double_tips(single: Double, height_nm: float, offsets_px, scales, drops) -> Double:
    """`single` with a second apex at all of the offsets (pixels), radius scales and drops (as
    fractions of `height_nm`), stacked. Both apexes are moved so that the pair is centred."""
    pixel = np.asarray(single.pixel_nm, float)
    grid = np.array(
        [
            (s, dy * pixel[0], dx * pixel[1], d)
            for s in scales
            for dy, dx in offsets_px
            for d in drops
        ]
    )
    n = len(grid)
    origin = -np.round(grid[:, 1:3] / 2 / pixel) * pixel + np.asarray(single.origin_nm, float)
    return _stacked(
        float(single.radius_nm) * grid[:, 0],
        np.full(n, float(single.half_angle_deg)),
        grid[:, 1:3],
        grid[:, 3] * height_nm,
        origin,
        pixel,
        single.size,
    )


def _stacked(radius, angle, offset, drop, origin, pixel, size) -> Double:
    n = len(radius)
    return eqx.filter_vmap(lambda *p: Double(*p, size=size))(
        *map(jnp.asarray, (radius, angle, offset, drop, origin, np.broadcast_to(pixel, (n, 2))))
    )


def heights_of(shapes: Double, depth_nm: Scalar) -> Float[Array, "n ky kx"]:
    """T (nm) of stacked shapes, the highest pixel at 0, cut off below `depth_nm`."""
    tips = eqx.filter_vmap(lambda s: s())(shapes)
    tips = tips - jnp.max(tips, axis=(1, 2), keepdims=True)
    return jnp.maximum(tips, -depth_nm)


def tried(
    images: Frames,
    shapes: Double,
    sigma_nm: Scalar,
    key: Key[Array, ""],
    report: Report = lambda text: None,
) -> Candidates:
    """The misfit of each of the stacked shapes."""
    depth_nm = 1.05 * jnp.max(jnp.ptp(images, axis=(1, 2)))
    tips, parts = heights_of(shapes, depth_nm), []
    for begin in range(0, len(tips), _AT_ONCE):  # in between there may be a Ctrl-C
        report(f"{begin} of {len(tips)} tips tried")
        parts.append(misfits(images, tips[begin : begin + _AT_ONCE], sigma_nm, key))
    return Candidates(shapes, *(jnp.concatenate(part) for part in zip(*parts, strict=True)))


def refine(
    shapes: Double,
    images: Frames,
    sigma_nm: Scalar,
    key,
    steps: int,
    origin_px: Scalar = 0.0,
    report: Report = lambda text: None,
) -> Double:
    """Each stacked double tip moved downhill until it is just admissible.

    `origin_px`: how freely the place of the first apex on the pixels moves; 0 holds it.
    """
    n, refined = len(shapes.radius_nm), []
    for k in range(n):
        report(f"{k} of {n} tips refined")
        refined.append(_refined(chosen(shapes, k), images, sigma_nm, key, steps, origin_px))
    return jax.tree.map(lambda *a: jnp.stack(a), *refined)


@functools.partial(jax.jit, static_argnames="steps")
def _refined(
    shape: Double, images: Frames, sigma_nm: Scalar, key, steps: int, origin_px: Scalar
) -> Double:
    depth_nm = 1.05 * jnp.max(jnp.ptp(images, axis=(1, 2)))
    pixel = jnp.min(shape.pixel_nm)

    def moved(p):
        return eqx.tree_at(
            lambda d: (d.radius_nm, d.half_angle_deg, d.offset_nm, d.drop_nm, d.origin_nm),
            shape,
            (
                shape.radius_nm * jnp.exp(0.3 * p["log_radius"]),
                jnp.clip(shape.half_angle_deg + 10 * p["angle"], 5.0, 80.0),
                shape.offset_nm + pixel * p["offset"],
                jnp.maximum(shape.drop_nm + pixel * p["drop"], 0.0),
                shape.origin_nm + origin_px * pixel * p["origin"],
            ),
        )

    def excess(p):
        tip = jnp.maximum(moved(p)(), -depth_nm)
        seen, floor, _ = misfit(images, tip, sigma_nm, key)
        return jax.nn.relu(seen - floor)  # no pull towards tips sharper than need be

    def step(carry, rate):
        p, state = carry
        update, state = optimiser.update(jax.grad(excess)(p), state)
        return (jax.tree.map(lambda v, u: v - rate * u, p, update), state), None

    optimiser = optax.scale_by_adam()
    start = {
        "log_radius": 0.0,
        "angle": 0.0,
        "offset": jnp.zeros(2),
        "drop": 0.0,
        "origin": jnp.zeros(2),
    }
    start = jax.tree.map(lambda v: jnp.asarray(v, images.dtype), start)
    rates = 0.12 * jnp.linspace(1.0, 0.1, steps)
    (p, _), _ = lax.scan(step, (start, optimiser.init(start)), rates)
    return moved(p)


def heights_of_one(shape: Double, depth_nm: Scalar) -> Kernel:
    return heights_of(jax.tree.map(lambda a: a[None], shape), depth_nm)[0]


def chosen(shapes: Double, which) -> Double:
    return jax.tree.map(lambda a: a[which], shapes)

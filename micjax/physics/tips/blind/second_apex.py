"""The search for a second apex.

A tip with a second apex at the wrong place is refuted by every ghost that is not there, so an
admissible one that takes part in the imaging is hardly a coincidence. Two guides to the place: all
offsets, screened with a rather blunt tip, and the bumps of the classical outer bound, which show
apexes sharper than any offset grid would find.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Key
from scipy import ndimage

from micjax.physics.tips.blind.candidates import (
    Candidates,
    Report,
    around,
    chosen,
    double_tips,
    heights_of,
    heights_of_one,
    refine,
    tried,
)
from micjax.physics.tips.dilation import contact_pixel, dilate, erode
from micjax.physics.tips.evidence import RESOLUTION, Frames, Scalar, admissible, mean_power, misfit
from micjax.physics.tips.shapes import Double
from micjax.physics.tips.villarrubia import villarrubia

DOUBLE_ALLOWANCE = 1.3  # of a double tip: its seven numbers are found only so well
WORTH_RESHAPING = 2.0  # misfit / floor of a double tip from which the free form may arrive
_AT_ONCE = 160  # places in a compiled call, in which no Ctrl-C is heard
_APART = 3.0  # pixels between two apexes
_TAKES_PART = 0.05  # share of the image below which either apex is not worth its parameters


def second_apex(
    images: Frames,
    single: Double,
    bluntness: Scalar,
    height_nm: float,
    sigma_nm: Scalar,
    key: Key[Array, ""],
    report: Report = lambda text: None,
) -> Candidates | None:
    """Double tips at the place that the images ask for, if there is one.

    **Arguments:**

    - `single`: the tip to start from; rather too blunt, as a ghost makes single ones too sharp.
    - `bluntness`: of the bluntest single tip; a double one has to be blunter.
    - `height_nm`: range of the images.

    **Returns:** refined tips of one place, or None; admissible (`DOUBLE_ALLOWANCE`) or, where no
    pair of sphere-cones is, so near to it that a reshaped one may be.
    """
    if np.hypot(*_reach(single)) < _APART:  # the window has no place for two
        return None
    part = _busiest(images, 96)  # enough to find the place
    guides = [_screened(part, single, height_nm, sigma_nm, key, report)]
    bumps = _bumps(images, single.size, sigma_nm)
    if bumps:
        hinted = double_tips(single, height_nm, bumps, (0.5, 1.0, 2.0), (0.02, 0.05, 0.15))
        guides.append(_nearest(tried(images, hinted, sigma_nm, key, report), images, 8))
    # what suits a part is polished on the whole
    best = []
    for starts in guides:
        nearer = refine(starts, part, sigma_nm, key, 50, report=report)
        refined = tried(images, nearer, sigma_nm, key)
        best.append(_nearest(refined, images, 2, bluntness))
    polished = refine(_joined(*best), images, sigma_nm, key, 40, report=report)
    fine = tried(images, polished, sigma_nm, key)
    wanted = _truly_double(images, fine.shapes) & (fine.bluntness > bluntness)
    excess = jnp.where(wanted, fine.misfit / (fine.floor + RESOLUTION), jnp.inf)
    if jnp.min(excess) > WORTH_RESHAPING:
        return None
    passing = wanted & admissible(fine.misfit, fine.floor, DOUBLE_ALLOWANCE)
    bluntest = jnp.argmax(jnp.where(passing, fine.bluntness, -jnp.inf))
    k = int(bluntest if jnp.any(passing) else jnp.argmin(excess))
    near = around(fine.shape(k))
    # apexes between two pixels are told from those on one, where that helps
    refined = [
        refine(near, images, sigma_nm, key, 60, origin_px, report) for origin_px in (0.0, 1.0)
    ]
    candidates = tried(images, _joined(*refined), sigma_nm, key)
    lost = ~_truly_double(images, candidates.shapes)
    return candidates._replace(misfit=jnp.where(lost, jnp.inf, candidates.misfit))


def _reach(single: Double) -> tuple[int, int]:
    """How far (y, x, pixels) a second apex may be from the first one."""
    reach_y, reach_x = (n // 2 - 1 for n in single.size)
    return reach_y, reach_x


def _joined(*shapes: Double) -> Double:
    return jax.tree.map(lambda *a: jnp.concatenate(a), *shapes)


def _screened(
    part: Frames, single: Double, height_nm: float, sigma_nm: Scalar, key, report: Report
) -> Double:
    """The best 8 of `single` with a second apex at every offset, by a part of the images."""
    pixel = np.asarray(single.pixel_nm)
    reach_y, reach_x = _reach(single)
    # a ghost is found from as far as the apex is wide
    stride = 2 if float(single.radius_nm) > 2 * pixel.max() else 1
    offsets = [
        (y, x)
        for y in range(-reach_y, reach_y + 1, stride)
        for x in range(-reach_x, reach_x + 1, stride)
        if np.hypot(y, x) >= _APART
    ]
    tips = double_tips(single, height_nm, offsets, (1.0, 1.6), (0.0, 0.05, 0.15, 0.3))
    depth_nm = 1.05 * height_nm
    heights, parts = heights_of(tips, depth_nm), []
    for begin in range(0, len(heights), _AT_ONCE):
        report(f"{begin} of {len(heights)} places of a second apex screened")
        parts.append(_screen(part, heights[begin : begin + _AT_ONCE]))
    seen, taken_off = (jnp.concatenate(p) for p in zip(*parts, strict=True))
    alone = misfit(part, heights_of_one(single, depth_nm), sigma_nm, key)
    promising = jnp.where(taken_off > alone[2] * sigma_nm, seen, jnp.inf)
    best = chosen(tips, jnp.argsort(promising)[:64])
    return _nearest(tried(part, best, sigma_nm, key, report), part, 8)


@jax.jit
def _screen(images, tips):
    """(mean squared opening residual, mean height taken off) of many tips, without their floors."""

    def of_tip(tip):
        eroded = jax.vmap(lambda i: erode(i, tip))(images)
        opened = jax.vmap(lambda s: dilate(s, tip))(eroded)
        return mean_power(images - opened, tip, 2), jnp.mean(images - eroded)

    return lax.map(of_tip, tips)


def _bumps(images: Frames, size: tuple[int, int], sigma_nm: Scalar) -> list[tuple[int, int]]:
    """Offsets (pixels) where the classical outer bound rises again apart from the apex, at most 5.

    With too low a threshold noise cuts the bound down to the apex, with too high a one it is flat:
    hence several. The highest bumps come first.
    """
    tops = []
    for sigmas in (3.0, 4.0, 5.0, 6.0):
        bound = np.asarray(villarrubia(images, size, float(sigmas * sigma_nm))[0])
        labels, n = ndimage.label(bound >= ndimage.maximum_filter(bound, 5))
        for k in range(1, n + 1):
            dy, dx = np.argwhere(labels == k).mean(0) - np.array(size) // 2
            tops.append((float(bound[labels == k][0]), round(dy), round(dx)))
    bumps: list[tuple[int, int]] = []
    for _, dy, dx in sorted(tops, reverse=True):
        if np.hypot(dy, dx) >= _APART and all(np.hypot(dy - y, dx - x) >= 2 for y, x in bumps):
            bumps.append((dy, dx))
    return bumps[:5]


def _busiest(images: Frames, n: int) -> Float[Array, "frames my mx"]:
    """The n x n pixels with the sharpest features, of larger images: there a tip shows."""
    _, ny, nx = images.shape
    curvature = jnp.diff(images, n=2, axis=1)[:, :, 1:-1] + jnp.diff(images, n=2, axis=2)[:, 1:-1]
    corners = [
        (y, x)
        for y in range(0, max(1, ny - n + 1), max(1, n // 2))
        for x in range(0, max(1, nx - n + 1), max(1, n // 2))
    ]
    y, x = max(
        corners, key=lambda c: float(jnp.std(curvature[:, c[0] : c[0] + n, c[1] : c[1] + n]))
    )
    return images[:, y : y + n, x : x + n]


def _nearest(candidates: Candidates, images: Frames, n: int, bluntness: Scalar = 0.0) -> Double:
    """The n tips nearest to admissible, truly double ones blunter than `bluntness` first."""
    excess = candidates.misfit / (candidates.floor + RESOLUTION)
    wanted = _truly_double(images, candidates.shapes) & (candidates.bluntness > bluntness)
    return chosen(candidates.shapes, jnp.argsort(jnp.where(wanted, excess, 1e9 + excess))[:n])


def _truly_double(images: Frames, shapes: Double) -> Bool[Array, " n"]:
    """Whether the second apex stands apart (nearer ones make one flat apex), inside the window, and
    both take part; on a slope, one of two far apart does all the imaging."""
    apart = jnp.linalg.norm(shapes.offset_nm / shapes.pixel_nm, axis=1) >= _APART
    half = jnp.array(shapes.size) // 2
    place = (shapes.origin_nm + shapes.offset_nm) / shapes.pixel_nm
    inside = jnp.all(jnp.abs(place) < half, axis=1)
    share = second_apex_shares(images, shapes)
    return apart & inside & (share >= _TAKES_PART) & (share <= 1 - _TAKES_PART)


@jax.jit
def second_apex_shares(images: Frames, shapes: Double) -> Float[Array, " n"]:
    """The part of the images that the second apex of each stacked double tip took, half a tip away
    from the border, where any pixel may be the only one inside the scan."""
    (_, ny, nx), (hy, hx) = images.shape, (n // 2 for n in shapes.size)
    depth_nm = 1.05 * jnp.max(jnp.ptp(images, axis=(1, 2)))

    def share(shape):
        both = jnp.maximum(shape(), -depth_nm)
        alone = eqx.tree_at(lambda d: d.drop_nm, shape, 4 * depth_nm)()
        second = both > jnp.maximum(alone, -depth_nm) + 1e-6 * depth_nm
        contact = jax.vmap(lambda i: contact_pixel(i, both))(images)
        return jnp.mean(second.reshape(-1)[contact][:, hy : ny - hy, hx : nx - hx])

    return lax.map(share, shapes)

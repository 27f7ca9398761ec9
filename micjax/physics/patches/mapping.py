"""From an image and the templates of its phases to maps, tile by tile.

A tile holds few grains, so that each of its orientations is nearly that of one grain, and the work
and the memory of an image of any size are those of its tiles. Grains are joined across their
borders.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.sparse.csgraph
from jaxtyping import Array, Bool, Float, Int

from micjax.physics.patches import grains
from micjax.physics.patches.grains import Orientation
from micjax.physics.patches.local_spectra import LocalSpectra, strips
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.samples import WHOLE, polar_of
from micjax.physics.patches.unmixing import equivariant
from micjax.physics.patches.unmixing.equivariant import Code
from micjax.physics.patches.waves import cut

ROWS = 8  # of patches in one compiled program
AT_ONCE = 128  # patches of one grain in one compiled program
MOST = 512  # patches whose power shows where the reflections of a grain are
TILE = 8  # edge of a tile without its rim, in patches that do not overlap
SMOOTHING, LEVEL = 0.2, 0.18  # of a cell: of the squared residual, and of what is no crystal
SURE_RAD = 0.003  # of an angle, at best
SAME = 3.0  # standard deviations; two tiles of a grain that bends evenly are 2.4 of them apart
TEMPER = 3.4  # odds go with this power of a residual, see `_against_the_next`


class PatchScale(NamedTuple):
    """What patches of an image are compared with: those that hold nothing but a crystal."""

    amplitude: float  # length of a polar spectrum, in units of the image
    least: float  # in parts of it: a weaker patch is not scaled to length 1
    weight: float  # the sum of the weights of its atoms


class PhaseMap(NamedTuple):
    """Of each pixel."""

    phase: Int[np.ndarray, "h w"]  # `k` where there is no crystal, -1 where nothing was measured
    grain: Int[np.ndarray, "h w"]  # connected, of one phase; -1 where there is none
    angle_rad: Float[np.ndarray, "h w"]  # of its grain, NaN where there is none
    second: Int[np.ndarray, "h w"]  # the next likely phase; `phase` itself where there is none
    probability: Float[np.ndarray, "h w"]  # of `phase` against `second`


def scaled(patches: Float[Array, "p r t"], scale: PatchScale) -> Float[Array, "p r t"]:
    """To length 1, but for those that hold little crystal."""
    size = jnp.sqrt(jnp.sum(patches**2, axis=(1, 2), keepdims=True))
    return patches / jnp.maximum(size, scale.least * scale.amplitude)


# two programs: in one XLA fuses the spectra into each of their uses and computes them again there
@eqx.filter_jit
def _seen(polar: Polar, image, measured) -> tuple[Array, Array]:
    """Polar spectra of the patches, and how much of each was measured."""
    spectra = polar.local(image, measured)
    return polar_of(spectra, polar), spectra.filled


@jax.jit
def _encoded(rings: Float[Array, "ny nx r t"], templates, scale: PatchScale):
    patches = scaled(rings.reshape(-1, *rings.shape[2:]), scale)
    code, turns = equivariant.located(patches, templates)
    return jax.tree.map(lambda v: v.reshape(*rings.shape[:2], -1), (*code, turns))


@eqx.filter_jit
def _power(local: LocalSpectra, weights, patches, measured):
    power = jax.vmap(local)(patches, measured).power
    return jnp.einsum("nyxkl,n->kl", power, weights.astype(power.dtype))


class Coded(NamedTuple):
    """Of each patch; the last axis of the first four is that of its atoms."""

    phase: Int[np.ndarray, "ny nx 2"]
    turn: Int[np.ndarray, "ny nx 2"]
    weight: Float[np.ndarray, "ny nx 2"]
    turns: Float[np.ndarray, "ny nx 2"]  # the angle in steps, between which it may lie
    filled: Float[np.ndarray, "ny nx"]  # the part of the window in which something was measured


def encode_image(
    image: Float[np.ndarray, "h w"],
    measured: Float[np.ndarray, "h w"] | None,
    polar: Polar,
    templates: Float[Array, "k r t"],
    scale: PatchScale,
) -> Coded:
    """The atoms of all patches."""
    grid = tuple(map(len, polar.local.corners(image.shape)))
    numbers = jax.tree.map(jnp.asarray, scale)
    whole: list[np.ndarray] | None = None
    for at, part, known in strips(polar.local, image, measured, ROWS):
        rings, filled = _seen(polar, part, known)
        parts = [np.asarray(v) for v in (*_encoded(rings, templates, numbers), filled)]
        whole = [np.empty((*grid, *v.shape[2:]), v.dtype) for v in parts] if not whole else whole
        for array, values in zip(whole, parts, strict=True):
            array[at] = values
    return Coded(*whole)


def reflections_in(
    image: Float[np.ndarray, "h w"],
    measured: Float[np.ndarray, "h w"] | None,
    polar: Polar,
    weights: Float[np.ndarray, "ny nx"],
) -> Float[np.ndarray, "j 2"]:
    """(ky, kx) in cycles a pixel of the reflections of the patches that have weights.

    Of patches that overlap by much the others say nothing new, and a part of them is looked at.
    """
    local, places = polar.local, np.argwhere(weights > 0.0)
    if not len(places):
        return np.zeros((0, 2))
    every = int(np.ceil(np.sqrt(len(places) / MOST)))
    thin = places[np.all(places % every == 0, axis=1)]
    places = thin if len(thin) else places[:MOST]
    corners = np.stack(
        [c[i] for c, i in zip(local.corners(image.shape), places.T, strict=True)], axis=1
    )
    # as many of all grains: one program
    of = np.arange(-(-len(places) // AT_ONCE) * AT_ONCE)
    share = np.where(of < len(places), weights[tuple(places[of % len(places)].T)], 0.0)
    total: np.ndarray | float = 0.0
    for batch in of.reshape(-1, AT_ONCE):
        patches, known = (
            None if v is None else jnp.asarray(cut(v, corners[batch % len(places)], local.size))
            for v in (image, measured)
        )
        total = total + np.asarray(_power(local, jnp.asarray(share[batch]), patches, known))
    return grains.reflections(np.asarray(total), local, polar.k_min_perA)


def tiles(shape: tuple[int, int], local: LocalSpectra) -> Iterator[tuple[tuple[slice, slice], ...]]:
    """Rows and columns of each tile with its rim, and of what is kept of it.

    All begin with a patch, so that the patches of a tile are some of those of the image.
    """
    rim = 2 * local.size // local.step * local.step
    along = []
    for n in shape:
        count = max(1, round(n / (TILE * local.size)))
        ends = [round(n * i / count / local.step) * local.step for i in range(count)] + [n]
        along.append(
            [
                (slice(max(a - rim, 0), min(b + rim, n)), slice(a, b))
                for a, b in zip(ends, ends[1:], strict=False)
            ]
        )
    for y, kept_y in along[0]:
        for x, kept_x in along[1]:
            yield (y, x), (kept_y, kept_x)


def _patches(tile: tuple[slice, slice], local: LocalSpectra) -> tuple[slice, slice]:
    """Those that lie within a tile."""
    y, x = (slice(t.start // local.step, (t.stop - local.size) // local.step + 1) for t in tile)
    return y, x


def phase_map(
    image: Float[np.ndarray, "h w"],
    measured: Float[np.ndarray, "h w"] | None,
    polar: Polar,
    templates: Float[Array, "k r t"],
    scale: PatchScale,
    cell_px: float,
    report: Callable[[float], None] = lambda share: None,
) -> PhaseMap:
    """The phase and the orientation of each pixel.

    **Arguments:**

    - `measured`: 0 in holes, whose values are not looked at.
    - `cell_px`: edge of a unit cell, within a factor of 1.5.
    - `report`: called with the share of the work that is done.
    """
    orientation = np.full(image.shape, -1, np.int32)
    second = np.full(image.shape, -1, np.int16)
    probability = np.full(image.shape, np.nan, np.float32)
    coded = encode_image(image, measured, polar, templates, scale)
    every = list(tiles(image.shape, polar.local))
    of_tiles: list[OrientationInTile] = []
    for i, (of, kept) in enumerate(every):
        known = None if measured is None else measured[of]
        coded_part = Coded(*(v[_patches(of, polar.local)] for v in coded))
        present, part = _mapped(
            i, image[of], known, coded_part, polar, len(templates), scale, cell_px
        )
        inner = tuple(
            slice(k.start - o.start, k.stop - o.start) for o, k in zip(of, kept, strict=True)
        )
        numbered = np.where(part.orientation < 0, -1, part.orientation + len(of_tiles))
        maps = (numbered, part.second, part.probability)
        for whole, of_tile in zip((orientation, second, probability), maps, strict=True):
            whole[kept] = of_tile[inner]
        of_tiles += present
        report((i + 1) / len(every))
    grain, phases, half_turns = joined(orientation, of_tiles)
    # -1, no grain, is the last
    phase = np.append(phases, len(templates)).astype(np.int16)[grain]
    phase = phase if measured is None else np.where(measured > 0, phase, np.int16(-1))
    angle = np.append((half_turns + 0.5) % 1.0 - 0.5, np.nan) * np.pi
    return PhaseMap(phase, grain, angle.astype(np.float32)[grain], second, probability)


def borders(
    phase: Int[np.ndarray, "h w"], grain: Int[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Pixels whose neighbour below or to the right is of another grain."""
    border = np.zeros(phase.shape, bool)
    for of in (phase, grain):
        border[:-1] |= of[:-1] != of[1:]
        border[:, :-1] |= of[:, :-1] != of[:, 1:]
    return border


class OrientationInTile(NamedTuple):
    tile: int
    phase: int
    half_turns: float
    sd_half_turns: float  # of a patch


def joined(
    orientation: Int[np.ndarray, "h w"], of_tiles: list[OrientationInTile]
) -> tuple[Int[np.ndarray, "h w"], Int[np.ndarray, "g"], Float[np.ndarray, "g"]]:
    """Grains: connected parts of one orientation, joined where they touch across tiles.

    Two are one if they are of one phase and their angles differ by what those of their patches do.

    **Arguments:**

    - `orientation`: of each pixel, its place in `of_tiles`; -1 where there is none.

    **Returns:** the grain of each pixel (-1: none), the phase and the angle of each grain in half
    turns: the mean over its pixels.
    """
    part = np.full(orientation.shape, -1, np.int32)
    of_part: list[OrientationInTile] = []
    for i, box in enumerate(scipy.ndimage.find_objects(orientation + 1)):
        if box is not None:
            number, count = scipy.ndimage.label(orientation[box] == i)
            part[box][number > 0] = number[number > 0] - 1 + len(of_part)
            of_part += count * [of_tiles[i]]
    tile, phase, angle, sd = np.array(of_part, float).reshape(-1, 4).T
    a, b = _touching(part)
    sd = np.maximum(sd, SURE_RAD / np.pi)
    same = (tile[a] != tile[b]) & (phase[a] == phase[b])
    same &= np.abs(_nearest(angle[a] - angle[b])) < SAME * np.hypot(sd[a], sd[b])
    links = scipy.sparse.coo_array((same[same], (a[same], b[same])), 2 * (len(of_part),))
    _, grain = scipy.sparse.csgraph.connected_components(links, directed=False)
    _, first = np.unique(grain, return_index=True)
    pixels = np.bincount(part[part >= 0], minlength=len(of_part))
    away = _nearest(angle - angle[first][grain])
    mean = angle[first] + np.bincount(grain, pixels * away) / np.bincount(grain, pixels)
    return np.append(grain, -1).astype(np.int32)[part], phase[first].astype(int), mean


def _touching(part: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "2 n"]:
    """Pairs of numbers of neighbouring pixels."""
    pairs = []
    for a, b in ((part[:-1], part[1:]), (part[:, :-1], part[:, 1:])):
        at = (a != b) & (a >= 0) & (b >= 0)
        pairs.append(np.stack([a[at], b[at]]))
    return np.unique(np.concatenate(pairs, axis=1), axis=1)


def _nearest(half_turns):
    return (half_turns + 0.5) % 1.0 - 0.5


class _TileMap(NamedTuple):
    """Of each pixel of a tile."""

    orientation: Int[np.ndarray, "h w"]
    second: Int[np.ndarray, "h w"]
    probability: Float[np.ndarray, "h w"]


def _mapped(
    number: int, image, measured, coded: Coded, polar: Polar, count: int, scale, cell_px: float
) -> tuple[list[OrientationInTile], _TileMap]:
    """What is in a tile, and its pixels."""
    local, angles = polar.local, polar.angles
    grid = coded.filled.shape
    flat = Code(*(v.reshape(-1, equivariant.ATOMS) for v in coded[:3]))
    present = grains.orientations(flat, grid, angles, full=0.8 * scale.weight)
    whole = coded.filled > WHOLE
    present = [o._replace(share=np.where(whole, o.share, 0.0)) for o in present]
    trust = [grains.trust_in(o) for o in present]
    cycles = [reflections_in(image, measured, polar, t) for t in trust]
    there = np.ones(image.shape, bool) if measured is None else measured > 0
    solid = np.where(there, image, image[there].mean() if there.any() else 0.0)
    smoothing_px = SMOOTHING * cell_px
    pixels = grains.pixel_map(
        solid, local, present, cycles, smoothing_px, count, level_px=LEVEL * cell_px
    )
    phases = np.array([o.phase for o in present] + [count])  # -1 is the last
    second, probability = _against_the_next(pixels.residual, phases[pixels.orientation])
    tile = _TileMap(
        np.where(there, pixels.orientation, -1),
        np.where(there, second, -1),
        np.where(there, probability, np.nan),
    )
    in_tile = [
        OrientationInTile(number, o.phase, *_half_turns(coded, o, t, angles))
        for o, t in zip(present, trust, strict=True)
    ]
    return in_tile, tile


def _against_the_next(residual, phase):
    """The next likely phase of each pixel, and how much more likely than it is the one that has it.

    For Gaussian noise the odds would go with the power n / 2 of the ratio of residuals that are
    means of n pixels, a hundred and more. Grains are not waves to the last digit and their errors
    are not independent: with this power as many pixels of each probability are right in made-up
    images (see `experiments/phase_map`).
    """
    tiny = np.finfo(np.float64).tiny
    own = np.take_along_axis(residual, phase[None], axis=0)[0]
    others = np.where(np.arange(len(residual))[:, None, None] == phase, np.inf, residual)
    crystal = phase < len(residual) - 1
    # no crystal is no rival, see `grains.pixel_map`
    others[-1, crystal] = np.inf
    second = others.argmin(axis=0)
    rival = others.min(axis=0)
    alone = ~np.isfinite(rival)
    ratio = np.where(alone, 1.0, rival) / np.maximum(own, tiny)
    odds = TEMPER * np.log(np.maximum(ratio, tiny))
    return np.where(alone, phase, second), np.where(alone, 1.0, 1.0 / (1.0 + np.exp(-odds)))


def _half_turns(coded: Coded, orientation: Orientation, trust, angles: int) -> tuple[float, float]:
    """Mean and standard deviation of the angles of the patches that show a grain alone."""
    away = (coded.turns[..., 0] - orientation.turn + angles / 2) % angles - angles / 2
    own = trust * (coded.phase[..., 0] == orientation.phase) * (np.abs(away) < 3)
    total = max(np.sum(own), np.finfo(float).tiny)
    mean = np.sum(own * away) / total
    sd = np.sqrt(np.sum(own * (away - mean) ** 2) / total)
    return float(orientation.turn + mean) / angles, float(sd) / angles

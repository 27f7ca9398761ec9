"""Which grain each pixel belongs to: the one whose lattice predicts it best.

A patch says which phases are in it and at which angles, but not where in it. Around a patch that
is filled by one grain, this grain is a sum of waves,

    I(r) = I_0(r) + 2 Re sum_j C_j(r) exp(2 pi i k_j r),

with amplitudes C_j that change slowly. They are measured where the grain is alone and carried on
beyond its border; of the grains around a pixel the one with the smallest squared residual, averaged
over a part of a unit cell, has it. So borders are found within a row of atoms, whatever the size of
the patches was.
"""

from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int

from micjax.physics.patches import waves
from micjax.physics.patches.local_spectra import LocalSpectra
from micjax.physics.patches.unmixing.equivariant import Code

ALONE = 0.75  # share of a patch from which on a grain is measured in it
SOME = 0.1  # share of a patch from which on it is found there
BARE = 0.5  # variance over that of crystals, below which there may be none


class Orientation(NamedTuple):
    """A phase at an angle; there may be several grains of it."""

    phase: int
    turn: int  # in steps of the angle, see `equivariant`
    share: Float[np.ndarray, "ny nx"]  # of each patch


class PixelMap(NamedTuple):
    orientation: Int[np.ndarray, "h w"]  # its place in the list, -1 where nothing is a crystal
    # squared, smoothed; of the best orientation of each phase (inf: there is none), and of none
    residual: Float[np.ndarray, "k h w"]


def orientations(
    code: Code,
    grid: tuple[int, int],
    angles: int,
    *,
    full: float = 0.0,
    min_share: float = 0.01,
) -> list[Orientation]:
    """The angles at which each phase is found, strongest first.

    They are maxima of a histogram of the angles of all atoms, smoothed over a step and a half, that
    lie more than three steps apart and hold at least `min_share` of all patches. Patches whose
    weights add up to less than `full` are in part no crystal.

    A template that does not fit a grain well (distorted by the scan, tilted) takes a second atom to
    make up for it, at an angle of its own: two angles of which each is mostly found with the other,
    and one nowhere alone, are one grain, at that of the stronger one.
    """
    phase, turn, weight = (np.asarray(part) for part in code)
    least = max(full, float(np.finfo(weight.dtype).tiny))
    share = weight / np.maximum(weight.sum(axis=1, keepdims=True), least)
    kept: list[tuple[float, Orientation]] = []
    for k in range(int(phase.max()) + 1):
        of = phase == k
        histogram = np.bincount(turn[of], share[of], angles)
        smooth = scipy.ndimage.gaussian_filter1d(histogram, 1.5, mode="wrap")
        present: list[Orientation] = []
        for t in np.argsort(-smooth):
            in_patch = np.sum(share * (of & (_apart(turn, t, angles) <= 2)), axis=1)
            if in_patch.sum() < min_share * len(phase):
                continue
            if all(_apart(t, other.turn, angles) > 3 for other in present):
                present.append(Orientation(k, int(t), in_patch))
        for orientation in _joined(present):
            in_grid = orientation._replace(share=orientation.share.reshape(grid))
            kept.append((float(orientation.share.sum()), in_grid))
    return [orientation for _, orientation in sorted(kept, key=lambda pair: -pair[0])]


def _joined(present: list[Orientation]) -> list[Orientation]:
    """Those of one phase, the strongest first, without the ones that belong to a stronger one."""
    joined: list[Orientation] = []
    for other in present:
        there = other.share > SOME
        for i, orientation in enumerate(joined):
            both = np.sum(there & (orientation.share > SOME))
            mostly = both > 0.5 * max(there.sum(), np.sum(orientation.share > SOME))
            if mostly and other.share.max() <= ALONE:
                joined[i] = orientation._replace(share=orientation.share + other.share)
                break
        else:
            joined.append(other)
    return joined


def trust_in(orientation: Orientation) -> Float[np.ndarray, "ny nx"]:
    """How much a patch says of the waves of a grain: nothing where others are in it as well."""
    return np.where(orientation.share > ALONE, orientation.share, 0.0) ** 4


def _apart(turn, other, angles: int):
    away = np.abs(turn - other)
    return np.minimum(away, angles - away)


def reflections(
    power: Float[np.ndarray, "ky kx"],
    local: LocalSpectra,
    k_min_perA: float,
    max_count: int = 24,
    min_power: float = 0.02,
) -> Float[np.ndarray, "j 2"]:
    """(ky, kx) in cycles a pixel of the strongest maxima of a power spectrum.

    A maximum is that of a parabola through the logarithms of its neighbours, along each axis. Those
    below `min_power` of the strongest are left out.
    """
    ky, kx = (k / local.spacing_perA for k in local.frequencies_perA)
    radius = np.hypot(ky[:, None], kx)
    slow = radius * local.spacing_perA < k_min_perA
    peak = scipy.ndimage.maximum_filter(power, 2 * local.oversampling + 1) == power
    # of kx = 0 one half is enough
    peak &= ~slow & ((kx > 0) | (ky[:, None] > 0)) & (power > min_power * power[~slow].max())
    peak[[0, -1]], peak[:, -1] = False, False
    places = np.argwhere(peak)
    places = places[np.argsort(-power[tuple(places.T)])][:max_count]
    logarithm = np.log(np.maximum(power, 1e-6 * power.max()))
    # left of kx = 0 lies the other half, turned by half a turn
    whole = np.concatenate([logarithm[::-1, :0:-1], logarithm], axis=1)
    y, x = places.T
    x_whole = x + len(kx) - 1
    dy = _vertex(whole[y - 1, x_whole], whole[y, x_whole], whole[y + 1, x_whole])
    dx = _vertex(whole[y, x_whole - 1], whole[y, x_whole], whole[y, x_whole + 1])
    step = local.spacing_perA * local.sampling_A
    return np.stack([ky[y] + dy, kx[x] + dx], axis=1) * step


def _vertex(before, at, after):
    curved = before - 2.0 * at + after
    vertex = 0.5 * (before - after) / np.where(curved < 0.0, curved, -np.inf)
    return np.clip(vertex, -0.5, 0.5)


def _box(share, reach: int):
    """The patches around those in which a grain is."""
    rows, columns = (np.flatnonzero(share.max(axis=a) > 0.05) for a in (1, 0))
    return tuple(
        slice(max(at[0] - reach, 0), min(at[-1] + reach + 1, n))
        for at, n in zip((rows, columns), share.shape, strict=True)
    )


def pixel_map(
    image: Float[np.ndarray, "h w"],
    local: LocalSpectra,
    present: list[Orientation],
    cycles: list[Float[np.ndarray, "_ 2"]],
    smoothing_px: float,
    phases: int,
    *,
    level_px: float | None = None,
    spread: float = 1.5,
    reach: int = 4,
) -> PixelMap:
    """The orientation that predicts each pixel best.

    **Arguments:**

    - `cycles`: the reflections of each orientation, in cycles a pixel.
    - `smoothing_px`: standard deviation of the mean of the squared residual, a fifth of a cell.
    - `phases`: how many there are.
    - `level_px`: what is no crystal is a mean over the neighbourhood (its standard deviation, a
        fifth of a cell), and wider than four of them; by default every pixel is of a crystal.
    - `spread`: of the mean of the amplitudes, in steps of the patches.
    - `reach`: how many patches a grain is carried on beyond those in which it is.

    **Raises:** `ValueError` for an image that is not finite everywhere, holes included.
    """
    if bad := int(np.sum(~np.isfinite(image))):
        raise ValueError(f"{bad} of {np.size(image)} pixels are not finite: fill them first")
    best = np.full((phases + 1, *image.shape), np.inf)
    label = np.full(image.shape, -1)
    window = np.asarray(local.weights(), np.float64)
    starts = local.corners(image.shape)
    last = [len(s) - 1 for s in starts]
    for index, (orientation, k) in enumerate(zip(present, cycles, strict=True)):
        trust = trust_in(orientation)
        if not trust.any() or not len(k):
            continue
        rows = _box(orientation.share, reach)
        corners = [s[r] for s, r in zip(starts, rows, strict=True)]
        # the rim of the image belongs to the patches next to it
        edges = [
            slice(
                0 if r.start == 0 else c[0],
                n if r.stop == end + 1 else c[-1] + local.size,
            )
            for r, c, n, end in zip(rows, corners, image.shape, last, strict=True)
        ]
        part = np.ascontiguousarray(image[tuple(edges)])
        begun = [c - e.start for c, e in zip(corners, edges, strict=True)]
        of_grain = waves.of_grain(part, begun, k, window, trust[rows], spread)
        middles = [b + 0.5 * (local.size - 1) for b in begun]
        prediction, reached = waves.predicted(of_grain, middles, local.step, part.shape, part.dtype)
        squared = np.asarray(part - prediction, np.float64) ** 2
        residual = scipy.ndimage.gaussian_filter(squared, smoothing_px, mode="nearest")
        residual[~reached] = np.inf
        label[tuple(edges)][residual < best[:-1, *edges].min(axis=0)] = index
        of_phase = best[orientation.phase, *edges]
        np.minimum(of_phase, residual, out=of_phase)
    if level_px is not None:
        flat = scipy.ndimage.gaussian_filter(np.asarray(image, np.float64), level_px)
        best[-1] = scipy.ndimage.gaussian_filter((image - flat) ** 2, smoothing_px)
        bare = best[-1] < best[:-1].min(axis=0)
        if not bare.all():
            # what neither grain predicts, at their border and at the rim of the image, has contrast
            bare &= best[-1] < BARE * np.median(best[-1][~bare])
        label[_opened(bare, 2.0 * level_px)] = -1
    return PixelMap(label, best)


def _opened(mask, radius: float):
    """What of a mask discs of this radius can cover."""
    margin = int(np.ceil(radius)) + 1
    wide = np.pad(mask, margin, mode="edge")
    if wide.all():
        return mask
    inner = scipy.ndimage.distance_transform_edt(wide) > radius
    if not inner.any():
        return np.zeros_like(mask)
    covered = scipy.ndimage.distance_transform_edt(~inner) <= radius
    return covered[margin:-margin, margin:-margin]

"""Grains of a phase map and their strain."""

from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float, Int

from micjax.physics.patches.local_spectra import LocalSpectra, window_means
from micjax.physics.patches.mapping import SURE_RAD, reflections_in
from micjax.physics.patches.polar import Polar
from micjax.physics.patches.strain import UNKNOWN, Strain, strains

RIM = 0.5  # of a cell: what a grain's neighbour may have of it


class Grain(NamedTuple):
    angle_rad: float
    pixels: int
    box: tuple[slice, slice]
    inside: Bool[np.ndarray, "_ _"]  # in its box


def grains_of(
    phase: Int[np.ndarray, "h w"],
    grain: Int[np.ndarray, "h w"],
    angle_rad: Float[np.ndarray, "h w"],
    count: int,
    cell_px: float,
) -> list[list[Grain]]:
    """Of each phase, the largest first. What is smaller than a cell is none."""
    grains: list[list[Grain]] = [[] for _ in range(count)]
    for i, box in enumerate(scipy.ndimage.find_objects(grain + 1)):
        inside = grain[box] == i
        if inside.sum() > cell_px**2:
            angle = float(angle_rad[box][inside][0])
            grains[phase[box][inside][0]].append(Grain(angle, int(inside.sum()), box, inside))
    return [sorted(g, key=lambda g: (-g.pixels, g.angle_rad)) for g in grains]


def strained(
    image: Float[np.ndarray, "h w"],
    there: Bool[np.ndarray, "h w"],
    polar: Polar,
    grains: list[Grain],
    cell_px: float,
) -> list[Strain]:
    """Of each grain of a phase against the largest, NaN of those that no window fits in."""
    local = polar.local
    wide = [_depth(g) > 0.5 * local.size for g in grains]
    large = [g for g, is_wide in zip(grains, wide, strict=True) if is_wide]
    cycles = _reflections(image, there, polar, large[0]) if large else np.zeros((0, 2))
    if not len(cycles):
        return [UNKNOWN] * len(grains)
    parts = [(image[g.box], g.inside & there[g.box]) for g in large]
    angles = [g.angle_rad for g in large]
    result = iter(strains(parts, angles, cycles, RIM * cell_px, 0.5 * local.size))
    return [next(result) if is_wide else UNKNOWN for is_wide in wide]


def _depth(grain: Grain) -> float:
    return float(scipy.ndimage.distance_transform_edt(np.pad(grain.inside, 1)).max())


def _reflections(image, there, polar: Polar, grain: Grain) -> Float[np.ndarray, "j 2"]:
    """Of the patches that lie within a grain."""
    local: LocalSpectra = polar.local
    part, known = image[grain.box], there[grain.box]
    if min(part.shape) < local.size:
        return np.zeros((0, 2))
    share = window_means(grain.inside, np.ones(part.shape), local)
    weights = np.where(share > 0.95, share, 0.0)
    return reflections_in(part, known.astype(float), polar, weights)


def turned(grains: list[Grain], strains: list[Strain]) -> list[Grain]:
    """With the angles between grains that strain tells, which are those of the whole of each.

    What they add up to is where most of the area has the angle that the map has found.
    """
    sure = [s.turn_sd_rad < SURE_RAD for s in strains]
    if not any(sure):
        return grains
    off = [_half_turn(g.angle_rad - s.turn_rad) for g, s in zip(grains, strains, strict=True)]
    first = off[sure.index(True)]
    near = np.array(
        [_half_turn(o - first) for o, is_sure in zip(off, sure, strict=True) if is_sure]
    )
    pixels = np.array([g.pixels for g, is_sure in zip(grains, sure, strict=True) if is_sure])
    order = np.argsort(near)
    half = np.searchsorted(np.cumsum(pixels[order]), 0.5 * pixels.sum())
    common = first + near[order][half]
    return [
        g._replace(angle_rad=_half_turn(common + s.turn_rad)) if is_sure else g
        for g, s, is_sure in zip(grains, strains, sure, strict=True)
    ]


def _half_turn(angle: float) -> float:
    return float((angle + 0.5 * np.pi) % np.pi - 0.5 * np.pi)


def angle_map(
    angle_rad: Float[np.ndarray, "h w"], grains: list[list[Grain]]
) -> Float[np.ndarray, "h w"]:
    """With the angle of each grain; what is smaller than one keeps its own."""
    angle_rad = np.array(angle_rad)
    for grain in (g for of_phase in grains for g in of_phase):
        angle_rad[grain.box][grain.inside] = grain.angle_rad
    return angle_rad


def strain_map(
    shape: tuple[int, int], grains: list[list[Grain]], of_grains: list[list[Strain]]
) -> tuple[Float[np.ndarray, "3 h w"], Float[np.ndarray, "3 h w"]]:
    """yy, xx and yx of each pixel, and their errors."""
    values, errors = np.full((2, 3, *shape), np.nan, np.float32)
    for of_phase, known in zip(grains, of_grains, strict=True):
        for grain, strain in zip(of_phase, known, strict=True):
            for i, at in enumerate(((0, 0), (1, 1), (1, 0))):
                values[i][grain.box][grain.inside] = strain.matrix[at]
                errors[i][grain.box][grain.inside] = strain.sd[at]
    return values, errors

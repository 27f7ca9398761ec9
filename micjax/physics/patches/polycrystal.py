"""Images of polycrystals whose phases, grains and angles are known, to try unmixing on.

Columns of atoms are Gaussians of a weight of their own, as in Z contrast; each grain is cut from a
lattice at an angle and an offset of its own. All phases are as bright on average, so that only
their structure tells them apart.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int

from micjax.core.ranges import not_negative, positive

OVERSAMPLING = 2  # of the grid on which columns are laid


class PlaneLattice(NamedTuple):
    """Columns of atoms of a crystal along the beam."""

    vectors_A: Float[np.ndarray, "2 2"]  # rows (x, y)
    basis: Float[np.ndarray, "n 2"]  # fractional
    weight: Float[np.ndarray, "n"]  # of each column, Z**1.7 or the like


class Polycrystal(NamedTuple):
    image: Float[np.ndarray, "h w"]  # 0.5 on average without a gradient of thickness
    phase: Int[np.ndarray, "h w"]  # one more than there are lattices in a hole
    grain: Int[np.ndarray, "h w"]
    angle_rad: Float[np.ndarray, "g"]  # of each grain, from x towards y
    phase_of_grain: Int[np.ndarray, "g"]


def grain_map(
    rng: np.random.Generator, shape: tuple[int, int], count: int, wobble_px: float = 3.0
) -> Int[np.ndarray, "h w"]:
    """Compact cells (three rounds of Lloyd 1982) with borders that wobble over about 12 pixels."""
    size = np.array(shape)
    seeds = rng.uniform(0.0, size, (count, 2))
    coarse = np.stack(np.meshgrid(*(np.arange(0, n, 8) for n in shape), indexing="ij"), -1)
    for _ in range(3):
        nearest = ((coarse[:, :, None] - seeds) ** 2).sum(-1).argmin(-1)
        seeds = np.array(
            [
                coarse[nearest == g].mean(0) if (nearest == g).any() else s
                for g, s in enumerate(seeds)
            ]
        )
    place = np.indices(shape).astype(float)
    for axis in place:
        axis += wobble_px * _smooth_noise(rng, shape, 12.0)
    nearest, grain = np.full(shape, np.inf), np.zeros(shape, int)
    for g, seed in enumerate(seeds):
        away = ((place - seed[:, None, None]) ** 2).sum(0)
        grain[away < nearest] = g
        np.minimum(nearest, away, out=nearest)
    return grain


def _smooth_noise(rng, shape, sigma_px: float):
    smooth = scipy.ndimage.gaussian_filter(rng.standard_normal(shape), sigma_px)
    return smooth / smooth.std()


def columns_px(
    lattice: PlaneLattice, angle_rad: float, shape: tuple[int, int], sampling_A: float, offset_A
) -> tuple[Float[np.ndarray, "m 2"], Float[np.ndarray, "m"]]:
    """(y, x) in pixels and weight of all columns of a turned lattice within an image."""
    vectors = np.asarray(lattice.vectors_A, float)
    basis, weight = np.asarray(lattice.basis, float), np.asarray(lattice.weight, float)
    size = np.array(shape[::-1]) * sampling_A
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    turn = np.array([[c, s], [-s, c]])
    # the cells that the circle around the image can hold
    reach = int(np.ceil(np.hypot(*size) * np.linalg.norm(np.linalg.inv(vectors), axis=0).max())) + 1
    cells = np.stack(np.meshgrid(*2 * [np.arange(-reach, reach + 1)], indexing="ij"), -1)
    fractional = (cells.reshape(-1, 1, 2) + basis).reshape(-1, 2)
    place = fractional @ vectors @ turn + 0.5 * size + offset_A
    inside = np.all((place >= 0.0) & (place < size), axis=1)
    return place[inside, ::-1] / sampling_A, np.tile(weight, len(cells) ** 2)[inside]


def polycrystal(
    rng: np.random.Generator,
    lattices: Sequence[PlaneLattice],
    shape: tuple[int, int] = (512, 512),
    *,
    sampling_A: float = 0.3125,
    grains: int = 8,
    angles: str = "grain",
    electrons_per_px: float = 60.0,
    width_A: float = 0.55,
    thickness: float = 0.0,
    holes: float = 0.0,
    jitter_px: float = 0.0,
    amorphous: float = 0.0,
) -> Polycrystal:
    """A polycrystal and its image, the counts of which are Poisson.

    **Arguments:**

    - `angles`: one for each `grain`, or one for each `phase`.
    - `electrons_per_px`: dose, at the mean intensity.
    - `width_A`: standard deviation of a column.
    - `thickness`: by which share it goes up and down, whatever the phase; a background with it.
    - `holes`: share of the image.
    - `jitter_px`: rms shift of each line along x.
    - `amorphous`: share of the intensity that comes from a film without a lattice.

    **Raises:** `ValueError` for numbers that are none of these, and fewer grains than lattices.
    """
    positive(sampling_A=sampling_A, electrons_per_px=electrons_per_px, width_A=width_A)
    not_negative(thickness=thickness, holes=holes, jitter_px=jitter_px, amorphous=amorphous)
    if angles not in ("grain", "phase"):
        raise ValueError(f"angles = {angles!r}: one for each 'grain' or each 'phase'")
    if grains < len(lattices):
        raise ValueError(f"{grains} grains of {len(lattices)} lattices: at least one of each")
    grain = grain_map(rng, shape, grains)
    phase_of_grain = np.arange(grains) % len(lattices)
    rng.shuffle(phase_of_grain)
    angle = rng.uniform(0.0, np.pi, len(lattices) if angles == "phase" else grains)
    angle = angle[phase_of_grain] if angles == "phase" else angle
    laid = np.zeros(np.array(shape) * OVERSAMPLING)
    for g, (k, a) in enumerate(zip(phase_of_grain, angle, strict=True)):
        place, weight = columns_px(lattices[k], a, shape, sampling_A, rng.uniform(0.0, 6.0, 2))
        here = grain[tuple(place.astype(int).T)] == g
        _lay(laid, place[here] * OVERSAMPLING - 0.5, weight[here])
    fine = scipy.ndimage.gaussian_filter(laid, width_A / sampling_A * OVERSAMPLING)
    image = fine.reshape(shape[0], OVERSAMPLING, shape[1], OVERSAMPLING).mean((1, 3))
    phase = phase_of_grain[grain]
    for k in range(len(lattices)):
        image[phase == k] *= 0.5 / image[phase == k].mean()
    if thickness:
        gradient = _smooth_noise(rng, shape, min(shape) / 8.0)
        gradient *= thickness / np.abs(gradient).max()
        image = image * (1.0 + gradient) + 0.375 * (thickness + gradient)
    if amorphous:
        film = 0.5 * (1.0 + 0.5 * _smooth_noise(rng, shape, 0.6 / sampling_A))
        image = (1.0 - amorphous) * image + amorphous * film
    if holes:
        blots = _smooth_noise(rng, shape, min(shape) / 24.0)
        hole = blots > np.quantile(blots, 1.0 - holes)
        image[hole], phase = 0.05, np.where(hole, len(lattices), phase)
    if jitter_px:
        x = np.arange(shape[1])
        shifts = jitter_px * rng.standard_normal(shape[0])
        image = np.stack([np.interp(x + s, x, line) for s, line in zip(shifts, image, strict=True)])
    scale = electrons_per_px / 0.5
    image = rng.poisson(np.maximum(image, 0.0) * scale) / scale
    return Polycrystal(image, phase, grain, angle, phase_of_grain)


def _lay(grid, place, weight) -> None:
    """Points onto a grid, shared by the four pixels around each."""
    first = np.floor(place).astype(int)
    rest = place - first
    for dy in (0, 1):
        for dx in (0, 1):
            share = (rest[:, 0] if dy else 1 - rest[:, 0]) * (rest[:, 1] if dx else 1 - rest[:, 1])
            y, x = (np.clip(first[:, i] + d, 0, grid.shape[i] - 1) for i, d in ((0, dy), (1, dx)))
            np.add.at(grid, (y, x), share * weight)

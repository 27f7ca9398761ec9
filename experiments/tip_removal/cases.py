"""Forty scans a fold: five shapes of tips x four surfaces x white and realistic noise.

The fold `tune` is there to choose constants on, the fold `held` to be looked at once: other
seeds, other turns and ratios of the tips, another real scan.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage, spatial

from micjax.io import read
from micjax.physics.probes.lines import feedback
from micjax.physics.tips.dilation import dilate
from micjax.problems.tip import particles

SIDE_PX, PIXEL_NM = 96, 2.0
WINDOW_PX = 17  # in which a blind estimate looks for the tip
RELIEF_NM = 24.0  # highest to lowest of every surface, before its tilt
NOISE_NM = 0.005 * RELIEF_NM
FIRST_SEED = {"tune": 0, "held": 1000}
SCAN = {"tune": "PTO_Funakubo0001.h5", "held": "PZT_thick0009.h5"}
NOISES = ("white", "real")


class Case(NamedTuple):
    """A scan, and what is true of it; heights in nm, `[iy, ix]`."""

    name: str
    surface: np.ndarray
    tip: np.ndarray
    image: np.ndarray
    sigma_nm: float  # rms of all that was added behind the tip: noise of the loop, of lines


def cases(fold: str, data: pathlib.Path) -> list[Case]:
    made, n = [], FIRST_SEED[fold]
    for shape in SHAPES:
        for kind in SURFACES:
            for noise in NOISES:
                rng = np.random.default_rng(n)
                surface = SURFACES[kind](rng, data / SCAN[fold])
                surface = RELIEF_NM * (surface - surface.min()) / np.ptp(surface)
                tip = SHAPES[shape](rng, fold)
                if noise == "real":
                    surface = surface + tilt(rng)
                clean = np.asarray(dilate(jnp.asarray(surface), jnp.asarray(tip - tip.max())))
                image, sigma_nm = measured(clean, rng, noise)
                name = f"{shape}/{kind}/{noise}"
                made.append(Case(name, surface, tip - tip.max(), image, sigma_nm))
                n += 1
    return made


# --- tips: -depth (nm) at the pixels, apex up ---------------------------------------------------


def place(turn: float, size: int = WINDOW_PX) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (nm) along axes turned by `turn`, the apex up to half a pixel off the centre."""
    at = (np.arange(size) - size // 2) * PIXEL_NM
    y, x = np.meshgrid(at, at, indexing="ij")
    return np.cos(turn) * y - np.sin(turn) * x, np.sin(turn) * y + np.cos(turn) * x


def pyramid(rng, fold):
    """Four faces of unequal steepness, the edge between them rounded."""
    turn = np.deg2rad(rng.uniform(*((5, 40) if fold == "tune" else (50, 85))))
    angles = rng.uniform(*((15, 50) if fold == "tune" else (20, 60)), 4)
    y, x = place(turn)
    faces = np.stack([y, -y, x, -x]) / np.tan(np.deg2rad(angles))[:, None, None]
    round_nm = rng.uniform(1.0, 4.0)
    return round_nm - np.hypot(np.max(faces, axis=0), round_nm)


def ellipse(rng, fold):
    """An elliptical paraboloid."""
    ratio = rng.uniform(*((2.5, 4.5) if fold == "tune" else (2.0, 5.0)))
    y, x = place(np.pi * rng.uniform(*((0.0, 0.5) if fold == "tune" else (0.5, 1.0))))
    radius_nm = rng.uniform(3.0, 8.0)
    return -(y**2 + x**2 / ratio) / (2 * radius_nm)


def double(rng, fold):
    """Two apexes of different radii."""
    apart = rng.uniform(*((8, 13) if fold == "tune" else (7, 15)))
    turn = np.pi * rng.uniform(*((0, 1) if fold == "tune" else (1, 2)))
    first, second = rng.uniform(3.0, 8.0, 2)
    y, x = place(0.0)
    half = np.round(apart * np.array([np.sin(turn), np.cos(turn)]) / 2 / PIXEL_NM) * PIXEL_NM
    one = cone(np.hypot(y + half[0], x + half[1]), first, 20.0)
    other = cone(np.hypot(y - half[0], x - half[1]), second, 25.0) + rng.uniform(0.5, 5.0)
    return -np.minimum(one, other)


def blunt(rng, fold):
    """A paraboloid that is not half as deep as the relief at the edge of the window."""
    y, x = place(0.0, 25)
    edge_nm = RELIEF_NM * rng.uniform(*((0.15, 0.4) if fold == "tune" else (0.1, 0.45)))
    return -(y**2 + x**2) * edge_nm / (WINDOW_PX // 2 * PIXEL_NM) ** 2


def worn(rng, fold):
    """A sphere-cone, its apex worn off askew."""
    y, x = place(2 * np.pi * rng.uniform())
    depth = cone(np.hypot(y, x), rng.uniform(3.0, 8.0), rng.uniform(15.0, 35.0))
    slope = rng.uniform(*((0.0, 0.1) if fold == "tune" else (0.0, 0.2)))
    return -np.maximum(depth, rng.uniform(0.5, 2.5) + slope * y)


def cone(r_nm, radius_nm: float, half_angle_deg: float) -> np.ndarray:
    angle = np.deg2rad(half_angle_deg)
    joint = radius_nm * np.cos(angle)
    sphere = radius_nm - np.sqrt(radius_nm**2 - np.minimum(r_nm, joint) ** 2)
    return sphere + np.maximum(r_nm - joint, 0.0) / np.tan(angle)


SHAPES = {"pyramid": pyramid, "ellipse": ellipse, "double": double, "blunt": blunt, "worn": worn}


# --- surfaces, of any height --------------------------------------------------------------------


def rough(rng, file):
    """Self-affine, Hurst exponent 0.6 to 0.9."""
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(SIDE_PX), np.fft.fftfreq(SIDE_PX)))
    spectrum = np.fft.fft2(rng.standard_normal((SIDE_PX, SIDE_PX)))
    return np.fft.ifft2(spectrum * np.maximum(k, 1 / 32) ** -rng.uniform(1.6, 1.9)).real


def spheres(rng, file):
    key = jax.random.key(rng.integers(2**31))
    return np.asarray(particles(key, SIDE_PX, SIDE_PX, PIXEL_NM))


def grains(rng, file):
    """Domed grains, each of its own height, steep towards its neighbours."""
    seeds = rng.uniform(-8, SIDE_PX + 8, (90, 2))
    tops = rng.uniform(0.0, 0.4, len(seeds))
    at = np.stack(np.meshgrid(*2 * [np.arange(SIDE_PX)], indexing="ij"), -1).reshape(-1, 2)
    away, nearest = spatial.cKDTree(seeds).query(at, k=2)
    edge = np.sqrt(np.minimum((away[:, 1] - away[:, 0]) / 5.0, 1.0))
    return (tops[nearest[:, 0]] + edge).reshape(SIDE_PX, SIDE_PX)


def scan(rng, file):
    """A part of a real scan, its own noise smoothed off, taken for the truth."""
    heights = read(file).to_nm()
    y, x = (rng.integers(0, n - SIDE_PX + 1) for n in heights.shape)
    return ndimage.gaussian_filter(heights, 0.7)[y : y + SIDE_PX, x : x + SIDE_PX]


SURFACES = {"rough": rough, "spheres": spheres, "grains": grains, "scan": scan}


# --- what comes behind the tip ------------------------------------------------------------------


def tilt(rng) -> np.ndarray:
    """A slope (nm) of up to 2 degrees in either direction."""
    y, x = place(0.0, SIDE_PX)
    slopes = np.tan(np.deg2rad(rng.uniform(-2, 2, 2)))
    return slopes[0] * y + slopes[1] * x


def measured(clean: np.ndarray, rng, noise: str) -> tuple[np.ndarray, float]:
    """The image, and the rms of what was added: white noise alone, or also noise that went through
    the loop, which lags, and lines that stand at heights of their own."""
    white = rng.standard_normal(clean.shape)
    if noise == "white":
        return (clean + NOISE_NM * white).astype(np.float32), NOISE_NM
    gain = rng.uniform(0.5, 0.8)
    before = NOISE_NM * rng.standard_normal(clean.shape)
    ideal = np.asarray(feedback(jnp.asarray(clean), 0.0, gain)[0])
    followed = np.asarray(feedback(jnp.asarray(clean + before), 0.0, gain)[0])
    lines = NOISE_NM * rng.standard_normal((len(clean), 1))
    added = followed - ideal + 0.3 * NOISE_NM * white + lines
    return (ideal + added).astype(np.float32), float(np.std(added))

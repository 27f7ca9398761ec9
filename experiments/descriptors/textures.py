"""Micrographs and scans whose texture is known, [h, w], each with its own brightness and contrast.

`metal`: two phases with three sizes each, as after etching: ferrite (grains with dark boundaries,
of 7, 14 and 28 pixels, two ASTM grain size numbers apart) and pearlite (colonies of lamellae, 5,
7.5 and 11 pixels apart). `close`: the same with grains of 9, 14 and 22 pixels.
`scan`: labyrinth domains, particles, terraces, a rough surface, grains.
"""

from functools import partial

import numpy as np
import scipy.ndimage
import scipy.spatial

SIZE, PATCH = 192, 64  # pixels
PIXEL_A = {"metal": 2500.0, "close": 2500.0, "scan": 20.0}


def _voronoi(rng, edge_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Cell of each pixel, and how far its border is (pixels)."""
    margin = 2.0 * edge_px
    count = int((SIZE + 2.0 * margin) ** 2 / edge_px**2)
    tree = scipy.spatial.KDTree(rng.uniform(-margin, SIZE + margin, (count, 2)))
    places = np.stack(np.mgrid[:SIZE, :SIZE], -1).astype(float)
    for axis in range(2):
        places[..., axis] += 0.1 * edge_px * _noise(rng, 0.3 * edge_px)
    distance, cell = tree.query(places, k=2)
    return cell[..., 0], distance[..., 1] - distance[..., 0]


def _noise(rng, sigma_px: float) -> np.ndarray:
    smooth = scipy.ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), sigma_px, mode="wrap")
    return smooth / smooth.std()


def _ferrite(rng, edge_px: float) -> np.ndarray:
    cell, border = _voronoi(rng, edge_px)
    shade = 0.15 * rng.standard_normal(cell.max() + 1)
    return shade[cell] - np.exp(-0.5 * (border / 1.8) ** 2)


def _pearlite(rng, period_px: float) -> np.ndarray:
    cell, _ = _voronoi(rng, 45.0)
    count = cell.max() + 1
    angle, phase = rng.uniform(0.0, np.pi, count), rng.uniform(0.0, 2.0 * np.pi, count)
    period = period_px * (1.0 + 0.05 * rng.standard_normal(count))
    y, x = np.mgrid[:SIZE, :SIZE]
    along = x * np.cos(angle)[cell] + y * np.sin(angle)[cell] + 0.12 * period_px * _noise(rng, 6.0)
    wave = np.cos(2.0 * np.pi * along / period[cell] + phase[cell])
    return 0.5 * np.tanh(2.0 * (wave - 0.4))


def _labyrinth(rng) -> np.ndarray:
    y, x = (np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE))
    ring = np.exp(-0.5 * ((np.hypot(y, x) - 1.0 / 14.0) / 0.012) ** 2)
    field = np.fft.ifft2(ring * np.fft.fft2(rng.standard_normal((SIZE, SIZE)))).real
    return np.tanh(2.0 * field / field.std())


def _particles(rng) -> np.ndarray:
    image = np.zeros((SIZE, SIZE))
    y, x = np.mgrid[:SIZE, :SIZE]
    for _ in range(SIZE**2 // 250):
        at, radius = rng.uniform(0, SIZE, 2), rng.uniform(3.0, 7.0)
        away = ((y - at[0]) ** 2 + (x - at[1]) ** 2) / radius**2
        image = np.maximum(image, radius / 7.0 * np.sqrt(np.maximum(1.0 - away, 0.0)))
    return image


def _terraces(rng) -> np.ndarray:
    angle, y, x = rng.uniform(0.0, np.pi), *np.mgrid[:SIZE, :SIZE]
    height = (x * np.cos(angle) + y * np.sin(angle)) / 16.0 + 0.25 * _noise(rng, 8.0)
    return 0.5 * (height - np.floor(height))  # the mean slope is taken off


def _rough(rng) -> np.ndarray:
    y, x = (np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE))
    fall = (np.hypot(y, x) + 1.0 / 40.0) ** -2.0
    field = np.fft.ifft2(fall * np.fft.fft2(rng.standard_normal((SIZE, SIZE)))).real
    return field / field.std()


def _metal(*grains_px: float) -> dict:
    return {
        **{f"ferrite {n:g} px": partial(_ferrite, edge_px=n) for n in grains_px},
        **{f"pearlite {n:g} px": partial(_pearlite, period_px=n) for n in (5, 7.5, 11)},
    }


SETS = {
    "metal": _metal(7, 14, 28),
    "close": _metal(9, 14, 22),
    "scan": {
        "labyrinth": _labyrinth,
        "particles": _particles,
        "terraces": _terraces,
        "rough": _rough,
        "grains": partial(_ferrite, edge_px=14),
    },
}


def image_of(rng: np.random.Generator, name: str, texture: str, noise: float) -> np.ndarray:
    """One image; `noise` is its standard deviation in that of the texture."""
    clean = SETS[name][texture](rng)
    clean = scipy.ndimage.gaussian_filter(clean / clean.std(), rng.uniform(0.5, 1.0))
    slope, y, x = rng.uniform(-0.3, 0.3, 2), *(np.mgrid[:SIZE, :SIZE] / SIZE - 0.5)
    uneven = clean * (1.0 + slope[0] * x) + 2.0 * slope[1] * y
    noisy = uneven + noise * rng.standard_normal(clean.shape)
    return rng.uniform(0.5, 2.0) * noisy + rng.uniform(-5.0, 5.0)


def patches_of(image: np.ndarray) -> np.ndarray:
    """[n, PATCH, PATCH], side by side."""
    count = SIZE // PATCH
    return image.reshape(count, PATCH, count, PATCH).swapaxes(1, 2).reshape(-1, PATCH, PATCH)

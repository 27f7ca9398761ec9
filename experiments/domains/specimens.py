"""Images like those of Sm-doped BiFeO3 along [100], whose polar domains are known.

Bi columns are strong and Fe columns weak; Fe is off the middle of four Bi by 0.2 to 0.4 Å, along
one of the four <110> of the image (the projections of <111>), or one of eight directions.
"""

from typing import NamedTuple

import numpy as np
import scipy.ndimage

from micjax.physics.patches.polycrystal import grain_map

CELL_A = 3.96  # pseudocubic
WIDTHS_A = 0.45, 0.42  # standard deviations of the columns A and B with the probe
WEAK = 0.35  # B over A
SPREAD = 0.06, 0.06  # of the intensity of A columns (Sm) and of B columns, relative
LOCAL_A = 0.03  # rms of what each B column is off on its own


class Ferroelectric(NamedTuple):
    image: np.ndarray  # [h, w], A columns about 1 high
    domain: np.ndarray  # [h, w], variant of each pixel
    shift_A: np.ndarray  # [h, w, 2], (y, x), mean displacement of B at each pixel
    columns_px: np.ndarray  # [n, 2], (y, x) of A


def ferroelectric(
    seed: int,
    *,
    variants: int = 4,
    dose_perA2: float = 3000.0,
    shift_A: float = 0.3,
    size: int = 448,
    sampling_A: float = 0.3,
    domains: int = 8,
    turn_deg: float = 3.0,
    background: float = 0.2,
    jitter_px: float = 0.1,
    drift: float = 0.01,
) -> Ferroelectric:
    """One image.

    - `variants`: 4, along <110>, or 8, along <110> and <100>.
    - `dose_perA2`: electrons counted in each Å^2 at the mean intensity.
    - `domains`: compact cells with wobbly borders, of which neighbours may be of one variant.
    - `turn_deg`: the lattice lies at an angle within this to the axes of the image.
    - `background`: tilt of the plane below the columns, end to end.
    - `jitter_px`: rms shift of each line along x; `drift`: how far the image is sheared and
      stretched, relative.
    """
    rng = np.random.default_rng(seed)
    shape = (size, size)
    grain = grain_map(rng, shape, domains)
    variant = np.arange(domains) % variants
    rng.shuffle(variant)
    domain = variant[grain]
    angle = np.pi / 4.0 * np.arange(8) if variants == 8 else np.pi / 4.0 + np.pi / 2 * np.arange(4)
    turn = np.deg2rad(rng.uniform(-turn_deg, turn_deg))
    length = rng.uniform(shift_A * 0.9, shift_A * 1.1)
    shift = length * np.stack([np.sin(angle + turn), np.cos(angle + turn)], -1)[domain]
    # a wall is about a cell wide
    wall = (0.5 * CELL_A / sampling_A, 0.5 * CELL_A / sampling_A, 0)
    shift = scipy.ndimage.gaussian_filter(shift, wall, mode="nearest")
    skew = np.eye(2) + drift * rng.uniform(-1.0, 1.0, (2, 2))
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) @ skew
    axes = axes * CELL_A / sampling_A
    reach = size // int(CELL_A / sampling_A)
    cells = np.stack(np.meshgrid(*2 * [np.arange(-reach, reach + 1)], indexing="ij"), -1)
    origin = 0.5 * size + rng.uniform(0.0, CELL_A / sampling_A, 2)
    strong = cells.reshape(-1, 2) @ axes + origin
    middle = strong + axes.sum(0) / 2.0
    at = np.clip(middle.round().astype(int), 0, size - 1)
    weak = middle + shift[at[:, 0], at[:, 1]] / sampling_A
    weak = weak + LOCAL_A / sampling_A * rng.standard_normal(weak.shape)
    image = np.zeros(shape)
    for columns, height, width, spread in zip(
        (strong, weak), (1.0, WEAK), WIDTHS_A, SPREAD, strict=True
    ):
        heights = height * (1.0 + spread * rng.standard_normal(len(columns)))
        _add(image, columns, heights, width / sampling_A)
    slope = rng.uniform(-1.0, 1.0, 2)
    y, x = np.mgrid[:size, :size] / size - 0.5
    image += 0.1 + background * 0.5 + background * (slope[0] * y + slope[1] * x) / 2.0
    line, along = np.arange(size), jitter_px * rng.standard_normal(size)
    image = np.stack([np.interp(line + s, line, row) for s, row in zip(along, image, strict=True)])
    counts = dose_perA2 * sampling_A**2 / image.mean()
    image = rng.poisson(np.maximum(image, 0.0) * counts) / counts
    inside = np.all((strong > 0.0) & (strong < size - 1.0), axis=1)
    return Ferroelectric(image, domain, shift, strong[inside])


def _add(image, columns, heights, width_px: float) -> None:
    """Gaussians, at the pixels within five widths of each."""
    reach = int(np.ceil(5.0 * width_px))
    offsets = np.arange(-reach, reach + 1)
    for (y, x), height in zip(columns, heights, strict=True):
        first = int(round(y)) - reach, int(round(x)) - reach
        rows, cols = (offsets + reach + f for f in first)
        keep = [(v >= 0) & (v < n) for v, n in zip((rows, cols), image.shape, strict=True)]
        if keep[0].any() and keep[1].any():
            rows, cols = rows[keep[0]], cols[keep[1]]
            down, across = (
                np.exp(-0.5 * ((v - c) / width_px) ** 2) for v, c in ((rows, y), (cols, x))
            )
            image[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] += height * np.outer(down, across)

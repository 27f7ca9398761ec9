"""Height images, and images of tips, from files, for `micjax.problems.tip`."""

import logging
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from micjax.io import check_image, read
from micjax.io.fields import with_pixel
from micjax.physics.tips.evidence import noise_sigma_nm
from micjax.physics.tips.shapes import size_pair
from micjax.problems.shared.heights import LEAST_RANGE_NM, heights_nm

log = logging.getLogger("micjax")


def load(
    file,
    channel: str | None = None,
    pixel_nm: float | list | None = None,
    known_tip: str | None = None,
    tip_size: int | None = None,
    tip_channel: str | None = None,
    sigma_nm: float | None = None,
    tip_reflected: bool = False,
    height_unit: str | None = None,
    also: list[str] | None = None,
) -> tuple[dict[str, Any], Int[Array, " n"], Float[Array, "n ny nx"]]:
    """The height image of a microscope's file, or of several that one tip took.

    **Arguments:**

    - `channel`: which image of the file; the height if not given.
    - `pixel_nm`: pixel size where the file does not state one.
    - `known_tip`: a file with the image of the tip, apex up, of the same pixel size.
    - `tip_size`: pixels of the unknown tip, odd; 25, or what fits into a small image.
    - `tip_channel`: which image of the tip's file.
    - `sigma_nm`: rms noise; estimated from the image if not given.
    - `tip_reflected`: the known tip is a blind estimate of Gwyddion or another program in
        Villarrubia's frame, turned by 180 degrees against the tip itself.
    - `height_unit`: of the values where the file states none; nm if they can be that.
    - `also`: more files, images of as many pixels of the same size that the same tip took, of
        whatever surfaces; what one of them leaves open of the tip another one may tell.

    **Raises:** `ValueError` for NaN or constant images, images or pixel sizes that differ, tips
    that do not fit or are drawn apex down or in metres, besides what `micjax.io.read` raises.
    """
    images, pixel = _images([file, *(also or [])], channel, pixel_nm, height_unit)
    frames, ny, nx = images.shape
    y = jnp.asarray(images, dtype=float)
    sigma = float(noise_sigma_nm(y)) if sigma_nm is None else sigma_nm
    if not sigma > 0 and sigma_nm is not None:
        raise ValueError(f"sigma_nm = {sigma_nm}: must be positive")
    options: dict[str, Any] = {
        "frames": frames,
        "ny": ny,
        "nx": nx,
        "pixel_nm": [float(p) for p in pixel],
        # smooth made-up images have no noise but their rounding
        "sigma_nm": max(sigma, 1e-4 * float(np.ptp(images))),
    }
    log.info("noise %.3g nm rms%s", options["sigma_nm"], " (estimated)" if sigma_nm is None else "")
    if known_tip is not None:
        options["tip_heights_nm"] = _known_tip(
            known_tip, tip_channel, pixel, (ny, nx), tip_reflected, height_unit
        )
    else:
        fits = min(ny, nx) // 3 // 2 * 2 - 1
        if fits < 3:
            raise ValueError(f"image of {ny} x {nx} pixels: too small to hold a tip of 3 x 3")
        options["tip_size"] = min(25, fits) if tip_size is None else tip_size
    return options, jnp.arange(frames), y


def _images(files, channel, pixel_nm, height_unit) -> tuple[np.ndarray, Any]:
    """Heights (nm) `[frame, iy, ix]` and the pixel size (nm) that all share."""
    images, first = [], None
    for file in files:
        field = check_image(read(file, channel, pixel_nm))
        heights = heights_nm(field, height_unit)
        # where the sample stands means nothing; its slope is part of the surface
        images.append(heights - heights.mean())
        first = field if first is None else first
        same = np.allclose(field.pixel_nm, first.pixel_nm, rtol=1e-3)
        if heights.shape != images[0].shape or not same:
            raise ValueError(
                f"{file}: {heights.shape} pixels of {field.pixel_nm} nm, {files[0]} has "
                f"{images[0].shape} of {first.pixel_nm} nm; images with one tip must be alike"
            )
    return np.stack(images), first.pixel_nm


def _known_tip(path, channel, pixel, image_shape, reflected: bool, height_unit) -> list:
    # one without a pixel size of its own has the image's
    tip = check_image(with_pixel(read(path, channel), pixel))
    if not np.allclose(tip.pixel_nm, pixel, rtol=1e-3):
        raise ValueError(
            f"{path}: pixels of {tip.pixel_nm} nm, the image has {pixel}; resample the tip first "
            "(micjax.physics.tips.shapes.FreeForm.resample)"
        )
    heights = heights_nm(tip, None if tip.unit else height_unit)
    size_pair(heights.shape)
    if heights.shape[0] > image_shape[0] or heights.shape[1] > image_shape[1]:
        raise ValueError(
            f"the image of {image_shape} pixels is smaller than the tip {heights.shape}"
        )
    check_tip(heights, f"{path}: ")
    heights = heights[::-1, ::-1] if reflected else heights
    return (heights - heights.max()).tolist()


def check_tip(heights: Float[np.ndarray, "ky kx"], where: str = "") -> None:
    """**Raises:** `ValueError` for tips drawn apex down, and for heights that are metres."""
    span = float(np.ptp(heights))
    if 0 < span < LEAST_RANGE_NM:
        raise ValueError(
            f"{where}the tip is {span:.3g} nm high, which no tip is: are its heights in metres?"
        )
    ky, kx = heights.shape
    if ky < 3 or kx < 3:
        return
    inside = heights[1:-1, 1:-1]
    border = (heights.sum() - inside.sum()) / (heights.size - inside.size)
    if heights.max() > inside.max() and border > inside.mean() + 0.05 * span:
        raise ValueError(
            f"{where}the tip is drawn apex down: its border is {border - inside.mean():.3g} nm "
            "higher than its inside, the apex must be the highest (turn the sign of its heights)"
        )

"""What is held against a network, and how alike two images are."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SSIM_WIDTH = 7  # pixels of the window (Wang 2004 as scikit-image computes it by default)


def faithful(
    mean: Float[Array, "*n"], sd: Float[Array, "*n"], y: Float[Array, "*n"]
) -> Float[Array, ""]:
    """Square of what a mean is off by, and minus the log-likelihood of the standard deviation alone
    (Stirn 2023, arXiv 2212.09184): a mean cannot get worse by calling its errors noise."""
    off = jax.lax.stop_gradient(y - mean)
    return jnp.mean((y - mean) ** 2) + jnp.mean(0.5 * (off / sd) ** 2 + jnp.log(sd))


def gradient_difference(a: Float[Array, "*b y x"], b: Float[Array, "*b y x"]) -> Float[Array, ""]:
    """Mean size of the difference of slopes along y and x (Mathieu 2016), per pixel."""
    off = a - b
    return sum(jnp.abs(jnp.diff(off, axis=axis)).mean() for axis in (-2, -1))


def ssim(
    a: Float[Array, "*b y x"], b: Float[Array, "*b y x"], data_range: float | Array
) -> Float[Array, "*b"]:
    """Structural similarity of images (Wang, Bovik, Sheikh and Simoncelli 2004, eq. 13), over
    windows of 7 x 7 pixels with sample covariances, away from the edges: scikit-image's default.

    **Arguments:**

    - `data_range`: difference of the largest and the smallest value that there may be.

    **Raises:** `ValueError` for images smaller than the window.
    """
    if min(a.shape[-2:]) < SSIM_WIDTH:
        raise ValueError(f"{a.shape[-2]} x {a.shape[-1]} pixels: at least 7 x 7 are needed")

    def mean(image):
        window = (1,) * (image.ndim - 2) + (SSIM_WIDTH, SSIM_WIDTH)
        strides = (1,) * image.ndim
        return jax.lax.reduce_window(image, 0.0, jax.lax.add, window, strides, "VALID") / number

    number = SSIM_WIDTH**2
    # of what is left after the mean of both: float32 would lose the variance beside a large offset
    level = 0.5 * (a.mean(axis=(-2, -1), keepdims=True) + b.mean(axis=(-2, -1), keepdims=True))
    a_off, b_off = a - level, b - level
    mean_a, mean_b = mean(a_off), mean(b_off)
    unbiased = number / (number - 1)
    var_a = unbiased * (mean(a_off * a_off) - mean_a**2)
    var_b = unbiased * (mean(b_off * b_off) - mean_b**2)
    cov = unbiased * (mean(a_off * b_off) - mean_a * mean_b)
    mean_a, mean_b = mean_a + level, mean_b + level
    c_1, c_2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    light = (2.0 * mean_a * mean_b + c_1) / (mean_a**2 + mean_b**2 + c_1)
    shape = (2.0 * cov + c_2) / (var_a + var_b + c_2)
    return (light * shape).mean(axis=(-2, -1))

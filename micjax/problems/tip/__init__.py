"""The true surface and the tip from scanning-probe images, with what is certain marked.

    image = dilate(surface, tip) + line offsets + noise

With a known tip the surface is the maximum a posteriori under a curvature prior. Without one the
tip comes first: the bluntest that the images admit (`micjax.physics.tips.blind.search`).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem, drawn_data
from micjax.core.ranges import not_negative, positive
from micjax.physics.noise import Gaussian
from micjax.physics.regularisers import Curvature
from micjax.physics.tips.shapes import Double, FreeForm, size_pair
from micjax.problems.tip.conclusion import conclude as conclude
from micjax.problems.tip.data import check_tip
from micjax.problems.tip.data import load as load
from micjax.problems.tip.model import Reshaped as Reshaped
from micjax.problems.tip.model import TipScan as TipScan
from micjax.problems.tip.network import training as training
from micjax.problems.tip.show import aligned_error as aligned_error
from micjax.problems.tip.show import compare as compare
from micjax.problems.tip.show import figures as figures
from micjax.problems.tip.show import training_figures as training_figures
from micjax.problems.tip.stages import stages as stages


def problem(
    frames: int = 1,
    ny: int = 128,
    nx: int = 128,
    pixel_nm: float | list = 2.0,
    tip_size: int = 21,
    tip_heights_nm: list | None = None,
    sigma_nm: float = 0.15,
    curvature_nm: float | None = None,
    line_sigma_nm: float = 0.0,
) -> InverseProblem:
    """Surfaces of `frames` x `ny` x `nx` pixels below one tip.

    **Arguments:**

    - `frames`: number of images taken with the same tip.
    - `ny`: lines of an image.
    - `nx`: pixels of a line.
    - `pixel_nm`: pixel size, a number or [dy, dx].
    - `tip_size`: pixels of the unknown tip along each side, odd.
    - `tip_heights_nm`: the tip if it is known, rows of heights, the apex 0 and highest.
    - `sigma_nm`: rms noise (a file's is estimated from the image if it is not given).
    - `curvature_nm`: typical curvature of the surface, nm per pixel^2; 10 sigma if not given.
    - `line_sigma_nm`: rms of line offsets to be fitted; 0 if the lines stand at one height.

    **Raises:** `ValueError` for even tip sizes, tips larger than the image, drawn apex down or in
    metres, sizes and noise that are not positive.
    """
    pixel = np.broadcast_to(np.asarray(pixel_nm, float), (2,))
    if curvature_nm is None:
        curvature_nm = 10 * sigma_nm
    positive(frames=frames, ny=ny, nx=nx, pixel_nm=pixel_nm)
    positive(sigma_nm=sigma_nm, curvature_nm=curvature_nm)
    not_negative(line_sigma_nm=line_sigma_nm)
    known = tip_heights_nm is not None
    size = size_pair(np.shape(tip_heights_nm) if known else tip_size)
    if size[0] > ny or size[1] > nx:
        raise ValueError(f"the tip of {size} pixels is larger than the image of {(ny, nx)}")
    shape = (frames, ny, nx)
    priors: dict[str, dist.Distribution] = {
        "forward.surface_nm": Curvature(curvature_nm, sigma_nm, shape),
        "noise.sigma": dist.LogNormal(np.log(sigma_nm), 0.5),
    }
    if known:
        check_tip(np.asarray(tip_heights_nm, float))
        tip: Reshaped | FreeForm = FreeForm(tip_heights_nm, pixel)
    else:
        reach = float(np.min(np.array(size) // 2 * pixel))
        tip = Reshaped(
            Double(reach / 3, 20.0, (0.0, reach / 2), reach / 4, pixel_nm=pixel, size=size),
            np.zeros(size),
        )
        priors |= {
            "forward.tip.shape.radius_nm": dist.LogNormal(np.log(reach / 3), 1.5),
            "forward.tip.shape.half_angle_deg": dist.TruncatedNormal(
                25.0, 20.0, low=5.0, high=80.0
            ),
            "forward.tip.shape.offset_nm": dist.Normal(0.0, reach),
            "forward.tip.shape.drop_nm": dist.HalfNormal(reach),
            "forward.tip.shape.origin_nm": dist.Normal(0.0, reach),
            "forward.tip.residual_nm": dist.Normal(0.0, reach),
        }
    if line_sigma_nm > 0:
        priors["forward.line_offsets_nm"] = dist.Normal(0.0, line_sigma_nm)
    forward = TipScan(np.zeros(shape), tip, np.zeros((frames, ny)))
    return InverseProblem(forward, Gaussian(sigma_nm), priors)


@eqx.filter_jit
def particles(key, ny: int, nx: int, pixel_nm: float) -> Float[Array, "ny nx"]:
    """Heights (nm) of hemispheres of 4 to 11 nm on a self-affine ground (Hurst exponent 0.9)."""
    ground_key, place_key, size_key = jax.random.split(key, 3)
    k = jnp.hypot(jnp.fft.fftfreq(ny)[:, None], jnp.fft.fftfreq(nx)[None, :])
    spectrum = (
        jnp.fft.fft2(jax.random.normal(ground_key, (ny, nx))) * jnp.maximum(k, 1 / 48) ** -1.9
    )
    ground = jnp.real(jnp.fft.ifft2(spectrum))
    ground = 1.2 * ground / jnp.std(ground)
    count = max(4, ny * nx // 180)
    centre = jax.random.uniform(place_key, (count, 2)) * jnp.array([ny, nx])
    radius = jax.random.uniform(size_key, (count,), minval=4.0, maxval=11.0)
    y, x = jnp.arange(ny)[:, None], jnp.arange(nx)[None, :]

    def add(surface, particle):
        (cy, cx), r = particle
        cap = r**2 - pixel_nm**2 * ((y - cy) ** 2 + (x - cx) ** 2)
        foot = ground[cy.astype(int), cx.astype(int)]
        top = foot + jnp.sqrt(jnp.maximum(cap, 0.0))
        return jnp.where(cap > 0, jnp.maximum(surface, top), surface), None

    surface, _ = jax.lax.scan(add, ground, (centre, radius))
    return surface - jnp.min(surface)


def example(
    key, ny: int = 128, nx: int = 128, pixel_nm: float = 2.0, tip_size: int = 21
) -> tuple[InverseProblem, Int[Array, " n"], Float[Array, "n ny nx"]]:
    """Particles under a blunt double tip: radius 8 nm, a second apex 15 nm away and 3 nm lower."""
    surface_key, noise_key = jax.random.split(key)
    scale = pixel_nm * (tip_size // 2) / 20.0  # the tip keeps its place on smaller grids
    truth = problem(1, ny, nx, pixel_nm, tip_size, sigma_nm=0.15).at(
        {
            "forward.surface_nm": particles(surface_key, ny, nx, pixel_nm)[None],
            "forward.tip.shape.radius_nm": 8.0 * scale,
            "forward.tip.shape.half_angle_deg": 22.0,
            "forward.tip.shape.offset_nm": jnp.array([5.0, 14.0]) * scale,
            "forward.tip.shape.origin_nm": jnp.array([-2.0, -6.0]) * scale,
            "forward.tip.shape.drop_nm": 3.0 * scale,
        }
    )
    x = jnp.arange(1)
    return truth, x, drawn_data(truth, x, noise_key)

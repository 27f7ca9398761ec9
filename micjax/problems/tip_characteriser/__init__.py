"""The tip, with error bars, from the scan of a known characteriser: a double tip in five numbers.

    image = dilate(known surface, Double(radius, half-angle, offset, drop)) + noise

The posterior has wrong basins: a second apex on the wrong side, or one that touches nothing, has no
gradient to the right place. So many points are drawn from the priors, the best of them are fitted
side by side, the fits that end above the best loss are set aside, and the NUTS chains start spread
about the others.
"""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from micjax.core.problem import InverseProblem, drawn_data
from micjax.core.ranges import not_negative, positive
from micjax.physics.noise import Gaussian
from micjax.physics.tips.shapes import Double, size_pair
from micjax.problems.tip_characteriser.conclusion import conclude as conclude
from micjax.problems.tip_characteriser.data import known_surface
from micjax.problems.tip_characteriser.data import load as load
from micjax.problems.tip_characteriser.model import CharacteriserScan
from micjax.problems.tip_characteriser.show import compare as compare
from micjax.problems.tip_characteriser.show import figures as figures
from micjax.problems.tip_characteriser.stages import stages as stages


def sharp_cones(
    ny: int, nx: int, pixel_nm, pitch_nm: float, height_nm: float, half_angle_deg: float
) -> Float[Array, "ny nx"]:
    """Heights (nm) of sharp cones on a flat ground in a square lattice, like a TGT1 grating."""
    away = []
    for n, step in zip((ny, nx), np.broadcast_to(pixel_nm, (2,)), strict=True):
        place = jnp.arange(n) * float(step) / pitch_nm
        away.append(pitch_nm * (place % 1.0 - 0.5))  # from the cone in the middle of the cell
    r = jnp.hypot(away[0][:, None], away[1][None, :])
    return jnp.maximum(height_nm - r / jnp.tan(jnp.deg2rad(half_angle_deg)), 0.0)


def problem(
    ny: int = 48,
    nx: int = 48,
    pixel_nm: float | list = 1.0,
    tip_size: int = 17,
    sigma_nm: float = 0.3,
    pitch_nm: float = 24.0,
    cone_height_nm: float = 12.0,
    cone_half_angle_deg: float = 14.0,
    characteriser: str | None = None,
    registration_nm: float = 0.0,
) -> InverseProblem:
    """A double tip above a known surface of `ny` x `nx` pixels.

    The second apex is the lower one (`drop_nm` >= 0), which tells the two apart: exchanged labels
    are the same tip only in the limit of no drop, and with a registered scan not even there.

    **Arguments:**

    - `ny`: lines of the image.
    - `nx`: pixels of a line.
    - `pixel_nm`: pixel size, a number or [dy, dx].
    - `tip_size`: pixels of the tip along each side, odd.
    - `sigma_nm`: rms noise, as far as it is known; it is fitted.
    - `pitch_nm`: distance of the cones of the made-up characteriser.
    - `cone_height_nm`: their height.
    - `cone_half_angle_deg`: between their axis and flank.
    - `characteriser`: a file with the heights of the known surface, in place of the cones.
    - `registration_nm`: how well scan and surface are laid upon each other, rms, in all three
        directions; above 0 the place of the tip is fitted too.

    **Raises:** `ValueError` for even tip sizes, tips larger than the image, sizes and noise that
    are not positive, and a characteriser of another shape or pixel size.
    """
    pixel = np.broadcast_to(np.asarray(pixel_nm, float), (2,))
    not_negative(registration_nm=registration_nm)
    positive(
        ny=ny,
        nx=nx,
        pixel_nm=pixel_nm,
        sigma_nm=sigma_nm,
        pitch_nm=pitch_nm,
        cone_height_nm=cone_height_nm,
    )
    if not 0 < cone_half_angle_deg < 90:
        raise ValueError(f"cone_half_angle_deg = {cone_half_angle_deg}: must be between 0 and 90")
    size = size_pair(tip_size)
    if size[0] > ny or size[1] > nx:
        raise ValueError(f"the tip of {size} pixels is larger than the image of {(ny, nx)}")
    if characteriser is None:
        surface = sharp_cones(ny, nx, pixel, pitch_nm, cone_height_nm, cone_half_angle_deg)
    else:
        surface = known_surface(characteriser, (ny, nx), pixel)

    reach = float(np.min(np.array(size) // 2 * pixel))
    tip = Double(reach / 2, 20.0, (0.0, reach / 2), reach / 4, pixel_nm=pixel, size=size)
    priors: dict[str, dist.Distribution] = {
        "forward.tip.radius_nm": dist.LogNormal(np.log(reach / 2), 0.7),
        "forward.tip.half_angle_deg": dist.TruncatedNormal(20.0, 10.0, low=3.0, high=60.0),
        "forward.tip.offset_nm": dist.Normal(0.0, reach / 2),
        "forward.tip.drop_nm": dist.HalfNormal(reach / 2),
        "noise.sigma": dist.LogNormal(np.log(sigma_nm), 1.0),
    }
    if registration_nm > 0:
        priors["forward.tip.origin_nm"] = dist.Normal(0.0, registration_nm)
        priors["forward.height_nm"] = dist.Normal(0.0, registration_nm)
    return InverseProblem(CharacteriserScan(surface[None], tip), Gaussian(sigma_nm), priors)


def example(
    key, ny: int = 48, nx: int = 48, sigma_nm: float = 0.3
) -> tuple[InverseProblem, Int[Array, " n"], Float[Array, "n ny nx"]]:
    """Cones of 12 nm under a tip of 3 nm radius with a second apex 4.3 nm away and 1 nm lower."""
    truth = problem(ny, nx, sigma_nm=sigma_nm).at(
        {
            "forward.tip.radius_nm": 3.0,
            "forward.tip.half_angle_deg": 18.0,
            "forward.tip.offset_nm": jnp.array([1.5, 4.0]),
            "forward.tip.drop_nm": 1.0,
        }
    )
    x = jnp.arange(1)
    return truth, x, drawn_data(truth, x, key)

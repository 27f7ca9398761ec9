"""Scanning: a probe at many places through one specimen, onto detectors.

Patterns are reduced to what the detectors see place by place, so a scan needs the memory of a batch
of waves, whatever its size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Complex, Float, PyTree

from micjax.core.devices import each
from micjax.physics.electrons.cis import cis
from micjax.physics.electrons.detectors import collected, diffraction
from micjax.physics.electrons.multislice import Sampling, Tilt, frequencies_inv_A, propagate

GPU_WAVES = 2**24  # pixels of the waves that a GPU is given at once


def placed(
    probe: Complex[Array, "ny nx"], positions_A: Float[Array, "n 2"], sampling_A: Sampling
) -> Complex[Array, "n ny nx"]:
    """The probe of the corner at each place (y, x), by phase ramps in its spectrum."""
    ky, kx = frequencies_inv_A(probe.shape, sampling_A)
    spectrum = jnp.fft.fft2(probe)

    def ramp(k, r):
        return cis((-2.0 * jnp.pi * k * r).astype(probe.real.dtype))

    def at(place):
        return jnp.fft.ifft2(spectrum * ramp(ky, place[0]) * ramp(kx, place[1]))

    return jax.vmap(at)(positions_A)


def scanned(
    probe: Complex[Array, "ny nx"],
    positions_A: Float[Array, "n 2"],
    transmissions: Complex[Array, "slices ny nx"],
    thickness_A: float | Float[Array, "..."] | Float[np.ndarray, "..."],
    sampling_A: Sampling,
    energy_keV: float | Float[Array, ""],
    detect: Bool[Array, "*masks ny nx"] | Callable[[Float[Array, "n ny nx"]], PyTree],
    *,
    tilt_mrad: Tilt = (0.0, 0.0),
    limit: Float[Array, "ny nx"] | None = None,
    mesh: Mesh | None = None,
) -> PyTree[Float[Array, "n ..."]]:
    """What the detectors see with the probe at each of the places.

    **Arguments:**

    - `probe`: the wave at the corner, its spectrum normalised to 1.
    - `positions_A`: (y, x) of each.
    - `transmissions`: of `multislice.transmission`, with the same `limit`.
    - `detect`: masks (`detectors.annulus`, `segments`), or a function of patterns `[n, ny, nx]`
        to an array `[n, ...]` or several.
    - `mesh`: devices that take a share of the places each (`devices.row`), else one.
    """

    def seen(places):
        waves = placed(probe, places, sampling_A)
        after = propagate(
            waves,
            transmissions,
            thickness_A,
            sampling_A,
            energy_keV,
            tilt_mrad=tilt_mrad,
            limit=limit,
        )
        patterns = diffraction(after)
        return detect(patterns) if callable(detect) else collected(patterns, detect)

    # on a CPU one wave at a time stays in the cache
    batch = 1 if jax.default_backend() == "cpu" else max(1, GPU_WAVES // probe.size)

    def at_place(place):
        return jax.tree.map(lambda a: a[0], seen(place[None]))

    return each(lambda places: jax.lax.map(at_place, places, batch_size=batch), positions_A, mesh)

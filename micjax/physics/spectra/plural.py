"""Plural scattering of electrons that lose energy: low loss, thickness, mean free path.

All spectra of a pixel are on one axis with one width of channel; the channel of zero loss is given
by its index. Everything is differentiable in the spectra.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Spectrum = Float[Array, "*map n"]
Number = Float[Array, "..."] | float


def with_low_loss(
    single: Spectrum, low_loss: Float[Array, "*map m"], zero_channel: int
) -> Spectrum:
    """A core-loss spectrum after plural scattering: `single` folded with the low loss of the pixel,

        y[i] = sum_j single[i - j] low_loss[zero_channel + j] / sum(low_loss)

    (Egerton 2011, 3rd ed., sec. 4.3.2). The sum is kept: losses beyond the end of the axis go.
    By FFT, padded: nothing comes round. Before the axis `single` is taken to be nothing.

    **Arguments:**

    - `single`: single scattering `[*map, n]`.
    - `low_loss`: `[*map, m]` of any intensity, channels as wide as those of `single`.
    - `zero_channel`: the index of zero loss in `low_loss`.
    """
    n, m = single.shape[-1], low_loss.shape[-1]
    length = _fast_length(n + m - 1)
    kernel = low_loss / jnp.sum(low_loss, axis=-1, keepdims=True)
    spectrum = jnp.fft.rfft(single, length) * jnp.fft.rfft(kernel, length)
    return jnp.fft.irfft(spectrum, length)[..., zero_channel : zero_channel + n]


def plural_scattering(
    zero_loss: Spectrum,
    single: Float[Array, "*map m"],
    thickness: Float[Array, "*map"] | float,
    zero_channel: int,
) -> Spectrum:
    """A low-loss spectrum from the zero-loss peak and the probability of a single loss,

        y = transform of Z exp(t/lambda (S - 1)),

    whose orders are a Poisson law (Egerton 2011, 3rd ed., eqs. 4.8 to 4.10). The sum of y is that
    of the zero-loss peak before the specimen.

    **Arguments:**

    - `zero_loss`: the peak without a specimen, its centre at any channel.
    - `single`: losses, zero loss at `zero_channel`; normalised here to a sum of 1.
    - `thickness`: t / lambda.
    """
    n, m = zero_loss.shape[-1], single.shape[-1]
    # orders up to the third fall on three lengths: what is beyond must not come round
    length = _fast_length(n + 3 * m)
    loss = single / jnp.sum(single, axis=-1, keepdims=True)
    loss = jnp.roll(
        jnp.pad(loss, [(0, 0)] * (loss.ndim - 1) + [(0, length - m)]), -zero_channel, -1
    )
    orders = jnp.exp(jnp.asarray(thickness)[..., None] * (jnp.fft.rfft(loss) - 1.0))
    return jnp.fft.irfft(jnp.fft.rfft(zero_loss, length) * orders, length)[..., :n]


def log_ratio_thickness(total: Number, zero_loss: Number) -> Number:
    """t / lambda = ln(I_total / I_zero) (Egerton 2011, 3rd ed., eq. 5.1)."""
    return jnp.log(jnp.asarray(total) / zero_loss)


def thickness_of(
    low_loss: Spectrum, energy_eV: Float[Array, " n"], cut_eV: float
) -> Float[Array, "*map"]:
    """t / lambda of low-loss spectra, the zero-loss peak being what is below `cut_eV`: the least
    of the spectrum between the peak and the first losses, as a rule at 2 to 5 eV."""
    inside = energy_eV <= cut_eV
    zero = jnp.sum(jnp.where(inside, low_loss, 0.0), axis=-1)
    return log_ratio_thickness(jnp.sum(low_loss, axis=-1), zero)


def _relativity(energy_keV):
    """T / E0 = (1 + E0 / 1022) / (1 + E0 / 511)^2, the energy in keV."""
    return (1.0 + energy_keV / 1022.0) / (1.0 + energy_keV / 511.0) ** 2


def mean_free_path_malis_nm(Z: Number, energy_keV: Number, collection_mrad: Number) -> Number:
    """lambda = 106 F E0 / (Em ln(2 beta E0 / Em)), Em = 7.6 Z^0.36 eV (Malis, Cheng & Egerton
    1988, J. Electron Microsc. Tech. 8, 193).

    **Arguments:**

    - `Z`: effective atomic number, sum f Z^1.3 / sum f Z^0.3 over atomic fractions f.
    - `collection_mrad`: semiangle, up to about 20 mrad: beyond, lambda no longer falls.
    """
    mean_eV = 7.6 * Z**0.36
    angles = jnp.log(2.0 * collection_mrad * energy_keV / mean_eV)
    return 106.0 * _relativity(energy_keV) * energy_keV / (mean_eV * angles)


def mean_free_path_iakoubovskii_nm(
    density_g_cm3: Number,
    energy_keV: Number,
    convergence_mrad: Number,
    collection_mrad: Number,
) -> Number:
    """lambda of a solid from its density (Iakoubovskii, Mitsuishi, Nakayama & Furuya 2008, Microsc.
    Res. Tech. 71, 626, eq. 9),

        1 / lambda = 11 rho^0.3 / (200 F E0) ln((a^2 + b^2 + 2 tE^2 + |a^2 - b^2|)
                     tC^2 / ((a^2 + b^2 + 2 tC^2 + |a^2 - b^2|) tE^2)),

    tC = 20 mrad, tE = 5.5 rho^0.3 / (F E0), a and b the semiangles of convergence and collection.
    """
    reach = _relativity(energy_keV) * energy_keV
    least = jnp.square(5.5 * density_g_cm3**0.3 / reach)
    most = 400.0
    # a^2 + b^2 + |a^2 - b^2| is twice the larger square
    wide = jnp.square(jnp.maximum(convergence_mrad, collection_mrad))
    angles = jnp.log((wide + least) * most / ((wide + most) * least))
    return 200.0 * reach / (11.0 * density_g_cm3**0.3 * angles)


def _fast_length(n: int) -> int:
    """The next length of which an FFT is fast: 2^a, 3 2^a or 5 2^a."""
    sizes = [s * 2 ** max(0, int(np.ceil(np.log2(n / s)))) for s in (1, 3, 5)]
    return min(sizes)

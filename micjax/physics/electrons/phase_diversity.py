"""Several images of one unknown object through known changes of the lens (phase diversity).

    image_k = Poisson(dose (object * |probe(aberrations + setting_k)|^2)),   * a convolution

`Probes` are the point-spread functions, `UnknownObject` is the law of the counts: the object is a
random field with a smooth power spectrum, integrated out in closed form, frequency by frequency.
What is left depends on the aberrations through how the images differ (Paxman, Schulz & Fienup 1992,
J. Opt. Soc. Am. A 9, 1072) and how their spectra fall off. `information` is what it tells.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from micjax.core.problem import parameter
from micjax.physics.electrons import optics

KNOBS = ("C10", "C12a", "C12b")  # what the lenses can add, in this order in every setting
Images = Float[Array, "images ny nx"]

# A sine window w stands on both axes. Of the Fourier coefficients, which it correlates, this part
# counts: <w^2>^2 / <w^4>, squared. What leaks in from a neighbouring coefficient has the variance
# <w'^2> / <w^2> / (2 pi / n)^2 = 1/4 of the squared difference between the two.
INDEPENDENT = (2 / 3) ** 2
LEAKING = 1 / 4
# points and log weights of a rule for the standard normal distribution
_Z, _W = np.polynomial.hermite_e.hermegauss(7)
NODES = _Z, np.log(_W / _W.sum())


class ProbeSeries(NamedTuple):
    """The settings of a series of images. Rows that hold no image yet are masked."""

    settings_A: Float[Array, "images 3"]  # what the lenses added to C10, C12a and C12b
    present: Float[Array, " images"]  # 1 for an image, 0 for a free row


class Probes(eqx.Module):
    """|probe|^2 at each setting, adding up to 1; 0 where there is no image."""

    aberrations_A: dict[str, Float[Array, ""]] = eqx.field(
        converter=lambda values: {n: jnp.asarray(v, dtype=float) for n, v in values.items()}
    )
    sampling_A: Float[Array, ""] = parameter()
    energy_keV: Float[Array, ""] = parameter()
    semiangle_mrad: Float[Array, ""] = parameter()
    shape: tuple[int, int] = eqx.field(static=True)

    def __call__(self, x: ProbeSeries) -> Images:
        wavelength_A = optics.wavelength_A(self.energy_keV)
        angles = optics.angles_mrad(self.shape, self.sampling_A, wavelength_A)

        def at(setting_A):
            added = dict(zip(KNOBS, setting_A, strict=True))
            total_A = {n: c + added.get(n, 0.0) for n, c in self.aberrations_A.items()}
            return optics.probe_intensity(angles, self.semiangle_mrad, total_A, wavelength_A)

        return x.present[:, None, None] * jax.vmap(at)(x.settings_A)


class UnknownObject(eqx.Module):
    """Counts behind an object of which only a power spectrum is known, in units of shot noise:

        S(q) / mean_counts = [particles / (1 + (q / corner)^2)^2 + atoms exp(-(2 pi atom q)^2)] s

    The first term falls off as that of projected spheres, the second as that of atoms in disorder.
    Real objects have lattice peaks and preferred directions, so every frequency has a strength s of
    its own, log s ~ Normal(0, scatter). `model_error` is the part of a transfer function by which
    the forward model is wrong.
    """

    mean_counts: Float[Array, ""] = parameter()
    particles: Float[Array, ""] = parameter()
    corner_per_px: Float[Array, ""] = parameter()
    atoms: Float[Array, ""] = parameter()
    atom_px: Float[Array, ""] = parameter()
    scatter: Float[Array, ""] = parameter()
    model_error: Float[Array, ""] = parameter()

    def __call__(self, prediction: Images) -> "UnknownObjectSeries":
        ny, nx = prediction.shape[-2:]
        q2 = jnp.fft.fftfreq(ny)[:, None] ** 2 + jnp.fft.rfftfreq(nx)[None, :] ** 2
        spectrum = self.particles / (1 + q2 / self.corner_per_px**2) ** 2
        spectrum += self.atoms * jnp.exp(-((2 * jnp.pi * self.atom_px) ** 2) * q2)
        return UnknownObjectSeries(
            prediction, spectrum, self.scatter, self.mean_counts, self.model_error
        )


class UnknownObjectSeries(dist.Distribution):
    """Images y_k(q) = H_k(q) O(q) + noise of one random object O.

    Given its strength, at each frequency y is a complex normal vector with covariance S H H^+ +
    diag(v), so that, up to a constant,

        -log p = |y|^2 - S |h^+ y|^2 / (1 + S |h|^2) + log(1 + S |h|^2) + log v,

    with y and h = H in units of sqrt(v) (Sherman & Morrison 1950); the strength is integrated out
    by a Gauss-Hermite rule. The sum over the frequencies is the likelihood of Whittle 1953. The
    images do not repeat beyond their borders, so they are multiplied by a sine window, and v holds,
    beside the shot noise, what leaks in from neighbouring frequencies where H varies quickly.
    """

    support = dist.constraints.independent(dist.constraints.real, 3)
    pytree_data_fields = ("probes", "spectrum", "scatter", "mean_counts", "model_error")

    def __init__(self, probes, spectrum, scatter, mean_counts, model_error):
        self.probes, self.spectrum, self.scatter = probes, spectrum, scatter
        self.mean_counts, self.model_error = mean_counts, model_error
        super().__init__(batch_shape=(), event_shape=jnp.shape(probes), validate_args=False)

    def log_prob(self, value: Images) -> Float[Array, ""]:
        noise = self.variances()
        h = jnp.fft.rfft2(self.probes) / jnp.sqrt(noise)
        y = self.windowed(value) / jnp.sqrt(noise)
        power = jnp.sum(_squared(h), axis=0)
        seen = _squared(jnp.sum(jnp.conj(h) * y, axis=0))
        unseen = jnp.sum(_squared(y) + jnp.log(noise), axis=0)

        z, log_weight = (jnp.asarray(n, power.dtype)[:, None, None] for n in NODES)
        s = self.spectrum * jnp.exp(self.scatter * z)
        explained = s * seen / (1 + s * power) - jnp.log1p(s * power)
        terms = jax.scipy.special.logsumexp(log_weight + explained, axis=0) - unseen
        return 0.5 * jnp.sum(self.weights() * terms)

    def variances(self) -> Float[Array, "images ny nq"]:
        """v in units of the shot noise: 1, leakage and model error."""
        h = jnp.fft.rfft2(self.probes)
        down = _squared(jnp.roll(h, -1, axis=1) - h)
        along = _squared(jnp.diff(h, axis=2, append=h[:, :, -2:-1]))
        leaking = LEAKING * (0.5 * (down + jnp.roll(down, 1, axis=1)) + along)
        return 1 + self.spectrum * (leaking + self.model_error**2 * _squared(h))

    def windowed(self, images: Images):
        """Spectra of the images without their mean, in units of the shot noise."""
        ny, nx = self.event_shape[1:]
        w = jnp.sin(jnp.pi * (jnp.arange(ny) + 0.5) / ny)[:, None]
        w = w * jnp.sin(jnp.pi * (jnp.arange(nx) + 0.5) / nx)
        mean = jnp.sum(w**2 * images, axis=(1, 2), keepdims=True) / jnp.sum(w**2)
        scale = jnp.sqrt(self.mean_counts * jnp.sum(w**2))
        return jnp.fft.rfft2(w * (images - mean)) / scale

    def weights(self) -> Float[np.ndarray, "ny nq"]:
        """How many independent real numbers a coefficient of half the spectrum stands for, halved:
        itself and its conjugate. The mean is subtracted and does not count."""
        ny, nx = self.event_shape[1:]
        counts = np.full((ny, nx // 2 + 1), 2.0)
        counts[:, 0] = 1.0
        if nx % 2 == 0:
            counts[:, -1] = 1.0
        counts[0, 0] = 0.0
        return INDEPENDENT * counts

    def sample(self, key, sample_shape=()):
        """Images of a Gaussian random object, periodic, with shot noise."""
        object_key, strength_key, noise_key = jax.random.split(key, 3)
        white = jax.random.normal(object_key, (*sample_shape, 1, *self.event_shape[1:]))
        spread = jax.random.normal(strength_key, (*sample_shape, 1, *self.spectrum.shape))
        strength = self.spectrum * jnp.exp(self.scatter * spread)
        spectra = jnp.fft.rfft2(white) * jnp.sqrt(strength / self.mean_counts)
        contrast = jnp.fft.irfft2(spectra * jnp.fft.rfft2(self.probes), self.event_shape[1:])
        rate = self.mean_counts * jnp.maximum(1 + contrast, 0.0)
        return jax.random.poisson(noise_key, rate).astype(self.probes.dtype)


def _squared(z):
    return z.real**2 + z.imag**2


# --- what a series tells ------------------------------------------------------------------------


class TransferSums(NamedTuple):
    """Sums over images of |h|^2, h^+ b_i and Re b_i^+ b_j, where b_i is the derivative of h with
    respect to knob i (per Å). They add up: a further image is one more summand."""

    power: Float[Array, "ny nq"]
    slope: Float[Array, "3 ny nq"]  # complex
    curvature: Float[Array, "3 3 ny nq"]


def evidence(probes: Probes, law: UnknownObject, x: ProbeSeries) -> TransferSums:
    """What the images of `x` would tell about the aberrations, at the current values."""
    scale = 1 / jnp.sqrt(law(probes(x)).variances())

    def transfer(move_A):  # to move every knob is to move the aberrations
        return scale * jnp.fft.rfft2(probes(x._replace(settings_A=x.settings_A + move_A)))

    h, slope = jax.linearize(transfer, jnp.zeros(3))
    b = jax.vmap(slope)(jnp.eye(3))
    return TransferSums(
        jnp.sum(_squared(h), axis=0),
        jnp.sum(jnp.conj(h) * b, axis=1),
        jnp.sum((jnp.conj(b)[:, None] * b[None]).real, axis=2),
    )


def information(probes: Probes, law: UnknownObject, sums: TransferSums) -> Float[Array, "3 3"]:
    """Fisher information about `KNOBS`, per Å^2, of a series whose `evidence` is `sums`.

    1/2 sum_q tr(C^-1 dC_i C^-1 dC_j) of C = 1 + S h h^+, with the noise held, and without what the
    unknown strengths take away (the Schur complement, 1 / scatter^2 being their own information):

        sum_q S^2 Re[v_i v_j + a (b_i^+ b_j - S conj(u_i) v_j)] - 2 S^4 a^2 Re v_i Re v_j / n,

        u = h^+ b,  v = u / (1 + S |h|^2),  a = |h|^2 / (1 + S |h|^2),  n = S^2 a^2 + 1 / scatter^2.
    """
    series = law(jnp.zeros((1, *probes.shape)))
    s = series.spectrum
    v = sums.slope / (1 + s * sums.power)
    sa = s * sums.power / (1 + s * sums.power)
    crossed = s * (jnp.conj(sums.slope)[:, None] * v[None]).real
    each = s**2 * (v[:, None] * v[None]).real + s * sa * (sums.curvature - crossed)
    along = s * v.real
    each -= 2 * along[:, None] * along[None] * sa**2 / (sa**2 + law.scatter**-2)
    return jnp.sum(series.weights() * each, axis=(-2, -1))

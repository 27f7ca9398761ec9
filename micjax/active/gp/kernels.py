"""Covariance functions as Equinox modules, whose hyper-parameters are named like any parameter.

A kernel maps points `[n, d]` and `[m, d]` to covariances `[n, m]`. `a + b` and `a * b` compose.
Lengthscales are in the units of the points, one for each axis (ARD); `amplitude` is the standard
deviation of the function, in the units of y.
"""

from abc import abstractmethod
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from micjax.core.problem import parameter

SAME = 1e-6  # relative difference of two numbers of one category
ROUNDED = 1e-3  # how far from a whole number an index may be
DIRECT = 16  # axes, beyond which distances by a matrix product are quicker by far

Points = Float[Array, "n d"]
Features = Callable[[Points], Float[Array, "n features"]]


class Kernel(eqx.Module):
    """A positive semi-definite function of two points."""

    @abstractmethod
    def __call__(self, a: Points, b: Float[Array, "m d"]) -> Float[Array, "n m"]:
        """Covariances of all pairs."""

    @abstractmethod
    def diagonal(self, a: Points) -> Float[Array, "n"]:
        """The variances, `self(a, a)` on its diagonal."""

    def index_axes(self, axes: int) -> frozenset[int]:
        """Which of `axes` axes hold an index (of an output, a fidelity, a category) and no length:
        they must not be scaled."""
        return frozenset()

    def features(self, key: Array, count: int) -> Features:
        """About `count` random features phi with E[phi(a) phi(b)^T] = k(a, b).

        **Raises:** `ValueError` for a kernel without a spectrum to draw from.
        """
        raise ValueError(
            f"{type(self).__name__} has no random features; use an exact Gaussian process"
        )

    def __add__(self, other: "Kernel") -> "Kernel":
        return Sum((*_parts(self, Sum), *_parts(other, Sum)))

    def __mul__(self, other: "Kernel") -> "Kernel":
        return Product((*_parts(self, Product), *_parts(other, Product)))


def _parts(kernel: Kernel, kind: type) -> tuple[Kernel, ...]:
    return kernel.parts if isinstance(kernel, kind) else (kernel,)


def squared_distance(a: Points, b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    """|a - b|^2 of all pairs: exact to rounding for near points too, on up to `DIRECT` axes."""
    if a.shape[1] <= DIRECT:
        return jnp.sum((a[:, None] - b) ** 2, axis=-1)
    # through one matrix product, with the origin among the points: far from it that would cancel
    centre = jax.lax.stop_gradient(jnp.mean(b, axis=0))
    a, b = a - centre, b - centre
    square = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1) - 2.0 * a @ b.T
    return jnp.maximum(square, 0.0)


# --- stationary kernels ------------------------------------------------------------------------


class Stationary(Kernel):
    """A function of the difference of its points, with a spectral density (Bochner)."""

    amplitude: eqx.AbstractVar[Float[Array, ""]]

    def diagonal(self, a: Points) -> Float[Array, "n"]:
        return jnp.broadcast_to(self.amplitude**2, a.shape[:1])

    @abstractmethod
    def frequencies(self, key: Array, count: int, axes: int) -> Float[Array, "count axes"]:
        """Angular frequencies drawn from the spectral density (normalised to 1)."""

    def features(self, key: Array, count: int) -> Features:
        """Random Fourier features (Rahimi & Recht 2007), in pairs of cosine and sine."""

        def phi(a: Points) -> Float[Array, "n features"]:
            phase = a @ self.frequencies(key, count // 2, a.shape[1]).T
            waves = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=1)
            return self.amplitude * waves / jnp.sqrt(count // 2)

        return phi


class RBF(Stationary):
    """k = amplitude^2 exp(-r^2 / 2), r = |(a - b) / lengthscale|: infinitely smooth."""

    lengthscale: Float[Array, "..."] = parameter()
    amplitude: Float[Array, ""] = parameter(default=1.0)

    def __call__(self, a, b):
        square = squared_distance(a / self.lengthscale, b / self.lengthscale)
        return self.amplitude**2 * jnp.exp(-0.5 * square)

    def frequencies(self, key, count, axes):
        return jax.random.normal(key, (count, axes), self.amplitude.dtype) / self.lengthscale


class Matern(Stationary):
    """The Matérn kernel of `smoothness` 0.5, 1.5 or 2.5 (Rasmussen & Williams 2006, eq. 4.17)."""

    lengthscale: Float[Array, "..."] = parameter()
    amplitude: Float[Array, ""] = parameter(default=1.0)
    smoothness: float = eqx.field(static=True, default=2.5)

    def __check_init__(self):
        if self.smoothness not in (0.5, 1.5, 2.5):
            raise ValueError(f"smoothness is {self.smoothness}; there are 0.5, 1.5 and 2.5")

    def __call__(self, a, b):
        square = squared_distance(a / self.lengthscale, b / self.lengthscale)
        # the root has no derivative at 0, where that of the kernel is taken to be 0
        r = jnp.sqrt(2.0 * self.smoothness * jnp.maximum(square, 1e-30))
        polynomial = {0.5: 1.0, 1.5: 1.0 + r, 2.5: 1.0 + r + r**2 / 3.0}[self.smoothness]
        return self.amplitude**2 * polynomial * jnp.exp(-r)

    def frequencies(self, key, count, axes):
        # a multivariate t distribution of 2 * smoothness degrees of freedom, whose chi-square is
        # a sum of squares: compiled in a fraction of the time of jax.random.gamma
        normal, squares = jax.random.split(key)
        dtype = self.amplitude.dtype
        z = jax.random.normal(normal, (count, axes), dtype)
        s = jax.random.normal(squares, (count, round(2 * self.smoothness)), dtype)
        return z / jnp.sqrt(jnp.mean(s**2, axis=1, keepdims=True)) / self.lengthscale


class SpectralMixture(Stationary):
    """k = amplitude^2 sum_q w_q prod_i exp(-2 pi^2 t_i^2 v_qi^2) cos(2 pi t_i m_qi), t = a - b.

    Repeating patterns of unknown periods (Wilson & Adams 2013, eq. 12); `weight` is normalised.
    """

    weight: Float[Array, "q"] = parameter()
    mean: Float[Array, "q d"] = parameter()  # cycles per unit of the axis
    width: Float[Array, "q d"] = parameter()  # standard deviations about them
    amplitude: Float[Array, ""] = parameter(default=1.0)

    def __call__(self, a, b):
        t = a[:, None, :] - b[None, :, :]

        def component(mean, width):
            decay = jnp.exp(-2.0 * (jnp.pi * t * width) ** 2)
            return jnp.prod(decay * jnp.cos(2.0 * jnp.pi * t * mean), axis=-1)

        parts = jax.vmap(component)(self.mean, self.width)
        return self.amplitude**2 * jnp.tensordot(self.weight / self.weight.sum(), parts, 1)

    def frequencies(self, key, count, axes):
        which, sign, normal = jax.random.split(key, 3)
        q = jax.random.categorical(which, jnp.log(self.weight), shape=(count,))
        signs = jax.random.rademacher(sign, (count, axes), self.amplitude.dtype)
        z = jax.random.normal(normal, (count, axes), self.amplitude.dtype)
        return 2.0 * jnp.pi * (signs * self.mean[q] + self.width[q] * z)


# --- others ------------------------------------------------------------------------------------


class Periodic(Kernel):
    """k = amplitude^2 exp(-2 sum_i sin^2(pi t_i / period) / lengthscale_i^2), t = a - b (MacKay
    1998)."""

    lengthscale: Float[Array, "..."] = parameter()
    period: Float[Array, "..."] = parameter()
    amplitude: Float[Array, ""] = parameter(default=1.0)

    def __call__(self, a, b):
        sine = jnp.sin(jnp.pi * (a[:, None, :] - b[None, :, :]) / self.period)
        return self.amplitude**2 * jnp.exp(-2.0 * jnp.sum((sine / self.lengthscale) ** 2, axis=-1))

    def diagonal(self, a):
        return jnp.broadcast_to(self.amplitude**2, a.shape[:1])


class Linear(Kernel):
    """k = amplitude^2 (1 + (a / lengthscale) . (b / lengthscale)): straight lines and planes."""

    lengthscale: Float[Array, "..."] = parameter()
    amplitude: Float[Array, ""] = parameter(default=1.0)

    def __call__(self, a, b):
        return self.amplitude**2 * (1.0 + (a / self.lengthscale) @ (b / self.lengthscale).T)

    def diagonal(self, a):
        return self.amplitude**2 * (1.0 + jnp.sum((a / self.lengthscale) ** 2, axis=1))

    def features(self, key, count):
        def phi(a):
            ones = jnp.ones((a.shape[0], 1), a.dtype)
            return self.amplitude * jnp.concatenate([ones, a / self.lengthscale], axis=1)

        return phi


class Categorical(Kernel):
    """k = amplitude^2 prod_i exp(-[a_i != b_i] / lengthscale_i): for axes without an order, which
    hold any number for each category (a weighted Hamming distance; Ru et al. 2020)."""

    lengthscale: Float[Array, "..."] = parameter()
    amplitude: Float[Array, ""] = parameter(default=1.0)

    def __call__(self, a, b):
        a, b = a[:, None, :], b[None, :, :]
        # to within rounding, of numbers of any size
        apart = jnp.abs(a - b) > SAME * jnp.maximum(jnp.abs(a), jnp.abs(b))
        other = apart.astype(self.amplitude.dtype)
        return self.amplitude**2 * jnp.exp(-jnp.sum(other / self.lengthscale, axis=-1))

    def diagonal(self, a):
        return jnp.broadcast_to(self.amplitude**2, a.shape[:1])

    def index_axes(self, axes):
        return frozenset(range(axes))


class Coregionalised(Kernel):
    """k = B[i, j] k'(a, b): several outputs that share a function, the index i in the last axis.

    B = W W^T + diag(variance) (intrinsic coregionalisation; Bonilla et al. 2007). One observation
    is one output at one point, so outputs need not be measured together. An index of no output
    gives NaN.
    """

    kernel: Kernel
    weights: Float[Array, "outputs rank"] = parameter()
    variance: Float[Array, "outputs"] = parameter()

    def between(self) -> Float[Array, "outputs outputs"]:
        return self.weights @ self.weights.T + jnp.diag(self.variance)

    def __call__(self, a, b):
        (i, known_i), (j, known_j) = (_index(p, len(self.variance)) for p in (a, b))
        between = self.between()[i[:, None], j] * known_i[:, None] * known_j
        return between * self.kernel(a[:, :-1], b[:, :-1])

    def diagonal(self, a):
        i, known = _index(a, len(self.variance))
        return jnp.diag(self.between())[i] * known * self.kernel.diagonal(a[:, :-1])

    def index_axes(self, axes):
        return frozenset({axes - 1}) | self.kernel.index_axes(axes - 1)


class MultiFidelity(Kernel):
    """k = ratio^(s + t) k_low + [s = t = 1] k_error; the fidelity s, 0 or 1, is the last axis.

    The high fidelity is `ratio` times the low one and an error of its own (Kennedy & O'Hagan 2000).
    Another fidelity gives NaN.
    """

    low: Kernel
    error: Kernel
    ratio: Float[Array, ""] = parameter(default=1.0)

    def __call__(self, a, b):
        (s, of_s), (t, of_t) = (self._scale(p) for p in (a, b))
        high = ((s == 1)[:, None] & (t == 1)).astype(of_s.dtype)
        a, b = a[:, :-1], b[:, :-1]
        return of_s[:, None] * of_t * self.low(a, b) + high * self.error(a, b)

    def diagonal(self, a):
        s, of_s = self._scale(a)
        high, a = (s == 1).astype(of_s.dtype), a[:, :-1]
        return of_s**2 * self.low.diagonal(a) + high * self.error.diagonal(a)

    def _scale(self, a):
        s, known = _index(a, 2)
        return s, jnp.where(s == 1, self.ratio, 1.0) * known

    def index_axes(self, axes):
        inner = self.low.index_axes(axes - 1) | self.error.index_axes(axes - 1)
        return frozenset({axes - 1}) | inner


def _index(a: Points, count: int) -> tuple[Array, Float[Array, "n"]]:
    """The index in the last axis, and 1 where it is one of `count`, NaN where it is not."""
    at = jnp.round(a[:, -1])
    known = (at >= 0) & (at < count) & (jnp.abs(a[:, -1] - at) < ROUNDED)
    return jnp.clip(at, 0, count - 1).astype(int), jnp.where(known, 1.0, jnp.nan).astype(a.dtype)


# --- composition -------------------------------------------------------------------------------


class Sum(Kernel):
    """k = k_1 + k_2 + ...: with `Over`, an additive model."""

    parts: tuple[Kernel, ...]

    def __call__(self, a, b):
        return sum(part(a, b) for part in self.parts)

    def diagonal(self, a):
        return sum(part.diagonal(a) for part in self.parts)

    def index_axes(self, axes):
        return frozenset().union(*(part.index_axes(axes) for part in self.parts))

    def features(self, key, count):
        each = count // len(self.parts)
        keys = jax.random.split(key, len(self.parts))
        of_parts = [p.features(k, each) for k, p in zip(keys, self.parts, strict=True)]
        return lambda a: jnp.concatenate([phi(a) for phi in of_parts], axis=1)


class Product(Kernel):
    """k = k_1 k_2 ...; one amplitude is enough, name only one as an unknown."""

    parts: tuple[Kernel, ...]

    def __call__(self, a, b):
        return _product(part(a, b) for part in self.parts)

    def diagonal(self, a):
        return _product(part.diagonal(a) for part in self.parts)

    def index_axes(self, axes):
        return frozenset().union(*(part.index_axes(axes) for part in self.parts))

    def features(self, key, count):
        """The spectrum of a product is the convolution of the spectra: frequencies add up."""
        keys = jax.random.split(key, len(self.parts))

        def phi(a):
            phase = sum(_phase(p, k, count // 2, a) for k, p in zip(keys, self.parts, strict=True))
            waves = jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=1)
            amplitude = jnp.sqrt(self.diagonal(a))[:, None]
            return amplitude * waves / jnp.sqrt(count // 2)

        return phi


def _product(arrays):
    total = 1.0
    for array in arrays:
        total = total * array
    return total


def _phase(kernel: Kernel, key: Array, count: int, a: Points) -> Float[Array, "n count"]:
    if isinstance(kernel, Over):
        return _phase(kernel.kernel, key, count, a[:, jnp.asarray(kernel.axes)])
    if isinstance(kernel, Stationary):
        return a @ kernel.frequencies(key, count, a.shape[1]).T
    raise ValueError(f"a product with {type(kernel).__name__} has no random features")


class Over(Kernel):
    """A kernel of some axes only: k(a, b) = k'(a[axes], b[axes])."""

    kernel: Kernel
    axes: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, a, b):
        axes = jnp.asarray(self.axes)
        return self.kernel(a[:, axes], b[:, axes])

    def diagonal(self, a):
        return self.kernel.diagonal(a[:, jnp.asarray(self.axes)])

    def index_axes(self, axes):
        return frozenset(self.axes[i] % axes for i in self.kernel.index_axes(len(self.axes)))

    def features(self, key, count):
        phi = self.kernel.features(key, count)
        return lambda a: phi(a[:, jnp.asarray(self.axes)])


class Warped(Kernel):
    """k(a, b) = k'(g(a), g(b)): with a network as g, a deep kernel (Wilson et al. 2016)."""

    kernel: Kernel
    network: Callable[[Array], Array]  # [n, d] -> [n, features]

    def __call__(self, a, b):
        return self.kernel(self.network(a), self.network(b))

    def diagonal(self, a):
        return self.kernel.diagonal(self.network(a))

    def features(self, key, count):
        phi = self.kernel.features(key, count)
        return lambda a: phi(self.network(a))

"""Deep kernels: a Gaussian process that looks at images through a network (Wilson et al. 2016).

The network is a leaf of the kernel, so its weights are unknowns of the process like any other: one
prior names them all. `Ensemble` holds several of the most probable networks, each begun from its
own draw of the priors, and trains on from where it was when data come in. Buffers are of fixed
capacity: one more datum compiles nothing. The last layer is Bayesian: the process is linear in the
features, with a Matérn part for what is not.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from micjax.active.gp import process as gp
from micjax.active.gp.kernels import Kernel, Linear, Matern, Over, Warped
from micjax.core.problem import InverseProblem, Theta, neg_log_joint, parameter
from micjax.inference.finite import NonFiniteError, non_finite
from micjax.inference.starts.draw import draw_starts, stacked_starts

LEARNING_RATE = 0.01  # of Adam, in the unconstrained coordinates
FIRST_STEPS, STEPS = 200, 10  # of a new ensemble, and of one that has one more datum


# --- networks ----------------------------------------------------------------------------------


def _layer(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, rngs=rngs, param_dtype=jnp.result_type(float))


class Dense(nnx.Module):
    """Features of any inputs: out(tanh(hidden(x / sqrt(inputs)))) / sqrt(hidden).

    The scales stand in the formula, so that N(0, 1) is a sensible prior of every weight (the
    parametrisation of Jacot et al. 2018) and one learning rate suits all of them.
    """

    def __init__(self, inputs: int, features: int, hidden: int = 16, *, rngs: nnx.Rngs):
        self.hidden = _layer(inputs, hidden, rngs)
        self.out = _layer(hidden, features, rngs)

    def __call__(self, x: Float[Array, "n inputs"]) -> Float[Array, "n features"]:
        inside = jnp.tanh(self.hidden(x / np.sqrt(x.shape[1])))
        return self.out(inside / np.sqrt(inside.shape[1]))


class Surroundings(nnx.Module):
    """Features of a square patch: its middle pixel, and what a network makes of the pixels around.

        features = (middle, 0, ...) + share * mean over 8 orientations of out(tanh(hidden(w patch)))

    The window w, a Gaussian of `reach_px`, says that near pixels tell more. The process starts out
    from the middle pixel and learns corrections; with zero weights it is the plain process of that
    pixel. A free network of the whole patch would have to find the pixel under the tip first.

    **Arguments:**

    - `side`: pixels along a side of the patch, odd.
    - `features`, `hidden`: sizes of the two layers.
    - `reach_px`: standard deviation of the window.
    - `share`: how large the corrections are, in units of the standard deviation of the pixels.

    **Raises:** `ValueError` for an even `side`.
    """

    def __init__(
        self,
        side: int,
        features: int = 2,
        hidden: int = 16,
        reach_px: float = 1.5,
        share: float = 0.3,
        *,
        rngs: nnx.Rngs,
    ):
        if side < 1 or side % 2 == 0:
            raise ValueError(f"a patch of side {side} has no middle pixel; it has to be odd")
        self.side, self.reach_px, self.share = side, reach_px, share
        self.hidden = _layer(side**2, hidden, rngs)
        self.out = _layer(hidden, features, rngs)

    def __call__(self, patches: Float[Array, "n pixels"]) -> Float[Array, "n features"]:
        window = _window(self.side, self.reach_px)
        inside = jnp.tanh(self.hidden((patches * window)[:, _orientations(self.side)]))
        learnt = jnp.mean(self.out(inside / np.sqrt(inside.shape[-1])), axis=1)
        return (self.share * learnt).at[:, 0].add(patches[:, self.side**2 // 2])


def _window(side: int, reach_px: float) -> Float[np.ndarray, "pixels"]:
    y, x = np.mgrid[:side, :side] - side // 2
    window = np.exp(-0.5 * (y**2 + x**2) / reach_px**2).ravel()
    return window / np.sqrt(np.sum(window**2))


def _orientations(side: int) -> np.ndarray:
    """`[8, pixels]`: where the pixels of a patch are after each rotation by 90 degrees and flip."""
    pixels = np.arange(side**2).reshape(side, side)
    turned = [np.rot90(p, k) for p in (pixels, pixels.T) for k in range(4)]
    return np.stack([t.ravel() for t in turned])


def patches(
    image: Float[ArrayLike, "ny nx"], side: int
) -> tuple[Int[np.ndarray, "n 2"], Float[np.ndarray, "n pixels"]]:
    """The pixels (y, x) around which a whole patch lies in `image`, and these patches, in rows."""
    view = np.lib.stride_tricks.sliding_window_view(np.asarray(image, float), (side, side))
    middle = np.indices(view.shape[:2]).reshape(2, -1).T + side // 2
    return middle, view.reshape(len(middle), side**2)


# --- the process -------------------------------------------------------------------------------


class Deep(Kernel):
    """k = linear(f, f') + smooth(f, f') + place(x, x'): f is what the network makes of the axes
    after the first `places`, which are the position x and have a kernel of their own.

    The linear part is Bayesian linear regression on the features: it goes on where no datum is yet.
    """

    network: Callable[[Array], Array]
    linear: Linear
    smooth: Kernel
    place: Kernel
    places: int = eqx.field(static=True)

    def _of(self, axes: int) -> Kernel:
        seen, position = tuple(range(self.places, axes)), tuple(range(self.places))
        deep = Over(Warped(self.linear + self.smooth, self.network), seen)
        return deep + Over(self.place, position) if position else deep

    def __call__(self, a, b):
        return self._of(a.shape[1])(a, b)

    def diagonal(self, a):
        return self._of(a.shape[1]).diagonal(a)

    def features(self, key, count):
        return lambda a: self._of(a.shape[1]).features(key, count)(a)


def deep_process(
    lower: ArrayLike,
    upper: ArrayLike,
    network: nnx.Module,
    *,
    places: int = 2,
    sees: Callable[[Array], Array] | None = None,
    priors: Mapping[str, dist.Distribution | None] | None = None,
    noise: Callable[[gp.Marginal], dist.Distribution] | None = None,
) -> InverseProblem:
    """A process with the kernel `Deep`, for standardised y.

    Unknowns are `forward.kernel.network` (all of its weights), `forward.kernel.linear.amplitude`,
    amplitude and lengthscale of `forward.kernel.smooth` and `forward.kernel.place`,
    `forward.mean.value` and `noise.sigma`; with `sees` they begin with `forward.kernel.kernel`.

    **Arguments:**

    - `lower`, `upper`: `[d]`, the box of the points, of which kernel and network see fractions; for
        axes that are standardised already 0 and 1.
    - `network`: `[n, d - places] -> [n, features]`.
    - `places`: how many of the first axes are the position; 0 for a process of the features alone.
    - `sees`: what the kernel sees of points `[n, d]` (as fractions of the box), such as the patch
        of an image at that place: `[n, axes]`.
    - `priors`: added to the default ones or in their place; None makes an unknown known.
    - `noise`: by default white; `EachOutput` for several outputs.
    """
    kernel = Deep(network, Linear(1.0, 0.7), Matern(1.0, 0.7), Matern(np.full(places, 0.4)), places)
    amplitude, at = dist.LogNormal(np.log(0.7), 0.5), "forward.kernel"
    if sees is not None:
        kernel, at = Warped(kernel, sees), f"{at}.kernel"
    own = {
        f"{at}.network": dist.Normal(0.0, 1.0),
        f"{at}.linear.amplitude": amplitude,
        f"{at}.smooth.amplitude": amplitude,
        f"{at}.smooth.lengthscale": dist.LogNormal(0.0, 0.5),
    }
    if places:
        own |= {
            f"{at}.place.amplitude": amplitude,
            f"{at}.place.lengthscale": dist.LogNormal(np.log(0.4), 0.7),
        }
    if noise is None:
        noise = gp.White(0.5)
    if isinstance(noise, EachOutput):
        own["noise.amplitude"] = amplitude
    own["noise.sigma"] = dist.LogNormal(np.log(0.5), 0.5)
    return gp.process(lower, upper, kernel=kernel, priors={**own, **(priors or {})}, noise=noise)


# --- several outputs ---------------------------------------------------------------------------


class EachOutput(eqx.Module):
    """Outputs that share the kernel, hence the features, and are independent otherwise:
    y_k / amplitude_k ~ N(mean, K + sigma_k^2). y is `[capacity, outputs]`."""

    amplitude: Float[Array, "outputs"] = parameter()
    sigma: Float[Array, "outputs"] = parameter()

    def __call__(self, prediction: gp.Marginal) -> "MaskedNormals":
        return MaskedNormals(prediction, self.amplitude, self.sigma)


def buffered_outputs(
    points: ArrayLike, y: Float[ArrayLike, "n outputs"], capacity: int | None = None
) -> tuple[gp.Observed, Float[Array, "capacity outputs"]]:
    """As `gp.buffered`, for several outputs at each point."""
    columns = [gp.buffered(points, column, capacity=capacity) for column in np.asarray(y).T]
    with jax.enable_x64(True):
        return columns[0][0], jnp.stack([values for _, values in columns], axis=1)


class MaskedNormals(dist.Distribution):
    """The distribution of `EachOutput`."""

    support = dist.constraints.independent(dist.constraints.real, 2)
    pytree_data_fields = ("prediction", "amplitude", "sigma")

    def __init__(self, prediction: gp.Marginal, amplitude, sigma):
        self.prediction, self.amplitude, self.sigma = prediction, amplitude, sigma
        shape = (*jnp.shape(prediction.mean), *jnp.shape(sigma))
        super().__init__(batch_shape=(), event_shape=shape, validate_args=False)

    def _each(self, sigma):
        return gp.White(sigma)(self.prediction)

    def log_prob(self, value):
        each = jax.vmap(lambda z, s: self._each(s).log_prob(z))
        count = self.prediction.observed.present.sum()
        scaled = each((value / self.amplitude).T, self.sigma)
        return jnp.sum(scaled) - count * jnp.sum(jnp.log(self.amplitude))

    def sample(self, key, sample_shape=()):
        keys = jax.random.split(key, len(self.sigma))
        draw = jax.vmap(lambda k, s: self._each(s).sample(k, sample_shape), out_axes=-1)
        return self.amplitude * draw(keys, self.sigma)


class Basis(NamedTuple):
    """Spectra as centre + coefficients @ components: principal components of those measured, with
    coefficients of variance 1."""

    centre: Float[np.ndarray, "channels"]
    components: Float[np.ndarray, "outputs channels"]
    left_over: Float[np.ndarray, "channels"]  # variance that the components do not describe

    def coefficients(self, spectra: Float[np.ndarray, "n channels"]) -> np.ndarray:
        return (spectra - self.centre) @ np.linalg.pinv(self.components)

    def spectra(
        self, mean: Float[np.ndarray, "m outputs"], variance: Float[np.ndarray, "m outputs"]
    ):
        """Mean and variance `[m, channels]` of the spectra with these coefficients."""
        return (
            self.centre + mean @ self.components,
            variance @ self.components**2 + self.left_over,
        )


def basis_of(spectra: Float[np.ndarray, "n channels"], outputs: int) -> Basis:
    """The first `outputs` principal components of some spectra.

    **Raises:** `ValueError` for fewer spectra than components, or less than that many directions in
    which they differ.
    """
    spectra = np.asarray(spectra, float)
    centre = spectra.mean(axis=0)
    _, sizes, directions = np.linalg.svd(spectra - centre, full_matrices=False)
    if len(sizes) < outputs or not sizes[outputs - 1] > 1e-12 * sizes[0]:
        different = int(np.sum(sizes > 1e-12 * sizes[0]))
        raise ValueError(
            f"{len(spectra)} spectra have {different} components; {outputs} are asked for"
        )
    components = sizes[:outputs, None] / np.sqrt(len(spectra)) * directions[:outputs]
    rest = sizes[outputs:, None] / np.sqrt(len(spectra)) * directions[outputs:]
    return Basis(centre, components, np.sum(rest**2, axis=0))


# --- the ensemble ------------------------------------------------------------------------------


class Ensemble(NamedTuple):
    """Several most probable networks of one process, and where their optimiser is."""

    problem: InverseProblem
    theta: Theta  # unconstrained, `[members, ...]`
    moments: optax.OptState


class EnsemblePrediction(NamedTuple):
    """Mean and variance of the function over the members, and the variance of the noise."""

    mean: Float[np.ndarray, "m ..."]
    variance: Float[np.ndarray, "m ..."]
    noise: Float[np.ndarray, "..."]


def _solver() -> optax.GradientTransformation:
    return optax.adam(LEARNING_RATE)


@gp.double
def draw_ensemble(problem: InverseProblem, key: Array, members: int = 3) -> Ensemble:
    """Members that begin at draws of the priors, decided by `key`."""
    theta = stacked_starts(problem, draw_starts(key, problem, members + 1)[1:])
    return Ensemble(problem, theta, jax.vmap(_solver().init)(theta))


@gp.double
def train(ensemble: Ensemble, observed: gp.Observed, y: Array, steps: int = STEPS) -> Ensemble:
    """Each member `steps` further towards its most probable values (MAP), from where it is.

    One program for all data that fit the capacity and all numbers of steps. A new ensemble wants
    about `FIRST_STEPS`, one more datum `STEPS`.

    **Raises:** `NonFiniteError` when the density of a member is not finite.
    """
    trained, losses = _train(ensemble, observed, y, jnp.asarray(steps))
    if bad := np.flatnonzero(~np.isfinite(losses)).tolist():
        at = jax.tree.map(lambda leaf: leaf[bad[0]], trained.theta)
        fault = non_finite(at, ensemble.problem, observed, y)
        raise NonFiniteError(f"the density of members {bad} is not finite: {fault}")
    return trained


@eqx.filter_jit
def _train(ensemble: Ensemble, observed, y, steps: Array):
    problem, solver = ensemble.problem, _solver()

    def step(_, carry):
        theta, moments, worst = carry
        loss, gradient = jax.value_and_grad(neg_log_joint)(theta, problem, observed, y)
        updates, moments = solver.update(gradient, moments)
        # a maximum with NaN is NaN: it is seen at the end
        return optax.apply_updates(theta, updates), moments, jnp.maximum(worst, loss)

    def member(start):
        start = (*start, jnp.asarray(-jnp.inf, y.dtype))
        return jax.lax.fori_loop(0, steps, step, start)

    theta, moments, worst = jax.lax.map(member, (ensemble.theta, ensemble.moments))
    return Ensemble(problem, theta, moments), worst


@gp.double
def values(ensemble: Ensemble) -> dict[str, Float[np.ndarray, "members ..."]]:
    """The unknowns of all members, in physical values."""
    return jax.device_get(_values(ensemble))


@eqx.filter_jit
def _values(ensemble: Ensemble):
    return jax.vmap(ensemble.problem.constrain)(ensemble.theta)


@gp.double
def conditioned(ensemble: Ensemble, observed: gp.Observed, y: Array) -> tuple[gp.State, ...]:
    """The posterior of each member, for one output."""
    return _conditioned(ensemble, observed, y)


@eqx.filter_jit
def _conditioned(ensemble: Ensemble, observed, y) -> tuple[gp.State, ...]:
    def member(i: int) -> gp.State:
        theta = jax.tree.map(lambda t: t[i], ensemble.theta)
        return gp.conditioned(ensemble.problem.at(ensemble.problem.constrain(theta)), observed, y)

    return tuple(member(i) for i in range(len(jax.tree.leaves(ensemble.theta)[0])))


@gp.double
def predict(
    ensemble: Ensemble, observed: gp.Observed, y: Array, points: ArrayLike
) -> EnsemblePrediction:
    """The mixture of the members at `points`, for one output `[m]` or several `[m, outputs]`."""
    return jax.device_get(_predict(ensemble, observed, y, jnp.asarray(points)))


@eqx.filter_jit
def _predict(ensemble: Ensemble, observed, y, points) -> EnsemblePrediction:
    def member(theta):
        problem = ensemble.problem.at(ensemble.problem.constrain(theta))
        if not isinstance(problem.noise, EachOutput):
            state = gp.conditioned(problem, observed, y)
            return *gp.posterior(state, points), problem.noise.sigma**2

        def output(z, amplitude, sigma):
            alone = InverseProblem(problem.forward, gp.White(sigma), {})
            mean, variance = gp.posterior(gp.conditioned(alone, observed, z / amplitude), points)
            return amplitude * mean, amplitude**2 * variance, (amplitude * sigma) ** 2

        amplitude, sigma = problem.noise.amplitude, problem.noise.sigma
        return jax.vmap(output, in_axes=(1, 0, 0), out_axes=(1, 1, 0))(y, amplitude, sigma)

    means, variances, noises = jax.lax.map(member, ensemble.theta)
    mean = jnp.mean(means, axis=0)
    between = jnp.mean((means - mean) ** 2, axis=0)
    return EnsemblePrediction(mean, jnp.mean(variances, axis=0) + between, jnp.mean(noises, axis=0))

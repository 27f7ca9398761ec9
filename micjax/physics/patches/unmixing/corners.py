"""Where the corners of a simplex are whose points are seen through noise.

Mixtures of k end members lie in a simplex whose corners these are. The most likely abundances of
spectra with few counts are spread by noise, and end members that are fitted with them are drawn out
until nothing is below zero (Neyman & Scott 1948), or as far as a background in all of them allows,
where nothing tells one simplex from a larger one. Here shares are not fitted but integrated over:

    p(u | T) = sum_s pi_s integral over the face s of N(u; a T, F^-1) p_s(a) da

where u are the shares of a spectrum in any k spectra that span the same space, F is their Fisher
information, and T has the corners as rows. A spectrum shows one end member (a corner), two (an
edge, along which the density p_s rises or falls) or three (a triangle, uniform), each as often as
the data say. Densities on faces prefer the smallest simplex that explains the shares (a minimum
of the volume: Craig 1994); corners are drawn to where spectra gather.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float

from micjax.physics.patches.unmixing.laws import Law, purest, sums

MOST = 3  # end members of one spectrum
OUTLIERS = 0.01  # share of spectra that may be anywhere
BLUR = 0.1  # of the information: with less of it, more points pull at a corner
RIDGE = 1e-3  # of the information on shares: a face that has no area tells nothing of them
EM_STEPS = 100  # for how often each face is shown, the corners given
SEEN = 4.5  # nats, three standard errors: there are spectra that show an end member alone
SLACK = 2.0  # standard errors by which a channel may be below zero


class Corners(NamedTuple):
    """End members as combinations of others, and how well their place is known."""

    mixing: Float[np.ndarray, "k k"]  # rows add up to one
    covariance: Float[np.ndarray, "k k k k"]  # of d, where (1 + d) times the mixing is true
    alone: Float[np.ndarray, "k"]  # nats by which spectra that show this one alone explain more


def ways(count: int) -> list[tuple[int, ...]]:
    """Sets of end members that a spectrum may show; edges twice, for a share that rises along
    them and one that falls."""
    of = [list(itertools.combinations(range(count), m)) for m in range(1, min(count, MOST) + 1)]
    return [s for m, sets in enumerate(of, 1) for s in (2 if m == 2 else 1) * sets]


@jax.jit
def face_logs(
    mixing: Float[Array, "k k"], u: Float[Array, "p k"], information: Float[Array, "p k k"]
) -> Float[Array, "p s"]:
    """log of the mean likelihood over each face, in the order of `ways`.

    Exact on corners and edges; on triangles the part of a normal distribution within is that of
    three independent ones, and the mean is no more than the maximum.
    """
    count, logs = len(mixing), []
    for size in range(1, min(count, MOST) + 1):
        corner = mixing[jnp.array(list(itertools.combinations(range(count), size)))]
        away = u[:, None] - corner[:, -1]
        pull = jnp.einsum("pkl,psl->psk", information, away)
        misfit = jnp.sum(away * pull, axis=-1)
        if size == 1:
            logs.append(-0.5 * misfit)
            continue
        sides = corner[:, :-1] - corner[:, -1:]
        gram = jnp.einsum("sik,pkl,sjl->psij", sides, information, sides)
        slope = jnp.einsum("sik,psk->psi", sides, pull)
        logs += (_edge if size == 2 else _triangle)(misfit, gram, slope)
    return jnp.concatenate(logs, axis=1)


def _edge(misfit, gram, slope):
    """For densities that rise to the one and to the other corner: chi squared at the last corner is
    `misfit`."""
    sd = 1.0 / jnp.sqrt(gram[..., 0, 0] + RIDGE)
    place = slope[..., 0] * sd**2
    nearer = jnp.minimum(place, 1.0 - place)  # by symmetry
    low, high = -nearer / sd, (1.0 - nearer) / sd
    inside, beyond = norm.logcdf(-low), norm.logcdf(-high)
    mass = inside + jnp.log1p(-jnp.exp(jnp.minimum(beyond - inside, -1e-12)))
    # mean of the normal distribution between the corners
    mean = nearer + sd * (jnp.exp(norm.logpdf(low) - mass) - jnp.exp(norm.logpdf(high) - mass))
    mean = jnp.clip(mean, 1e-6, 1.0 - 1e-6)
    mean = jnp.where(place < 0.5, mean, 1.0 - mean)
    size = mass + jnp.log(sd) + 0.5 * jnp.log(2.0 * jnp.pi)
    best = -0.5 * (misfit - (place / sd) ** 2)
    return [best + size + jnp.log(2.0 * m) for m in (mean, 1.0 - mean)]


def _triangle(misfit, gram, slope):
    a, b, d = gram[..., 0, 0] + RIDGE, gram[..., 0, 1], gram[..., 1, 1] + RIDGE
    s, t = slope[..., 0], slope[..., 1]
    determinant = a * d - b**2
    first, second = (d * s - b * t) / determinant, (a * t - b * s) / determinant
    places = first, second, 1.0 - first - second
    variances = d / determinant, a / determinant, (a + d - 2.0 * b) / determinant
    inside = jnp.minimum(jnp.minimum(*places[:2]), places[2]) > 0.0
    mass = sum(norm.logcdf(p / jnp.sqrt(v)) for p, v in zip(places, variances, strict=True))
    mean = mass + jnp.log(4.0 * jnp.pi) - 0.5 * jnp.log(determinant)
    fall = first * s + second * t
    across = jnp.clip((d - b + s - t) / (a + d - 2.0 * b), 0.0, 1.0)
    edges = [
        (jnp.clip(s / a, 0.0, 1.0), 0.0),
        (0.0, jnp.clip(t / d, 0.0, 1.0)),
        (across, 1.0 - across),
    ]
    falls = [2.0 * (p * s + q * t) - a * p**2 - 2.0 * b * p * q - d * q**2 for p, q in edges]
    largest = jnp.where(inside, fall, jnp.maximum(jnp.maximum(*falls[:2]), falls[2]))
    return [-jnp.logaddexp(0.5 * (misfit - fall) - mean, 0.5 * (misfit - largest))]


@jax.jit
def _parts(theta, held):
    """Rows that add up to one, with those that are held in their places, and log pi."""
    count = len(held)
    free = count * (count - 1)
    rows = jnp.asarray([[j for j in range(count) if j != i] for i in range(count)])
    off = theta[:free].reshape(count, count - 1) * ~held[:, None]
    mixing = jnp.zeros((count, count), theta.dtype).at[jnp.arange(count)[:, None], rows].set(off)
    return mixing + jnp.diag(1.0 - jnp.sum(off, axis=1)), jax.nn.log_softmax(theta[free:])


def _each(theta, u, information, outlier, held):
    """log likelihood of each spectrum."""
    mixing, weight = _parts(theta, held)
    inside = face_logs(mixing, u, information) + weight + np.log1p(-OUTLIERS)
    return jnp.logaddexp(jax.nn.logsumexp(inside, axis=1), outlier + np.log(OUTLIERS))


@jax.jit
def _loss(theta, u, information, outlier, held):
    weight = _parts(theta, held)[1]
    # half a spectrum is spread over the faces: none is impossible
    return -jnp.sum(_each(theta, u, information, outlier, held)) - 0.5 * jnp.mean(weight)


_slope = jax.jit(jax.value_and_grad(_loss))


@jax.jit
def _curvature(theta, *args):
    """Second derivatives, row by row: what is in memory does not grow with their number."""

    def row(direction):
        return jax.jvp(lambda t: jax.grad(_loss)(t, *args), (theta,), (direction,))[1]

    return jax.lax.map(row, jnp.eye(len(theta), dtype=theta.dtype))


def corners(
    u: Float[np.ndarray, "p k"],
    information: Float[np.ndarray, "p k k"],
    start: Float[np.ndarray, "k k"],
    held: Bool[np.ndarray, "k"],
) -> Corners:
    """The most likely corners, from `start` on.

    **Arguments:**

    - `u`: shares of spectra in k others, which add up to one; they may be below zero.
    - `information`: the inverse of their covariance.
    - `start`: corners, as rows.
    - `held`: corners that are known; they are rows of the unit matrix.
    """
    count = len(held)
    if count == 1:
        return Corners(np.ones((1, 1)), np.zeros((1, 1, 1, 1)), np.full(1, np.inf))
    free, sets = count * (count - 1), len(ways(count))
    off = [[start[i, j] for j in range(count) if j != i] for i in range(count)]
    theta = np.concatenate([np.where(held[:, None], 0.0, off).ravel(), np.zeros(sets)])
    outlier = _anywhere(u, information)
    with jax.enable_x64(True):
        args = jax.device_put((u, information, outlier, held))
        blurred = args[0], jax.device_put(BLUR * information), *args[2:]
        tried = [_descent(t, args) for t in (theta, _descent(theta, blurred).x)]
        theta = min(tried, key=lambda b: b.fun).x
        second = np.asarray(_curvature(theta, *args))
        mixing = np.asarray(_parts(theta, args[3])[0])
        logs = np.asarray(face_logs(jax.device_put(mixing), *args[:2]))
    fixed = np.concatenate([np.repeat(held, count - 1), np.zeros(sets, bool)])
    covariance = _relative(mixing, _inverse(second, fixed)[:free, :free])
    return Corners(mixing, covariance, _alone(logs, outlier, count))


def _descent(theta, args):
    return scipy.optimize.minimize(
        lambda t: [np.asarray(v, float) for v in _slope(t, *args)],
        theta,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 500},
    )


def _alone(logs, outlier, count: int) -> Float[np.ndarray, "k"]:
    """By how much less likely all is without the spectra that show one end member only."""

    def explained(kept) -> float:
        inside, weight = logs[:, kept] + np.log1p(-OUTLIERS), np.full(len(kept), 1.0 / len(kept))
        for _ in range(EM_STEPS):
            each = inside + np.log(weight)
            total = np.logaddexp(scipy.special.logsumexp(each, axis=1), outlier + np.log(OUTLIERS))
            weight = np.exp(each - total[:, None]).sum(axis=0) + 0.5 / len(kept)
            weight /= weight.sum()
        return float(total.sum())

    every = np.arange(logs.shape[1])
    return np.array([explained(every) - explained(np.delete(every, k)) for k in range(count)])


def _anywhere(u, information) -> Float[np.ndarray, "p"]:
    """log of a density that is uniform over the simplex of the k spectra, which holds all."""
    count = u.shape[1]
    sides = np.eye(count)[:-1] - np.eye(count)[-1]
    gram = np.einsum("ik,pkl,jl->pij", sides, information, sides)
    determinant = np.linalg.slogdet(gram)[1]
    volume = scipy.special.gammaln(count)
    return 0.5 * (count - 1) * np.log(2.0 * np.pi) - 0.5 * determinant + volume


def _inverse(second, fixed) -> np.ndarray:
    free = np.flatnonzero(~fixed)
    values, vectors = np.linalg.eigh(second[np.ix_(free, free)])
    inverse = np.zeros_like(second)
    # what the data do not tell is not known better than to one
    inverse[np.ix_(free, free)] = (vectors / np.maximum(values, 1.0)) @ vectors.T
    return inverse


def _relative(mixing, covariance) -> np.ndarray:
    """Of d = dT T^-1 from that of the entries of T off its diagonal."""
    count = len(mixing)
    back = np.linalg.pinv(mixing)
    steps = []
    for i, j in ((i, j) for i in range(count) for j in range(count) if j != i):
        change = np.zeros((count, count))
        change[i, j], change[i, i] = 1.0, -1.0
        steps.append(change @ back)
    steps = np.array(steps)
    return np.einsum("nab,nm,mcd->abcd", steps, covariance, steps)


class Beyond(NamedTuple):
    """How far end members that no spectrum shows alone may lie beyond the corners found."""

    partner: Float[np.ndarray, "k k"]  # 1 for what each is mixed with most
    step: Float[np.ndarray, "k"]  # h + step (h - partner h) is expected
    error: Float[np.ndarray, "k"]  # standard deviation of the step


def beyond(
    h: Float[np.ndarray, "k f"],
    error: Float[np.ndarray, "k f"],
    w: Float[np.ndarray, "p k"],
    alone: Float[np.ndarray, "k"],
    held: Bool[np.ndarray, "k"],
) -> Beyond:
    """Where the purest spectrum of an end member is a mixture, its corner is too near to what it is
    mixed with, by as much as one likes until a channel is below zero.

    How much of its partner could be taken off a spectrum that is pure is learnt from those that
    are seen alone; if none is, anything that leaves no channel below zero is as likely as any
    other.

    **Arguments:**

    - `h`, `error`: end members, each adds up to one, and standard deviations.
    - `w`: abundances.
    - `alone`: as of `Corners`.
    - `held`: end members that are known.
    """
    count = len(h)
    common = w.T @ w
    np.fill_diagonal(common, 0.0)
    partner = np.where(common > 0.0, common == common.max(axis=1, keepdims=True), 0.0)
    mixed = partner.sum(axis=1) > 0.0
    pure = mixed & (held | (alone > SEEN))
    room = np.zeros(count)
    for k in np.flatnonzero(mixed):
        room[k] = _room(h[k], error[k], partner[k] @ h)
    step, spread = np.zeros(count), np.zeros(count)
    for k in np.flatnonzero(mixed & ~pure):
        left, sd = _left(room[k], room[pure])
        step[k], spread[k] = (room[k] - left) / (1.0 - room[k]), sd / (1.0 - room[k])
    return Beyond(partner, step, spread)


def _room(h, error, partner) -> float:
    """The largest part of it that `partner` may be."""
    channel = partner > 0.0
    most = np.min((h + SLACK * error)[channel] / partner[channel])
    return float(np.clip(most, 0.0, 0.95))


def _left(most: float, seen: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """How much of a partner could still be taken off, from 0 to `most`, and its error.

    It is expected as the next draw of the exponential distribution of those `seen`, whose mean is
    uncertain (prior 1 / mean). One substance may be like another where those seen are not, so that
    for the error half of the weight is anywhere.
    """
    at = most * (np.arange(1000) + 0.5) / 1000.0
    weight = (1e-3 + seen.sum() + at) ** -(len(seen) + 1.0) if len(seen) else np.ones_like(at)
    mean = np.average(at, weights=weight)
    square = np.average((at - mean) ** 2, weights=weight)
    return float(mean), float(np.sqrt(0.5 * square + 0.5 * np.mean((at - mean) ** 2)))


class EndMembers(NamedTuple):
    """Abundances and end members, with standard deviations."""

    w: Float[np.ndarray, "p k"]
    h: Float[np.ndarray, "k f"]
    abundance_sd: Float[np.ndarray, "p k"]
    spectrum_sd: Float[np.ndarray, "k f"]
    angle_rad: Float[np.ndarray, "k"]  # of an end member to the true one, rms
    alone: Float[np.ndarray, "k"]  # nats that say that spectra show this one alone


def end_members(law: Law, count: int, known: Float[np.ndarray, "m f"] | None = None) -> EndMembers:
    """End members at the corners of the simplex in which shares lie (`corners`), and abundances.

    The plane of the simplex is that of sums of neighbours. Errors are those of the corners, of the
    plane, and of the noise of each spectrum (Fisher's information).
    """
    coarse = law.pooled()
    coarse_w, plane = coarse.factors(count, known=known)
    held = np.arange(count) < (0 if known is None else len(known))
    fine = law.pooled(finer=True)
    fitted = corners(
        *fine.shares(_expected_of(law, coarse_w), plane),
        _starting(coarse, coarse_w, plane, held),
        held,
    )
    h = _spectra(fitted.mixing, plane)
    every = np.ones(count, bool)
    coarse_w, _ = coarse.refined(_evenly(coarse, count), h, every)
    variance = np.where(held[:, None], 0.0, coarse.spectrum_variances(coarse_w, h))
    away = beyond(h, np.sqrt(variance), coarse_w, fitted.alone, held)
    apart = np.eye(count) - away.partner
    h = _spectra(np.eye(count) + away.step[:, None] * apart, h)
    covariance = fitted.covariance.copy()
    relative = (away.error / (1.0 + away.step))[:, None] * apart
    each = np.arange(count)
    covariance[each, :, each, :] += relative[:, :, None] * relative[:, None, :]
    w, _ = law.refined(_evenly(law, count), h, every)
    by_corners = np.einsum("pa,pc,abcb->pb", w, w, covariance, optimize=True)
    turned = np.einsum("abad,bf,df->af", covariance, h, h, optimize=True)
    size = np.sum(h**2, axis=1)
    unit = h / np.sqrt(size)[:, None]
    across = h[None] - np.einsum("kf,bf->kb", unit, h)[..., None] * unit[:, None]
    angle = np.einsum("abad,abf,adf->a", covariance, across, across, optimize=True)
    return EndMembers(
        w,
        h,
        np.sqrt(law.abundance_sds(w, h) ** 2 + np.maximum(by_corners, 0.0)),
        np.sqrt(variance + np.maximum(turned, 0.0)),
        # spectra that are not below zero are no further apart than a right angle
        np.minimum(np.sqrt((variance.sum(axis=1) + np.maximum(angle, 0.0)) / size), 0.5 * np.pi),
        np.where(held, np.inf, fitted.alone),
    )


def _evenly(law: Law, count: int) -> Float[np.ndarray, "p k"]:
    total = np.maximum(np.asarray(law.data.sum(axis=1), float), 0.0)
    return np.tile(total[:, None] / count, (1, count)) + 1e-3 * total.mean()


def _expected_of(law: Law, coarse_w) -> Float[np.ndarray, "n k"]:
    """Of the finer sums, from the shares of the larger ones that they are in: errors that are taken
    from each one's own fit go along with its noise, and draw the corners out."""
    if law.group is None:
        return coarse_w
    share = coarse_w / np.maximum(coarse_w.sum(axis=1, keepdims=True), 1e-30)
    each = np.maximum(np.asarray(law.data.sum(axis=1), float), 0.0)[:, None] * share[law.group]
    return each if law.finer is None else np.asarray(sums(each, law.finer))


def _starting(coarse: Law, w, plane, held) -> Float[np.ndarray, "k k"]:
    """Known corners, and sums of neighbours that are farthest from them and from each other."""
    u, information = coarse.shares(w, plane)
    mean, known = information.mean(axis=0), np.eye(len(held))
    root = np.linalg.cholesky(mean + 1e-9 * np.trace(mean) * known)
    known = known[held]
    rows = purest(u @ root, len(held), known @ root if held.any() else None)
    return np.concatenate([known, u[rows]])


def _spectra(mixing, plane) -> Float[np.ndarray, "k f"]:
    h = np.maximum(mixing @ plane, 0.0)
    return h / np.maximum(h.sum(axis=1, keepdims=True), 1e-30)

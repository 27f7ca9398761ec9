"""How `micjax.problems.aberrations` is solved: where fits start, and the way from there."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.special
import scipy.stats.qmc
from jaxtyping import Array, Float

from micjax.core.problem import InverseProblem, Values, neg_log_joint
from micjax.inference.errors.estimates import LaplaceErrors
from micjax.inference.solution import Solution
from micjax.inference.solvers.lbfgs import LBFGS
from micjax.inference.stage import Stage
from micjax.physics.electrons.phase_diversity import (
    KNOBS,
    NODES,
    Images,
    ProbeSeries,
    UnknownObject,
    UnknownObjectSeries,
)

WIDE = [f"forward.aberrations_A.{n}" for n in KNOBS]  # along these there are many maxima
DRIFT, ERROR = "forward.drift_A", "noise.model_error"
SCREENED, BEGUN, KEPT = 1024, 8, 2  # points of the prior, fits from there, and those finished
FIRST_STEPS, MORE_STEPS, STEPS = 20, 60, 180
CHUNK = 10  # evaluations between two checkpoints
APART = 0.25  # prior standard deviations between two starts
TOLERANT = dist.LogNormal(np.log(0.3), 0.01)  # the model error while the others are far off
FARTHEST = 4.0  # standard deviations of the drift
WRONG = 0.2  # error of a transfer function beyond which the model is none
UNEXPLAINED = (
    "The images agree with the model only to within {:.2g} of each transfer function: the values "
    "are not to be trusted. The residuals show where."
)
AMBIGUOUS = (
    "C10 = {:.4g} Å explains the images almost as well as {:.4g} Å: one more image, at another "
    "defocus, would tell."
)
NEAR, FAR_A = 5.0, 20.0  # in nats but not in C10: another explanation


class Phaseless(UnknownObject):
    """The same law of images of which only |y(q)| is looked at: nobody has registered them."""

    def __call__(self, prediction: Images) -> "PhaselessSeries":
        law = super().__call__(prediction)
        return PhaselessSeries(
            law.probes, law.spectrum, law.scatter, law.mean_counts, law.model_error
        )


class PhaselessSeries(UnknownObjectSeries):
    """Images that share the strength of each frequency, but not its phase. Each alone is a normal
    vector of variance v + S |H_k|^2; mirrored probes, of odd aberrations -C, are as likely."""

    def log_prob(self, value: Images) -> Float[Array, ""]:
        noise = self.variances()
        power = jnp.abs(jnp.fft.rfft2(self.probes)) ** 2 / noise
        seen = jnp.abs(self.windowed(value)) ** 2 / noise
        z, log_weight = (jnp.asarray(n, power.dtype)[:, None, None] for n in NODES)
        s = self.spectrum * jnp.exp(self.scatter * z)

        def of_image(power, seen):
            return -seen / (1.0 + s * power) - jnp.log1p(s * power)

        each = sum(of_image(*image) for image in zip(power, seen, strict=True))
        terms = jax.scipy.special.logsumexp(log_weight + each, axis=0)
        return 0.5 * jnp.sum(self.weights() * (terms - jnp.sum(jnp.log(noise), axis=0)))


def stages(problem: InverseProblem, x: ProbeSeries, y: Images) -> list:
    """Several fits, from the likeliest defoci and two-fold astigmatisms; Laplace errors.

    First without the phases, which neither drift nor the lattice of a crystal leads astray; then
    registered, in both signs of the odd aberrations. While the aberrations are far from the truth
    the model is allowed to be wrong by 30 %: without that the likelihood is too rugged.

    **Raises:** `ValueError` for images of another number than the problem's.
    """
    images = len(problem.forward.drift_A) + 1
    if not images == len(x.settings_A) == len(y):
        raise ValueError(
            f"{len(y)} images at {len(x.settings_A)} settings; the problem has {images}"
        )
    rough = {"given": without_phases, "local": (ERROR,), "keep": KEPT}
    registered = {"given": tolerant, "local": (ERROR,), "keep": KEPT}
    return [
        Stage(LBFGS(), FIRST_STEPS, CHUNK, **rough),
        # what the first fit finds out about the object serves everywhere
        Stage(LBFGS(), FIRST_STEPS, CHUNK, starts=_everywhere, **rough),
        Stage(LBFGS(), MORE_STEPS, CHUNK, **rough),
        Stage(LBFGS(), FIRST_STEPS, CHUNK, starts=_mirrored, **registered),
        # the better the aberrations are known, the better the images are registered
        Stage(LBFGS(), STEPS, CHUNK, starts=_registered),
        LaplaceErrors(),
    ]


def conclude(solution: Solution, x: ProbeSeries, y: Images) -> Solution:
    """With how wrong the model is, and other values that explain the images as well."""
    best, fit = solution.problem, solution.fit
    error = float(best.noise.model_error)
    # its own value where it is held
    best_A = float(best.forward.aberrations_A["C10"])
    C10_A = [float(best.at(v).forward.aberrations_A["C10"]) for v in fit.starts_values]
    others_A = [
        c
        for c, loss in zip(C10_A, fit.starts_losses, strict=True)
        if loss < fit.loss + NEAR and abs(c - best_A) > FAR_A
    ]
    statements = [UNEXPLAINED.format(error)] if error > WRONG else []
    statements += [AMBIGUOUS.format(c, best_A) for c in others_A]
    return dataclasses.replace(
        solution,
        metrics={**solution.metrics, "model_error": error},
        statements=[*statements, *solution.statements],
    )


def tolerant(problem: InverseProblem) -> InverseProblem:
    """With a model that may be wrong by 30 %."""
    return problem.given({ERROR: TOLERANT}).at({ERROR: 0.3})


def without_phases(problem: InverseProblem) -> InverseProblem:
    """The tolerant problem with the power spectra alone."""
    problem = tolerant(problem)
    fields = {f.name: getattr(problem.noise, f.name) for f in dataclasses.fields(problem.noise)}
    priors = {n: p for n, p in problem.priors.items() if n != DRIFT}
    return InverseProblem(problem.forward, Phaseless(**fields), priors)


def _everywhere(problem: InverseProblem, x, y, candidates, key) -> list[Values]:
    best = problem.at(_but_error(candidates[0].values))
    starts = everywhere(best, x, y, BEGUN)
    return [candidates[0].values, *(candidates[0].values | at.values() for at in starts)]


def _mirrored(problem: InverseProblem, x, y, candidates, key) -> list[Values]:
    """The likeliest of both signs of the odd aberrations."""
    fits = [problem.at(_but_error(c.values)) for c in candidates]
    mirrored = [registered(at.at(odd_times(sign, at)), x, y) for at in fits for sign in (1.0, -1.0)]
    return [at.values() for at in sorted(mirrored, key=lambda at: float(_loss(at, x, y)))[:KEPT]]


def _registered(problem: InverseProblem, x, y, candidates, key) -> list[Values]:
    fits = [tolerant(problem).at(_but_error(c.values)) for c in candidates]
    return [_but_error(registered(at, x, y).values()) for at in fits]


def _but_error(values: Values) -> Values:
    """The values but the model error, of which a tolerant stage knows nothing."""
    return {n: v for n, v in values.items() if n != ERROR}


def odd_times(sign: float, problem: InverseProblem) -> Values:
    """The values, the aberrations of even order, which are odd in the angle, times a sign."""
    prefix = "forward.aberrations_A.C"
    odd = [n for n in problem.unknowns() if n.startswith(prefix) and int(n[len(prefix)]) % 2 == 0]
    values = problem.values()
    return values | {n: sign * values[n] for n in odd}


def everywhere(problem: InverseProblem, x: ProbeSeries, y: Images, n: int) -> list[InverseProblem]:
    """The problem at its `n` likeliest values of `WIDE`, apart from one another."""
    unknowns = problem.unknowns()
    held = [name for name in WIDE if name in unknowns]
    mean = np.array([float(unknowns[name].mean) for name in held])
    sd = np.sqrt([float(unknowns[name].variance) for name in held])
    points = scipy.stats.qmc.Halton(len(held), scramble=False).random(SCREENED + 1)[1:]
    points = scipy.special.ndtri(points)
    losses = _screened(problem, tuple(held), jnp.asarray(mean + sd * points, float), x, y)
    chosen: list[int] = []
    for i in np.argsort(np.asarray(losses)):
        if all(np.linalg.norm(points[i] - points[j]) > APART for j in chosen):
            chosen.append(int(i))
        if len(chosen) == n:
            break
    return [problem.at(dict(zip(held, mean + sd * points[i], strict=True))) for i in chosen]


@eqx.filter_jit
def registered(problem: InverseProblem, x: ProbeSeries, y: Images) -> InverseProblem:
    """With each image where it fits the others best, to a pixel, the aberrations given.

    Phase correlation (Kuglin & Hines 1975) of conj(h_k) y_k and the sum of those of the others:
    in it the reflections of a crystal, alike in a shift by its lattice, count no more than the
    rest, and a frequency counts as far as it is expected to stand out of the noise.
    """
    if DRIFT not in problem.unknowns():
        return problem
    still = problem.at({DRIFT: jnp.zeros_like(problem.forward.drift_A)})
    law = still.noise(still.forward(x))
    spectra = _spectra(law, y)
    ny, nx = y.shape[1:]
    ky, kx = jnp.fft.fftfreq(ny)[:, None], jnp.fft.rfftfreq(nx)
    down, along = ny * jnp.fft.fftfreq(ny), nx * jnp.fft.fftfreq(nx)  # pixels
    sd = jnp.broadcast_to(jnp.sqrt(problem.unknowns()[DRIFT].variance), (len(y) - 1, 2))
    reach = FARTHEST * sd / still.forward.sampling_A
    transfer = jnp.abs(spectra.transfer)

    def shifted(k, shift):
        return jnp.exp(2j * jnp.pi * (ky * shift[0] + kx * shift[1])) * spectra.matched[k]

    def shift_of(k, others, power):
        """Of image k against the sum of the others."""
        crossed = spectra.matched[k] * jnp.conj(others)
        size = (jnp.abs(spectra.matched[k]) + transfer[k]) * (jnp.abs(others) + jnp.sqrt(power))
        expected = _part(law.spectrum * transfer[k] ** 2) * _part(law.spectrum * power)
        gain = jnp.fft.irfft2(expected * crossed / (size + 1e-12), (ny, nx))
        near = (jnp.abs(down)[:, None] <= reach[k - 1, 0]) & (jnp.abs(along) <= reach[k - 1, 1])
        best = jnp.argmax(jnp.where(near, gain, -jnp.inf))
        return jnp.stack([down[best // nx], along[best % nx]])

    # one after the other, then each again against all the others
    shifts = [jnp.zeros(2)]
    for k in range(1, len(y)):
        before = sum(shifted(j, shifts[j]) for j in range(k))
        shifts.append(shift_of(k, before, jnp.sum(transfer[:k] ** 2, axis=0)))
    for k in range(1, len(y)):
        others = sum(shifted(j, shifts[j]) for j in range(len(y)) if j != k)
        shifts[k] = shift_of(k, others, spectra.power - transfer[k] ** 2)
    return problem.at({DRIFT: still.forward.sampling_A * jnp.stack(shifts[1:])})


@eqx.filter_jit
def _screened(problem: InverseProblem, held, points, x, y):
    """The loss at each point."""
    return jax.lax.map(lambda p: _loss(problem.at(dict(zip(held, p, strict=True))), x, y), points)


@eqx.filter_jit
def _loss(problem: InverseProblem, x, y):
    return neg_log_joint(problem.unconstrain(problem.values()), problem, x, y)


def _part(signal):
    return signal / (1.0 + signal)


class _Spectra(NamedTuple):
    transfer: Float[Array, "images ny nq"]  # h, complex, in units of the noise
    seen: Float[Array, "images ny nq"]  # y, complex, in the same
    matched: Float[Array, "images ny nq"]  # conj(h) y
    power: Float[Array, "ny nq"]  # |h|^2


def _spectra(law: UnknownObjectSeries, y: Images) -> _Spectra:
    root = jnp.sqrt(law.variances())
    h, seen = jnp.fft.rfft2(law.probes) / root, law.windowed(y) / root
    return _Spectra(h, seen, jnp.conj(h) * seen, jnp.sum(jnp.abs(h) ** 2, axis=0))


@eqx.filter_jit
def left_over(problem: InverseProblem, x: ProbeSeries, y: Images) -> Images:
    """What the object that fits best at each frequency leaves of the images, which are windowed, in
    units of the noise."""
    spectra = _spectra(problem.noise(problem.forward(x)), y)
    seen = spectra.power > 1e-2  # elsewhere nothing comes through
    best = jnp.sum(spectra.matched, axis=0) / jnp.where(seen, spectra.power, 1.0)
    left = spectra.seen - jnp.where(seen, spectra.transfer * best, 0.0)
    return jnp.fft.irfft2(left, y.shape[1:]) * jnp.sqrt(y[0].size)

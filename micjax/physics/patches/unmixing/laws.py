"""Factorisation under the law of the noise: counts (Poisson), or values with one normal error.

How many end members there are is asked of data that took no part: data of either law can be split
in two that are independent of each other (Neufeld, Dharamshi, Gao & Witten 2024, data thinning).
"""

import abc
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from micjax.physics.patches.unmixing import counts, factorisation

STEPS, TRIAL_STEPS = 500, 60
LEARNT = 0.7  # of all counts, where the others are held out
CHUNK = 1000  # spectra of which every channel is in memory
CERTAIN = 3.0  # standard errors by which one more end member has to predict better
AHEAD = 2  # end members: where two show together, one alone may not


class Split(NamedTuple):
    """Data to learn from, independent data to test with, and their exposure over that of the
    former."""

    learnt: "Law"
    held: "Law"
    exposure: float


class Law(abc.ABC):
    """Spectra with the law of their noise."""

    data: Any

    @abc.abstractmethod
    def pooled(self) -> "Law":
        """Sums of neighbours, which show end members that a few counts hide."""

    @abc.abstractmethod
    def split(self, rng: np.random.Generator) -> Split:
        """Independent data, to learn from and to test with."""

    @abc.abstractmethod
    def factors(
        self, count: int, steps: int = STEPS
    ) -> tuple[Float[np.ndarray, "p k"], Float[np.ndarray, "k f"]]:
        """Abundances, and end members that add up to one."""

    @abc.abstractmethod
    def refined(
        self,
        w: Float[np.ndarray, "p k"],
        h: Float[np.ndarray, "k f"],
        held: Bool[np.ndarray, "k"] | None = None,
        steps: int = STEPS,
    ) -> tuple[Float[np.ndarray, "p k"], Float[np.ndarray, "k f"]]:
        """From these on; end members that are `held` stay what they are."""

    @abc.abstractmethod
    def repeated(
        self, w: Float[np.ndarray, "p k"], h: Float[np.ndarray, "k f"], rng: np.random.Generator
    ) -> "Law":
        """Other data with these expectations."""

    @abc.abstractmethod
    def losses(
        self, w: Float[np.ndarray, "p k"], h: Float[np.ndarray, "k f"]
    ) -> Float[np.ndarray, "p"]:
        """-log likelihood of each spectrum, up to a constant (nats)."""

    @abc.abstractmethod
    def surprise(
        self, w: Float[np.ndarray, "p k"], h: Float[np.ndarray, "k f"]
    ) -> Float[np.ndarray, "p"]:
        """How much less likely each spectrum is than draws of its law, in standard deviations of
        these; of counts, than draws of as many."""

    @abc.abstractmethod
    def smoothed(
        self, w: Float[np.ndarray, "p k"], h: Float[np.ndarray, "k f"]
    ) -> Float[np.ndarray, "k f"]:
        """End members that may predict what was not learnt from."""

    @abc.abstractmethod
    def abundance_sds(
        self, w: Float[np.ndarray, "p k"], h: Float[np.ndarray, "k f"]
    ) -> Float[np.ndarray, "p k"]:
        """Standard deviations of the abundances for these end members."""


class Counts(Law):
    """Poisson's law.

    Where there are groups of spectra, end members are those of their sums: with a few counts in
    each spectrum the most likely abundances are spread by noise, for which end members that are too
    pure make up, and more spectra do not help (Neyman & Scott 1948).
    """

    def __init__(self, data, group: Int[np.ndarray, "p"] | None = None):
        self.data, self.group = scipy.sparse.csr_array(data), group

    def pooled(self) -> "Counts":
        return self if self.group is None else Counts(_sums(self.data, self.group))

    def split(self, rng: np.random.Generator) -> Split:
        learnt, held = self.data.copy(), self.data.copy()
        learnt.data = rng.binomial(self.data.data.astype(int), LEARNT).astype(float)
        held.data = self.data.data - learnt.data
        for part in (learnt, held):
            part.eliminate_zeros()
        return Split(Counts(learnt), Counts(held), (1.0 - LEARNT) / LEARNT)

    def factors(self, count, steps=STEPS):
        if self.group is not None:
            _, h = self.pooled().factors(count, steps)
            return self.refined(self._even(count), h, np.ones(count, bool), steps)
        h = self._purest(count)
        # every channel in every end member: what is zero at first would stay zero for some steps
        h = h + 0.05 * h.mean(axis=0) + 1e-3 * h.mean()
        return self.refined(self._even(count), h / h.sum(axis=1, keepdims=True), steps=steps)

    def _even(self, count: int) -> Float[np.ndarray, "p k"]:
        return np.tile(self.data.sum(axis=1)[:, None] / count, (1, count)) + 1e-3

    def refined(self, w, h, held=None, steps=STEPS):
        begun = (jnp.asarray(v, jnp.float32) for v in (w, h))
        held = jnp.zeros(len(h), bool) if held is None else jnp.asarray(held)
        factors = counts.factorise_counts(self._table, *begun, held, steps=steps)
        return np.asarray(factors.abundance, float), np.asarray(factors.template, float)

    @functools.cached_property
    def _table(self) -> counts.CountTable:
        return counts.count_table(self.data)

    def _purest(self, count: int) -> Float[np.ndarray, "k f"]:
        total = self.data.sum(axis=1)
        spectra = self.data[total > 0.0].todense() / total[total > 0.0][:, None]
        # standard deviations of square roots are all the same (Bartlett 1936)
        return spectra[purest(np.sqrt(spectra), count)]

    def repeated(self, w, h, rng):
        return Counts(rng.poisson(w @ h).astype(float))

    def losses(self, w, h):
        return counts.log_loss(self.data, w, h)

    def surprise(self, w, h):
        # given the number of counts they are multinomial: mean and variance of sum x log p
        total = np.asarray(self.data.sum(axis=1), float)
        mean, square = np.empty(len(w)), np.empty(len(w))
        for at in np.array_split(np.arange(len(w)), -(-len(w) // CHUNK)):
            model = np.maximum(w[at] @ h, counts.LEAST)
            share, logarithm = model / model.sum(axis=1, keepdims=True), np.log(model)
            mean[at] = np.sum(share * logarithm, axis=1)
            square[at] = np.sum(share * (logarithm - mean[at, None]) ** 2, axis=1)
        logs = w @ h.sum(axis=1) - self.losses(w, h)
        spread = np.sqrt(total * square)
        known = spread > 1e-6  # a flat spectrum of counts is as likely as any other
        return np.where(known, total * mean - logs, 0.0) / np.where(known, spread, 1.0)

    def smoothed(self, w, h):
        # half a count in each channel (Krichevsky & Trofimov 1981), distributed as all of them are
        all_of, each = w.sum(axis=0), 0.5 * h.shape[1]
        mean = all_of @ h / all_of.sum()
        return (all_of[:, None] * h + each * mean) / (all_of + each)[:, None]

    def abundance_sds(self, w, h):
        w, h = jnp.asarray(w, jnp.float32), jnp.asarray(h, jnp.float32)
        return _deviations(counts.curvature(self._table.by_spectrum, w, h)[1])


class Values(Law):
    """Normal errors, of the same standard deviation everywhere."""

    def __init__(
        self,
        data: Float[np.ndarray, "p f"],
        sigma: float,
        group: Int[np.ndarray, "p"] | None = None,
    ):
        self.data, self.sigma, self.group = np.asarray(data, float), sigma, group

    def pooled(self) -> "Values":
        if self.group is None:
            return self
        size = np.bincount(self.group)[:, None]
        # sums over the roots of their numbers have the same error
        return Values(_sums(self.data, self.group) / np.sqrt(size), self.sigma)

    def split(self, rng: np.random.Generator) -> Split:
        apart = self.sigma * rng.standard_normal(self.data.shape)
        wider = np.sqrt(2.0) * self.sigma
        return Split(Values(self.data + apart, wider), Values(self.data - apart, wider), 1.0)

    def factors(self, count, steps=STEPS):
        unit = self._unit
        w, h = factorisation.start(jnp.asarray(np.maximum(self.data, 0.0) / unit), count)
        return self.refined(unit * np.asarray(w, float), np.asarray(h, float), steps=steps)

    @functools.cached_property
    def _unit(self) -> float:
        return float(np.sqrt(np.mean(self.data**2)))

    def refined(self, w, h, held=None, steps=STEPS):
        x, w, h = (jnp.asarray(v, jnp.float32) for v in (self.data / self._unit, w / self._unit, h))
        held = None if held is None else jnp.asarray(held)
        factors = factorisation.factorise(x, w, h, held=held, tolerance=1e-5, steps=steps)
        h = np.asarray(factors.template, float)
        size = np.maximum(h.sum(axis=1), 1e-30)
        return np.asarray(factors.abundance, float) * size * self._unit, h / size[:, None]

    def repeated(self, w, h, rng):
        return Values(w @ h + self.sigma * rng.standard_normal(self.data.shape), self.sigma)

    def losses(self, w, h):
        return 0.5 * np.sum((self.data - w @ h) ** 2, axis=1) / self.sigma**2

    def surprise(self, w, h):
        channels = self.data.shape[1]
        return (2.0 * self.losses(w, h) - channels) / np.sqrt(2.0 * channels)

    def smoothed(self, w, h):
        return h

    def abundance_sds(self, w, h):
        sd = self.sigma * np.sqrt(np.diag(np.linalg.pinv(h @ h.T)))
        return np.broadcast_to(sd, w.shape)


def _sums(data, group: Int[np.ndarray, "p"]):
    """Over the spectra of each group."""
    each = np.arange(len(group))
    return scipy.sparse.csr_array((np.ones(len(group)), (group, each))) @ data


def blocks(shape: tuple[int, ...], most: int = 150) -> Int[np.ndarray, "p"]:
    """Groups of neighbours of a grid, at most so many."""
    edge = 1
    while np.prod([-(-n // edge) for n in shape]) > most:
        edge += 1
    parts = [-(-n // edge) for n in shape]
    return np.ravel_multi_index(np.indices(shape) // edge, parts).ravel()


def purest(spectra: Float[np.ndarray, "n f"], count: int) -> Int[np.ndarray, "k"]:
    """Rows that are farthest from the span of those before (successive projections: Araujo et al.
    2001; Gillis & Vavasis 2014)."""
    if not 1 <= count <= len(spectra):
        raise ValueError(f"{count} end members of {len(spectra)} spectra: from 1 to so many")
    left, rows = spectra.copy(), []
    for _ in range(count):
        size = np.sum(left**2, axis=1)
        rows.append(int(np.argmax(size)))
        along = left[rows[-1]] / np.sqrt(max(size[rows[-1]], 1e-30))
        left -= np.outer(left @ along, along)
    return np.array(rows)


def _deviations(information) -> np.ndarray:
    """Of the inverse of each matrix; what nothing is known of is infinite."""
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(information, axis1=1, axis2=2), 0.0))
    known = scale > 0.0
    safe = jnp.where(known, scale, 1.0)
    unit = information / safe[:, :, None] / safe[:, None, :]
    eye = jnp.eye(scale.shape[1], dtype=unit.dtype)
    unit = jnp.where(known[:, :, None] & known[:, None, :], unit, eye)
    variance = jnp.diagonal(jnp.linalg.inv(unit + 1e-6 * eye), axis1=1, axis2=2)
    deviation = jnp.sqrt(jnp.maximum(variance, 1.0)) / safe
    return np.asarray(jax.device_get(jnp.where(known, deviation, jnp.inf)))


class Uncertainty(NamedTuple):
    abundance: Float[np.ndarray, "p k"]  # standard deviations
    spectrum: Float[np.ndarray, "k f"]
    angle_rad: Float[np.ndarray, "k"]  # by which an end member turns, rms


def uncertainty(
    law: Law,
    w: Float[np.ndarray, "p k"],
    h: Float[np.ndarray, "k f"],
    rng: np.random.Generator,
    repeats: int = 8,
) -> Uncertainty:
    """Of a repeat of the experiment: end members by drawing data from the answer (bootstrap: Efron
    1979), on sums of neighbours; abundances by Fisher's information and what they change with the
    end members."""
    pooled, each = law.pooled(), np.ones(len(h), bool)
    total = np.maximum(np.asarray(pooled.data.sum(axis=1)), 0.0)
    even = np.tile(total[:, None] / len(h), (1, len(h))) + 1e-3 * total.mean()
    pooled_w, _ = pooled.refined(even, h, each, TRIAL_STEPS)
    again, apart = [], np.zeros_like(w)
    for _ in range(repeats):
        drawn = pooled.repeated(pooled_w, h, rng)
        again.append(drawn.refined(pooled_w, h, steps=TRIAL_STEPS)[1])
        other = law.refined(np.maximum(w, 1e-3 * w.mean()), again[-1], each, TRIAL_STEPS)[0]
        apart += (other - w) ** 2 / repeats
    turned = np.stack(again)
    size = np.linalg.norm(h, axis=1) * np.linalg.norm(turned, axis=2)
    cosine = np.minimum(np.sum(turned * h, axis=2) / np.maximum(size, 1e-30), 1.0)
    return Uncertainty(
        np.sqrt(law.abundance_sds(w, h) ** 2 + apart),
        np.sqrt(np.mean((turned - h) ** 2, axis=0)),
        np.sqrt(np.mean(np.arccos(cosine) ** 2, axis=0)),
    )


class HeldOut(NamedTuple):
    """So many end members, and what they say of data that they were not learnt from."""

    count: int
    gain: float  # nats, of all spectra, over one end member less
    error: float  # its standard error, from spectrum to spectrum


def trials(law: Law, most: int, rng: np.random.Generator) -> Iterator[HeldOut]:
    """Of 1, 2, ... end members, until `AHEAD` more have not helped, or `most`."""
    learnt, held, exposure = law.pooled().split(rng)
    before, tried = None, []
    for count in range(1, most + 1):
        w, h = learnt.factors(count, TRIAL_STEPS)
        losses = held.losses(exposure * w, learnt.smoothed(w, h))
        apart = np.zeros(1) if before is None else before - losses
        error = float(np.std(apart) * np.sqrt(len(apart)))
        tried.append(HeldOut(count, float(apart.sum()), error))
        before = losses
        yield tried[-1]
        if count - chosen(tried) >= AHEAD:
            return


def chosen(tried: list[HeldOut]) -> int:
    """The most end members that together predict held-out data better than fewer do."""
    best = 1
    for trial in tried[1:]:
        since = [t for t in tried if best < t.count <= trial.count]
        gain = sum(t.gain for t in since)
        error = np.sqrt(sum(t.error**2 for t in since))
        best = trial.count if gain > CERTAIN * error else best
    return best

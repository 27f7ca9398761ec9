"""Factorisation under the law of the noise: counts (Poisson), or values with one normal error.

How many end members there are is asked of data that took no part: data of either law can be split
in two that are independent of each other (Neufeld, Dharamshi, Gao & Witten 2024, data thinning).
"""

import abc
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from micjax.physics.patches.unmixing import counts, factorisation

STEPS, TRIAL_STEPS = 500, 60
LEARNT = 0.7  # of all counts, where the others are held out
CHUNK = 1000  # spectra of which every channel is in memory
CERTAIN = 3.0  # standard errors by which one more end member has to predict better
AHEAD = 2  # end members: where two show together, one alone may not
FEWEST = 500.0  # counts of a spectrum whose error is about normal


class Split(NamedTuple):
    """Data to learn from, independent data to test with, and their exposure over that of the
    former."""

    learnt: "Law"
    held: "Law"
    exposure: float


class Law(abc.ABC):
    """Spectra with the law of their noise."""

    data: Any
    group: Int[np.ndarray, "p"] | None
    finer: Int[np.ndarray, "p"] | None

    @abc.abstractmethod
    def pooled(self, finer: bool = False) -> "Law":
        """Sums of neighbours, which show end members that a few counts hide; of fewer neighbours if
        `finer`."""

    @abc.abstractmethod
    def split(self, rng: np.random.Generator) -> Split:
        """Independent data, to learn from and to test with."""

    @abc.abstractmethod
    def factors(
        self, count: int, steps: int = STEPS, known: Float[np.ndarray, "m f"] | None = None
    ) -> tuple[Float[np.ndarray, "p k"], Float[np.ndarray, "k f"]]:
        """Abundances, and end members that add up to one; those that are `known` come first."""

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
    def shares(
        self, w: Float[np.ndarray, "p k"], h: Float[np.ndarray, "k f"]
    ) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, "n k k"]]:
        """Of spectra in which there is something: their shares, below zero as well as above, and
        Fisher's information of them. `w` says how large errors are."""

    @abc.abstractmethod
    def spectrum_variances(
        self, w: Float[np.ndarray, "p k"], h: Float[np.ndarray, "k f"]
    ) -> Float[np.ndarray, "k f"]:
        """Of the end members for these abundances."""

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

    def __init__(
        self,
        data,
        group: Int[np.ndarray, "p"] | None = None,
        finer: Int[np.ndarray, "p"] | None = None,
    ):
        self.data, self.group, self.finer = scipy.sparse.csr_array(data), group, finer

    def pooled(self, finer: bool = False) -> "Counts":
        group = self.finer if finer else self.group
        return self if group is None else Counts(sums(self.data, group))

    def split(self, rng: np.random.Generator) -> Split:
        learnt, held = self.data.copy(), self.data.copy()
        learnt.data = rng.binomial(self.data.data.astype(int), LEARNT).astype(float)
        held.data = self.data.data - learnt.data
        for part in (learnt, held):
            part.eliminate_zeros()
        return Split(Counts(learnt), Counts(held), (1.0 - LEARNT) / LEARNT)

    def factors(self, count, steps=STEPS, known=None):
        if self.group is not None:
            _, h = self.pooled().factors(count, steps, known)
            return self.refined(self._even(count), h, np.ones(count, bool), steps)
        # every channel in every end member: what is zero at first would stay zero for some steps
        mean = np.asarray(self.data.mean(axis=0)).ravel()
        h, held = _with(known, self._purest(count, known), 0.05 * mean / mean.sum())
        return self.refined(self._even(count), h, held, steps)

    def _even(self, count: int) -> Float[np.ndarray, "p k"]:
        return np.tile(self.data.sum(axis=1)[:, None] / count, (1, count)) + 1e-3

    def refined(self, w, h, held=None, steps=STEPS):
        held = np.zeros(len(h), bool) if held is None else held
        begun = jax.device_put((*map(np.float32, (w, h)), held))
        factors = counts.factorise_counts(self._table, *begun, steps=steps)
        return np.asarray(factors.abundance, float), np.asarray(factors.template, float)

    @functools.cached_property
    def _table(self) -> counts.CountTable:
        return counts.count_table(self.data)

    def _purest(self, count: int, known) -> Float[np.ndarray, "k f"]:
        total = self.data.sum(axis=1)
        spectra = self.data[total > 0.0].todense() / total[total > 0.0][:, None]
        # standard deviations of square roots are all the same (Bartlett 1936)
        before = None if known is None else np.sqrt(known)
        return spectra[purest(np.sqrt(spectra), count, before)]

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

    def shares(self, w, h):
        total = np.asarray(self.data.sum(axis=1), float)
        there = total > 0.0
        x, w = self.data[there], np.asarray(w)[there]
        information = np.empty((len(w), len(h), len(h)))
        pull = np.empty(w.shape)
        for at in np.array_split(np.arange(len(w)), -(-len(w) // CHUNK)):
            weight = 1.0 / _expected(w[at], h)
            information[at] = np.einsum("pf,kf,lf->pkl", weight, h, h, optimize=True)
            pull[at] = (x[at].todense() * weight) @ h.T
        return _as_shares(information, pull)

    def spectrum_variances(self, w, h):
        pairs = (w[:, :, None] * w[:, None, :]).reshape(len(w), -1)
        information = np.zeros((h.shape[1], len(h), len(h)))
        for at in np.array_split(np.arange(len(w)), -(-len(w) // CHUNK)):
            weight = 1.0 / _expected(w[at], h)
            information += (weight.T @ pairs[at]).reshape(information.shape)
        return np.diagonal(np.linalg.pinv(information), axis1=1, axis2=2).T

    def abundance_sds(self, w, h):
        w, h = jax.device_put((np.float32(w), np.float32(h)))
        return _deviations(counts.curvature(self._table.by_spectrum, w, h)[1])


class Values(Law):
    """Normal errors, of the same standard deviation everywhere."""

    def __init__(
        self,
        data: Float[np.ndarray, "p f"],
        sigma: float,
        group: Int[np.ndarray, "p"] | None = None,
        finer: Int[np.ndarray, "p"] | None = None,
    ):
        self.data, self.sigma = np.asarray(data, float), sigma
        self.group, self.finer = group, finer

    def pooled(self, finer: bool = False) -> "Values":
        group = self.finer if finer else self.group
        if group is None:
            return self
        size = np.bincount(group)[:, None]
        # sums over the roots of their numbers have the same error
        return Values(sums(self.data, group) / np.sqrt(size), self.sigma)

    def split(self, rng: np.random.Generator) -> Split:
        apart = self.sigma * rng.standard_normal(self.data.shape)
        wider = np.sqrt(2.0) * self.sigma
        return Split(Values(self.data + apart, wider), Values(self.data - apart, wider), 1.0)

    def factors(self, count, steps=STEPS, known=None):
        unit = self._unit
        if known is None:
            w, h = factorisation.start(jax.device_put(np.maximum(self.data, 0.0) / unit), count)
            return self.refined(unit * np.asarray(w, float), np.asarray(h, float), steps=steps)
        pooled = np.maximum(self.pooled().data, 0.0)
        mean = pooled.mean(axis=0)
        h, held = _with(known, pooled[purest(pooled, count, known)], 1e-3 * mean)
        level = np.maximum(self.data.sum(axis=1, keepdims=True), 1e-3 * unit * h.shape[1])
        return self.refined(np.tile(level / count, (1, count)), h, held, steps)

    @functools.cached_property
    def _unit(self) -> float:
        return float(np.sqrt(np.mean(self.data**2)))

    def refined(self, w, h, held=None, steps=STEPS):
        unit = self._unit
        x, w, h = jax.device_put([np.float32(v) for v in (self.data / unit, w / unit, h)])
        held = jax.device_put(np.zeros(len(h), bool) if held is None else held)
        factors = factorisation.factorise(x, w, h, held=held, tolerance=1e-5, steps=steps)
        h = np.asarray(factors.template, float)
        size = np.maximum(h.sum(axis=1), 1e-30)
        return np.asarray(factors.abundance, float) * size * unit, h / size[:, None]

    def losses(self, w, h):
        return 0.5 * np.sum((self.data - w @ h) ** 2, axis=1) / self.sigma**2

    def surprise(self, w, h):
        channels = self.data.shape[1]
        return (2.0 * self.losses(w, h) - channels) / np.sqrt(2.0 * channels)

    def smoothed(self, w, h):
        return h

    def shares(self, w, h):
        information = np.broadcast_to(h @ h.T / self.sigma**2, (len(w), len(h), len(h)))
        return _as_shares(information, self.data @ h.T / self.sigma**2)

    def spectrum_variances(self, w, h):
        variance = self.sigma**2 * np.diag(np.linalg.pinv(w.T @ w))
        return np.broadcast_to(variance[:, None], h.shape)

    def abundance_sds(self, w, h):
        sd = self.sigma * np.sqrt(np.diag(np.linalg.pinv(h @ h.T)))
        return np.broadcast_to(sd, w.shape)


def sums(data, group: Int[np.ndarray, "p"]):
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


def finer_blocks(shape: tuple[int, ...], level: float, most: int = 1000) -> Int[np.ndarray, "p"]:
    """Groups of neighbours of a grid, each with enough counts for its error to be about normal;
    `level` is the mean of the counts of a spectrum, infinite if these are not counts."""
    each = min(max(FEWEST / max(level, 1e-30), 1.0), np.prod(shape))
    return blocks(shape, int(np.clip(np.prod(shape) / each, 150, most)))


def purest(
    spectra: Float[np.ndarray, "n f"],
    count: int,
    known: Float[np.ndarray, "m f"] | None = None,
) -> Int[np.ndarray, "r"]:
    """Rows that are farthest from the span of those before, and of what is known (successive
    projections: Araujo et al. 2001; Gillis & Vavasis 2014)."""
    if not 1 <= count <= len(spectra):
        raise ValueError(f"{count} end members of {len(spectra)} spectra: from 1 to so many")
    left, rows = spectra.copy(), []
    basis = np.zeros((0, left.shape[1])) if known is None else np.linalg.qr(known.T)[0].T
    left -= (left @ basis.T) @ basis
    for _ in range(count - len(basis)):
        size = np.sum(left**2, axis=1)
        rows.append(int(np.argmax(size)))
        along = left[rows[-1]] / np.sqrt(max(size[rows[-1]], 1e-30))
        left -= np.outer(left @ along, along)
    return np.array(rows, int)


def _with(known, h, more) -> tuple[np.ndarray, np.ndarray]:
    """The known end members, and the others with something `more` in them; which are known."""
    h = h + more + 1e-3 * more.mean()
    h = h / h.sum(axis=1, keepdims=True)
    if known is None:
        return h, np.zeros(len(h), bool)
    return np.concatenate([known, h]), np.arange(len(known) + len(h)) < len(known)


def _expected(w, h) -> np.ndarray:
    """Counts, and half a one distributed over the channels."""
    return w @ h + 0.5 / h.shape[1]


def _as_shares(information, pull) -> tuple[np.ndarray, np.ndarray]:
    """Of abundances that are not bounded, by weighted least squares."""
    count = pull.shape[1]
    scale = np.trace(information, axis1=1, axis2=2)[:, None, None] / count
    u = np.linalg.solve(information + 1e-9 * scale * np.eye(count), pull[..., None])[..., 0]
    total = u.sum(axis=1)
    # a spectrum of noise alone has no shares
    there = total > np.maximum(0.1 * np.median(total), 0.0)
    if there.sum() < count:
        raise ValueError(
            f"{there.sum()} of {len(there)} spectra, or sums of neighbours, add up to more than "
            f"nothing: too few for {count} end members"
        )
    u, total = u[there], total[there]
    return u / total[:, None], information[there] * total[:, None, None] ** 2


def _deviations(information) -> np.ndarray:
    """Of the inverse of each matrix; what nothing is known of is infinite."""
    information = np.asarray(information, float)
    scale = np.sqrt(np.maximum(np.diagonal(information, axis1=1, axis2=2), 0.0))
    known = scale > 0.0
    safe = np.where(known, scale, 1.0)
    unit = information / safe[:, :, None] / safe[:, None, :]
    eye = np.eye(scale.shape[1])
    unit = np.where(known[:, :, None] & known[:, None, :], unit, eye)
    variance = np.diagonal(np.linalg.inv(unit + 1e-6 * eye), axis1=1, axis2=2)
    deviation = np.sqrt(np.maximum(variance, 1.0)) / safe
    return np.where(known, deviation, np.inf)


class HeldOut(NamedTuple):
    """So many end members, and what they say of data that they were not learnt from."""

    count: int
    gain: float  # nats, of all spectra, over one end member less
    error: float  # its standard error, from spectrum to spectrum


def trials(
    law: Law,
    most: int,
    rng: np.random.Generator,
    known: Float[np.ndarray, "m f"] | None = None,
) -> Iterator[HeldOut]:
    """Of 1, 2, ... end members, until `AHEAD` more have not helped, or `most`; of as many as are
    known, if any are, and of more."""
    learnt, held, exposure = law.pooled().split(rng)
    before, tried = None, []
    for count in range(1 if known is None else len(known), most + 1):
        w, h = learnt.factors(count, TRIAL_STEPS, known)
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
    best = tried[0].count
    for trial in tried[1:]:
        since = [t for t in tried if best < t.count <= trial.count]
        gain = sum(t.gain for t in since)
        error = np.sqrt(sum(t.error**2 for t in since))
        best = trial.count if gain > CERTAIN * error else best
    return best

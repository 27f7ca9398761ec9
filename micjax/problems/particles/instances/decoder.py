"""Instances out of a network: which pixel belongs to what, by a flow that leads to a centre.

Of each pixel a network says whether it belongs to an instance at all, how large that is, and how
far its centre is (Neven 2019; Stringer 2021). Pixels go where they are told until they are there;
where they gather is an instance.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse.csgraph
import scipy.spatial
from jaxtyping import Array, Bool, Float, Int

HEADS = 4  # foreground, size, flow along y and x
STEPS = 6  # of the flow
BEND_PX = 2.0  # beyond it the network is told logarithms of distances
CLIMB = 5  # 2^5 pixels that a vote may climb to its peak
HALF = 0.5  # of the highest probability of an instance: its outline
APART = 0.5  # of a radius: nearer centres are of one instance


class Targets(NamedTuple):
    """What the heads should say."""

    foreground: Bool[Array, "*b y x"]
    log_radius: Float[Array, "*b y x"]  # of a circle of the same area, px
    flow_px: Float[Array, "*b y x 2"]  # to the centre of mass
    weight: Float[Array, "*b y x"]


class Instances(NamedTuple):
    """A partition of the pixels; 0: none."""

    labels: Int[np.ndarray, "y x"]
    score: Float[np.ndarray, "n"]  # 0 to 1


def targets(labels: Int[Array, "y x"], most: int) -> Targets:
    """Of labels from 1 to at most `most`; what is below 0 is not to be learned from."""
    y, x = jnp.meshgrid(*(jnp.arange(float(n)) for n in labels.shape), indexing="ij")
    index = jnp.maximum(labels, 0)

    def total(values):
        return jnp.zeros(most + 1).at[index].add(values)

    area = jnp.maximum(total(jnp.ones_like(y)), 1.0)
    radius = jnp.sqrt(area / jnp.pi)[index]
    flow = jnp.stack([(total(y) / area)[index] - y, (total(x) / area)[index] - x], -1)
    # small ones would have no say
    weight = jnp.where(labels > 0, jnp.clip(12.0 / radius, 0.6, 4.0), 1.0) * (labels >= 0)
    return Targets(labels > 0, jnp.log(radius), flow, weight)


def instance_loss(heads: Float[Array, "*b y x 4"], wanted: Targets) -> Float[Array, ""]:
    """Cross-entropy of the foreground, and what size and flow are off by within it."""
    there = wanted.foreground.astype(heads.dtype)
    entropy = jax.nn.softplus(heads[..., 0]) - there * heads[..., 0]
    off = heads[..., 1:] - jnp.concatenate(
        [wanted.log_radius[..., None], _bent(wanted.flow_px)], axis=-1
    )
    huber = jnp.sqrt(off**2 + 0.01) - 0.1
    inside = there * wanted.weight
    missed = (huber @ jnp.array([0.5, 1.0, 1.0]) * inside).sum() / (inside.sum() + 1.0)
    return (entropy * wanted.weight).sum() / (wanted.weight.sum() + 1.0) + 0.5 * missed


def _bent(flow):
    return jnp.arcsinh(flow / BEND_PX)


@jax.jit
def gathered(heads: Float[Array, "y x 4"], least: Float[Array, ""]):
    """Where each pixel of the foreground ends up, as the index of a peak of votes.

    **Arguments:**

    - `least`: probability of a pixel of the foreground.

    **Returns:** `peak`, `[y, x]` int, -1: background; `probability`, `[y, x]`, of the foreground;
    `votes`, `[y, x]`: 1 / (area of the instance) each, so that an instance has about one.
    """
    ny, nx = heads.shape[:2]
    probability = jax.nn.sigmoid(heads[..., 0])
    there = (probability > least).ravel()
    flow = (BEND_PX * jnp.sinh(jnp.clip(heads[..., 2:], -6.0, 6.0))).reshape(-1, 2)
    y, x = jnp.meshgrid(jnp.arange(ny), jnp.arange(nx), indexing="ij")
    start = jnp.stack([y.ravel(), x.ravel()], -1)
    edge = jnp.array([ny - 1, nx - 1])
    goal = jnp.clip(jnp.round(start + flow).astype(int), 0, edge)
    goal = jnp.where(there[:, None], goal, start)
    goal = goal[:, 0] * nx + goal[:, 1]
    # a step from where a step leads to, as long as that is an instance
    goal = jnp.where(there[goal], goal, jnp.arange(ny * nx))
    end = jax.lax.fori_loop(0, STEPS - 1, lambda _, end: goal[end], goal)
    area = jnp.pi * jnp.exp(2.0 * jnp.clip(heads[..., 1].ravel(), 0.0, 6.0))
    vote = jnp.where(there, 1.0 / area, 0.0)
    votes = jnp.zeros(ny * nx).at[end].add(vote).reshape(ny, nx)
    peak = _climbed(votes)
    return (
        jnp.where(there, peak[end], -1).reshape(ny, nx),
        probability,
        vote.reshape(ny, nx),
    )


def _climbed(votes: Float[Array, "y x"]) -> Int[Array, "n"]:
    """The index of the peak above each pixel, on smoothed votes."""
    ny, nx = votes.shape
    kernel = (1.0, 4.0, 6.0, 4.0, 1.0)
    for axis in (0, 1):
        padded = jnp.pad(votes, [(2, 2) if a == axis else (0, 0) for a in (0, 1)])
        votes = sum(
            w * jax.lax.slice_in_dim(padded, i, i + votes.shape[axis], axis=axis)
            for i, w in enumerate(kernel)
        )
    best, index = votes, jnp.arange(ny * nx).reshape(ny, nx)
    for axis in (0, 1):
        widths = [(1, 1) if a == axis else (0, 0) for a in (0, 1)]
        height, place = jnp.pad(best, widths, constant_values=-1.0), jnp.pad(index, widths)
        for i in (0, 2):
            beside = jax.lax.slice_in_dim(height, i, i + best.shape[axis], axis=axis)
            where = jax.lax.slice_in_dim(place, i, i + best.shape[axis], axis=axis)
            index = jnp.where(beside > best, where, index)
            best = jnp.maximum(best, beside)
    index = index.ravel()
    return jax.lax.fori_loop(0, CLIMB, lambda _, i: i[i], index)


def instances(
    heads: Float[np.ndarray, "y x 4"], least_px: int = 6, least_probability: float = 0.5
) -> Instances:
    """Peaks of votes, those that are near each other as one.

    **Arguments:**

    - `least_probability`: of a pixel of the foreground.
    - `least_px`: area of an instance, at least.
    """
    peak, probability, vote = (
        np.asarray(a) for a in gathered(jnp.asarray(heads), jnp.asarray(least_probability))
    )
    there = peak >= 0
    if not there.any():
        return Instances(np.zeros(peak.shape, int), np.zeros(0))
    peaks, member = np.unique(peak[there], return_inverse=True)
    count = np.bincount(member)
    total = np.bincount(member, vote[there])
    radius = np.sqrt(count / np.maximum(total, 1e-9) / np.pi)  # as the network has it
    owner = _merged(np.stack(np.unravel_index(peaks, peak.shape), -1), total, radius)
    member = owner[member]
    highest = np.zeros(len(peaks))
    np.maximum.at(highest, member, probability[there])
    # what is hardly seen is improbable all over: its outline is where it is half as probable
    inside = probability[there] > HALF * highest[member]
    there[there] = inside
    member = member[inside]
    whole = _largest_parts(there, member)
    there[there] = whole
    member = member[whole]
    count = np.bincount(member, minlength=len(peaks))
    total = np.bincount(member, vote[there], minlength=len(peaks))
    sure = np.bincount(member, probability[there], minlength=len(peaks)) / np.maximum(count, 1)
    score = sure * np.minimum(total, 1.0)
    kept = (count >= least_px) & (total > 0.2)
    number = np.where(kept, np.cumsum(kept), 0)
    labels = np.zeros(peak.shape, int)
    labels[there] = number[member]
    return Instances(labels, score[kept])


def _largest_parts(there: Bool[np.ndarray, "y x"], member: Int[np.ndarray, "n"]):
    """Which pixels hang together with most others of the same member."""
    number = np.full(there.shape, -1)
    number[there] = np.arange(len(member))
    pairs = []
    for a, b in ((number[1:], number[:-1]), (number[:, 1:], number[:, :-1])):
        both = (a >= 0) & (b >= 0)
        a, b = a[both], b[both]
        pairs.append(np.stack([a, b])[:, member[a] == member[b]])
    rows, columns = np.concatenate(pairs, axis=1)
    shape = (len(member), len(member))
    graph = scipy.sparse.coo_array((np.ones(len(rows), bool), (rows, columns)), shape)
    _, part = scipy.sparse.csgraph.connected_components(graph, directed=False)
    size = np.bincount(part, minlength=1)[part]
    most = np.zeros(member.max(initial=0) + 1, int)
    np.maximum.at(most, member, size)
    return size == most[member]


def _merged(place, votes, radius) -> Int[np.ndarray, "n"]:
    """The peak that each of them belongs to: the strongest near it."""
    owner = np.arange(len(place))
    tree = scipy.spatial.cKDTree(place)
    taken = np.zeros(len(place), bool)
    for i in np.argsort(-votes):
        if taken[i]:
            continue
        near = np.array(tree.query_ball_point(place[i], max(1.5, APART * radius[i])))
        near = near[~taken[near]]
        owner[near], taken[near] = i, True
    return owner

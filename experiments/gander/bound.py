"""How much of the a-domains of a made-up film its height can tell at all.

    python experiments/gander/bound.py [--steps N] [--key N]

Whoever knows how films are made has a posterior of the strips; a Markov chain draws from it. The
roughness is a normal field whose spectrum is known, so the likelihood is exact. A chain that begins
at the truth is a draw of the posterior from its first step on (the truth is one, by definition): it
never says less than what is known. One that begins anywhere says what can be found. Prints the
intersection over union of the best detector, one JSON line a chain.
"""

import argparse
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from domains import STRIPES, TILT, Film, axes, film, stripe
from jaxtyping import Array, Float

EDGE, FILMS = 64, 64
SCALES = (0.001, 0.1)  # of a move, in units of the range of a number
EVERY = 10  # moves between two that are counted


class Chain(NamedTuple):
    numbers: Float[Array, "n 8"]
    tilts: Float[Array, "n y x"]
    a_domains: Float[Array, "n y x"]
    log_density: Float[Array, ""]


def chance(key: Array, films: Film, start: Float[Array, "n 8"], steps: int) -> Float[Array, "y x"]:
    """Of a pixel of one film to be of an a-domain, by the second half of a chain."""
    along, across = axes(films.numbers[-1, 1], EDGE)
    draw = lambda numbers: stripe(numbers, along, across, EDGE)  # noqa: E731

    def log_density(tilts):
        off = jnp.fft.rfft2(films.height_nm - TILT * films.pixel_nm * tilts.sum(axis=0))
        twice = jnp.full(EDGE // 2 + 1, 2.0).at[jnp.array([0, -1])].set(1.0)  # of real fields
        power = (jnp.abs(off) ** 2 / films.roughness * twice).at[0, 0].set(0.0)
        return -0.5 * power.sum()

    def move(chain: Chain, draws):
        u, normal = draws
        which = jnp.floor(u[0] * STRIPES).astype(int)
        old = chain.numbers[which]
        low, high = SCALES
        nudged = (old + low * (high / low) ** u[1] * normal) % 1.0
        nudged = jnp.where(jnp.arange(8) == jnp.floor(8 * u[3]), u[4:12], nudged)
        new = jnp.where(u[2] < 0.2, u[4:12], nudged)
        tilt, a_domain = draw(new)
        tilts = chain.tilts.at[which].set(tilt)
        density = log_density(tilts)
        moved = Chain(
            chain.numbers.at[which].set(new),
            tilts,
            chain.a_domains.at[which].set(a_domain),
            density,
        )
        better = jnp.log(u[12]) < density - chain.log_density
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), moved, chain)

    def several(carry, key):
        chain, total = carry
        uniform, normal = jax.random.split(key)
        draws = (
            jax.random.uniform(uniform, (EVERY, 13)),
            jax.random.normal(normal, (EVERY, 8)),
        )
        chain, _ = jax.lax.scan(lambda c, d: (move(c, d), None), chain, draws)
        return (chain, total + (chain.a_domains.max(axis=0) > 0.5)), chain.log_density

    tilts, a_domains = jax.vmap(draw)(start)
    chain = Chain(start, tilts, a_domains, log_density(tilts))
    half = steps // EVERY // 2
    for part in jax.random.split(key):
        (chain, total), densities = jax.lax.scan(
            several, (chain, jnp.zeros((EDGE, EDGE))), jax.random.split(part, half)
        )
    return total / half, densities.mean() - log_density(jax.vmap(draw)(films.numbers[:-1])[0])


def intersection_over_union(dark: np.ndarray, a: np.ndarray) -> float:
    return float((dark & a).sum() / (dark | a).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--key", type=int, default=5)
    asked = parser.parse_args()
    films = jax.jit(jax.vmap(lambda k: film(k, EDGE)))(
        jax.random.split(jax.random.key(asked.key), FILMS)
    )
    a = np.asarray(films.a_domain)
    keys = jax.random.split(jax.random.key(0), FILMS)
    run = jax.jit(jax.vmap(chance, in_axes=(0, 0, 0, None)), static_argnums=3)
    anywhere = jax.random.uniform(jax.random.key(1), (FILMS, STRIPES, 8))
    for begins, start in (("the truth", films.numbers[:, :-1]), ("anywhere", anywhere)):
        share, above = map(np.asarray, run(keys, films, start, asked.steps))
        row = {"a chain from": begins, "steps": asked.steps}
        row["IoU at 1/2"] = intersection_over_union(share > 0.5, a)
        row["IoU, best threshold"] = max(
            intersection_over_union(share > t, a) for t in np.linspace(0.2, 0.7, 26)
        )
        row["log density above the truth's"] = float(np.median(above))
        row["films whose density is far below the truth's"] = int((above < -30).sum())
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""How much of the a-domains of a made-up film its height can tell at all.

    python experiments/gander/bound.py [--steps N] [--key N]

Whoever knows how films are made has a posterior of the strips; a Markov chain (Metropolis 1953)
draws from it. The roughness is a normal field whose spectrum is known, so the likelihood is. The
chain begins at the truth, which is a draw of the posterior by definition; it has not been
everywhere after so many moves, so the best detector reaches at most what comes out. Prints the
intersection over union as one JSON line.
"""

import argparse
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from domains import STRIPES, TILT, Film, axes, film, stripe
from jaxtyping import Array, Float

EDGE, FILMS = 64, 16
SCALES = (0.0003, 0.1)  # of a move, in units of the range of a number
EVERY = 10  # moves between two looks


class Chain(NamedTuple):
    numbers: Float[Array, "n 8"]
    tilts: Float[Array, "n y x"]
    a_domains: Float[Array, "n y x"]
    log_density: Float[Array, ""]


def chance(key: Array, films: Film, steps: int) -> tuple[Float[Array, "y x"], Float[Array, ""]]:
    """Of a pixel of one film to be of an a-domain; and how many of the moves are made."""
    along, across = axes(films.numbers[-1, 1], EDGE)

    def drawn(numbers):
        return stripe(numbers, along, across, EDGE)

    def log_density(tilts):
        off = jnp.fft.rfft2(films.height_nm - TILT * films.pixel_nm * tilts.sum(axis=0))
        twice = jnp.full(EDGE // 2 + 1, 2.0).at[jnp.array([0, -1])].set(1.0)  # of real fields
        power = jnp.abs(off) ** 2 / films.roughness * twice
        return -0.5 * power.at[0, 0].set(0.0).sum()  # the mean height tells nothing

    def move(chain: Chain, draws):
        """Of one strip: all of its numbers a little and one of them anywhere, or all anywhere."""
        u, normal = draws
        which = jnp.floor(u[0] * STRIPES).astype(int)
        low, high = SCALES
        nudged = (chain.numbers[which] + low * (high / low) ** u[1] * normal) % 1.0
        swapped = (jnp.arange(8) == jnp.floor(8 * u[3])) & (u[13] < 0.3)
        nudged = jnp.where(swapped, u[4:12], nudged)
        new = jnp.where(u[2] < 0.1, u[4:12], nudged)
        tilt, a_domain = drawn(new)
        tilts = chain.tilts.at[which].set(tilt)
        density = log_density(tilts)
        moved = Chain(
            chain.numbers.at[which].set(new),
            tilts,
            chain.a_domains.at[which].set(a_domain),
            density,
        )
        taken = jnp.log(u[12]) < density - chain.log_density
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), moved, chain), taken

    def several(carry, key):
        chain, total = carry
        of_uniform, of_normal = jax.random.split(key)
        draws = (
            jax.random.uniform(of_uniform, (EVERY, 14)),
            jax.random.normal(of_normal, (EVERY, 8)),
        )
        chain, taken = jax.lax.scan(move, chain, draws)
        return (chain, total + (chain.a_domains.max(axis=0) > 0.5)), taken.mean()

    tilts, a_domains = jax.vmap(drawn)(films.numbers[:-1])
    chain = Chain(films.numbers[:-1], tilts, a_domains, log_density(tilts))
    looks = steps // EVERY
    begin = (chain, jnp.zeros((EDGE, EDGE)))
    (_, total), taken = jax.lax.scan(several, begin, jax.random.split(key, looks))
    return total / looks, taken.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--key", type=int, default=0)
    asked = parser.parse_args()
    films = jax.jit(jax.vmap(lambda k: film(k, EDGE)))(
        jax.random.split(jax.random.key(asked.key), FILMS)
    )
    keys = jax.random.split(jax.random.key(0), FILMS)
    run = jax.jit(jax.vmap(chance, in_axes=(0, 0, None)), static_argnums=2)
    share, taken = map(np.asarray, run(keys, films, asked.steps))
    a, dark = np.asarray(films.a_domain), share > 0.5
    row = {"films": FILMS, "steps": asked.steps, "IoU": float((dark & a).sum() / (dark | a).sum())}
    print(json.dumps(row | {"moves_taken": float(taken.mean())}), flush=True)


if __name__ == "__main__":
    main()

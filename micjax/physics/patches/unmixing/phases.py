"""How many phases there are: as many as the patches show that were not learnt from.

One more template is one more phase only where it describes patches that the others do not, is not
one of them again, and is wanted by more than a few. On the borders of grains, where two atoms a
patch add up wrongly, it would be wanted; so the patches have to be those of `samples`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.physics.patches.unmixing import equivariant
from micjax.physics.patches.unmixing.equivariant import Dictionary

GAIN = 0.9  # of the residual with one template fewer
SAME = 0.93  # cosine of two templates of one phase
FEW = 0.03  # of the patches


class Trial(NamedTuple):
    """What so many templates say of patches that they were not learnt from."""

    count: int
    residual: float  # |x - model| / |x|
    similarity: float  # the largest cosine of two templates, at the best angle between them
    least_used: float  # share of the patches whose strongest atom is of the rarest template

    def adds_to(self, before: "Trial") -> bool:
        return (
            self.residual < GAIN * before.residual
            and self.similarity < SAME
            and self.least_used > FEW
        )


def trials(
    patches: Float[Array, "p r t"], most: int, rng: np.random.Generator, **learning
) -> Iterator[tuple[Trial, Dictionary]]:
    """1, 2, ... templates, until one more adds nothing or there are `most`; that one included.

    **Arguments:**

    - `patches`: of length 1, every other one to learn from.
    - `learning`: see `equivariant.learn`.
    """
    learnt, held_out = patches[::2], patches[1::2]
    before = None
    for count in range(1, min(most, len(learnt)) + 1):
        dictionary = equivariant.learn(learnt, count, rng, room=most, **learning)
        trial = _tried(held_out, dictionary.templates, most)
        yield trial, dictionary
        if before is not None and not trial.adds_to(before):
            return
        before = trial


def chosen(tried: list[Trial]) -> int:
    """The last one that added something."""
    count = tried[0].count
    for before, trial in zip(tried, tried[1:], strict=False):
        if not trial.adds_to(before):
            break
        count = trial.count
    return count


def _tried(patches, templates, room: int) -> Trial:
    count = len(templates)
    padded = jnp.pad(templates, ((0, room - count), (0, 0), (0, 0)))
    code, left = equivariant.encode(patches, padded)
    residual = float(jnp.sqrt(jnp.sum(left**2) / jnp.sum(patches**2)))
    most_alike = float(similarities(padded)[:count, :count].max())
    used = np.bincount(np.asarray(code.phase[:, 0]), minlength=count) / len(patches)
    return Trial(count, residual, most_alike, float(used.min()))


def similarities(templates: Float[Array, "k r t"]) -> Float[np.ndarray, "k k"]:
    """Cosines of different templates at the best angle between them; 0 of each with itself."""
    pairs = np.array(equivariant.correlations(templates, templates)).max(axis=-1)
    np.fill_diagonal(pairs, 0.0)
    return pairs

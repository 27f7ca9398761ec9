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

GAIN = 0.85  # of the residual with one template fewer
SAME = 0.93  # cosine of two templates of one phase
FEW = 0.05  # of the patches
AHEAD = 2  # templates: between two of three phases there may be no good compromise


class Trial(NamedTuple):
    """What so many templates say of patches that they were not learnt from."""

    count: int
    residual: float  # |x - model| / |x|
    similarity: float  # the largest cosine of two templates, at the best angle between them
    least_used: float  # share of the patches whose strongest atom is of the rarest template

    def lacks(self, before: "Trial") -> list[str]:
        """Why the templates that it has more are no phases; nothing if they are."""
        more = self.count - before.count
        reasons = {
            "explains little more": self.residual >= GAIN**more * before.residual,
            "two are alike": self.similarity >= SAME,
            "one is rare": self.least_used <= FEW,
        }
        return [reason for reason, holds in reasons.items() if holds]

    def adds_to(self, before: "Trial") -> bool:
        return not self.lacks(before)


def trials(
    patches: Float[Array, "p r t"], most: int, rng: np.random.Generator, **learning
) -> Iterator[tuple[Trial, Dictionary]]:
    """1, 2, ... templates, until `AHEAD` more add nothing or there are `most`; those included.

    **Arguments:**

    - `patches`: of length 1, every other one to learn from.
    - `learning`: see `equivariant.learn`.
    """
    learnt, held_out = patches[::2], patches[1::2]
    tried: list[Trial] = []
    for count in range(1, min(most, len(learnt)) + 1):
        dictionary = equivariant.learn(learnt, count, rng, room=most, **learning)
        tried.append(_tried(held_out, dictionary.templates, most))
        yield tried[-1], dictionary
        if count >= chosen(tried) + AHEAD:
            return


def chosen(tried: list[Trial]) -> int:
    """The last one that added something."""
    return taken(tried)[-1].count


def taken(tried: list[Trial]) -> list[Trial]:
    """The first one, and those that added something to the one that was taken before."""
    taken = tried[:1]
    for trial in tried[1:]:
        if trial.adds_to(taken[-1]):
            taken.append(trial)
    return taken


def front(tried: list[Trial]) -> list[Trial]:
    """Those of which none has as few templates and a smaller residual."""
    return [t for i, t in enumerate(tried) if all(t.residual < o.residual for o in tried[:i])]


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

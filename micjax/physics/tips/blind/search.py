"""The tip that took some images, without knowing the surface.

Every tip sharper than the true one that divides it passes `tip_evidence`, a needle always: the
scan sets an outer bound, and the estimate is the *bluntest admissible* tip.

Images are `[frames, iy, ix]` in nm, one tip for all frames.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Key

from micjax.physics.tips.blind.bound import bound, deepened
from micjax.physics.tips.blind.candidates import (
    Candidates,
    chosen,
    finer,
    heights_of_one,
    single_tips,
    tried,
)
from micjax.physics.tips.blind.second_apex import DOUBLE_ALLOWANCE, WORTH_RESHAPING, second_apex
from micjax.physics.tips.dilation import opening
from micjax.physics.tips.evidence import (
    ALLOWANCE,
    CREASED,
    RESOLUTION,
    Frames,
    Kernel,
    Scalar,
    admissible,
    corroborated,
    creases,
    misfit,
    noise_residual,
    spread,
)
from micjax.physics.tips.shapes import Double
from micjax.physics.tips.villarrubia import villarrubia

_STRICT = 1.05  # of a single tip: seeking the bluntest would use up any allowance
_LENIENT = 1.4  # of the tip from which a second apex is sought
_WORTHWHILE = 1.25  # how much blunter a reshaped tip must be to give up the one it started from
_WORTH_FREEDOM = 3.0  # the same after a blunter start, of which untouched pixels stay as blunt
_SHAPING = 4.0  # threshold in sigma of the classical bound that a free form starts from
_BOUND = 3.0  # the same of the bound that is told
_FLATTER, _OF_THE_IMAGE = 0.7, 0.5  # depths that this share of the image must refute
_A_LITTLE_FLATTER = 0.9  # the same for what is told of the tip
_HARMLESS = 3.0  # sigma that a tip may take off on average which less of the image bears out
_NO_TRACE = 0.1  # sigma taken off the image, below which the tip left no trace
_HOPELESS = 6.0  # misfit / floor from which a descent that is a quarter through will not arrive


class BlindTip(NamedTuple):
    """The bluntest admissible tip of some images, and how it was found."""

    heights_nm: Kernel  # T, the highest pixel at 0
    shape: Double  # its parametric part
    double: bool
    free_form: bool  # whether heights_nm was reshaped pixel by pixel
    passes: bool  # whether it is admissible: if not, no tip of this size and kind is
    misfit: float
    floor: float
    bluntness: float
    singles: Candidates | None  # what was tried, if the images say anything of a tip
    classical_nm: Kernel  # Villarrubia's estimate with the threshold asked for
    bound_nm: Kernel  # of tips of any shape, by the classical way; the apex in the middle
    corroborated: float  # by which share of the image: see `micjax.physics.tips.evidence`


def blind(
    images: Frames,
    sigma_nm: Scalar,
    pixel_nm,
    size: tuple[int, int],
    key: Key[Array, ""],
    *,
    steps: int = 300,
    threshold_sigmas: float = 4.0,
    radii: int = 18,
    report=lambda share, text: None,
) -> BlindTip:
    """The bluntest admissible tip: sphere-cones first, then a second apex, then pixel by pixel.

    **Arguments:**

    - `steps`: of the free-form descents; 0 leaves the parametric tip.
    - `threshold_sigmas`: of the classical estimate, which is the answer where it is admissible:
        without noise.
    - `radii`: how many radii are tried over three decades; with little noise only a narrow range
        passes, and 45 are worth their time.
    - `report`: called as `report(share of the work done, text)`.
    """
    for estimate in improving(  # noqa: B007
        images,
        sigma_nm,
        pixel_nm,
        size,
        key,
        steps=steps,
        threshold_sigmas=threshold_sigmas,
        radii=radii,
        report=report,
    ):
        pass
    return estimate


def improving(
    images: Frames,
    sigma_nm: Scalar,
    pixel_nm,
    size: tuple[int, int],
    key: Key[Array, ""],
    *,
    steps: int = 300,
    threshold_sigmas: float = 4.0,
    radii: int = 18,
    report=lambda share, text: None,
) -> Iterator[BlindTip]:
    """`blind`, step by step: each is the best so far, and says of itself what the image bears out
    of it, so that a search may be broken off. The last one is the answer."""
    height_nm = float(jnp.max(jnp.ptp(images, axis=(1, 2))))
    depth_nm = 1.05 * height_nm
    classical, _ = villarrubia(images, size, float(threshold_sigmas * sigma_nm))
    singles = single_tips(height_nm, pixel_nm, size, radii)
    if creases(images, sigma_nm) < CREASED:
        yield _needle(singles, classical, depth_nm)
        return

    def told(estimate: BlindTip) -> BlindTip:
        seen_in = corroborated(images, estimate.heights_nm, sigma_nm, _FLATTER)
        if estimate.bluntness > _HARMLESS and seen_in < _OF_THE_IMAGE:
            return _needle(singles, classical, depth_nm)
        share = corroborated(images, estimate.heights_nm, sigma_nm, _A_LITTLE_FLATTER)
        return estimate._replace(corroborated=share)

    for estimate in _tips(images, singles, classical, sigma_nm, size, key, steps, report):
        yield told(estimate)


def _tips(
    images: Frames,
    grid: Double,
    classical: Kernel,
    sigma_nm: Scalar,
    size: tuple[int, int],
    key: Key[Array, ""],
    steps: int,
    report,
) -> Iterator[BlindTip]:
    """The best of single tips, then with a second apex, then of any shape."""
    height_nm = float(jnp.max(jnp.ptp(images, axis=(1, 2))))
    depth_nm = 1.05 * height_nm
    outer = bound(images, size, float(_BOUND * sigma_nm))

    def parametric(shape: Double, double: bool) -> BlindTip:
        heights = heights_of_one(shape, depth_nm)
        seen, floor, bluntness = map(float, misfit(images, heights, sigma_nm, key))
        allowance = DOUBLE_ALLOWANCE if double else ALLOWANCE
        passes = bool(admissible(seen, floor, allowance))
        numbers = passes, seen, floor, bluntness, singles, classical, outer, 0.0
        return BlindTip(heights, shape, double, False, *numbers)

    coarse = tried(images, grid, sigma_nm, key, lambda text: report(0.0, "single tip, " + text))
    singles = tried(images, finer(coarse.shape(coarse.best(_STRICT))), sigma_nm, key)
    best = singles.best(_STRICT)
    shape = singles.shape(best)
    starts = [heights_of_one(shape, depth_nm)]
    report(0.2, f"single tip, radius {float(shape.radius_nm):.3g} nm")
    estimate = parametric(shape, double=False)
    yield estimate
    doubles = second_apex(
        images,
        coarse.shape(coarse.best(_LENIENT)),
        singles.bluntness[best],
        height_nm,
        sigma_nm,
        jax.random.fold_in(key, 1),
        lambda text: report(0.2, "second apex, " + text),
    )
    if doubles is not None:
        best_double = doubles.best(_STRICT, DOUBLE_ALLOWANCE, WORTH_RESHAPING)
        shape = doubles.shape(best_double)
        starts.append(heights_of_one(shape, depth_nm))
        if bool(
            admissible(doubles.misfit[best_double], doubles.floor[best_double], DOUBLE_ALLOWANCE)
            & (doubles.bluntness[best_double] > singles.bluntness[best])
        ):
            estimate = parametric(shape, double=True)
            yield estimate
    report(0.5, "second apex found" if estimate.double else "no second apex")
    if steps > 0:
        yield from _reshaped(estimate, starts, images, sigma_nm, size, key, steps, report)


def _needle(singles: Double, classical: Kernel, depth_nm: float) -> BlindTip:
    """What to take for the tip where the images tell nothing of it: it leaves them as they are."""
    middle = tuple(n // 2 for n in classical.shape)
    needle = jnp.full(classical.shape, -depth_nm, classical.dtype).at[middle].set(0.0)
    sharpest = chosen(singles, int(jnp.argmin(singles.radius_nm)))
    numbers = (0.0, 0.0, 0.0, None, classical, jnp.zeros_like(classical), 0.0)
    return BlindTip(needle, sharpest, False, True, True, *numbers)


def _reshaped(
    estimate: BlindTip, starts: list[Kernel], images, sigma_nm, size, key, steps: int, report
) -> Iterator[BlindTip]:
    """The estimate, or a tip that is no sphere-cone where that is worth it."""
    classical, depth_nm = estimate.classical_nm, 1.05 * float(jnp.max(jnp.ptp(images, axis=(1, 2))))
    estimate = _blunter(estimate, classical, images, sigma_nm, key)
    if estimate.bluntness < _NO_TRACE:  # computed images are exact, where no shape of ours fits
        everywhere = 4 * size[0] * size[1] * images.size < 1e8
        exact, _ = villarrubia(images, size, 1e-6 * depth_nm, everywhere=everywhere)
        estimate = _blunter(estimate, exact, images, sigma_nm, key)
    # of any shape, as blunt as the images allow: deeper until it passes, or pixel by pixel
    outer = jnp.maximum(bound(images, size, float(_SHAPING * sigma_nm)), -depth_nm)
    deeper = deepened(images, outer, sigma_nm, key, ALLOWANCE)
    estimate = _blunter(estimate, deeper, images, sigma_nm, key)
    yield estimate
    descents = [(outer, 1.0), *((start, 0.5) for start in starts)]
    for n, (start, flatter) in enumerate(descents):
        heights, _ = free_form(
            images,
            flatter * start,
            sigma_nm,
            jax.random.fold_in(key, n),
            steps=steps,
            report=lambda done, text, n=n: report(
                0.5 + 0.5 * (n + done / steps) / len(descents), "free form, " + text
            ),
        )
        own = float(misfit(images, start, sigma_nm, key)[2])
        at_least = _WORTH_FREEDOM * own if flatter < 1 else 0.0
        estimate = _blunter(estimate, heights, images, sigma_nm, key, at_least)
        yield estimate


def _blunter(
    estimate: BlindTip, heights: Kernel, images, sigma_nm, key, at_least: float = 0.0
) -> BlindTip:
    """The free-form tip instead of the one found so far, if it is worth it."""
    seen, floor, bluntness = map(float, misfit(images, heights, sigma_nm, key))
    wanted = max(_WORTHWHILE * estimate.bluntness + 0.1, at_least)
    worthwhile = bluntness > wanted or not estimate.passes
    if not (worthwhile and bool(admissible(seen, floor))):
        return estimate
    # what no feature has bounded stays as blunt as it started: a free form needs many of them
    if corroborated(images, heights, sigma_nm, _FLATTER) < _OF_THE_IMAGE:
        return estimate
    return estimate._replace(
        heights_nm=heights,
        free_form=True,
        passes=True,
        misfit=seen,
        floor=floor,
        bluntness=bluntness,
    )


@functools.partial(jax.jit, static_argnames="steps")
def _descend(tip, state, images, sigma_nm, depth_nm, rate_nm, key, steps):
    def excess(tip, key):
        opened = jax.vmap(lambda i: opening(i, tip))(images)
        seen = spread((images - opened) / sigma_nm, tip)
        # without the floor's own gradient the descent would go on to fit the noise: to a needle
        noise = noise_residual(lax.stop_gradient(opened), tip, sigma_nm, key)
        expected = spread(noise / sigma_nm, tip)
        return seen - expected, (seen, expected)

    def step(carry, key):
        tip, state = carry
        gradient, seen = jax.grad(excess, has_aux=True)(tip, key)
        update, state = optax.scale_by_adam().update(gradient, state)
        tip = jnp.minimum(tip - rate_nm * update, 0.0)
        tip = jnp.maximum(tip - jnp.max(tip), -depth_nm)  # the apex is 0; deeper is out of reach
        return (tip, state), seen

    (tip, state), (seen, expected) = lax.scan(step, (tip, state), jax.random.split(key, steps))
    return tip, state, jnp.mean(seen), jnp.mean(expected)


def free_form(
    images: Frames,
    start: Kernel,
    sigma_nm: Scalar,
    key: Key[Array, ""],
    *,
    steps: int = 300,
    allowance: float = 1.05,
    report=lambda done, text: None,
) -> tuple[Kernel, bool]:
    """Sharpen a too blunt tip, pixel by pixel, until it becomes admissible.

    Gradient descent on misfit - floor from the blunt side (the opening loss of Matsunaga et al.
    2023, Sci. Rep. 13, 129, made blind to noise by its bootstrap floor), stopped at the first tip
    that passes: from there on the loss is flat and only leads to sharper tips.

    **Arguments:**

    - `start`: T (nm), blunter than the tip that is sought.
    - `allowance`: stop at misfit <= allowance * floor.

    **Returns:** `(tip, whether it passed)`.
    """
    chunk = 10
    depth_nm = 1.05 * (jnp.max(images) - jnp.min(images))
    tip = jnp.maximum(start - jnp.max(start), -depth_nm)
    state = optax.scale_by_adam().init(tip)
    seen, expected, _ = misfit(images, tip, sigma_nm, key)
    if bool(admissible(seen, expected, allowance)):
        return tip, True
    for i in range(0, steps, chunk):
        rate_nm = depth_nm * 0.01 * (1 - 0.8 * i / steps)
        tip, state, seen, expected = _descend(
            tip, state, images, sigma_nm, depth_nm, rate_nm, jax.random.fold_in(key, i), chunk
        )
        report(i + chunk, f"misfit {float(seen):.2f}, floor {float(expected):.2f}")
        if i >= steps // 4 and seen > _HOPELESS * expected + RESOLUTION:
            break
        if bool(admissible(seen, expected, allowance)):
            return tip, True
    return tip, False

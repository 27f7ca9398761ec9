"""What a scan tells of the tip that took it, without knowing the surface.

A tip T can have taken the image I only if I is T-open: opening(I, T) = I. Every sharper tip that
divides T passes too, a needle always: the scan sets an outer bound, and the estimate is the
*bluntest admissible* tip. With noise an image is open for no tip but the needle, so the misfit of
the opening is held against its floor, the misfit that noise alone makes with the same tip (a
parametric bootstrap). This replaces the threshold of the classical algorithm.

Images are `[frames, iy, ix]` in nm, one tip for all frames.
"""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Key

from micjax.physics.tip import contact_pixel, dilate, erode, opening
from micjax.physics.tip_shapes import Double

Frames = Float[Array, "frames ny nx"]
Kernel = Float[Array, "ky kx"]
Scalar = Float[ArrayLike, ""]

ALLOWANCE = 1.1  # misfit / floor of an admissible tip; 1 without any error of the tip model
_STRICT = 1.05  # of a single tip: seeking the bluntest would use up any allowance
_DOUBLE = 1.3  # of a double tip: its seven numbers are found only so well
_WORTHWHILE = 1.25  # how much blunter a free-form tip must be to give up a parametric one
_LENIENT = 1.4  # of the tip from which a second apex is sought
_NO_TRACE = 0.1  # sigma taken off the image, below which the tip left no trace
_APART = 3.0  # pixels between two apexes
_TAKES_PART = 0.05  # share of the image below which a second apex is not worth its parameters
_HOPELESS = 6.0  # misfit / floor from which a descent that is a quarter through will not arrive
_RESOLUTION = 0.01  # misfits below this fraction of the noise variance are no evidence


def noise_sigma_nm(images: Frames) -> Scalar:
    """Noise level by the mask [1 -2 1] x [1 -2 1] (Immerkaer 1996) and the median of its modulus.

    White noise is assumed; texture of the surface at the scale of two pixels counts as noise.
    """

    def second(a, axis):
        return jnp.diff(a, n=2, axis=axis)

    return jnp.median(jnp.abs(second(second(images, 1), 2))) / (6 * 0.6744897501960817)


@jax.jit
def misfit(
    images: Frames, tip: Kernel, sigma_nm: Scalar, key: Key[Array, ""]
) -> tuple[Scalar, Scalar, Scalar]:
    """How far the images are from being open for `tip`.

    **Returns:** `(misfit, floor, bluntness)`: the root mean fourth power of the opening residual
    over sigma^2, the same of images that *were* taken with this tip, with fresh noise, and the mean
    height that the tip takes off the images, less what it takes off noise alone, over sigma.
    """
    eroded = jax.vmap(lambda i: erode(i, tip))(images)
    opened = jax.vmap(lambda s: dilate(s, tip))(eroded)
    return (
        _spread(images - opened, tip) / sigma_nm**2,
        _spread(_noise_residual(opened, tip, sigma_nm, key), tip) / sigma_nm**2,
        jnp.mean(images - eroded) / sigma_nm - _carved_from_noise(images[0], tip / sigma_nm, key),
    )


def _carved_from_noise(image: Array, tip: Kernel, key: Key[Array, ""]) -> Scalar:
    """What a tip (heights in sigma) takes off a plane with noise alone, in sigma."""
    noise = jax.random.normal(jax.random.fold_in(key, 1), image.shape, image.dtype)
    return jnp.mean(noise - erode(noise, tip))


def _mean_power(residual: Frames, tip: Kernel, power: int) -> Scalar:
    """Without the pixels within half a tip of the border: there the tip may have touched what lies
    outside the scan, which no surface inside can explain."""
    (_, ny, nx), (hy, hx) = residual.shape, (n // 2 for n in tip.shape)
    return jnp.mean(residual[:, hy : ny - hy, hx : nx - hx] ** power)


def _spread(residual: Frames, tip: Kernel) -> Scalar:
    """Root of the mean fourth power: a blunt tip misses few features, but those by many sigma,
    which the mean square of a large image would not show."""
    return jnp.sqrt(_mean_power(residual, tip, 4))


def _noise_residual(opened: Frames, tip: Kernel, sigma_nm: Scalar, key: Key[Array, ""]) -> Frames:
    """The opening residual of images which `tip` did take, with fresh noise."""
    again = opened + sigma_nm * jax.random.normal(key, opened.shape, opened.dtype)
    return again - jax.vmap(lambda i: opening(i, tip))(again)


def admissible(
    misfit: Float[ArrayLike, "..."], floor: Float[ArrayLike, "..."], allowance: float = ALLOWANCE
) -> Bool[ArrayLike, "..."]:
    """Whether a tip of this misfit can have taken the images."""
    return misfit < allowance * floor + _RESOLUTION


@jax.jit
def misfits(
    images: Frames, tips: Float[Array, "n ky kx"], sigma_nm: Scalar, key: Key[Array, ""]
) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, " n"]]:
    """`misfit` of many tips, one after the other in one compiled call."""
    return lax.map(lambda tip: misfit(images, tip, sigma_nm, key), tips)


class Candidates(NamedTuple):
    """Tips that were tried, in parallel arrays; `shapes` has a leading axis in every parameter."""

    shapes: Double
    misfit: Float[Array, " n"]
    floor: Float[Array, " n"]
    bluntness: Float[Array, " n"]

    def best(self, allowance: float = ALLOWANCE) -> int:
        """The bluntest admissible one, or the nearest to it if none is."""
        passes = admissible(self.misfit, self.floor, allowance)
        if bool(jnp.any(passes)):
            return int(jnp.argmax(jnp.where(passes, self.bluntness, -jnp.inf)))
        return int(jnp.argmin(self.misfit / (self.floor + _RESOLUTION)))

    def shape(self, k: int) -> Double:
        return _chosen(self.shapes, k)


def single_tips(height_nm: float, pixel_nm, size: tuple[int, int], radii: int = 18) -> Double:
    """Sphere-cones from flat to sharp for features of `height_nm`, as one stacked `Double`.

    `radii` radii, five cone angles, and the apex on a pixel or half a pixel off it, which matters
    for tips as sharp as a pixel.
    """
    pixel = np.broadcast_to(np.asarray(pixel_nm, float), (2,))
    reach_nm = float(np.min(np.array(size) // 2 * pixel))
    # the depth at the edge of the tip in units of the features: 0.05 is nearly flat, 60 a needle
    tried_nm = reach_nm**2 / (2 * height_nm * np.geomspace(0.05, 60, radii))
    halves = (0.0, 0.5)
    grid = np.array(
        [
            (r, a, y * pixel[0], x * pixel[1])
            for r in tried_nm
            for a in (8.0, 15.0, 30.0, 50.0, 70.0)
            for y in halves
            for x in halves
        ]
    )
    n = len(grid)
    return _stacked(
        grid[:, 0],
        grid[:, 1],
        np.zeros((n, 2)),
        np.full(n, 4 * height_nm),
        grid[:, 2:],
        pixel,
        size,
    )


def finer(tip: Double) -> Double:
    """The same tip up to twice as blunt in the radius, and of other cone angles, stacked."""
    angle = float(tip.half_angle_deg)
    grid = [(r, a) for r in np.geomspace(1.0, 2.0, 8) for a in angle * np.geomspace(0.7, 2.0, 6)]
    radius, angles = np.array([(1.0, angle)] + [(r, a) for r, a in grid if a < 80]).T
    n = len(radius)

    def same(values):
        return np.broadcast_to(np.asarray(values), (n, *np.shape(values)))

    return _stacked(
        float(tip.radius_nm) * radius,
        angles,
        same(tip.offset_nm),
        same(tip.drop_nm),
        same(tip.origin_nm),
        np.asarray(tip.pixel_nm),
        tip.size,
    )


def _around(tip: Double) -> Double:
    """Starts for the last refinement of a double tip whose place is known, stacked."""
    radius = np.array([0.7, 0.85, 1.0, 1.15, 1.3])
    angle = np.full(len(radius), max(float(tip.half_angle_deg), 15.0))
    same = [
        jnp.broadcast_to(v, (len(radius), *v.shape))
        for v in (tip.offset_nm, tip.drop_nm, tip.origin_nm)
    ]
    return _stacked(float(tip.radius_nm) * radius, angle, *same, np.asarray(tip.pixel_nm), tip.size)


def double_tips(single: Double, height_nm: float, offsets_px, scales, drops) -> Double:
    """`single` with a second apex at all of the offsets (pixels), radius scales and drops (as
    fractions of `height_nm`), stacked. Both apexes are moved so that the pair is centred."""
    pixel = np.asarray(single.pixel_nm, float)
    grid = np.array(
        [
            (s, dy * pixel[0], dx * pixel[1], d)
            for s in scales
            for dy, dx in offsets_px
            for d in drops
        ]
    )
    n = len(grid)
    origin = -np.round(grid[:, 1:3] / 2 / pixel) * pixel + np.asarray(single.origin_nm, float)
    return _stacked(
        float(single.radius_nm) * grid[:, 0],
        np.full(n, float(single.half_angle_deg)),
        grid[:, 1:3],
        grid[:, 3] * height_nm,
        origin,
        pixel,
        single.size,
    )


def _stacked(radius, angle, offset, drop, origin, pixel, size) -> Double:
    n = len(radius)
    return eqx.filter_vmap(lambda *p: Double(*p, size=size))(
        *map(jnp.asarray, (radius, angle, offset, drop, origin, np.broadcast_to(pixel, (n, 2))))
    )


def heights_of(shapes: Double, depth_nm: Scalar) -> Float[Array, "n ky kx"]:
    """T (nm) of stacked shapes, the highest pixel at 0, cut off below `depth_nm`."""
    tips = eqx.filter_vmap(lambda s: s())(shapes)
    tips = tips - jnp.max(tips, axis=(1, 2), keepdims=True)
    return jnp.maximum(tips, -depth_nm)


def tried(images: Frames, shapes: Double, sigma_nm: Scalar, key: Key[Array, ""]) -> Candidates:
    """The misfit of each of the stacked shapes."""
    depth_nm = 1.05 * jnp.max(jnp.ptp(images, axis=(1, 2)))
    return Candidates(shapes, *misfits(images, heights_of(shapes, depth_nm), sigma_nm, key))


@functools.partial(jax.jit, static_argnames="steps")
def _refine(shapes: Double, images, sigma_nm, key, steps: int) -> Double:
    """Each stacked double tip moved downhill until it is just admissible."""
    depth_nm = 1.05 * jnp.max(jnp.ptp(images, axis=(1, 2)))
    pixel = jnp.min(shapes.pixel_nm)

    def one(shape):
        def moved(p):
            return eqx.tree_at(
                lambda d: (d.radius_nm, d.half_angle_deg, d.offset_nm, d.drop_nm),
                shape,
                (
                    shape.radius_nm * jnp.exp(0.3 * p["log_radius"]),
                    jnp.clip(shape.half_angle_deg + 10 * p["angle"], 5.0, 80.0),
                    shape.offset_nm + pixel * p["offset"],
                    jnp.maximum(shape.drop_nm + pixel * p["drop"], 0.0),
                ),
            )

        def excess(p):
            tip = jnp.maximum(moved(p)(), -depth_nm)
            seen, floor, _ = misfit(images, tip, sigma_nm, key)
            return jax.nn.relu(seen - floor)  # no pull towards tips sharper than need be

        def step(carry, rate):
            p, state = carry
            update, state = optimiser.update(jax.grad(excess)(p), state)
            return (jax.tree.map(lambda v, u: v - rate * u, p, update), state), None

        optimiser = optax.scale_by_adam()
        start = {"log_radius": 0.0, "angle": 0.0, "offset": jnp.zeros(2), "drop": 0.0}
        start = jax.tree.map(lambda v: jnp.asarray(v, images.dtype), start)
        rates = 0.12 * jnp.linspace(1.0, 0.1, steps)
        (p, _), _ = lax.scan(step, (start, optimiser.init(start)), rates)
        return moved(p)

    return lax.map(one, shapes)


@jax.jit
def second_apex_shares(images: Frames, shapes: Double) -> Float[Array, " n"]:
    """The part of the images that the second apex of each stacked double tip took."""
    depth_nm = 1.05 * jnp.max(jnp.ptp(images, axis=(1, 2)))

    def one(shape):
        whole = jnp.maximum(shape(), -depth_nm)
        alone = eqx.tree_at(lambda d: d.drop_nm, shape, 4 * depth_nm)()
        second = whole > jnp.maximum(alone, -depth_nm) + 1e-6 * depth_nm
        contact = jax.vmap(lambda i: contact_pixel(i, whole))(images)
        return jnp.mean(second.reshape(-1)[contact])

    return lax.map(one, shapes)


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
    singles: Candidates
    classical_nm: Kernel  # Villarrubia's estimate with the threshold asked for


def blind(
    images: Frames,
    sigma_nm: Scalar,
    pixel_nm,
    size: tuple[int, int],
    key: Key[Array, ""],
    *,
    steps: int = 200,
    threshold_sigmas: float = 4.0,
    radii: int = 18,
    report=lambda done, text: None,
) -> BlindTip:
    """The bluntest admissible tip: sphere-cones first, then a second apex, then pixel by pixel.

    **Arguments:**

    - `steps`: of the free-form descents; 0 leaves the parametric tip.
    - `threshold_sigmas`: of the classical estimate, which is the answer where it is admissible:
        without noise.
    - `radii`: how many radii are tried over three decades; with little noise only a narrow range
        passes, and 45 are worth their time.
    - `report`: called as `report(steps done, text)`; about 300 + 2 * `steps` in all.
    """
    height_nm = float(jnp.max(jnp.ptp(images, axis=(1, 2))))
    depth_nm = 1.05 * height_nm
    coarse = tried(images, single_tips(height_nm, pixel_nm, size, radii), sigma_nm, key)
    singles = tried(images, finer(coarse.shape(coarse.best(_STRICT))), sigma_nm, key)
    best = singles.best(_STRICT)
    shape = singles.shape(best)
    report(100, f"single tip, radius {float(shape.radius_nm):.3g} nm")
    # a ghost makes a single tip come out too sharp, so the search starts from a blunter one
    blunter = coarse.shape(coarse.best(_LENIENT))
    double = _second_apex(images, blunter, singles.bluntness[best], height_nm, sigma_nm, key)
    report(300, "no second apex" if double is None else "second apex found")
    if double is not None:
        around = _refine(_around(double), images, sigma_nm, key, 60)
        doubles = tried(images, around, sigma_nm, key)
        shape = doubles.shape(doubles.best(_DOUBLE))

    parametric = _heights_of_one(shape, depth_nm)
    seen, floor, bluntness = map(float, misfit(images, parametric, sigma_nm, key))
    passes = bool(admissible(seen, floor, ALLOWANCE if double is None else _DOUBLE))
    classical, _ = villarrubia(images, size, float(threshold_sigmas * sigma_nm))
    found = BlindTip(
        parametric,
        shape,
        double is not None,
        False,
        passes,
        seen,
        floor,
        bluntness,
        singles,
        classical,
    )
    if steps == 0:
        return found
    found = _blunter(found, classical, images, sigma_nm, key)
    if found.bluntness < _NO_TRACE:  # computed images are exact, where no shape of ours fits
        everywhere = 4 * size[0] * size[1] * images.size < 1e8
        exact, _ = villarrubia(images, size, 1e-6 * depth_nm, everywhere=everywhere)
        found = _blunter(found, exact, images, sigma_nm, key)
    # from blunter starts, so that flanks that are no cones and unequal sides come out as they are
    for n, flatter in enumerate((0.5, 0.15)):
        heights, _ = free_form(
            images,
            flatter * parametric,
            sigma_nm,
            jax.random.fold_in(key, n),
            steps=steps,
            report=lambda done, text, n=n: report(300 + n * steps + done, "free form, " + text),
        )
        found = _blunter(found, heights, images, sigma_nm, key)
    return found


def _blunter(found: BlindTip, heights: Kernel, images, sigma_nm, key) -> BlindTip:
    """The free-form tip instead of the one found so far, if it is worth it."""
    seen, floor, bluntness = map(float, misfit(images, heights, sigma_nm, key))
    worthwhile = bluntness > _WORTHWHILE * found.bluntness + 0.1 or not found.passes
    if not (worthwhile and bool(admissible(seen, floor, 1.1))):
        return found
    return found._replace(
        heights_nm=heights,
        free_form=True,
        passes=True,
        misfit=seen,
        floor=floor,
        bluntness=bluntness,
    )


def _heights_of_one(shape: Double, depth_nm: Scalar) -> Kernel:
    return heights_of(jax.tree.map(lambda a: a[None], shape), depth_nm)[0]


@jax.jit
def _screen(images, tips):
    """(mean squared opening residual, mean height taken off) of many tips, without their floors."""

    def one(tip):
        eroded = jax.vmap(lambda i: erode(i, tip))(images)
        opened = jax.vmap(lambda s: dilate(s, tip))(eroded)
        return _mean_power(images - opened, tip, 2), jnp.mean(images - eroded)

    return lax.map(one, tips)


def _busiest(images: Frames, n: int) -> Float[Array, "frames my mx"]:
    """The n x n pixels with the largest spread of heights, of larger images."""
    _, ny, nx = images.shape
    corners = [
        (y, x)
        for y in range(0, max(1, ny - n + 1), max(1, n // 2))
        for x in range(0, max(1, nx - n + 1), max(1, n // 2))
    ]
    y, x = max(corners, key=lambda c: float(jnp.std(images[:, c[0] : c[0] + n, c[1] : c[1] + n])))
    return images[:, y : y + n, x : x + n]


def _second_apex(images, single: Double, bluntness, height_nm, sigma_nm, key) -> Double | None:
    """The double tip that the images ask for, if there is one.

    A tip with a second apex at the wrong place is refuted by every ghost that is not there, so an
    admissible one that takes part in the imaging is hardly a coincidence.
    """
    pixel = np.asarray(single.pixel_nm)
    reach_y, reach_x = (n // 2 - 1 for n in single.size)
    # a ghost is found from as far as the apex is wide
    stride = 2 if float(single.radius_nm) > 2 * pixel.max() else 1
    offsets = [
        (y, x)
        for y in range(-reach_y, reach_y + 1, stride)
        for x in range(-reach_x, reach_x + 1, stride)
        if np.hypot(y, x) >= _APART
    ]
    tips = double_tips(single, height_nm, offsets, (1.0, 1.6), (0.0, 0.05, 0.15, 0.3))
    part = _busiest(images, 96)  # enough to find the place
    depth_nm = 1.05 * height_nm
    seen, taken_off = _screen(part, heights_of(tips, depth_nm))
    alone = misfit(part, _heights_of_one(single, depth_nm), sigma_nm, key)
    promising = jnp.where(taken_off > alone[2] * sigma_nm, seen, jnp.inf)
    coarse = tried(part, _chosen(tips, jnp.argsort(promising)[:64]), sigma_nm, key)
    refined = tried(
        images, _refine(_nearest(coarse, part, 8), part, sigma_nm, key, 50), sigma_nm, key
    )
    # what suits a part is polished on the whole
    fine = tried(
        images, _refine(_nearest(refined, images, 2), images, sigma_nm, key, 40), sigma_nm, key
    )
    plausible = (
        admissible(fine.misfit, fine.floor, _DOUBLE)
        & (fine.bluntness > bluntness)
        & _truly_double(images, fine.shapes)
    )
    k = int(jnp.argmax(jnp.where(plausible, fine.bluntness, -jnp.inf)))
    return fine.shape(k) if plausible[k] else None


def _nearest(candidates: Candidates, images: Frames, n: int) -> Double:
    """The n tips nearest to admissible, truly double ones first."""
    excess = candidates.misfit / (candidates.floor + _RESOLUTION)
    double = _truly_double(images, candidates.shapes)
    return _chosen(candidates.shapes, jnp.argsort(jnp.where(double, excess, 1e9 + excess))[:n])


def _truly_double(images: Frames, shapes: Double) -> Bool[Array, " n"]:
    """Whether the second apex stands apart (nearer ones make one flat apex) and takes part."""
    pixels = jnp.linalg.norm(shapes.offset_nm / shapes.pixel_nm, axis=1)
    return (pixels >= _APART) & (second_apex_shares(images, shapes) >= _TAKES_PART)


def _chosen(shapes: Double, which) -> Double:
    return jax.tree.map(lambda a: a[which], shapes)


@functools.partial(jax.jit, static_argnames="steps")
def _descend(tip, state, images, sigma_nm, depth_nm, rate_nm, key, steps):
    def excess(tip, key):
        opened = jax.vmap(lambda i: opening(i, tip))(images)
        seen = _mean_power(images - opened, tip, 2) / sigma_nm**2
        # without the floor's own gradient the descent would go on to fit the noise: to a needle
        noise = _noise_residual(lax.stop_gradient(opened), tip, sigma_nm, key)
        expected = _mean_power(noise, tip, 2) / sigma_nm**2
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
        if i >= steps // 4 and seen > _HOPELESS * expected + _RESOLUTION:
            break
        if bool(admissible(seen, expected, allowance)):
            return tip, True
    return tip, False


def villarrubia(
    images: Frames,
    size: tuple[int, int],
    threshold_nm: float,
    rounds: int = 30,
    everywhere: bool = False,
) -> tuple[Kernel, int]:
    """The classical blind estimate (Villarrubia 1997, sec. 7), at the local maxima of the images.

    Every image point x was touched by some tip pixel d, so no tip pixel u stands higher than

        max over possible d of  I(x + d - u) - I(x) + T(d)     (up to the threshold),

    d being possible where the apex itself stays out of the surface. Repeated from a flat tip until
    nothing changes.

    `everywhere` takes all image points, which needs 4 * tip.size * images.size numbers of memory.

    **Returns:** `(tip in the frame of T, rounds used)`.
    """
    ky, kx = size
    hy, hx = ky // 2, kx // 2
    patches = _patches(images, ky, kx, everywhere)
    tip = jnp.zeros(size, images.dtype)
    done = 0
    while done < rounds:
        done += 1
        lower = _villarrubia_round(tip, patches, hy, hx, threshold_nm)
        settled = float(jnp.max(tip - lower)) <= 1e-9 * max(1.0, abs(float(jnp.min(lower))))
        tip = lower
        if settled:
            break
    return tip - jnp.max(tip), done


def _patches(images: Frames, ky: int, kx: int, everywhere: bool) -> Float[Array, "n py px"]:
    """Patches of 2k - 1 pixels round the local maxima, or round all pixels, that lie a tip away
    from the border."""
    frames, ny, nx = images.shape
    around = jnp.stack(
        [
            jnp.roll(images, (dy, dx), (1, 2))
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if (dy, dx) != (0, 0)
        ]
    ).max(0)
    y, x = jnp.arange(ny)[:, None], jnp.arange(nx)[None, :]
    inside = (y >= ky - 1) & (y <= ny - ky) & (x >= kx - 1) & (x <= nx - kx)
    frame, iy, ix = jnp.nonzero(((images >= around) | everywhere) & inside)
    wy, wx = jnp.arange(1 - ky, ky), jnp.arange(1 - kx, kx)
    return images[
        frame[:, None, None], iy[:, None, None] + wy[:, None], ix[:, None, None] + wx[None, :]
    ]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _villarrubia_round(tip, patches, hy, hx, threshold_nm):
    ky, kx = tip.shape
    centre = patches[:, ky - 1, kx - 1]  # I(x)

    def body(best, d):
        i, j = d // kx, d % kx
        # I(x + d - u) for all u: the patch shifted by d, read backwards
        shifted = lax.dynamic_slice(patches, (jnp.zeros_like(i), i, j), (patches.shape[0], ky, kx))[
            :, ::-1, ::-1
        ]
        rise = shifted - centre[:, None, None] + tip[i, j]
        possible = rise[:, hy, hx] >= -threshold_nm
        return jnp.maximum(best, jnp.where(possible[:, None, None], rise, -jnp.inf)), None

    start = jnp.full((patches.shape[0], ky, kx), -jnp.inf, patches.dtype)
    bound, _ = lax.scan(body, start, jnp.arange(ky * kx, dtype=jnp.int32))
    return jnp.minimum(tip, jnp.min(bound, axis=0, initial=jnp.inf) + threshold_nm)

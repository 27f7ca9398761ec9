"""Tip shapes: parameters in nm and degrees -> the heights T(u) that a dilation takes.

A tip is drawn apex up: T(u) = -depth below the apex at the lateral distance u, on an odd grid of
its own pixel size. The apex of a parametric tip may lie between pixels.
"""

import dataclasses
import math
from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from micjax.core.problem import parameter

_NEVER_NM = 1e9  # deeper than any feature: such a tip pixel touches nothing


def pixel_pair(pixel_nm) -> Float[Array, "2"]:
    """(dy, dx) of one number or a pair.

    **Raises:** `ValueError` for sizes that are not positive.
    """
    _require(jnp.asarray(pixel_nm) > 0, f"pixel size {pixel_nm} nm must be positive")
    return jnp.broadcast_to(jnp.asarray(pixel_nm, dtype=float), (2,))


def size_pair(size) -> tuple[int, int]:
    """(ky, kx) of one number or a pair.

    **Raises:** `ValueError` for even, broken or too small sizes.
    """
    pair = (size, size) if np.ndim(size) == 0 else tuple(size)
    if len(pair) != 2 or any(n < 1 or n % 2 != 1 for n in pair):
        raise ValueError(f"tip size {size}: allowed are odd numbers of pixels, such as 25")
    return int(pair[0]), int(pair[1])


def _require(condition, message: str) -> None:
    """Raise unless the condition holds; values that are being traced cannot be looked at."""
    if not isinstance(condition, jax.core.Tracer) and not bool(np.all(condition)):
        raise ValueError(message)


class AbstractTip(eqx.Module):
    """A tip known by a formula. A subclass has a `depth_nm` and perhaps parameters of its own."""

    pixel_nm: eqx.AbstractVar[Float[Array, "2"]]
    size: eqx.AbstractVar[tuple[int, int]]

    @abstractmethod
    def depth_nm(self, y_nm: Float[Array, "..."], x_nm: Float[Array, "..."]) -> Float[Array, "..."]:
        """Depth of the tip surface below its apex at the lateral position (y, x) from the apex."""

    @eqx.filter_jit
    def __call__(self) -> Float[Array, "ky kx"]:
        """Heights T (nm) on the tip's grid; the apex is the centre pixel."""
        y, x = ((jnp.arange(n) - n // 2) * d for n, d in zip(self.size, self.pixel_nm, strict=True))
        return -self.depth_nm(*jnp.meshgrid(y, x, indexing="ij"))

    def resample(self, pixel_nm) -> "AbstractTip":
        """The same tip on pixels of another size; the grid grows to reach as far."""
        new = pixel_pair(pixel_nm)
        size = tuple(
            2 * max(1, math.ceil((n // 2) * float(old) / float(now))) + 1
            for n, old, now in zip(self.size, self.pixel_nm, new, strict=True)
        )
        return dataclasses.replace(self, pixel_nm=new, size=size)

    def reflected(self) -> "ReflectedTip":
        return FreeForm(self(), self.pixel_nm).reflected()


class Paraboloid(AbstractTip):
    """depth = (y^2 + x^2) / 2R, the apex of every smooth tip. `radius_nm` is R."""

    radius_nm: Float[Array, ""] = parameter()
    pixel_nm: Float[Array, "2"] = eqx.field(converter=pixel_pair, default=1.0)
    size: tuple[int, int] = eqx.field(converter=size_pair, static=True, default=25)

    def __check_init__(self):
        _require(self.radius_nm > 0, f"radius_nm = {self.radius_nm}: must be positive")

    def depth_nm(self, y_nm, x_nm):
        return (y_nm**2 + x_nm**2) / (2 * self.radius_nm)


def sphere_cone_depth_nm(r_nm, radius_nm, half_angle_rad):
    """A sphere of `radius_nm` that goes over smoothly into a cone of `half_angle_rad` to the axis.

    Sphere R - sqrt(R^2 - r^2) up to r = R cos(a), then the tangent cone (Gwyddion "cone").
    """
    joint = radius_nm * jnp.cos(half_angle_rad)
    inside = jnp.minimum(r_nm, joint)
    sphere = radius_nm - jnp.sqrt(radius_nm**2 - inside**2)
    cone = radius_nm * (1 - jnp.sin(half_angle_rad)) + (r_nm - joint) / jnp.tan(half_angle_rad)
    return jnp.where(r_nm < joint, sphere, cone)


def _radius(y, x):
    squared = y**2 + x**2
    away = squared > 0  # the root has no derivative at 0; there the right one is 0
    return jnp.where(away, jnp.sqrt(jnp.where(away, squared, 1.0)), 0.0)


class SphereCone(AbstractTip):
    """A sphere of `radius_nm` on a cone of `half_angle_deg` between axis and flank."""

    radius_nm: Float[Array, ""] = parameter()
    half_angle_deg: Float[Array, ""] = parameter()
    pixel_nm: Float[Array, "2"] = eqx.field(converter=pixel_pair, default=1.0)
    size: tuple[int, int] = eqx.field(converter=size_pair, static=True, default=25)

    def __check_init__(self):
        _require(self.radius_nm > 0, f"radius_nm = {self.radius_nm}: must be positive")
        _check_half_angle(self.half_angle_deg)

    def depth_nm(self, y_nm, x_nm):
        r = _radius(y_nm, x_nm)
        return sphere_cone_depth_nm(r, self.radius_nm, jnp.deg2rad(self.half_angle_deg))


def _check_half_angle(angle) -> None:
    _require((angle > 0) & (angle < 90), f"half_angle_deg = {angle}: must be between 0 and 90")


class Cone(AbstractTip):
    """A sharp cone: depth = r / tan(half angle)."""

    half_angle_deg: Float[Array, ""] = parameter()
    pixel_nm: Float[Array, "2"] = eqx.field(converter=pixel_pair, default=1.0)
    size: tuple[int, int] = eqx.field(converter=size_pair, static=True, default=25)

    def __check_init__(self):
        _check_half_angle(self.half_angle_deg)

    def depth_nm(self, y_nm, x_nm):
        return _radius(y_nm, x_nm) / jnp.tan(jnp.deg2rad(self.half_angle_deg))


class Pyramid(AbstractTip):
    """A pyramid of `sides` faces of `half_angle_deg` to the axis, its edge lines rounded off.

    The sphere-cone profile at the distance max_k n_k . u from the axis, n_k the face normals: each
    face ends in a cylinder of `radius_nm`. `rotation_deg` turns the first normal from x towards y.
    """

    radius_nm: Float[Array, ""] = parameter()
    half_angle_deg: Float[Array, ""] = parameter()
    rotation_deg: Float[Array, ""] = parameter(default=0.0)
    sides: int = eqx.field(static=True, default=4)
    pixel_nm: Float[Array, "2"] = eqx.field(converter=pixel_pair, default=1.0)
    size: tuple[int, int] = eqx.field(converter=size_pair, static=True, default=25)

    def __check_init__(self):
        _require(self.radius_nm > 0, f"radius_nm = {self.radius_nm}: must be positive")
        _check_half_angle(self.half_angle_deg)
        if self.sides < 3:
            raise ValueError(f"a pyramid of {self.sides} sides: at least 3")

    def depth_nm(self, y_nm, x_nm):
        angles = jnp.deg2rad(self.rotation_deg) + 2 * jnp.pi * jnp.arange(self.sides) / self.sides
        across = x_nm[..., None] * jnp.cos(angles) + y_nm[..., None] * jnp.sin(angles)
        r = jnp.max(across, axis=-1)
        return sphere_cone_depth_nm(r, self.radius_nm, jnp.deg2rad(self.half_angle_deg))


class Ellipsoid(AbstractTip):
    """The end of an ellipsoid of semi-axes `semi_y_nm`, `semi_x_nm` (before `rotation_deg`, from x
    towards y) and `semi_z_nm`: a tip worn in one direction. Beyond its equator it goes on steeply.
    """

    semi_y_nm: Float[Array, ""] = parameter()
    semi_x_nm: Float[Array, ""] = parameter()
    semi_z_nm: Float[Array, ""] = parameter()
    rotation_deg: Float[Array, ""] = parameter(default=0.0)
    pixel_nm: Float[Array, "2"] = eqx.field(converter=pixel_pair, default=1.0)
    size: tuple[int, int] = eqx.field(converter=size_pair, static=True, default=25)

    def __check_init__(self):
        for name in ("semi_y_nm", "semi_x_nm", "semi_z_nm"):
            _require(getattr(self, name) > 0, f"{name} = {getattr(self, name)}: must be positive")

    def depth_nm(self, y_nm, x_nm):
        a = jnp.deg2rad(self.rotation_deg)
        along = (x_nm * jnp.cos(a) + y_nm * jnp.sin(a)) / self.semi_x_nm
        across = (y_nm * jnp.cos(a) - x_nm * jnp.sin(a)) / self.semi_y_nm
        rho = _radius(along, across)
        # the wall at rho = 1 is vertical: the tangent at 0.99 stands for it and has a derivative
        edge = 0.99
        height = math.sqrt(1 - edge**2)
        cap = 1 - jnp.sqrt(1 - jnp.minimum(rho, edge) ** 2)
        return self.semi_z_nm * (cap + jnp.maximum(rho - edge, 0.0) * edge / height)


class Multiple(AbstractTip):
    """Several apexes on one tip: the envelope of `tips`, the first one at the origin and each other
    moved by its `offsets_nm` (y, x) and lowered by its `drops_nm` >= 0.
    """

    tips: tuple[AbstractTip, ...] = eqx.field(converter=tuple)
    offsets_nm: Float[Array, "n 2"] = parameter()
    drops_nm: Float[Array, " n"] = parameter()
    pixel_nm: Float[Array, "2"] = eqx.field(converter=pixel_pair, default=1.0)
    size: tuple[int, int] = eqx.field(converter=size_pair, static=True, default=25)

    def __check_init__(self):
        n = len(self.tips) - 1
        if n < 1 or self.offsets_nm.shape != (n, 2) or self.drops_nm.shape != (n,):
            raise ValueError(
                f"{n + 1} tips need offsets_nm of shape ({n}, 2) and drops_nm of shape ({n},), "
                f"found {self.offsets_nm.shape} and {self.drops_nm.shape}"
            )
        _require(self.drops_nm >= 0, f"drops_nm = {self.drops_nm}: must not be negative")

    def depth_nm(self, y_nm, x_nm):
        depth = self.tips[0].depth_nm(y_nm, x_nm)
        for tip, (dy, dx), drop in zip(self.tips[1:], self.offsets_nm, self.drops_nm, strict=True):
            depth = jnp.minimum(depth, tip.depth_nm(y_nm - dy, x_nm - dx) + drop)
        return depth


class Double(AbstractTip):
    """Two equal sphere-cones, the common worn or contaminated tip, in five numbers.

    The second apex stands at `offset_nm` (y, x) from the first and `drop_nm` below it; with a drop
    beyond the height of the features it is a single tip. `origin_nm` moves both off the centre
    pixel, which matters for tips sharper than a pixel.
    """

    radius_nm: Float[Array, ""] = parameter()
    half_angle_deg: Float[Array, ""] = parameter()
    offset_nm: Float[Array, "2"] = parameter()
    drop_nm: Float[Array, ""] = parameter()
    origin_nm: Float[Array, "2"] = parameter(default=(0.0, 0.0))
    pixel_nm: Float[Array, "2"] = eqx.field(converter=pixel_pair, default=1.0)
    size: tuple[int, int] = eqx.field(converter=size_pair, static=True, default=25)

    def __check_init__(self):
        _require(self.radius_nm > 0, f"radius_nm = {self.radius_nm}: must be positive")
        _check_half_angle(self.half_angle_deg)
        _require(self.drop_nm >= 0, f"drop_nm = {self.drop_nm}: must not be negative")

    def depth_nm(self, y_nm, x_nm):
        apex = SphereCone(self.radius_nm, self.half_angle_deg, self.pixel_nm, self.size).depth_nm
        y, x = y_nm - self.origin_nm[0], x_nm - self.origin_nm[1]
        return jnp.minimum(
            apex(y, x), apex(y - self.offset_nm[0], x - self.offset_nm[1]) + self.drop_nm
        )


class FreeForm(eqx.Module):
    """A tip given pixel by pixel: `heights_nm` `[ky, kx]`, odd sizes, highest pixel 0 or below.

    Pixels at or below -1e9 nm stand for "no tip here".
    """

    heights_nm: Float[Array, "ky kx"] = parameter()
    pixel_nm: Float[Array, "2"] = eqx.field(converter=pixel_pair, default=1.0)

    def __check_init__(self):
        if self.heights_nm.ndim != 2:
            raise ValueError(f"heights_nm of shape {self.heights_nm.shape}: must be (ky, kx)")
        size_pair(self.heights_nm.shape)
        _require(self.heights_nm <= 1e-9, "heights_nm: the apex is 0, everything else below it")

    def __call__(self) -> Float[Array, "ky kx"]:
        return self.heights_nm

    def resample(self, pixel_nm) -> "FreeForm":
        """The tip on pixels of another size, by linear interpolation; beyond its edge: no tip."""
        new = pixel_pair(pixel_nm)
        axes = []
        for n, old, now in zip(self.heights_nm.shape, self.pixel_nm, new, strict=True):
            half = max(1, math.floor((n // 2) * float(old) / float(now) + 1e-9))
            axes.append(jnp.arange(-half, half + 1) * now / old + n // 2)
        at = jnp.meshgrid(*axes, indexing="ij")
        heights = jax.scipy.ndimage.map_coordinates(
            self.heights_nm, at, order=1, mode="constant", cval=-_NEVER_NM
        )
        return FreeForm(jnp.minimum(heights, 0.0), new)

    def reflected(self) -> "ReflectedTip":
        return ReflectedTip(self.heights_nm[::-1, ::-1], self.pixel_nm)


class ReflectedTip(eqx.Module):
    """A tip in Villarrubia's frame, P(u) = T(-u), as blind estimates of other programs come.

    A type of its own without a call, so that it cannot be handed to `dilate` by mistake.
    """

    heights_nm: Float[Array, "ky kx"] = parameter()
    pixel_nm: Float[Array, "2"] = eqx.field(converter=pixel_pair, default=1.0)

    def reflected(self) -> FreeForm:
        return FreeForm(self.heights_nm[::-1, ::-1], self.pixel_nm)

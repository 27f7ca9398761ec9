"""Several devices: each takes its share of the probes, or of the frozen phonons; and their memory.

The specimen and the probe are on each of them, and the derivative with respect to either is the sum
of theirs. Without a mesh everything is on one device. With one the call should be in a `jit`.

Memory is asked about before it is asked for: an operating system that has promised too much ends
the process, and with it what was computed.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree


def row(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of these devices; of all that this process has, if none are given."""
    devices = jax.local_devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("devices",), (AxisType.Auto,), devices=devices)


def each(function: Callable[[PyTree], PyTree], items: PyTree, mesh: Mesh | None = None) -> PyTree:
    """function(items), of which each device computes its share.

    **Arguments:**

    - `function`: of arrays `[n, ...]` to arrays `[n, ...]`, for any n, each item by itself.
    - `mesh`: of `row`.

    **Raises:** `ValueError` for another mesh.
    """
    if mesh is None:
        return function(items)
    count, (items, _) = _count(items), _filled(items, mesh)
    results = _shared(function, mesh, P(*mesh.axis_names))(items)
    return jax.tree.map(lambda a: a[:count], results)


def mean(
    function: Callable[[Any], PyTree], items: Iterable[Any] | PyTree, mesh: Mesh | None = None
) -> PyTree:
    """The mean of function(item), one item after the other, so that only their sum is held.

    **Arguments:**

    - `function`: of one item; jitted, if there are many and no mesh.
    - `items`: with a mesh arrays `[n, ...]`, of which each device takes its share.

    **Raises:** `ValueError` when there is none, for a mesh that is not of `row`.
    """
    count, total = 0, None
    if mesh is None:
        for item in items:
            value = function(item)
            count, total = count + 1, value if count == 0 else jax.tree.map(jnp.add, total, value)
    elif count := _count(items):
        total = _shared(lambda given: _sum(function, *given, mesh), mesh, P())(_filled(items, mesh))
    if not count:
        raise ValueError("there are no configurations to average over")
    return jax.tree.map(lambda t: t / count, total)


def _sum(function, items, there, mesh: Mesh):
    @jax.checkpoint  # a derivative computes an item twice, and holds what one of them needs
    def add(total, item_and_count):
        item, counts = item_and_count
        return jax.tree.map(lambda t, v: t + jnp.where(counts, v, 0), total, function(item)), None

    like = jax.eval_shape(function, jax.tree.map(lambda a: a[0], items))
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
    return jax.lax.psum(jax.lax.scan(add, nothing, (items, there))[0], mesh.axis_names)


def _shared(function, mesh: Mesh, out: P):
    if mesh.axis_types != (AxisType.Auto,):
        raise ValueError(f"{mesh} is no row of devices: see `devices.row`")
    # not checked: neither eqx.error_if nor a custom derivative says what varies between devices
    return jax.shard_map(
        function, mesh=mesh, in_specs=P(*mesh.axis_names), out_specs=out, check_vma=False
    )


def _filled(items: PyTree, mesh: Mesh):
    """As many for each device, the last one again where some lack; and which of them count."""
    count = _count(items)
    index = np.arange(-(-count // mesh.size) * mesh.size)
    last = np.minimum(index, count - 1)
    return jax.tree.map(lambda a: a[last], items), jnp.asarray(index < count)


def _count(items: PyTree) -> int:
    return len(jax.tree.leaves(items)[0])


def available_bytes() -> float:
    """Of the main memory; infinite where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return 1024.0 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return float("inf")


def check_memory(what: str, needed_bytes: int | float) -> None:
    """**Raises:** `MemoryError` when `what` needs more than there is."""
    available = available_bytes()
    if needed_bytes > available:
        raise MemoryError(
            f"{what} would take {needed_bytes / 1e9:.3g} GB; {available / 1e9:.3g} GB are free"
        )

import contextlib
import ctypes
import functools
import gc
import os
import pathlib
import signal
import time

# before jax is imported: one BLAS thread, and a pool wide enough for virtual devices
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "16")

import jax
import numpy as np
import pytest

from micjax.report import pictures

jax.config.update("jax_enable_x64", True)

# what compiled programs may take of a worker: memory, and mappings, of which Linux gives a process
# 65,530, a program takes several, and the compiler crashes beyond them
MOST_BYTES, MOST_MAPPINGS = 1_400_000_000, 25_000
EVERY_S = 1.0  # to count mappings takes longer than many tests
PROCESS = pathlib.Path("/proc/self")
SHARED = pathlib.Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared():
    """The folder of real and reference data, which is not part of the package."""
    if not SHARED.is_dir():
        pytest.skip("the reference data folder ../shared is not here")
    return SHARED


@pytest.fixture(scope="session")
def references():
    """What another program computed, by the name of a file in tests/references: its arrays."""

    @functools.cache
    def read(name):
        with np.load(pathlib.Path(__file__).parent / "references" / f"{name}.npz") as file:
            return dict(file)

    return read


def pytest_collection_finish(session):
    """What was imported stays: the collector need not walk it again and again."""
    gc.collect()
    gc.freeze()


def too_many_programs() -> bool:
    if not PROCESS.exists():
        return False
    pages = int((PROCESS / "statm").read_text().split()[1])
    mappings = (PROCESS / "maps").read_bytes().count(b"\n")
    return pages * os.sysconf("SC_PAGESIZE") > MOST_BYTES or mappings > MOST_MAPPINGS


@pytest.fixture(scope="session", autouse=True)
def figures():
    """A worker draws a figure of a report once, which takes longer than most fits: again where its
    size, its axes, their words or the number of things in them are others."""
    drawn, render = {}, pictures.render

    def words(ax):
        return ax.get_title(), ax.get_xlabel(), ax.get_ylabel(), len(ax.get_children())

    def once(figure):
        looks = *figure.get_size_inches(), *map(words, figure.axes)
        if looks not in drawn:
            drawn[looks] = render(figure)
        return drawn[looks]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "render", once)
        yield


@pytest.fixture(scope="session")
def looked():
    """When a worker has looked at what it has compiled."""
    return {"at": time.monotonic()}


@pytest.fixture(autouse=True)
def programs(looked):
    """What the tests have compiled is given back when there is too much of it."""
    yield
    if time.monotonic() - looked["at"] < EVERY_S:
        return
    looked["at"] = time.monotonic()
    if too_many_programs():
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # other C libraries keep what is free
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C does what it does on a terminal; a job in the background starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

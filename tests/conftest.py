import functools
import os
import pathlib
import signal

# before jax is imported: one BLAS thread, and a pool wide enough for virtual devices
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "16")

import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)

# Linux gives a process 65,530 mappings, every compiled program takes several, and beyond the limit
# the compiler crashes
MOST_MAPPINGS = 25_000
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


@pytest.fixture(autouse=True, scope="module")
def programs():
    """What a file of tests has compiled is given back when there is too much of it."""
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C does what it does on a terminal; a job in the background starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

"""Who fits the blocks of a map: `--processes 4`, `--on dask://host:8786`."""

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor

from micjax.inference.maps.blocks.dealt import Workers

DASK = "dask:"


def workers_of(count: int | None, on: str | None) -> Workers | None:
    """As the command line says; None: the threads of this process.

    **Raises:** `ValueError` for both of them, and what is neither; `ImportError` without Dask.
    """
    if count is not None and on is not None:
        raise ValueError("--processes and --on: one of them says who computes")
    if count is not None:
        if not 1 <= count <= 1024:
            raise ValueError(f"--processes {count}: 1 to 1024 are allowed")
        return Workers(lambda: processes(count), count)
    if on is None:
        return None
    if on.startswith(DASK):
        return _dask(on.removeprefix(DASK))
    return Workers.of(_named(on))


@contextlib.contextmanager
def processes(count: int) -> Iterator[Executor]:
    """They end with what they were made for, also in the middle of a task."""
    # JAX has threads, which a fork does not survive
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """Ctrl-C is for the process that deals out, and when that dies nobody waits for a result."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    above = multiprocessing.parent_process()

    def end_with_it() -> None:
        above.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()


def _dask(where: str) -> Workers:
    """A scheduler by its address, or by the file that it has written."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"--on {DASK}{where}: {error}: pip install 'micjax[dask]'") from error
    if where.startswith("//"):
        client = Client(f"tcp:{where}", timeout="10s")
    else:
        client = Client(scheduler_file=where, timeout="10s")
    client.wait_for_workers(1, timeout=60)
    threads = client.nthreads()

    @contextlib.contextmanager
    def opened() -> Iterator[Executor]:
        # what is computed once for each block is not the same result again
        yield client.get_executor(pure=False)

    return Workers(opened, sum(threads.values()))


def _named(address: str) -> Executor:
    """`package.module:function`, which gives an executor."""
    module, _, name = address.partition(":")
    if not module or not name:
        raise ValueError(
            f"--on {address}: dask://HOST:PORT, dask:SCHEDULER_FILE or package.module:function, "
            "which gives a concurrent.futures.Executor"
        )
    made = getattr(importlib.import_module(module), name)
    executor = made() if callable(made) else made
    if not isinstance(executor, Executor):
        raise ValueError(f"--on {address} gave a {type(executor).__name__}, which is no Executor")
    return executor

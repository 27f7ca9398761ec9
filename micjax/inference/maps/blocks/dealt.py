"""Tasks dealt out to workers: threads here, other processes, other machines."""

import collections
import contextlib
import contextvars
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, wait
from typing import Any

log = logging.getLogger("micjax")

MOST_DEATHS = 3  # of workers at one task, or all of them together


class WorkersDied(RuntimeError):
    """There is nobody left to carry tasks out."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who carries tasks out.

    **Arguments:**

    - `opened`: a context that gives a `concurrent.futures.Executor`; another one when a worker that
        died has broken it.
    - `count`: how many there are.
    """

    opened: Callable[[], contextlib.AbstractContextManager[Executor]]
    count: int

    @classmethod
    def of(cls, executor: Executor) -> "Workers":
        """Those of an executor that stays open.

        **Raises:** `ValueError` for processes that are forked, which hang: JAX has threads.
        """
        context = getattr(executor, "_mp_context", None)
        if context is not None and context.get_start_method() == "fork":
            raise ValueError(
                "an executor that forks: JAX does not survive that; ProcessPoolExecutor(..., "
                'mp_context=multiprocessing.get_context("spawn")) is needed'
            )
        count = getattr(executor, "_max_workers", None) or 1
        return cls(lambda: contextlib.nullcontext(executor), count)


_ELSEWHERE: contextvars.ContextVar[Workers | None] = contextvars.ContextVar("workers", default=None)


@contextlib.contextmanager
def dealt_to(workers: Workers | None) -> Iterator[None]:
    """Within it, blocks of maps are fitted by these workers."""
    token = _ELSEWHERE.set(workers)
    try:
        yield
    finally:
        _ELSEWHERE.reset(token)


def workers_elsewhere() -> Workers | None:
    """Those of `dealt_to`."""
    return _ELSEWHERE.get()


def dealt(
    function: Callable[..., Any],
    keys: Iterable[int],
    arguments: Callable[[int], tuple],
    workers: Workers,
    first_alone: bool = False,
) -> Iterator[tuple[int, Any]]:
    """Yields `(key, function(*arguments(key)))` as they come, in any order.

    What a worker was at when it died goes to another one.

    **Arguments:**

    - `arguments`: are made when a worker is about to be free.
    - `first_alone`: the first task ends before others begin: it compiles for all.

    **Raises:** what the function raises; `WorkersDied` when workers die again and again.
    """
    todo = collections.deque(keys)
    running: dict[Any, int] = {}
    deaths, any_done = 0, not first_alone
    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(workers.opened())
        try:
            while todo or running:
                wanted = workers.count + 1 if any_done else 1
                lost, broken = [], False
                try:
                    while todo and len(running) < wanted:
                        running[executor.submit(function, *arguments(todo[0]))] = todo[0]
                        todo.popleft()
                except BrokenExecutor:
                    broken = True
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    key = running.pop(future)
                    try:
                        result = future.result()
                    except BrokenExecutor:
                        lost, broken = [*lost, key], True
                        continue
                    deaths, any_done = 0, True
                    yield key, result
                if broken:  # what was running on it is lost
                    deaths, lost = deaths + 1, sorted([*lost, *running.values()])
                    log.warning("a worker died: %d tasks are begun again", len(lost))
                    if deaths == MOST_DEATHS:
                        raise WorkersDied(
                            f"workers died {deaths} times in a row, at tasks {lost[:5]}: "
                            "is there enough memory for each of them?"
                        )
                    todo.extendleft(reversed(lost))
                    running.clear()
                    stack.close()
                    broke, executor = executor, stack.enter_context(workers.opened())
                    if executor is broke:
                        raise WorkersDied("a worker died, and has broken the executor with it")
        finally:
            begun = sum(not future.cancel() for future in running)
            if begun:
                log.warning("broken off: what %d workers are at is given up", begun)

"""Log lines and errors: brief ones on the terminal, all of them in the run folder."""

import contextlib
import logging
import logging.handlers
import pathlib
import sys
import traceback
from collections.abc import Iterator
from typing import NamedTuple

from tqdm import tqdm

WRONG_INPUT, FAILED, INTERRUPTED = 2, 1, 130


class _Terminal(logging.Handler):
    """One short line on stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        # the traceback is for log.txt
        tqdm.write(f"micjax: {level}{record.getMessage()}", file=sys.stderr)


class Logs:
    """The handlers of one command; what is logged before the run folder exists is kept for it."""

    def __init__(self) -> None:
        self.early = logging.handlers.MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
        self.terminal = _Terminal(logging.INFO)
        self.file: logging.Handler | None = None
        self.loggers: list[tuple[logging.Logger, int]] = []

    def watch(self, name: str) -> None:
        """Also keep what the package of a problem from elsewhere logs."""
        logger = logging.getLogger(name)
        if any(logger is known for known, _ in self.loggers):
            return
        self.loggers.append((logger, logger.level))
        logger.setLevel(logging.INFO)
        for handler in (self.terminal, self.file or self.early):
            logger.addHandler(handler)

    def write_to(self, path: pathlib.Path) -> None:
        """From now on to the file `path`, beginning with what was kept."""
        self.file = logging.FileHandler(path, encoding="utf-8")
        form = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.file.setFormatter(form)
        self.early.setTarget(self.file)
        self.early.flush()
        for logger, _ in self.loggers:
            logger.removeHandler(self.early)
            logger.addHandler(self.file)

    def file_only(self, error: Exception) -> None:
        """The traceback of `error` in the log file, not on the terminal."""
        if self.file is not None:
            fault = (type(error), error, error.__traceback__)
            line = (str(error) or type(error).__name__, (), fault)
            self.file.handle(logging.LogRecord("micjax", logging.ERROR, "", 0, *line))

    def close(self) -> None:
        for logger, level in self.loggers:
            logger.setLevel(level)
            for handler in (self.terminal, self.early, self.file):
                if handler is not None:
                    logger.removeHandler(handler)
        if self.file is not None:
            self.file.close()


@contextlib.contextmanager
def logs() -> Iterator[Logs]:
    kept = Logs()
    kept.watch("micjax")
    try:
        yield kept
    finally:
        kept.close()


class Asked(NamedTuple):
    """What the command line says beside the plan."""

    argv: list[str]
    kept: Logs
    resume: bool = False
    trust: list[str] | None = None  # packages whose code a plan may name; None: all
    in_doubt: str | None = None
    debug: bool = False
    processes: int | None = None
    on: str | None = None  # who fits a map


def expected(error: Exception) -> bool:
    """Whether it is said in one line, without where it came from."""
    if isinstance(error, ValueError | OSError | ImportError):
        return True
    from micjax.instruments import InstrumentError  # which takes a second to import

    return isinstance(error, InstrumentError)


def say_error(error: Exception, status: int, debug: bool, where: str = "") -> int:
    """One line, the traceback if it is asked for -> the exit status."""
    text = " ".join(str(error).split()) or type(error).__name__
    message = text if expected(error) else f"{type(error).__name__}: {text}"
    print(f"micjax: error: {message}{where}", file=sys.stderr)
    if debug:
        traceback.print_exception(error)
    elif not expected(error) and not where:
        print("micjax: --debug shows where", file=sys.stderr)
    return status

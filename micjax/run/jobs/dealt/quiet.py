"""Nothing is said twice: what is logged of all data is not logged of each block of them again."""

import logging
import threading
from types import TracebackType


class Quiet(logging.Filter):
    """While it is entered, the loggers of micjax keep what this thread has to say."""

    def __init__(self):
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self.here, "entered", False)

    def __enter__(self) -> "Quiet":
        for name in ["micjax", *logging.root.manager.loggerDict]:
            if name.partition(".")[0] == "micjax":
                logging.getLogger(name).addFilter(self)  # one that it has already is not added
        self.here.entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.here.entered = False


QUIET = Quiet()

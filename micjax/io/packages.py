"""Optional third-party readers, imported only when a file needs them."""

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def third_party(module: str, what: str, extra: str = "spm") -> Iterator[ModuleType]:
    """Import an optional package, and keep its warnings to itself while it is used.

    **Arguments:**

    - `module`: dotted name of the module.
    - `what`: what it is needed for, and `extra`: of micjax it comes with, for the message.

    **Returns:** a context that gives the module.

    **Raises:** ImportError that says how to install it.
    """
    with warnings.catch_warnings():
        # they warn of their own dependencies, of which a user of micjax can do nothing
        warnings.simplefilter("ignore")
        try:
            loaded = importlib.import_module(module)
        except ImportError as error:
            package = module.partition(".")[0]
            raise ImportError(
                f"{what} files are read by {package}, which is not installed: "
                f"pip install 'micjax[{extra}]'"
            ) from error
        yield loaded

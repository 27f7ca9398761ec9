"""What follows a fit must not cost it."""

import logging

import numpy as np
import pytest

from micjax.core.devices import check_memory
from micjax.inference.attempt import attempt
from micjax.inference.finite import NonFiniteError


def failing(error):
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "no errors: interrupted; the fit before is kept"),
        (NonFiniteError("u is NaN"), "no errors: NonFiniteError: u is NaN"),
        # as XLA says that memory is at its end
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "no errors: RuntimeError: RESOURCE"),
    ],
)
def test_it_is_told_and_nothing_else_happens(caplog, error, said):
    with caplog.at_level(logging.WARNING, "micjax"):
        assert attempt("errors", failing, error) is None
    assert said in caplog.text


def test_a_result_comes_through():
    assert attempt("errors", np.add, 1, 2) == 3


def test_memory_that_is_not_there_is_not_asked_for():
    check_memory("a number", 8)
    with pytest.raises(MemoryError, match=r"a matrix would take 8e\+09 GB; .* GB are free"):
        check_memory("a matrix", 8e18)

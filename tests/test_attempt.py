"""What follows a fit must not cost it."""

import logging

import numpy as np
import pytest

from micjax.inference.attempt import attempt
from micjax.inference.finite import NonFiniteError


def failing(error):
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "no errors: interrupted; the fit before is kept"),
        (NonFiniteError("u is NaN"), "no errors: u is NaN"),
    ],
)
def test_it_is_told_and_nothing_else_happens(caplog, error, said):
    with caplog.at_level(logging.WARNING, "micjax"):
        assert attempt("errors", failing, error) is None
    assert said in caplog.text


def test_a_result_and_another_error_come_through():
    assert attempt("errors", np.add, 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        attempt("errors", failing, ZeroDivisionError())

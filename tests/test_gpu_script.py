"""`benchmarks/gpu.py`: what it computes agrees with its references on this device."""

import importlib.util
import pathlib

import pytest


@pytest.fixture(scope="module")
def script():
    path = pathlib.Path(__file__).parents[1] / "benchmarks/gpu.py"
    spec = importlib.util.spec_from_file_location("benchmark_gpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row_of(rows):
    return lambda name, value, *rest, held=True, **more: rows.append((name, value, held))


@pytest.mark.slow
def test_values_agree_with_the_references(script):
    rows = []
    assert script.checked(row_of(rows))
    assert [name.partition(":")[0] for name, *_ in rows] == list(script.BARS)


def test_a_wrong_value_is_told(script, monkeypatch):
    rows, (name, right) = [], next(script.values())
    monkeypatch.setattr(script, "values", lambda: iter([(name, right), (name, 1.001 * right)]))
    assert not script.checked(row_of(rows))
    assert [held for *_, held in rows] == [True, False]

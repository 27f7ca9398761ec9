"""What a file names is read before it runs; JSON that every reader reads."""

import json
import math
import pathlib
import sys

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import micjax
from micjax.core.foreign import modules
from micjax.core.plain import dumps, plain
from micjax.problems import edge
from micjax.run.folder import RunFolder

RAN = "open('ran', 'w').close()\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A package in the current folder, of which every module leaves a trace when it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {
        "lab/__init__.py": "from lab.stage import Stage as Bench\nfrom .deep import inner\n",
        "lab/stage.py": "class Stage: ...\nfrom subprocess import call\ntimer = 3\n",
        "lab/deep/__init__.py": "from ..stage import Stage\nfrom .inner import f as inner\n",
        "lab/deep/inner.py": "try:\n    import json\nexcept ImportError:\n    json = None\n"
        "if True:\n    def f(x): ...\n",
        "lab/circle.py": "from lab.circle import g\n",
        "lab/broken.py": "def f(:\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(RAN + text)
    before = set(sys.modules)
    yield tmp_path
    assert not (tmp_path / "ran").exists(), "a module was imported"
    assert not {n for n in sys.modules if n.startswith("lab")} - before


@pytest.mark.parametrize(
    "what, module",
    [
        ("lab.stage:Stage", "lab.stage"),
        ("lab:Bench", "lab.stage"),
        ("lab:inner", "lab.deep.inner"),
        ("lab.deep:Stage", "lab.stage"),
        ("lab.stage:timer", "lab.stage"),
        ("micjax.instruments:Replay", "micjax.instruments.replay"),
    ],
)
def test_where_a_name_is_defined(here, what, module):
    assert modules.trusted_function(what) == module


@pytest.mark.parametrize(
    "what, message",
    [
        ("os:system", "part of Python"),
        ("posix:system", "part of Python"),
        ("lab.stage:call", "'subprocess' is a part of Python"),
        ("lab.deep.inner:json", "json is a module"),
        ("lab.stage:gone", "defines no 'gone'"),
        ("lab.gone:f", "no module 'lab.gone'"),
        ("lab.stage.Stage:f", "no module"),
        ("lab.circle:g", "in a circle"),
        ("lab.broken:f", "SyntaxError"),
        ("numpy:load", "--trust numpy"),
        ("lab/stage:Stage", "is no package.module:name"),
        ("lab..stage:Stage", "is no name of a module"),
        ("lab:Stage()", "is no package.module:name"),
        ("lab:", "is no package.module:name"),
        (":f", "is no package.module:name"),
    ],
)
def test_what_may_not_be_named(here, what, message):
    with pytest.raises(ValueError, match=message):
        modules.trusted_function(what)


def test_what_is_installed_below_the_current_folder_is_not_here(here):
    folder = here / ".venv" / "lib" / "site-packages"
    folder.mkdir(parents=True)
    (folder / "of_somebody.py").write_text(RAN + "def f(x): ...\n")
    sys.path.append(str(folder))
    try:
        with pytest.raises(ValueError, match="--trust of_somebody"):
            modules.trusted_function("of_somebody:f")
        assert modules.trusted_function("of_somebody:f", ["of_somebody"]) == "of_somebody"
        assert modules.trusted_function("of_somebody:f", None) == "of_somebody"
    finally:
        sys.path.remove(str(folder))


def test_the_built_in_problems_are_known_without_an_import():
    known = modules.references()
    assert known["edge"] == "micjax.problems.edge" and "shared" not in known
    assert {"problem", "example"} <= set(modules.defined(modules.source_of(known["tip"])))


# --- results -------------------------------------------------------------------------------------


@pytest.fixture
def result(here):
    path = here / "values.h5"
    micjax.save(path, edge.problem(), "micjax.problems.edge")
    return path


def changed(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def test_a_result_of_a_module_that_nobody_named(result):
    changed(result, lambda f: f.attrs.update(reference="lab.stage"))
    with pytest.raises(ValueError, match="'lab.stage' is none of micjax"):
        micjax.load(result)
    with pytest.raises(ValueError, match="is a result of lab.stage, not of lab.deep"):
        micjax.load(result, "lab.deep")


def test_a_result_is_given_its_module(result):
    assert micjax.load(result, edge).values().keys() == edge.problem().values().keys()
    with pytest.raises(ValueError, match="not of micjax.problems.tip"):
        micjax.load(result, "micjax.problems.tip")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: f.attrs.update(options="{"), "its options are no JSON"),
        (lambda f: f.attrs.update(options="[1]"), "names no problem and options"),
        (lambda f: f.attrs.update(reference=3.0), "names no problem and options"),
        (lambda f: f.attrs.update(options='{"wdth_nm": 1}'), "does not fit"),
        (lambda f: f.attrs.update(options='{"width_nm": -1}'), "width_nm is -1: numbers from"),
        (lambda f: f.attrs.update(options='{"sigma": NaN}'), "sigma is nan"),
        (
            lambda f: _replaced(f, h5py.ExternalLink("/etc/hostname", "/")),
            "a link out of the file",
        ),
        (lambda f: _external(f), "is external storage: other files"),
        (lambda f: f.move("values", "others"), "there is no group 'values'"),
    ],
)
def test_a_result_that_is_something_else(result, change, message):
    with pytest.raises(ValueError, match=message):
        micjax.load(changed(result, change))


def _replaced(file, by):
    del file["values/forward.edge_nm"]
    file["values/forward.edge_nm"] = by


def _external(file):
    """A data set whose bytes are those of another file of this machine."""
    pathlib.Path("secret").write_bytes(bytes(8))
    del file["values/forward.edge_nm"]
    stored = [(str(pathlib.Path("secret").absolute()), 0, 8)]
    file["values"].create_dataset("forward.edge_nm", (1,), "f8", external=stored)


# --- JSON ----------------------------------------------------------------------------------------


def test_numbers_of_numpy_and_jax_stay_numbers():
    given = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.bool_(True),
        "d": jnp.arange(2),
        "e": (np.float64(1.0), [np.array(2)]),
        3: np.array([[1.5]]),
        np.int64(4): pathlib.Path("x"),
        ("p", 1): None,
        None: {1.5: 2},
    }
    found = json.loads(dumps(given))
    assert found["a"] == 0.5 and found["b"] == 3 and found["c"] is True and found["d"] == [0, 1]
    assert found["e"] == [1.0, [2]] and found["3"] == [[1.5]] and found["4"] == "x"
    assert found["('p', 1)"] is None and found["None"] == {"1.5": 2}


def test_what_is_not_finite_is_null_and_the_rest_is_text():
    text = dumps({"loss": np.float32(np.nan), "top": [math.inf], "who": {"b", "a"}, "z": 1 + 2j})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "loss": None, "top": [None], "who": "['a', 'b']", "z": "(1+2j)",
    }  # fmt: skip
    assert "Array" in json.loads(dumps([jax.random.key(0)]))[0]


def test_plain_values_keep_nan():
    """Heights that are not known are NaN, and stay so in the options of a problem."""
    (found,) = plain({"tip_heights_nm": np.array([np.nan])})["tip_heights_nm"]
    assert math.isnan(found)


def test_a_run_folder_writes_them(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("facts.json", {"wall_s": np.float32(2.5), 1: np.nan})
    assert folder.read_json("facts.json") == {"wall_s": 2.5, "1": None}
    folder.add_metrics({"loss": np.float32(np.inf), "steps": np.int64(3)})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"loss": None, "steps": 3}

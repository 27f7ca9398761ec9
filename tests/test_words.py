"""One name, one meaning: what can be read off the names of the code."""

import ast
import collections
import pathlib

ROOT = pathlib.Path(__file__).parents[1] / "micjax"
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("**/*.py"))}
SAY_NOTHING = {"found", "one", "thing", "stuff", "tmp"}


def test_no_class_has_the_name_of_another():
    places = collections.defaultdict(list)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_a_local_says_what_it_holds():
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if (name := assigned(node)) in SAY_NOTHING
    ]
    assert silent == []


def assigned(node: ast.AST) -> str | None:
    if isinstance(node, ast.arg):
        return node.arg
    return node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None

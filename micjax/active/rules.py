"""Rules on settings that are known before anything is measured: `x + 2 * y <= 1.5`.

A rule is a comparison of expressions of the axes, or a function of them. It is arithmetic of arrays
and is read as such: text of a plan is never run as a program.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from micjax.core.names import unknown_name

Allows = Callable[..., Any]  # (axis=numbers [m], ...) -> which of them are allowed, bool [m]

ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
COMPARISONS = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
LONGEST = 500  # characters of a rule
FUNCTIONS = {"abs": jnp.abs, "sqrt": jnp.sqrt, "exp": jnp.exp, "log": jnp.log}


def rule_of(text: str, axes: Sequence[str]) -> "Rule":
    """The rule that a text says, such as `abs(x) + y**2 < 1` or `0 <= x - y <= 1`.

    **Raises:** `ValueError` for what is no comparison, or holds more than numbers, `axes`,
    + - * / **, abs, sqrt, exp and log.
    """
    rule = Rule(text)
    named = {node.id for node in ast.walk(rule.parsed) if isinstance(node, ast.Name)}
    for name in sorted(named - {*FUNCTIONS, *axes}):
        raise ValueError(f"rule {text!r}: {unknown_name('axis', name, axes)}")
    return rule


class Rule:
    """A comparison of expressions, by its text."""

    def __init__(self, text: str):
        self.text = text
        if len(text) > LONGEST:
            raise ValueError(f"a rule of {len(text)} characters; at most {LONGEST} are read")
        try:
            self.parsed = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"rule {text!r} cannot be read: {error}") from None
        if not isinstance(self.parsed, ast.Compare):
            raise ValueError(f"rule {text!r} is no comparison, as x + y <= 1 is")
        for node in ast.walk(self.parsed):
            if not isinstance(node, _PARTS) or (isinstance(node, ast.Constant) and _odd(node)):
                kind = type(node).__name__
                raise ValueError(
                    f"rule {text!r} holds a {kind}; numbers, axes, + - * / **, "
                    f"{', '.join(FUNCTIONS)} and comparisons by < <= > >= are possible"
                )
            if isinstance(node, ast.Call):
                _check_call(node, text)

    def __call__(self, **numbers: Any) -> Any:
        sides = [self.parsed.left, *self.parsed.comparators]
        values = [_value(side, numbers) for side in sides]
        allowed = True
        for op, left, right in zip(self.parsed.ops, values, values[1:], strict=False):
            allowed = allowed & COMPARISONS[type(op)](left, right)
        return allowed

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return self.text


_PARTS = (
    *(ast.Compare, ast.BinOp, ast.UnaryOp, ast.USub, ast.UAdd, ast.Constant, ast.Name, ast.Load),
    *(ast.Call, *ARITHMETIC, *COMPARISONS),
)


def _odd(node: ast.Constant) -> bool:
    return isinstance(node.value, bool) or not isinstance(node.value, int | float)


def _check_call(node: ast.Call, text: str) -> None:
    known = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
    if not known or len(node.args) != 1 or node.keywords:
        raise ValueError(f"rule {text!r}: there are the functions {', '.join(FUNCTIONS)} of one")


def _value(node: ast.AST, numbers: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return float(node.value)
    if isinstance(node, ast.Name):
        return numbers[node.id]
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, numbers)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Call):
        return FUNCTIONS[node.func.id](_value(node.args[0], numbers))
    left, right = _value(node.left, numbers), _value(node.right, numbers)
    return ARITHMETIC[type(node.op)](left, right)


def allowed_by(rules: Sequence[Allows], names: Sequence[str], points: Any) -> Any:
    """Which of the points `[m, d]` all rules allow, `[m]`; inside jit too."""
    numbers = {name: points[:, i] for i, name in enumerate(names)}
    allowed = jnp.ones(len(points), bool)
    for rule in rules:
        allowed = allowed & rule(**numbers)
    return allowed


def allowed_on_host(rules: Sequence[Allows], names: Sequence[str], points: Any) -> np.ndarray:
    """`allowed_by` in double precision.

    **Raises:** `ValueError` for a rule that does not say so of each point.
    """
    allowed = np.ones(len(points), bool)
    for rule in rules:
        with jax.enable_x64(True):
            try:
                numbers = {name: jnp.asarray(points[:, i]) for i, name in enumerate(names)}
                says = np.asarray(rule(**numbers))
            except Exception as error:
                raise ValueError(f"a rule on settings fails: {error}") from error
        if says.shape != allowed.shape or says.dtype != bool:
            raise ValueError(
                f"a rule on settings gives {says.dtype} of shape {says.shape} for {len(points)} "
                "settings; true or false for each is needed"
            )
        allowed &= says
    return allowed

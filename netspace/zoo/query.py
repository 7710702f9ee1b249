"""Conditions on columns of a table of members, such as `accuracy > 0.9 and split == 'train'`: parsed, never evaluated as code.

Axes: M members.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

import numpy as np

from netspace.errors import UsageError, unknown

MAX_LENGTH = 2000  # characters of a condition
EXAMPLE = "\"accuracy > 0.9 and split == 'train'\""

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}


def matches(text: str, columns: Iterable[str], read: Callable[[str], np.ndarray], count: int) -> np.ndarray:
    """Return which of `count` members meet a condition, as bool (M,).

    A condition compares columns, numbers and texts (`<`, `<=`, `>`, `>=`, `==`, `!=`, `in`, `not in`), also after `+`, `-`,
    `*`, `/` and `%`, and joins comparisons with `and`, `or` and `not`. A number that is not known (NaN) meets no comparison
    but `!=`.

    Args:
        text: The condition.
        columns: Names of all columns.
        read: Returns the values (M,) of a column: numbers, or texts.
        count: M.

    Raises:
        UsageError: The text is not a condition, names no column, or compares a number with a text.

    >>> accuracy = np.array([0.5, 0.95, np.nan])
    >>> matches("0.9 < accuracy <= 1", ["accuracy"], lambda name: accuracy, 3).tolist()
    [False, True, False]
    """
    condition = _Condition(text, tuple(columns), read)
    if len(text) > MAX_LENGTH:
        raise UsageError(
            f"a condition of {len(text):,} characters was given, where {MAX_LENGTH:,} are the most: filter twice"
        )
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise condition.error("does not parse") from None
    try:
        with np.errstate(all="ignore"):
            found = np.asarray(condition.value(body))
    except RecursionError:
        raise condition.error("is nested too deeply") from None
    if found.dtype != bool:
        raise condition.error("is no comparison")
    return np.broadcast_to(found, (count,))


class _Condition:
    """The evaluation of one condition over all members at once."""

    def __init__(self, text: str, columns: tuple[str, ...], read: Callable[[str], np.ndarray]) -> None:
        self.text, self.columns, self.read = text, columns, read

    def error(self, problem: str) -> UsageError:
        """Return the error that says what is wrong with the condition."""
        return UsageError(f"the condition {self.text!r} {problem}: expected one such as {EXAMPLE}")

    def value(self, node: ast.expr) -> Any:
        """Return the value of a part of the condition: an array (M,), or one value for all members."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return np.asarray(value)
            case ast.Name(id=name):
                if name not in self.columns:
                    raise unknown("column", name, self.columns)
                return self.read(name)
            case ast.BoolOp(op=op, values=values):
                parts = [self._truth(each) for each in values]
                return reduce(operator.and_ if isinstance(op, ast.And) else operator.or_, parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self._truth(operand)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._number(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                return ARITHMETIC[type(op)](self._number(left), self._number(right))
            case ast.Compare():
                return self._comparison(node)
        raise self.error(f"has {ast.unparse(node)!r}, which is no column, number, text or comparison")

    def _truth(self, node: ast.expr) -> np.ndarray:
        value = np.asarray(self.value(node))
        if value.dtype != bool:
            raise self.error(f"joins {ast.unparse(node)!r}, which is no comparison")
        return value

    def _number(self, node: ast.expr) -> np.ndarray:
        value = np.asarray(self.value(node))
        if value.dtype.kind not in "fiu":
            raise self.error(f"computes with {ast.unparse(node)!r}, which is no number")
        return value

    def _comparison(self, node: ast.Compare) -> Any:
        operands = [node.left, *node.comparators]
        parts = [
            self._compared(left, op, right)
            for left, op, right in zip(operands[:-1], node.ops, operands[1:], strict=True)
        ]
        return reduce(operator.and_, parts)

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.Tuple | ast.List | ast.Set):
                raise self.error(f"needs a list after 'in', as in (1, 2), in place of {ast.unparse(right)!r}")
            found: Any = reduce(
                operator.or_, [self._pair(left, operator.eq, each) for each in right.elts], np.asarray(False)
            )
            return ~found if isinstance(op, ast.NotIn) else found
        if type(op) not in COMPARISONS:
            raise self.error("compares by identity ('is')")
        return self._pair(left, COMPARISONS[type(op)], right)

    def _pair(self, left: ast.expr, compare: Callable[[Any, Any], Any], right: ast.expr) -> np.ndarray:
        one, other = np.asarray(self.value(left)), np.asarray(self.value(right))
        if (one.dtype.kind == "U") != (other.dtype.kind == "U"):
            raise self.error(f"compares a number with a text ({ast.unparse(left)}, {ast.unparse(right)})")
        return np.asarray(compare(one, other))

"""An operator's own score: an arithmetic expression over what is known of a file, and nothing else.

``size * idle / hits`` and the like. It is parsed into a tree of which every node is known, so it can do nothing but
arithmetic; numbers are floats, so no power takes long.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cachefs.core.errors import UsageError

NAMES: Final = ("size", "age", "idle", "hits", "fetch_seconds")
_LONGEST: Final = 500
_MOST_NODES: Final = 100
_BINARY: Final[Mapping[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: math.pow,
}
_UNARY: Final[Mapping[type[ast.unaryop], Callable[[float], float]]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_FUNCTIONS: Final[Mapping[str, tuple[int, Callable[..., float]]]] = {
    "abs": (1, abs),
    "log": (1, math.log),
    "sqrt": (1, math.sqrt),
    "min": (2, min),
    "max": (2, max),
}
_Compiled = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True, slots=True)
class Expression:
    """What to compute for each file; the higher the value, the earlier it goes."""

    text: str
    _compute: _Compiled

    def value(self, variables: Mapping[str, float]) -> float:
        """Return its value. What has none (a division by zero, the root of less than zero) is minus infinity."""
        try:
            found = self._compute(variables)
        except (ArithmeticError, ValueError):
            return -math.inf
        return -math.inf if math.isnan(found) else found


def parse(text: str) -> Expression:
    """Return the expression that *text* is. Raise ``UsageError`` that says what is wrong with it."""
    if len(text) > _LONGEST:
        raise _wrong(text[:40] + "…", f"it is longer than {_LONGEST} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _wrong(text, "it is no arithmetic") from None
    if sum(1 for _ in ast.walk(tree)) > 3 * _MOST_NODES:
        raise _wrong(text, f"it has more than {_MOST_NODES} parts")
    return Expression(text, _compiled(tree, text))


def _compiled(node: ast.expr, text: str) -> _Compiled:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return _constant(number, text)
        case ast.Name(id=name) if name in NAMES:
            return lambda variables: variables[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _applied(_BINARY[type(op)], [left, right], text)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _applied(_UNARY[type(sign)], [operand], text)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            least, function = _FUNCTIONS[name]
            if len(arguments) < least or (least == 1 and len(arguments) > 1):
                raise _wrong(
                    text, f"{name} takes {'one value' if least == 1 else 'two values or more'}"
                )
            return _applied(function, arguments, text)
    raise _wrong(text, f"{ast.unparse(node)!r} is none of what it may be made of")


def _constant(number: float, text: str) -> _Compiled:
    try:
        value = float(number)
    except OverflowError:
        raise _wrong(text, "a number in it is too large") from None
    return lambda variables: value


def _applied(function: Callable[..., float], operands: list[ast.expr], text: str) -> _Compiled:
    parts = [_compiled(operand, text) for operand in operands]
    return lambda variables: function(*(part(variables) for part in parts))


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(
        f"{text!r} is no policy: {why} — write gdsf, lru, lfu, size, age, s3fifo, or arithmetic (+ - * / // % **,"
        f" abs, log, sqrt, min, max) over {', '.join(NAMES)}, for example 'size * idle'"
    )

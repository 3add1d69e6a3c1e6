"""Formulas that combine scores, as the `multi` grader has them: arithmetic on numbers, and nothing else.

simpleeval walks Python's syntax tree and never runs it. What this module adds is bounds: only numbers, names
and arithmetic are let through, and powers are those of floats, so that none takes long.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

from simpleeval import (  # pyright: ignore[reportMissingTypeStubs]
    DEFAULT_OPERATORS,  # pyright: ignore[reportUnknownVariableType]
    SimpleEval,
)

MAX_FORMULA = 500
"""Characters in the longest formula."""
FUNCTIONS: dict[str, Any] = {
    "abs": abs,
    "ceil": math.ceil,
    "exp": math.exp,
    "floor": math.floor,
    "log": math.log,
    "max": max,
    "min": min,
    "sqrt": math.sqrt,
}
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.USub, ast.UAdd)
_OPERATORS: dict[type[ast.AST], Any] = {
    **{kind: cast("Any", DEFAULT_OPERATORS[kind]) for kind in _ARITHMETIC},
    ast.Pow: math.pow,  # of floats: powers of integers may have millions of digits
}
_SYNTAX = (ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Constant, *_OPERATORS)


class FormulaError(ValueError):
    """A formula cannot be read or computed; the message is a predicate, as in "divides by zero"."""


def check_formula(formula: str, names: Iterable[str]) -> None:
    """Check that a formula is arithmetic on these names.

    Raises:
        FormulaError: it is not.
    """
    known = set(names)
    for node in ast.walk(_parse(formula)):
        is_number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
        if not isinstance(node, _SYNTAX) or (isinstance(node, ast.Constant) and not is_number):
            raise FormulaError(f"may have numbers, names, + - * / ^ and {', '.join(FUNCTIONS)} only")
        if isinstance(node, ast.Call):
            if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
                raise FormulaError(f"calls what is none of {', '.join(FUNCTIONS)}")
            known.add(node.func.id)
    for node in ast.walk(_parse(formula)):
        if isinstance(node, ast.Name) and node.id not in known:
            raise FormulaError(f"names {node.id[:80]!r}, which is none of {', '.join(sorted(known))[:200]}")


def evaluate_formula(formula: str, values: Mapping[str, float]) -> float:
    """Return what a formula that was checked gives for these values.

    Raises:
        FormulaError: it has no finite value.
    """
    evaluator: Any = SimpleEval(operators=_OPERATORS, functions=FUNCTIONS, names=dict(values))
    try:
        result = float(evaluator.eval(formula, previously_parsed=_parse(formula)))
    except (ArithmeticError, ValueError, TypeError, RecursionError) as error:
        raise FormulaError(f"cannot be computed: {error}") from None
    if not math.isfinite(result):
        raise FormulaError("has no finite value")
    return result


def _parse(formula: str) -> ast.expr:
    try:
        return ast.parse(formula.strip().replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else type(error).__name__
        raise FormulaError(f"cannot be read: {reason}") from None

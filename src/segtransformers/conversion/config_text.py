# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Reads the Python text of an mmcv config without executing it."""

import ast
from typing import Any

from .mapping import ConversionError


def parse_config(text: str) -> dict[str, Any]:
    """The variables of a flat mmcv config, as mmcv dumps it beside a training run or into a checkpoint.

    Understood are assignments of literals, `dict(...)`, `list`, `tuple`, signs, and names assigned before. Nothing is
    executed. Statements of any other kind are an error, `_base_` with its inherited files included.

    Raises:
        ConversionError: naming the line that is not understood.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConversionError(f"the config is not Python text: {error}") from error
    variables: dict[str, Any] = {}
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        if (
            not isinstance(statement, ast.Assign)
            or len(statement.targets) != 1
            or not isinstance(statement.targets[0], ast.Name)
        ):
            raise _not_understood(statement)
        name = statement.targets[0].id
        if name == "_base_":
            raise ConversionError(
                "the config inherits from _base_ files: give the flat config that mmcv wrote into the work directory"
            )
        variables[name] = _evaluate(statement.value, variables)
    return variables


def _evaluate(node: ast.expr, variables: dict[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in variables:
            return variables[node.id]
        case ast.List():
            return [_evaluate(item, variables) for item in node.elts]
        case ast.Tuple():
            return tuple(_evaluate(item, variables) for item in node.elts)
        case ast.Dict() if None not in node.keys:
            return {
                _evaluate(key, variables): _evaluate(value, variables)
                for key, value in zip(node.keys, node.values, strict=True)
                if key is not None
            }
        case ast.Call(func=ast.Name(id="dict"), args=[]) if all(keyword.arg for keyword in node.keywords):
            return {str(keyword.arg): _evaluate(keyword.value, variables) for keyword in node.keywords}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float() as number)):
            return -number if isinstance(node.op, ast.USub) else number
    raise _not_understood(node)


def _not_understood(node: ast.AST) -> ConversionError:
    text = ast.unparse(node)
    shown = text if len(text) <= 60 else text[:57] + "..."
    return ConversionError(f"line {getattr(node, 'lineno', '?')} of the config is not understood: {shown}")

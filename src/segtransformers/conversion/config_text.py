# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Parse the Python text of an mmcv config and the YAML text of an official Segmenter's config, executing nothing."""

import ast
from collections.abc import Sequence
from typing import Any

import yaml

from .mapping import ConversionError


def parse_config(text: str, names: Sequence[str]) -> dict[str, Any]:
    """Return variables of a flat mmcv config, as mmcv writes it beside a training run or into a checkpoint.

    Nothing is executed. Only the requested variables, and the variables that they refer to, are evaluated. They may
    consist of literals, `dict(...)`, lists, tuples, signs and variables. All other variables may have any value, such
    as `gpu_ids = range(0, 8)`. Statements that could change a variable later, and inherited files, are errors.

    Args:
        text: the text of the config.
        names: the requested variables. `data.test.pipeline` requests one value in a variable; the others in it are not
            evaluated.

    Returns:
        the values by name, without the names that the config does not assign.

    Raises:
        ConversionError: naming the line that cannot be parsed.
    """
    try:
        tree = ast.parse(text.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConversionError(f"the config is not Python text: {error}") from error
    assigned: dict[str, ast.expr] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                assigned[name] = value
            case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom():
                continue
            case _:
                raise _parse_error(statement)
    if "_base_" in assigned:
        raise ConversionError(
            "the config inherits from _base_ files: use the flat config that mmcv wrote into the work directory"
        )
    try:
        nodes = {name: _expression_at(name.split("."), assigned) for name in names}
        return {name: _evaluate(node, assigned) for name, node in nodes.items() if node is not None}
    except (RecursionError, TypeError) as error:  # a variable that refers to itself, a list as key
        raise ConversionError(f"the config cannot be parsed: {error}") from error


class _VariantLoader(yaml.SafeLoader):
    """Safe loader that also reads tuples, which PyYAML writes with a tag that its safe loader refuses."""

    def construct_object(self, node, deep=False):
        """Turn errors of PyYAML's own constructors, for example for the date 2021-13-45, into a YAML error."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError) as error:
            shown, kind = repr(node.value), node.tag.rpartition(":")[2]
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            message = f"{shown} is not a valid {kind}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from error


_VariantLoader.add_constructor("tag:yaml.org,2002:python/tuple", _VariantLoader.construct_sequence)


def parse_variant(text: str) -> Any:
    """Parse a `variant.yml` without executing it; tuples become lists.

    Raises:
        ConversionError: naming the value that cannot be parsed.
    """
    try:
        return yaml.load(text, Loader=_VariantLoader)  # a subclass of SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise ConversionError(f"the variant cannot be parsed: {' '.join(str(error).split())}") from error


def _expression_at(path: Sequence[str], assigned: dict[str, ast.expr]) -> ast.expr | None:
    """Return the expression at a path of a variable and dict keys, or None if it does not exist."""
    node = assigned.get(path[0])
    for key in path[1:]:
        seen: set[str] = set()
        while isinstance(node, ast.Name) and node.id not in seen:
            seen.add(node.id)
            node = assigned.get(node.id)
        items: dict[Any, ast.expr] = {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            items = {keyword.arg: keyword.value for keyword in node.keywords}
        elif isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            items = {name.value: value for name, value in pairs if isinstance(name, ast.Constant)}
        node = items.get(key)
    return node


def _evaluate(node: ast.expr, assigned: dict[str, ast.expr]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in assigned:
            return _evaluate(assigned[node.id], assigned)
        case ast.List():
            return [_evaluate(item, assigned) for item in node.elts]
        case ast.Tuple():
            return tuple(_evaluate(item, assigned) for item in node.elts)
        case ast.Dict() if None not in node.keys:
            return {
                _evaluate(key, assigned): _evaluate(value, assigned)
                for key, value in zip(node.keys, node.values, strict=True)
                if key is not None
            }
        case ast.Call(func=ast.Name(id="dict"), args=[] | [ast.Dict()]) if all(item.arg for item in node.keywords):
            start = _evaluate(node.args[0], assigned) if node.args else {}
            return start | {str(item.arg): _evaluate(item.value, assigned) for item in node.keywords}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float() as number)):
            return -number if isinstance(node.op, ast.USub) else number
    raise _parse_error(node)


def _parse_error(node: ast.AST) -> ConversionError:
    text = " ".join(ast.unparse(node).split())
    shown = text if len(text) <= 60 else text[:57] + "..."
    return ConversionError(f"line {getattr(node, 'lineno', '?')} of the config cannot be parsed: {shown}")

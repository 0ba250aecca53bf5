# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Reads the Python text of an mmcv config, and the YAML text of an official Segmenter's, without executing it."""

import ast
from collections.abc import Sequence
from typing import Any

import yaml

from .mapping import ConversionError


def parse_config(text: str, names: Sequence[str]) -> dict[str, Any]:
    """Variables of a flat mmcv config, as mmcv dumps it beside a training run or into a checkpoint.

    Nothing is executed. Only the variables asked for are evaluated, and those that they mention: they may be made of
    literals, `dict(...)`, lists, tuples, signs, and other such variables. What else is assigned may be anything
    (`gpu_ids = range(0, 8)`). Statements that could change a variable later are an error, and so are inherited files.

    Args:
        text: of the config.
        names: of the variables wanted; those that it does not assign are left out. `data.test.pipeline` is a value
            inside one, whose other values are not evaluated.

    Raises:
        ConversionError: naming the line that is not understood.
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
                raise _not_understood(statement)
    if "_base_" in assigned:
        raise ConversionError(
            "the config inherits from _base_ files: give the flat config that mmcv wrote into the work directory"
        )
    try:
        nodes = {name: _inside(name.split("."), assigned) for name in names}
        return {name: _evaluate(node, assigned) for name, node in nodes.items() if node is not None}
    except (RecursionError, TypeError) as error:  # a variable that mentions itself, a list as a key
        raise ConversionError(f"the config is not understood: {error}") from error


class _VariantLoader(yaml.SafeLoader):
    """Python's yaml writes a tuple with a tag that its own safe loader refuses."""

    def construct_object(self, node, deep=False):
        """What yaml makes of a node; its own constructors stumble over scalars such as the date 2021-13-45."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError) as error:
            shown, kind = repr(node.value), node.tag.rpartition(":")[2]
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            raise yaml.constructor.ConstructorError(None, None, f"{shown} is no {kind}", node.start_mark) from error


_VariantLoader.add_constructor("tag:yaml.org,2002:python/tuple", _VariantLoader.construct_sequence)


def parse_variant(text: str) -> Any:
    """What a `variant.yml` holds; tuples become lists. Nothing is executed.

    Raises:
        ConversionError: naming what is not understood.
    """
    try:
        return yaml.load(text, Loader=_VariantLoader)  # it is a safe one
    except (yaml.YAMLError, RecursionError) as error:
        raise ConversionError(f"the variant is not understood: {' '.join(str(error).split())}") from error


def _inside(path: Sequence[str], assigned: dict[str, ast.expr]) -> ast.expr | None:
    """The expression at a path of dict keys that begins with a variable, or None where there is none."""
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
    raise _not_understood(node)


def _not_understood(node: ast.AST) -> ConversionError:
    text = " ".join(ast.unparse(node).split())
    shown = text if len(text) <= 60 else text[:57] + "..."
    return ConversionError(f"line {getattr(node, 'lineno', '?')} of the config is not understood: {shown}")

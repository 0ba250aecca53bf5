# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Parse the Python text of an mmcv config and the YAML text of an official Segmenter's config, executing nothing."""

import ast
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import yaml

from ..escaping import printable, short_repr
from .errors import ConversionError

# Configs of the originals have at most 50,000 characters and 5,000 values.
LARGEST_TEXT, LARGEST_VARIANT = 2**20, 10**5
MOST_VALUES, DEEPEST = 10**5, 100


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
        ConversionError: naming the line that cannot be parsed, or if the values are too many or too deep.
    """
    check_length(text, LARGEST_TEXT, "the config")
    try:
        tree = ast.parse(text.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConversionError(f"the config is not Python text: {printable(error, 200)}") from error
    assigned: dict[str, ast.expr] = {}
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                assigned[name] = value
            case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom():
                continue
            case _:
                raise _parse_error(statement, text)
    if "_base_" in assigned:
        raise ConversionError(
            "the config inherits from _base_ files: use the flat config that mmcv wrote into the work directory"
        )
    try:
        nodes = {name: _expression_at(name.split("."), assigned) for name in names}
        found = {name: node for name, node in nodes.items() if node is not None}
        check_expansion(found.values(), lambda node: _parts(node, assigned), "the config")
        return {name: _evaluate(node, assigned, text) for name, node in found.items()}
    except (RecursionError, TypeError) as error:  # a list as key
        raise ConversionError(f"the config cannot be parsed: {printable(error, 200)}") from error


def check_length(text: str, most: int, where: str) -> None:
    """Refuse a text with more than `most` characters."""
    if len(text) > most:
        raise ConversionError(f"{where} has {len(text)} characters; at most {most} are read")


def check_expansion(roots: Iterable[Any], parts: Callable[[Any], Iterable[Any]], where: str) -> None:
    """Refuse values that are too many or too deep when every reference is replaced by the value that it refers to.

    Ten variables that each list the previous one ten times would become 10,000,000,000 values. Nothing is replaced to
    count them, and each shared value is counted once.

    Args:
        roots: the values.
        parts: function that returns the values in a value, and the one that a reference refers to.

    Raises:
        ConversionError: naming the limit, or a value that refers to itself.
    """
    sizes: dict[int, tuple[int, int]] = {}  # number of values and depth, by identity
    unfinished: set[int] = set()
    values = list(roots)
    stack = [(value, False) for value in values]
    while stack:
        value, are_parts_known = stack.pop()
        if id(value) in sizes:
            continue
        inside = list(parts(value))
        if not are_parts_known:
            if id(value) in unfinished:
                raise ConversionError(f"{where} cannot be parsed: a value refers to itself")
            unfinished.add(id(value))
            stack.append((value, True))
            stack.extend((part, False) for part in inside)
            continue
        unfinished.discard(id(value))
        known = [sizes[id(part)] for part in inside]
        size, depth = 1 + sum(count for count, _ in known), 1 + max((depth for _, depth in known), default=0)
        if size > MOST_VALUES or depth > DEEPEST:
            raise ConversionError(
                f"{where} cannot be parsed: it has more than {MOST_VALUES} values, or more than {DEEPEST} inside of "
                "each other"
            )
        sizes[id(value)] = size, depth
    if sum(sizes[id(value)][0] for value in values) > MOST_VALUES:
        raise ConversionError(f"{where} cannot be parsed: it has more than {MOST_VALUES} values")


def check_values(value: Any, where: str) -> None:
    """Refuse lists and dicts that are too large or too deep, as [`check_expansion`]."""
    check_expansion([value], _items, where)


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _parts(node: ast.expr, assigned: dict[str, ast.expr]) -> Iterable[ast.expr]:
    """Return the expressions in an expression, or that of the variable that it is."""
    match node:
        case ast.Name() if node.id in assigned:
            return [assigned[node.id]]
        case ast.List() | ast.Tuple():
            return node.elts
        case ast.Dict():
            return [*(key for key in node.keys if key is not None), *node.values]
        case ast.Call():
            return [*node.args, *(keyword.value for keyword in node.keywords)]
    return ()


class _VariantLoader(yaml.SafeLoader):
    """Safe loader that also reads tuples, which PyYAML writes with a tag that its safe loader refuses."""

    def construct_object(self, node, deep=False):
        """Turn errors of PyYAML's own constructors, for example for the date 2021-13-45, into a YAML error."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError) as error:
            message = f"{short_repr(node.value, 60)} is not a valid {printable(node.tag.rpartition(':')[2])}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from error


_VariantLoader.add_constructor("tag:yaml.org,2002:python/tuple", _VariantLoader.construct_sequence)


def parse_variant(text: str) -> Any:
    """Parse a `variant.yml` as [`parse_yaml`] does."""
    return parse_yaml(text, LARGEST_VARIANT, "the variant")


def parse_yaml(text: str, most: int, where: str) -> Any:
    """Parse YAML without executing it; tuples become lists.

    Args:
        text: the YAML text.
        most: largest number of characters.
        where: name of the text in error messages.

    Raises:
        ConversionError: naming the value that cannot be parsed, or if the values are too many or too deep.
    """
    check_length(text, most, where)
    loader = None
    try:
        loader = _VariantLoader(text)  # refuses control characters
        node = loader.get_single_node()
        if node is None:
            return None
        check_expansion([node], _yaml_parts, where)
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"{where} cannot be parsed: {printable(reason, 300)}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _yaml_parts(node: yaml.Node) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else ()


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


def _evaluate(node: ast.expr, assigned: dict[str, ast.expr], text: str) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name() if node.id in assigned:
            return _evaluate(assigned[node.id], assigned, text)
        case ast.List():
            return [_evaluate(item, assigned, text) for item in node.elts]
        case ast.Tuple():
            return tuple(_evaluate(item, assigned, text) for item in node.elts)
        case ast.Dict() if None not in node.keys:
            return {
                _evaluate(key, assigned, text): _evaluate(value, assigned, text)
                for key, value in zip(node.keys, node.values, strict=True)
                if key is not None
            }
        case ast.Call(func=ast.Name(id="dict"), args=[] | [ast.Dict()]) if all(item.arg for item in node.keywords):
            start = _evaluate(node.args[0], assigned, text) if node.args else {}
            return start | {str(item.arg): _evaluate(item.value, assigned, text) for item in node.keywords}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float() as number)):
            return -number if isinstance(node.op, ast.USub) else number
    raise _parse_error(node, text)


def _parse_error(node: ast.AST, text: str) -> ConversionError:
    source = ast.get_source_segment(text.removeprefix("\ufeff"), node) or ""
    shown = printable(" ".join(source[:1000].split()), 60)
    return ConversionError(f"line {getattr(node, 'lineno', '?')} of the config cannot be parsed: {shown}")

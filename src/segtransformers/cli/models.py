# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""`segtransformers models`: the published models, and the cache of those that were converted."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ..cache import cached_model, user_cache
from ..published import FAMILIES, download_addresses, published_outputs, published_rows, trunk_addresses
from ..published.names import published_name, published_names
from ..published.originals import DATA_TERMS, original_of
from .errors import UserError, ends_quietly_if_nobody_reads, one_line_errors
from .output import document, result, result_table

COLUMNS = ("name", "data", "crop", "mIoU", "+ms", "params", "weights", "licence", "cached")


def models(
    name: Annotated[
        str | None, typer.Argument(help="Show everything about this model; some words of the name do.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="DATA", help="Only models of this data set.")] = None,
    family: Annotated[str | None, typer.Option(help=f"Only models of one of {', '.join(FAMILIES)}.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Convert this file of the authors into the cache.")
    ] = None,
    trunk_weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --checkpoint: the authors' file of the backbone.")
    ] = None,
    where: Annotated[
        bool, typer.Option("--where", help="Print the folder of the cache, or of the model in it.")
    ] = False,
    clear_cache: Annotated[
        bool,
        typer.Option(
            "--clear-cache", help="Delete all models, downloads and data cached by training, or the model named."
        ),
    ] = False,
) -> None:
    """List the published models: each is downloaded and converted when a command first needs it.

    mIoU is the published percentage, +ms with several scales and flips. The size of the weights is that in float32.
    """
    with one_line_errors(), ends_quietly_if_nobody_reads():
        full_name = None if name is None else _full_name(name)
        if checkpoint is not None:
            _convert(full_name, checkpoint, trunk_weights)
        elif where:
            folder = user_cache() if full_name is None else cached_model(full_name)
            result(str(folder))
            document(str(folder))
        elif clear_cache:
            _clear(full_name)
        elif full_name is not None:
            details = describe(full_name)
            result(_details(details))
            document(details)
        else:
            chosen = _chosen(data, family)
            _print_table(chosen)
            document(chosen)


def describe(name: str) -> dict[str, Any]:
    """Return the facts about a published model, with plain values only.

    Args:
        name: the full name.
    """
    family = published_names()[name]
    row = published_rows(family)[name]
    original = original_of(family, row)
    title, _, terms = DATA_TERMS[row["dataset"]]
    folder = cached_model(name)
    test = row["model"].get("test_cfg") or {}
    return {
        "name": name,
        "family": family,
        "data": row["dataset"],
        "data_title": title,
        "data_terms": terms,
        "num_labels": published_outputs(row),
        "crop_size": row["crop_size"],
        "inference": test.get("mode", "whole"),
        "miou": row["miou"],
        "miou_ms": row["miou_ms"],
        "parameters": row["num_parameters"],
        "weights_bytes": None if row["num_parameters"] is None else 4 * row["num_parameters"],
        "license": original.shown_license,
        "repository": original.repository,
        "download": download_addresses(row),
        "trunk_download": trunk_addresses(row),
        "note": row["note"],
        "config_status": row.get("config_status"),
        "cached": str(folder) if folder.is_dir() else None,
        "citation": original.citation,
    }


def _full_name(name: str) -> str:
    try:
        return published_name(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def _chosen(data: str | None, family: str | None) -> list[dict[str, Any]]:
    if family is not None and family not in FAMILIES:
        raise UserError(f"--family must be one of {', '.join(FAMILIES)}, got {family!r}")
    known = sorted({row["dataset"] for name in FAMILIES for row in published_rows(name).values()})
    if data is not None and data not in known:
        raise UserError(f"--data must be one of {', '.join(known)}, got {data!r}")
    chosen = [describe(name) for name in published_names()]
    chosen = [one for one in chosen if data in (None, one["data"]) and family in (None, one["family"])]
    if not chosen:
        raise UserError(f"{family} has no published model for {data}")
    return chosen


def _print_table(chosen: list[dict[str, Any]]) -> None:
    rows = [COLUMNS]
    for one in chosen:
        rows.append(
            (
                one["name"],
                one["data"],
                _sides(one["crop_size"]),
                _number(one["miou"]),
                _number(one["miou_ms"]),
                "-" if one["parameters"] is None else f"{one['parameters'] / 1e6:.0f}M",
                _size(one["weights_bytes"]),
                one["license"],
                "yes" if one["cached"] else "" if one["download"] else "no file",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    dispensable = ("licence", "crop", "params", "weights", "+ms", "cached", "data")
    result_table("\n".join(lines), COLUMNS, rows[1:], left=("data", "licence", "cached"), dispensable=dispensable)


def _details(one: dict[str, Any]) -> str:
    name = one["name"]
    facts = {
        "family": one["family"],
        "data": f"{one['data_title']}, {one['num_labels']} classes (terms of the images: {one['data_terms']})",
        "crop": _sides(one["crop_size"]),
        "inference": "sliding windows" if one["inference"] == "slide" else "whole images",
        "mIoU": f"{_number(one['miou'])} single scale, {_number(one['miou_ms'])} multi-scale and flip, as published",
        "parameters": "-" if one["parameters"] is None else f"{one['parameters']:,}",
        "weights": f"{_size(one['weights_bytes'])} in float32, licence {one['license']}",
        "authors' file": ", ".join(one["download"]) or "not published",
        **({"backbone's file": ", ".join(one["trunk_download"])} if one["trunk_download"] else {}),
        "repository": one["repository"],
        "cached": one["cached"] or "no",
    }
    if one["note"]:
        facts["note"] = one["note"]
    if one["config_status"]:
        facts["config"] = one["config_status"]
    width = max(map(len, facts)) + 2
    lines = [name, *(f"  {key:<{width}}{value}" for key, value in facts.items()), ""]
    lines += [
        "Use it:",
        f"  segtransformers segment photo.jpg --model {name}",
        f"  segtransformers evaluate --model {name} --data FOLDER",
        "",
        "In Python:",
        "  from segtransformers import published_model",
        "  from transformers import AutoModelForSemanticSegmentation",
        f'  model = AutoModelForSemanticSegmentation.from_pretrained(published_model("{name}"))',
        "",
        "Cite:",
        *(f"  {line}" for line in one["citation"].splitlines()),
    ]
    return "\n".join(lines)


def _sides(crop: Any) -> str:
    return "x".join(map(str, crop)) if isinstance(crop, list) else str(crop)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _size(size: int | None) -> str:
    if size is None:
        return "-"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _convert(name: str | None, checkpoint: Path, trunk_weights: Path | None) -> None:
    if name is None:
        raise UserError("--checkpoint needs the name of the model whose file it is")
    if not checkpoint.is_file():
        raise UserError(f"--checkpoint: there is no file {checkpoint}")
    if trunk_weights is not None and not trunk_weights.is_file():
        raise UserError(f"--trunk-weights: there is no file {trunk_weights}")
    if cached_model(name).is_dir():
        raise UserError(f"{name} is in the cache already: `segtransformers models {name} --clear-cache` removes it")
    from ..conversion.errors import ConversionError
    from ..conversion.published_model import published_model

    try:
        folder = published_model(name, checkpoint, trunk_weights)
    except ConversionError as error:
        raise UserError(str(error)) from None
    result(str(folder))
    document(str(folder))


def _clear(name: str | None) -> None:
    """Delete a converted model, or everything in the cache but compiled operators."""
    names = ("models", "downloads", "features", "class_counts")
    folders = [user_cache(part) for part in names] if name is None else [cached_model(name)]
    existing = [folder for folder in folders if folder.is_dir()]
    for folder in existing:
        if folder.is_symlink():  # the cache may be on another disk: the link stays
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        else:
            shutil.rmtree(folder)
        result(f"deleted {folder}")
    if not existing:
        result(f"nothing to delete: there is no {folders[0]}")
    document([str(folder) for folder in existing])

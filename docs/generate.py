# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Write the pages that are made from the package: the zoo, the commands and the API reference."""

import ast
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import click
from typer.main import get_command

from segtransformers.cli import app
from segtransformers.cli.recipes import FAMILY_TITLES
from segtransformers.published import FAMILIES, published_rows, published_table
from segtransformers.published.originals import original_of

API = {
    "segtransformers": "Models and the most used functions",
    "segtransformers.inference": "Inference",
    "segtransformers.training": "Training",
    "segtransformers.datasets": "Data sets",
    "segtransformers.evaluation": "Evaluation",
    "segtransformers.metrics": "Metrics",
    "segtransformers.rasters": "Rasters",
    "segtransformers.export": "Export",
    "segtransformers.operators": "Operators",
    "segtransformers.conversion": "Conversion",
    "segtransformers.published": "Published models",
    "segtransformers.hub": "The Hub",
    "segtransformers.visualization": "Visualization",
}
TOP = "segtransformers"
ROOT = Path(__file__).parent.parent
HIDDEN = (
    "config_class, get_input_embeddings, set_input_embeddings"  # transformers' own, without a meaning of their own here
)
GENERATED = "<!-- written by docs/generate.py -->\n\n"

BENCHMARKS = """\
# Benchmarks

Times of whole models, measured by `python benchmarks/models.py` of a checkout. The implementations take turns
in one run, so ratios mean more than milliseconds. `plain` is a model as it is loaded, `optimized` the result of
`optimize_for_inference`, which the commands use, `transformers` its own UperNet or Mask2Former with the same
weights around the same backbone, with operators that need no compiler. Other rows are models of about the same size.
Memory is the peak over the loaded model. Weights are random. "Freed memory kept" is the setting of the commands, see
[`keep_freed_memory`](operators.md#optimized-models). [The published models](zoo.md) have the times of exported files in
other engines.
"""
STAGES = (
    "The arithmetic is that of the plain model at the speed of a large matrix product, so minimal filtering can be "
    "faster. Bytes are those of inputs, outputs and weights, at the speed of a copy."
)


def write_pages(docs: Path) -> None:
    """Write all generated pages: `zoo.md` and `benchmarks.md`, which are kept in git, and the folder `generated`.

    Files whose text is unchanged are left alone.
    """
    (docs / "generated" / "api").mkdir(parents=True, exist_ok=True)
    pages = {"zoo.md": zoo(), "benchmarks.md": benchmarks(), "generated/commands.md": commands()}
    for module in API:
        pages[f"generated/api/{module.removeprefix(TOP).strip('.') or 'top'}.md"] = api(module)
    for name, text in pages.items():
        path = docs / name
        text = GENERATED + text
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def zoo() -> str:
    """Return the page of the published models."""
    rows = sum(len(published_rows(family)) for family in FAMILIES)
    lines = [
        "# Published models",
        "",
        f"{rows} models of {len(FAMILIES)} families. Each name works as `--model NAME` in every command, and words of",
        "it that fit one name only are enough: `--model deit-adapter-tiny-ade20k`.",
        "The first use downloads and converts the authors' file. `segtransformers models NAME` shows all that is",
        "known about a model.",
        "",
        "mIoU is the published percentage, with one scale and with several scales and flips. Parameters are counted in",
        "the original code; the size is that of the converted weights in float32. Licences are those of the authors'",
        "weights.",
        "",
        *measured(ROOT / "benchmarks" / "results" / "engines.json"),
    ]
    for family in FAMILIES:
        lines += [f"## {FAMILY_TITLES[family]}", "", *_sources(family), "", published_table(family), ""]
    return "\n".join(lines)


def measured(file: Path) -> list[str]:
    """Return a section with time and memory of published models, from the results of `benchmarks/engines.py`."""
    results = json.loads(file.read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {}  # by machine and settings, then by the name of the model
    kinds: list[str] = []
    for name, (_, row) in _published_of_benchmarks().items():
        if name not in results:
            continue
        setting, engines = results[name]["setting"], results[name]["engines"]
        size = setting["size"]
        where = f"{setting['machine']}, {setting['threads']} threads, one image of {size}x{size} pixels, float32"
        rows.setdefault(where, {})[row] = engines
        kinds += [kind for kind, one in engines.items() if "median_ms" in one and kind not in kinds]
    if not rows:
        return []
    lines = [
        "## Measured time and memory",
        "",
        "Median time of an image, and the peak memory of the process, of the smallest published model of a family with",
        "random weights. [engines.md](../benchmarks/results/engines.md) has the errors, too, and `engines.json` beside",
        "it has quartiles, versions and commits.",
        "",
    ]
    for where, models in rows.items():
        lines += [f"{where}:", "", f"| model | {' | '.join(kinds)} |", f"|---{'|---' * len(kinds)}|"]
        for name, engines in models.items():
            found = (engines.get(kind, {}) for kind in kinds)
            cells = [
                f"{one['median_ms']:.0f} ms, {one['peak_mib']} MiB" if "median_ms" in one else "-" for one in found
            ]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
        lines.append("")
    return lines


def benchmarks() -> str:
    """Return the page of the results of `benchmarks/models.py` and `benchmarks/stages.py`."""
    folder = ROOT / "benchmarks" / "results"
    lines = [BENCHMARKS]
    for file in sorted(folder.glob("models*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        batch = "one image" if found["batch"] == 1 else f"{found['batch']} images"
        software = f"torch {found['torch']}, transformers {found['transformers']}, commit {found['commit']}"
        names = [name for one in found["results"] for name in one["implementations"]]
        ablated = ", without single optimizations" if any(name.startswith("without ") for name in names) else ""
        others = "" if ablated or "transformers" in names else ", beside other models of about the size"
        kept = ", freed memory kept" if found.get("keep_memory") else ""
        pixels = f"{found['size']}x{found['size']} pixels"
        lines += [
            f"## {batch} of {pixels}, {found['dtype']}{ablated}{others}{kept}: {_maker(found)}",
            "",
            f"{found['machine']}; {software}; {found['date']}.",
            f"{found['operators'].split(' (')[0].capitalize()}.",
            "",
            "| model | implementation | median (quartiles) | images a second | speed | memory |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for one in found["results"]:
            for name, row in one["implementations"].items():
                ratio = next(f"{value:.2f}x {key[11:]}" for key, value in row.items() if key.startswith("speed_over_"))
                low, high = row["quartiles_ms"]
                memory = f"{row['peak_over_loaded_mib']:.0f} MiB" if "peak_over_loaded_mib" in row else "-"
                lines.append(
                    f"| {one['model']} | {name} | {row['median_ms']:.0f} ms ({low:.0f} to {high:.0f}) | "
                    f"{row['images_per_second']:.2f} | {ratio} | {memory} |"
                )
        lines.append("")
    for file in sorted(folder.glob("stages*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        lines += [
            f"## Stages of {found['model']}: {_maker(found)}",
            "",
            f"{found['machine']}, {found['threads']} threads, {found['size']}x{found['size']} pixels, commit",
            f"{found['commit']}, by `benchmarks/stages.py`. {STAGES}",
            "",
            "| stage | time | arithmetic | bytes |",
            "|---|---:|---:|---:|",
        ]
        lines += [
            f"| {stage} | {row['median_ms']:.0f} ms | {row['arithmetic_ms']:.0f} ms | {row['bytes_ms']:.0f} ms |"
            for stage, row in found["stages"].items()
        ]
        lines.append("")
    return "\n".join([*lines, *_commands_beside_the_network(folder)])


def _maker(found: dict[str, Any]) -> str:
    """Return the maker of the processor of a measurement."""
    return found["machine"].split()[0].removesuffix("(R)")


def _commands_beside_the_network(folder: Path) -> list[str]:
    """Return a section of the results of `benchmarks/commands.py` and `benchmarks/large_image.py`."""
    lines = [
        "## The commands beside the network",
        "",
        "Images a second of `segment` and `evaluate`, and their share of what the bare network does with the same",
        "windows one after the other (`benchmarks/commands.py`). The start is the time from the call to the network's",
        "first pass, with all packages imported. Below, a large photo by `benchmarks/large_image.py`.",
        "",
    ]
    for file in sorted(folder.glob("commands*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        lines += [
            f"{found['model']}, {found['images']} photos of 512x683 pixels in windows of 512; {found['machine']}, "
            f"{found['threads']} threads, commit {found['commit']}. Start: {found['start_seconds']:.2f} s.",
            "",
            "| command | images a second | share of the bare network |",
            "|---|---:|---:|",
        ]
        shares = found["share_of_the_bare_network"]
        lines += [
            f"| `{name}` | {rate:.2f} | {100 * shares[name]:.0f} % |"
            for name, rate in found["images_per_second"].items()
        ]
        lines.append("")
    for file in sorted(folder.glob("large_image*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        lines += [
            f"{found['model']}, a photo of {found['size'][1]}x{found['size'][0]} pixels, labels only, "
            f"{found['windows']} windows of {found['window']} at steps of {found['stride']}; {found['machine']}, "
            f"{found['threads']} threads, commit {found['commit']}: "
            f"{found['total_seconds']:.1f} s, {found['total_over_windows']:.3f} times the windows alone, "
            f"{100 * found['share_outside_network']:.1f} % outside of the network.",
            "",
        ]
    return lines


def _published_of_benchmarks() -> dict[str, tuple[str, str]]:
    """Return family and name of the published model that a name of `benchmarks/engines.py` stands for."""
    source = (ROOT / "benchmarks" / "engine_models.py").read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "PUBLISHED":
            return ast.literal_eval(statement.value)
    raise ValueError("benchmarks/engine_models.py has no PUBLISHED")


def _sources(family: str) -> list[str]:
    originals = {original_of(family, row) for row in published_rows(family).values()}
    return [
        f"- [{original.title}](https://arxiv.org/abs/{original.arxiv}), [code and weights]({original.repository}), "
        f"licence of the weights: {original.shown_license}"
        for original in sorted(originals, key=lambda original: (original.year, original.title))
    ]


def commands() -> str:
    """Return the page of the commands and their options, from their help texts."""
    group: Any = get_command(app)
    context = click.Context(group, info_name="segtransformers")
    lines = ["# Commands", "", "`segtransformers COMMAND --help` prints the same.", ""]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        own = click.Context(command, info_name=f"segtransformers {name}", parent=None, terminal_width=100)
        lines += [f"## {name}", "", "```text", command.get_help(own).strip(), "```", ""]
    return "\n".join(lines)


def api(module_name: str) -> str:
    """Return the reference page of a public module."""
    module = importlib.import_module(module_name)
    lines = [f"# {API[module_name]}", "", f"```{{eval-rst}}\n.. module:: {module_name}\n", "```", ""]
    summary = inspect.getdoc(module)
    lines += [summary.partition("\n")[0] if summary else "", ""]
    names = [name for name in module.__all__ if not name.startswith("__")]
    for name in sorted(names, key=lambda name: (_kind(getattr(module, name)), name.lower())):
        value, where = getattr(module, name), f"{module_name}.{name}"
        if module_name != TOP and getattr(importlib.import_module(TOP), name, None) is value:
            lines += [f"## {name}", "", f"See [`{TOP}.{name}`](top.md#{name.lower()}).", ""]
            continue
        if inspect.isclass(value):
            block = [
                f".. autoclass:: {where}",
                "   :members:",
                f"   :exclude-members: {HIDDEN}",
                "   :show-inheritance:",
            ]
        elif callable(value):
            block = [f".. autofunction:: {where}"]
        else:
            block = [f".. py:data:: {where}", f"   :type: {type(value).__name__}"]
        lines += [f"## {name}", "", "```{eval-rst}", *block, "```", ""]
    return "\n".join(lines)


def _kind(value: Any) -> int:
    return 0 if inspect.isclass(value) else 1 if callable(value) else 2

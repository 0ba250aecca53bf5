# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Write the model card of a converted or fine-tuned folder, from `model_card_template.md`.

The content of a card is read from the folder: from `config.json`, `preprocessor_config.json`, and `conversion.json` if
the folder was converted. Figures of the authors and figures of `segtransformers evaluate` have separate tables.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..escaping import markdown, markdown_code
from ..published import FAMILIES, published_rows
from ..published.originals import DATA_TERMS, ORIGINALS, Original, original_of
from ..version import __version__

TEMPLATE = Path(__file__).with_name("model_card_template.md")
RECORD = "conversion.json"
PIPELINE_TAG = "image-segmentation"


_FAMILIES = {  # by the model type of the backbone
    "seg_vit_adapter": "vit_adapter",
    "seg_vit_comer": "vit_comer",
    "seg_internimage": "internimage",
    "seg_segmenter_vit": "segmenter",
}
_TRUNK_FAMILIES = ("dinov2", "dinov3")  # plain ViTs, by a part of the trunk's name


def model_card(
    folder: str | Path,
    repo_id: str | None = None,
    name: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    measured: Sequence[Mapping[str, Any]] = (),
) -> ModelCard:
    """Return the card of a saved model.

    Args:
        folder: a folder that `save_pretrained` or a conversion wrote.
        repo_id: the repository for the folder, which the snippets of the card load.
        name: the name that the snippets load if there is no `repo_id`. None: the folder's name.
        license: of the weights, by the Hub's name for it. None: that of the authors for a converted published
            checkpoint; for other models the card says that no license was stated.
        base_model: repository of the model from which this one was made. None: the repository on the Hub from which a
            converted checkpoint was downloaded, if any.
        measured: contents of the JSON files that `segtransformers evaluate` wrote for this model.

    Raises:
        ValueError: if the folder holds no model of this package, or the results belong to another model.
    """
    folder = Path(folder)
    config, record = _read(folder / "config.json"), _read(folder / RECORD)
    backbone = config.get("backbone_config", config)
    architecture = (config.get("architectures") or ["model"])[0]
    family = _family(backbone)
    if not str(config.get("model_type")).startswith("seg_"):
        raise ValueError(
            f"{folder} holds no model of segtransformers: its config.json says {config.get('model_type')!r}"
        )
    row_family, row = _row(record)
    family = row_family or family
    for results in measured:
        _check_results(results, architecture, config)
    original = original_of(row_family, row) if row_family else ORIGINALS.get(family or "")
    license, stated = license or record.get("license"), original if row else None  # the authors' if no other
    license = license or (stated.license if stated else None)
    named = stated if stated is not None and stated.license_name and license == stated.license else None
    name = repo_id or name or folder.resolve().name
    is_backbone = "backbone_config" not in config
    figures = _results(row, original, measured, name, repo_id)
    data = ModelCardData(
        license=license,
        license_name=named.license_name if named else None,
        license_link=named.license_link if named else None,
        library_name="transformers",
        pipeline_tag=None if is_backbone else PIPELINE_TAG,
        base_model=base_model or _base_model(record),
        datasets=_hub_datasets(row),
        metrics=["mean_iou"] if figures else None,
        tags=["semantic-segmentation", "segtransformers", *([family.replace("_", "-")] if family else [])],
        eval_results=figures or None,
        model_name=name.rpartition("/")[2] if figures else None,
    )
    processor = _read(folder / "preprocessor_config.json")
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=_in_quotes(name),
        title=_text(name.rpartition("/")[2]),
        architecture=_for_code(architecture),
        is_backbone=is_backbone,
        config=_for_code(config),
        classes=[_text(str(one)) for one in _classes(config)],
        processor=_for_code(processor),
        record=_for_text(record),
        file=_for_code((record.get("source") or {}).get("file", "")),
        row=row,
        trunk_weights=_for_code(backbone.get("trunk_weights") or ""),
        row_data=DATA_TERMS.get(row["dataset"]) if row else None,
        original=original,
        license_stated=license and _text(named.shown_license if named else license),
        measured=[_measured_row(one) for one in measured],
        version=__version__,
    )


def write_model_card(folder: str | Path, **options: Any) -> ModelCard:
    """Write the card of a saved model to `README.md` in its folder. `options` are those of [`model_card`]."""
    card = model_card(folder, **options)
    card.save(Path(folder) / "README.md")
    return card


def has_generated_card(folder: str | Path) -> bool:
    """Return whether the folder's card is the one that the conversion wrote, without any edit."""
    path = Path(folder) / "README.md"
    return path.is_file() and (Path(folder) / RECORD).is_file() and path.read_text("utf-8") == str(model_card(folder))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        if path.name == "config.json":
            raise ValueError(f"{path.parent} holds no config.json: a folder that save_pretrained wrote is needed")
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def _for_code(value: Any) -> Any:
    """Return a value of a JSON file whose texts are safe in a code span of Markdown, without `<` outside of one."""
    if isinstance(value, Mapping):
        return {_for_code(key): _for_code(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_for_code(item) for item in value]
    return markdown_code(value).replace("<", "(").replace(">", ")") if isinstance(value, str) else value


def _for_text(value: Any) -> Any:
    """Return a value of a JSON file whose texts are safe in Markdown."""
    if isinstance(value, Mapping):
        return {key: _for_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_for_text(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    """Return a text for Markdown. Plain words, file names, versions and addresses stay as they are."""
    plain = re.fullmatch(r"[A-Za-z0-9][\w .,/()+-]*", text, re.ASCII) and "www." not in text
    return text if plain or re.fullmatch(r"https://[\w./+%-]+", text, re.ASCII) else markdown(text)


def _in_quotes(name: str) -> str:
    """Return a name for the snippets of the card, which a user copies: it must not end the string around it."""
    return re.sub(r"[^\w./@+ -]", "_", name)


def _family(backbone: Mapping[str, Any]) -> str | None:
    kind, trunk = str(backbone.get("model_type", "")), str(backbone.get("trunk", ""))
    if kind == "seg_vit_adapter":  # adapters of other repositories than czczup/ViT-Adapter
        if not backbone.get("use_injectors", True):
            return "dinov3"
        if backbone.get("token_stride") == 14:
            return "dinov2"
        if not backbone.get("use_prefix_positions", True):
            return "eva01"
        if trunk.startswith("one_peace"):
            return "one_peace"
    if kind == "seg_vit_simple_pyramid" and trunk.startswith("eva02"):
        return "eva02"
    if kind == "seg_plain_vit":
        return next((family for family in _TRUNK_FAMILIES if family in trunk), None)
    if kind == "seg_internimage" and backbone.get("core_operator") == "dcnv4":
        return "flash_internimage"
    return _FAMILIES.get(kind)


def _row(record: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the family and the published row whose file was converted, or None and {}.

    After further training a folder has no `conversion.json`, because the authors' figures hold for their weights only.
    """
    name = (record.get("source") or {}).get("row")
    for family in FAMILIES:
        if name in published_rows(family):
            return family, published_rows(family)[name]
    return None, {}


def _base_model(record: Mapping[str, Any]) -> str | None:
    url = (record.get("source") or {}).get("url") or ""
    parts = url.removeprefix("https://huggingface.co/").split("/")
    return "/".join(parts[:2]) if url.startswith("https://huggingface.co/") and "resolve" in parts else None


def _hub_datasets(row: Mapping[str, Any]) -> list[str] | None:
    hub_name = DATA_TERMS[row["dataset"]][1] if row else None
    return [hub_name] if hub_name else None


def _results(
    row: Mapping[str, Any],
    original: Original | None,
    measured: Sequence[Mapping[str, Any]],
    name: str,
    repo_id: str | None,
) -> list[EvalResult]:
    """Return the figures for the metadata. The name of each figure says who measured it."""
    results = []
    for key, protocol in (("miou", "single scale"), ("miou_ms", "multi-scale and flip")):
        if row and original is not None and row.get(key) is not None:
            figure = f"mean IoU in percent, {protocol}, reported by the authors"
            source = {"source_name": "reported by the authors", "source_url": original.repository}
            results.append(_eval_result(row["dataset"], "validation", figure, row[key], **source))
    for one in measured:
        figure = f"mean IoU in percent, {_protocol(one)}, measured with segtransformers"
        # the Hub's format joins figures of the same data into one entry with one source; a data set config of their own
        # separates these figures from the authors'
        source = {"dataset_config": "default"}
        if repo_id is not None:
            source |= {"source_name": "measured with segtransformers", "source_url": f"https://huggingface.co/{name}"}
        kind = one["data"]["kind"] or "other"
        value = round(100 * one["mean_iou"], 2)
        results.append(_eval_result(kind, one["data"]["split"], figure, value, **source))
    return results


def _eval_result(dataset: str, split: str | None, metric_name: str, value: float, **source: Any) -> EvalResult:
    title, hub_name, _ = DATA_TERMS.get(dataset, (dataset, None, None))
    return EvalResult(
        task_type=PIPELINE_TAG,
        task_name="Semantic segmentation",
        dataset_type=hub_name or dataset,
        dataset_name=title,
        dataset_split=split,
        metric_type="mean_iou",
        metric_name=metric_name,
        metric_value=value,
        verified=False,
        **source,
    )


def _check_results(results: Mapping[str, Any], architecture: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError if the results belong to another model."""
    try:
        model, _, _ = results["model"], results["mean_iou"] + 0.0, results["data"]["kind"]
    except (KeyError, TypeError) as error:
        raise ValueError("the results are not in the form that `segtransformers evaluate` writes") from error
    ours = {
        "class": architecture,
        "num_labels": len(config.get("id2label") or {}) or 2,
        "source_config": config.get("source_config"),
    }
    for field, value in ours.items():
        if model.get(field) != value:
            raise ValueError(f"the results belong to another model: its {field} is {model.get(field)!r}, not {value!r}")


def _measured_row(results: Mapping[str, Any]) -> dict[str, Any]:
    software = results.get("software") or {}
    texts = {
        "dataset": DATA_TERMS.get(results["data"]["kind"] or "", (results["data"]["kind"] or "own data",))[0],
        "split": results["data"]["split"],
        "images": results["images"],
        "protocol": _protocol(results),
        "miou": f"{100 * results['mean_iou']:.2f}",
        "software": ", ".join(f"{name} {version}" for name, version in software.items()),
    }
    return {name: _text(text) if isinstance(text, str) else text for name, text in texts.items()}


def _protocol(results: Mapping[str, Any]) -> str:
    protocol = results["protocol"]
    scales = protocol["scales"]
    words = "single scale" if scales is None else f"scales {', '.join(map(str, scales))}"
    flip = " and flip" if protocol["flip"] else ""
    own = f", windows of {protocol['window_size']}" if protocol["window_is_own"] else ""
    return words + flip + own


def _classes(config: Mapping[str, Any]) -> list[str]:
    names = config.get("id2label") or {}
    return [names[key] for key in sorted(names, key=int)]

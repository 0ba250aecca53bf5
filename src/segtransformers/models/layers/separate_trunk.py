# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Saved folders without the weights of a pre-trained trunk, which their config names instead.

A head or adapter that was trained on a frozen trunk is small, and the trunk may be one that nobody else may publish.
Such a folder holds the config and all tensors except those of the trunk. The backbone's config has the name of the
trunk's weights (`trunk_weights`) and some of their numbers (`trunk_samples`), by which another trunk is noticed.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from ...escaping import one_line, printable, short_repr

logger = logging.get_logger(__name__)

SAMPLES = 32  # tensors of a trunk that are sampled, one number of each
# arguments of `from_pretrained` that say where to find files on the Hub
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
_TRUNK = "trunk."
_HALF_PRECISION = (torch.float16, torch.bfloat16)


class SeparateTrunkMixin:
    """Mixin for `PreTrainedModel`s whose backbone may have a [`Trunk`]: saving and loading without the trunk."""

    config: PreTrainedConfig

    def separate_trunk(self, weights: str) -> None:
        """Leave the trunk's weights out of the folders that `save_pretrained` writes from now on.

        `from_pretrained` of such a folder loads the trunk by its name. A trunk that was changed by training is saved
        nevertheless, with a warning.

        Args:
            weights: the name of the weights that the trunk has now: pre-trained weights of timm such as
                `vit_base_patch16_dinov3.lvd1689m`, or a folder or Hub repository of a model of this package with the
                same trunk.

        Raises:
            ValueError: if the model has no plain ViT as trunk, or the name is empty.
        """
        configs = _trunk_configs(self)
        if not configs:
            raise ValueError(f"{type(self).__name__} has no plain ViT as trunk: it can only be saved whole")
        if not weights:
            raise ValueError("weights must name the weights of the trunk, so that the saved folder can be loaded")
        samples = trunk_samples(_of_trunk(self.state_dict()))
        for config in configs:
            config.trunk_weights, config.trunk_samples = str(weights), samples

    def unite_trunk(self) -> None:
        """Undo [`separate_trunk`]: the folders that `save_pretrained` writes hold the trunk's weights again."""
        for config in _trunk_configs(self):
            config.trunk_weights = config.trunk_samples = None

    def save_pretrained(
        self,
        save_directory,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        *args: Any,
        include_trunk: bool = False,
        **kwargs: Any,
    ):
        """Save as transformers does; after [`separate_trunk`] without the weights of the trunk.

        Args:
            include_trunk: save them nevertheless, so that the folder needs no other.
        """
        arguments = (is_main_process, state_dict, *args)
        configs = [config for config in _trunk_configs(self) if config.trunk_weights is not None]
        if not configs:
            return super().save_pretrained(save_directory, *arguments, **kwargs)  # type: ignore[misc]
        tensors = self.state_dict() if state_dict is None else state_dict
        trunk, config = _of_trunk(tensors), configs[0]
        difference = _difference(trunk, config.trunk_samples) if trunk else None
        if getattr(self, "hf_quantizer", None) is not None:  # which replaces the state dict
            difference = "they are quantized"
        if include_trunk or difference:
            if not include_trunk:
                logger.warning(
                    f"The trunk no longer has the weights {config.trunk_weights!r} ({difference}), so "
                    f"{save_directory} holds its weights, too."
                )
            with _without_name(configs):
                return super().save_pretrained(save_directory, *arguments, **kwargs)  # type: ignore[misc]
        rest = {name: tensor for name, tensor in tensors.items() if not is_of_trunk(name)}
        return super().save_pretrained(save_directory, is_main_process, rest, *args, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *model_args: Any, trunk_from: str | Path | None = None, **kwargs: Any
    ):
        """Load as transformers does, with the weights of the trunk from elsewhere if the folder lacks them.

        Args:
            trunk_from: for a folder without the weights of its trunk: the folder or Hub repository of a model of this
                package with this trunk, or pre-trained weights of timm. None takes those that the config names.

        Raises:
            ValueError: if the folder has its trunk and `trunk_from` is given, or if these weights do not fit or are not
                those that the rest was trained with.
            OSError: if these weights or those of the rest are not found or damaged.
        """
        name = pretrained_model_name_or_path
        weights = None if name is None else _named_weights(name, kwargs)
        if weights is None:
            if trunk_from is not None:
                raise ValueError(f"{printable(name, 200)} holds the weights of its trunk: leave trunk_from out")
            return super().from_pretrained(name, *model_args, **kwargs)  # type: ignore[misc]
        hub = {key: kwargs.pop(key) for key in _HUB_ARGUMENTS if key in kwargs}
        subfolder = kwargs.pop("subfolder", "")
        config = kwargs.pop("config", None)
        if not isinstance(config, PreTrainedConfig):
            config, kwargs = cls.config_class.from_pretrained(
                config or name, return_unused_kwargs=True, subfolder=subfolder, **hub, **kwargs
            )
        tensors = _tensors_in(name, subfolder, **hub)
        if not tensors:
            with torch.device("meta"):
                rest = [key for key in cls(config, *model_args).state_dict() if not is_of_trunk(key)]
            if rest:
                raise OSError(f"{printable(name, 200)} holds no weights: it lacks {SAFE_WEIGHTS_NAME}")
        hub.pop("revision", None)  # is of this repository, not of the trunk's
        prefix = "backbone." if hasattr(config, "backbone_config") else ""
        backbone_config = getattr(config, "backbone_config", config)
        trunk = _load_trunk(str(trunk_from or weights), backbone_config, str(name), **hub)
        tensors |= {f"{prefix}{_TRUNK}{key}": tensor for key, tensor in trunk.items()}
        return super().from_pretrained(  # type: ignore[misc]
            None, *model_args, config=config, state_dict=tensors, **kwargs
        )


def trunk_samples(tensors: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return one number of each of `SAMPLES` tensors of a trunk, by the tensors' names."""
    names = sorted(name for name, tensor in tensors.items() if _is_readable(tensor))
    chosen = names[:: max(len(names) // SAMPLES, 1)][:SAMPLES]
    return {name: _middle(tensors[name]).item() for name in chosen}


def _is_readable(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has numbers to compare: it is neither quantized nor offloaded."""
    return tensor.is_floating_point() and not tensor.is_meta and tensor.numel() > 0


def _middle(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().flatten()[tensor.numel() // 2]


def _difference(tensors: Mapping[str, torch.Tensor], samples: Mapping[str, float] | None) -> str | None:
    """Return a difference between a trunk and the samples of one, or None. Rounding to a narrower dtype is none."""
    for name, expected in (samples or {}).items():
        if name not in tensors:
            return f"it lacks {printable(name)}"
        if not _is_readable(tensors[name]):
            continue
        actual = _middle(tensors[name])
        if not _agrees(actual, torch.tensor(expected, dtype=torch.float64)):
            return f"{printable(name)} has {actual.item():.6g} where they have {expected:.6g}"
    return None


def _agrees(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    actual, expected = actual.cpu(), expected.to(actual.dtype)
    if torch.equal(actual, expected) or any(torch.equal(actual.to(dtype), expected) for dtype in _HALF_PRECISION):
        return True
    # one may have been rounded to float16 and the other to bfloat16
    return actual.dtype in _HALF_PRECISION and torch.allclose(actual, expected, rtol=2**-7, atol=1e-6)


def _trunk_configs(model: Any) -> list[Any]:
    """Return the configs that describe the trunk of a model: one, two if the backbone has a copy, or none."""
    backbone = getattr(model, "backbone", model)
    if not isinstance(getattr(backbone, "trunk", None), nn.Module):
        return []
    configs = [backbone.config, getattr(model.config, "backbone_config", backbone.config)]
    return configs[:1] if configs[0] is configs[1] else configs


def is_of_trunk(name: str) -> bool:
    """Return whether a tensor of a model belongs to its trunk."""
    return name.removeprefix("backbone.").startswith(_TRUNK)


def _of_trunk(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of the trunk by their names inside it."""
    return {
        name.removeprefix("backbone.").removeprefix(_TRUNK): tensor
        for name, tensor in tensors.items()
        if is_of_trunk(name)
    }


@contextlib.contextmanager
def _without_name(configs: list[Any]) -> Iterator[None]:
    """Take the name of the trunk's weights out of the configs while a folder that holds them is written."""
    names = [(config.trunk_weights, config.trunk_samples) for config in configs]
    try:
        for config in configs:
            config.trunk_weights = config.trunk_samples = None
        yield
    finally:
        for config, (weights, samples) in zip(configs, names, strict=True):
            config.trunk_weights, config.trunk_samples = weights, samples


def _named_weights(name: str | Path, kwargs: Mapping[str, Any]) -> str | None:
    """Return the name of the trunk's weights in the config of a saved folder, or None if the folder holds them."""
    config = kwargs.get("config")
    if isinstance(config, PreTrainedConfig):
        return getattr(getattr(config, "backbone_config", config), "trunk_weights", None)
    hub = {key: kwargs[key] for key in (*_HUB_ARGUMENTS, "subfolder") if key in kwargs}
    try:
        values, _ = PreTrainedConfig.get_config_dict(config or name, **hub)
    except OSError:  # transformers' own loading reports it
        return None
    backbone = values.get("backbone_config", values)
    return backbone.get("trunk_weights") if isinstance(backbone, Mapping) else None


def _tensors_in(name: str | Path, subfolder: str = "", **hub: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a saved folder or Hub repository, none if it has no weights.

    Their numbers are read from the files when used.

    Raises:
        OSError: if it is not found, or a file is missing or damaged.
    """
    folder = Path(name)

    def find(file: str) -> Path | None:
        if folder.is_dir():
            path = folder / subfolder / file
            return path if path.exists() else None
        try:
            return Path(hf_hub_download(folder.as_posix(), file, subfolder=subfolder or None, **hub))
        except (OSError, EntryNotFoundError) as error:
            # without a network, an index that is not cached is taken for one that does not exist
            if isinstance(error, LocalEntryNotFoundError):
                exists = file != SAFE_WEIGHTS_INDEX_NAME
            else:
                exists = not isinstance(error, EntryNotFoundError)
            if not exists:
                return None
            raise OSError(f"{printable(name, 200)} cannot be loaded from the Hub: {one_line(error)}") from error

    tensors: dict[str, torch.Tensor] = {}
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    files = [SAFE_WEIGHTS_NAME] if index is None else _files_of_index(index)
    for file in files:
        path = find(file)
        if path is None and index is None:
            return {}
        if path is None:
            raise OSError(f"{printable(name, 200)} lacks {printable(file)}, which its {SAFE_WEIGHTS_INDEX_NAME} names")
        try:
            with safe_open(path, framework="pt") as opened:
                tensors |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # not a mapping
        except SafetensorError as error:
            raise OSError(f"{printable(path, 200)} is damaged: {one_line(error)}") from None
    return tensors


def _files_of_index(path: Path) -> list[str]:
    try:
        return sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OSError(f"{printable(path, 200)} is damaged: {one_line(error)}") from None


def _load_trunk(source: str, config: Any, name: str, **hub: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a trunk by their names in [`Trunk`].

    Args:
        source: see `trunk_from` of `from_pretrained`.
        config: of the backbone.
        name: the folder that lacks them, for error messages.

    Raises:
        ValueError, OSError: as `from_pretrained`.
    """
    named = short_repr(config.trunk_weights, 200)
    where = f"{printable(name, 200)} holds no weights of its trunk, which are {named}"
    what_to_do = "pass trunk_from= the folder or repository of a model with this trunk, or weights of timm"
    is_folder = Path(source).is_dir()
    if is_folder or ("/" in source and not source.startswith("timm/")):
        if not is_folder and (source.startswith((".", "/", "~")) or source.count("/") > 1):
            raise OSError(f"{where}: the folder {printable(source, 200)} does not exist; {what_to_do}")
        try:
            tensors = _of_trunk(_tensors_in(source, **hub))
        except OSError as error:
            raise OSError(f"{where}: {one_line(error)}; {what_to_do}") from error
        if not tensors:
            raise ValueError(f"{where}: {printable(source, 200)} holds no weights of a trunk either; {what_to_do}")
    else:
        try:
            tensors = config.trunk_weights_of_timm(source.removeprefix("timm/"), hub.get("cache_dir"))
        except LookupError:
            named = short_repr(source, 200)
            raise OSError(f"{where}: {named} is neither a folder nor weights of timm; {what_to_do}") from None
        except (OSError, ValueError) as error:
            raise type(error)(f"{where}: {error}; {what_to_do}") from error
    expected = config.trunk_shapes()
    for key, shape in expected.items():
        if key not in tensors or tuple(tensors[key].shape) != shape:
            found = f"has {tuple(tensors[key].shape)}" if key in tensors else "lacks it"
            raise ValueError(
                f"{where}: its tensor {key} is {shape}, but {printable(source, 200)} {found}; {what_to_do}"
            )
    difference = _difference(tensors, config.trunk_samples)
    if difference:
        raise ValueError(f"{where}: {printable(source, 200)} holds other weights ({difference}); {what_to_do}")
    return {key: tensors[key] for key in expected}


__all__ = ["SeparateTrunkMixin", "is_of_trunk", "trunk_samples"]

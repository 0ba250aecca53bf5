# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Features of a frozen plain ViT, computed once and read from disk in every later epoch.

Each image is augmented a fixed number of times ("versions"), with all of the recipe's augmentation. The ViT runs once
on each version, and its feature maps are stored in half precision with the label map. Epoch e of the training uses
version e modulo their number. As long as the versions last, the samples are those of a training without the cache.
Later epochs repeat them, where a training without the cache draws new ones.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers.modeling_outputs import BackboneOutput

from ..cache import user_cache
from ..files import complete_file
from ..models.plain_vit import PlainViTBackbone
from ..models.segmentation.modeling_segmentation import BackboneForSemanticSegmentation
from ..terminal import progress_bar
from .samples import IndexedDataset, TrainingDataset, collate

FEATURES = "cached_features"  # key of a batch: `(B, maps, C, h, w)`
FORMAT = 1  # of the files; part of their key
FREE_SHARE = 0.9  # of the free disk space that a cache may take
BATCH = 8  # images at once through the ViT


@dataclass(frozen=True)
class CacheSize:
    """Size of a cache.

    Attributes:
        samples: number of stored samples.
        feature_shape: `(maps, C, h, w)` of a sample, in float16.
        label_shape: `(h, w)`, in uint8 or int16.
        label_bytes: bytes of a label.
    """

    samples: int
    feature_shape: tuple[int, ...]
    label_shape: tuple[int, ...]
    label_bytes: int = 1

    @property
    def bytes(self) -> int:
        one = 2 * int(np.prod(self.feature_shape)) + self.label_bytes * int(np.prod(self.label_shape))
        return self.samples * one


class CachedFeaturesDataset(TrainingDataset):
    """Samples with cached features. `pixel_values` has the size of the crops and no content.

    Args:
        source: the samples without a cache, whose order, sampling and repetitions are kept.
        features, labels: of all versions of all samples, version by version.
        versions: their number.
    """

    def __init__(self, source: TrainingDataset, features: np.ndarray, labels: np.ndarray, versions: int, channels: int):
        super().__init__(source.data, source.augment, source.seed, source.repeat, source.sampling)
        self.features, self.labels, self.versions, self.channels = features, labels, versions, channels

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} is outside a dataset of {len(self)}")
        per_pass = len(self) // self.repeat
        version = (int(self._epoch) * self.repeat + index // per_pass) % self.versions
        stored = version * len(self.data) + self._sample_of(index)
        labels = torch.from_numpy(self.labels[stored].astype(np.int64))
        return {
            "pixel_values": torch.zeros(1).expand(self.channels, *labels.shape[-2:]),
            "labels": labels,
            FEATURES: torch.from_numpy(np.array(self.features[stored])),
        }


def cache_features(
    network: Any,
    data: TrainingDataset,
    versions: int,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    workers: int = 0,
    announce: Callable[[str], object] = lambda text: None,
) -> CachedFeaturesDataset:
    """Compute the features of all versions, or find them on disk, and return the data to train on.

    The model is changed so that its `forward` takes these features in training mode: see [`use_cached_features`].

    Args:
        network: a model with a frozen plain ViT and a head on its feature maps.
        data: the training data.
        versions: number of augmented versions of each image.
        folder: for the files; None is the user's cache.
        workers: processes that read and augment images.
        announce: called with lines for the user: the size before, and which augmentations remain.

    Raises:
        ValueError: if the model has another kind of backbone or one that is trained, if the disk has too little space,
            or if features are too large for half precision.
    """
    _check_model(network)
    parent = user_cache("features") if folder is None else Path(folder)
    sample = data[0]
    size = _size(network, data, sample, versions, device)
    key = cache_key(network, data, versions)
    target = parent / key
    described = f"{size.samples} versions ({len(data.data)} images x {versions}), {_readable(size.bytes)}"
    channels = sample["pixel_values"].shape[0]
    files = (target / "features.npy", target / "labels.npy")
    found = _read(files, size)
    if found is None:
        _check_disk(parent, size)
        announce(f"features of the frozen ViT: {described}, into {target}")
        _write(network, data, versions, size, device, files, workers)
        found = _read(files, size)
        assert found is not None, "just written"
    else:
        announce(f"features of the frozen ViT: {described}, found in {target}")
    announce(
        f"all augmentation is in these {versions} versions; after {versions} passes over the images they repeat, "
        "without new crops, scales, flips or colours"
    )
    use_cached_features(network)
    return CachedFeaturesDataset(data, *found, versions=versions, channels=channels)


def use_cached_features(network: Any) -> Callable[[], None]:
    """Let a model take features from its keyword `cached_features` in training mode, in place of running its backbone.

    In evaluation mode, and for calls without this keyword, the backbone runs as before. Names of parameters and saved
    files do not change.

    Returns:
        a function that undoes it.
    """
    backbone = network.backbone
    original = backbone.forward
    current: list[torch.Tensor] = []

    def take(module: Any, arguments: tuple, keywords: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        current[:] = [features] if (features := keywords.pop(FEATURES, None)) is not None else []
        return arguments, keywords

    @functools.wraps(original)
    def forward(*arguments: Any, **keywords: Any) -> BackboneOutput:
        if not network.training or not current:
            return original(*arguments, **keywords)
        feature_maps: Any = current[0].float().unbind(1)
        return BackboneOutput(feature_maps=feature_maps)

    hook = network.register_forward_pre_hook(take, with_kwargs=True)
    backbone.forward = forward

    def undo() -> None:
        hook.remove()
        del backbone.forward

    return undo


def cache_key(network: Any, data: TrainingDataset, versions: int) -> str:
    """Return a name that depends on the ViT's weights, the data, the augmentation with its crops, and the seed."""
    digest = hashlib.blake2b()
    backbone = network.backbone
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    config = {key: value for key, value in backbone.config.to_dict().items() if not key.startswith("_")}
    augmentation = {name: repr(value) for name, value in sorted(vars(data.augment).items())}
    if augmentation.get("photometric_distortion", "None") != "None":
        augmentation["photometric_distortion"] = repr(sorted(vars(data.augment.photometric_distortion).items()))  # type: ignore[attr-defined]
    dtype = str(getattr(backbone.trunk, "frozen_dtype", None))
    facts = [FORMAT, versions, data.seed, type(data.augment).__name__, augmentation, dtype]
    for index in range(len(data.data)):  # the content, because not all data are files
        sample = data.data[index]
        for values in (getattr(sample.image, "values", sample.image), sample.labels):
            array = np.ascontiguousarray(values)
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
    digest.update(json.dumps([config, facts], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:32]


def _check_model(network: Any) -> None:
    backbone = getattr(network, "backbone", None)
    if not isinstance(network, BackboneForSemanticSegmentation) or not isinstance(backbone, PlainViTBackbone):
        raise ValueError(
            "features can be cached only of a plain ViT whose feature maps go to the head unchanged, as of the recipes "
            "dinov2-linear and dinov2-mask-transformer; adapters also read the image"
        )
    if any(parameter.requires_grad for parameter in backbone.parameters()):
        raise ValueError("features can be cached only of a frozen ViT: freeze it (--freeze-trunk), without LoRA")
    if backbone.config.drop_path_rate:
        raise ValueError("features of a ViT with drop path differ in every step: set drop_path_rate to 0 in the recipe")


def _size(network: Any, data: TrainingDataset, sample: Any, versions: int, device: Any) -> CacheSize:
    features = _features(network, sample["pixel_values"][None], device)
    labels = tuple(sample["labels"].shape)
    wide = len(network.config.id2label) > 255
    return CacheSize(versions * len(data.data), tuple(features.shape[1:]), labels, 2 if wide else 1)


@torch.inference_mode()
def _features(network: Any, pixel_values: torch.Tensor, device: Any) -> torch.Tensor:
    """Return feature maps `(B, maps, C, h, w)` in half precision, on the CPU."""
    network.to(device).eval()
    try:
        maps = network.run_backbone(pixel_values.to(device)).feature_maps
        features = torch.stack([feature_map.half() for feature_map in maps], dim=1).cpu()
    finally:
        network.train()
    if not torch.isfinite(features).all():
        raise ValueError("the features of this ViT are too large for half precision: leave out --cache-features")
    return features


def _check_disk(parent: Path, size: CacheSize) -> None:
    existing = next(path for path in (parent, *parent.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if size.bytes > FREE_SHARE * free:
        raise ValueError(
            f"the cached features would take {_readable(size.bytes)}, but the disk of {parent} has {_readable(free)} "
            "free: cache fewer versions or smaller crops, or set SEGTRANSFORMERS_CACHE to a folder on a larger disk"
        )


def _write(
    network: Any,
    data: TrainingDataset,
    versions: int,
    size: CacheSize,
    device: Any,
    files: tuple[Path, Path],
    workers: int,
) -> None:
    """Compute and store all versions. Both files appear only when they are complete."""
    source = TrainingDataset(data.data, data.augment, data.seed)
    with complete_file(files[0]) as features_file, complete_file(files[1]) as labels_file:
        shape = (size.samples, *size.feature_shape)
        features = np.lib.format.open_memmap(features_file, "w+", np.float16, shape)
        kind = np.uint8 if size.label_bytes == 1 else np.int16
        labels = np.lib.format.open_memmap(labels_file, "w+", kind, (size.samples, *size.label_shape))
        start = 0
        with progress_bar(size.samples, "version", "features") as bar:
            for version in range(versions):
                source.set_epoch(version)
                loader = DataLoader(IndexedDataset(source), BATCH, num_workers=workers, collate_fn=collate)
                for batch in loader:
                    stop = start + len(batch["labels"])
                    features[start:stop] = _features(network, batch["pixel_values"], device).numpy()
                    labels[start:stop] = batch["labels"].numpy().astype(kind)
                    bar.update(stop - start)
                    start = stop
        features.flush()
        labels.flush()
        del features, labels


def _read(files: tuple[Path, Path], size: CacheSize) -> tuple[np.ndarray, np.ndarray] | None:
    """Open the files without reading them, or return None if one is missing or has another shape."""
    try:
        features, labels = (np.load(file, mmap_mode="r", allow_pickle=False) for file in files)
    except (OSError, ValueError, EOFError):
        return None
    if features.shape != (size.samples, *size.feature_shape) or labels.shape != (size.samples, *size.label_shape):
        return None
    return features, labels


def _readable(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


__all__ = ["FEATURES", "CachedFeaturesDataset", "cache_features", "cache_key", "use_cached_features"]

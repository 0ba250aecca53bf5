# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Exported files in the place of models, for prediction, evaluation and the demo."""

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor
from transformers.modeling_outputs import SemanticSegmenterOutput

from ..image_processing import SegmentationImageProcessor
from ..models.layers.sliding_windows import SlidingWindow, slide
from .description import read_description
from .errors import ExportError
from .options import files_of
from .running import runner


class ExportedModel:
    """An exported file with the call interface of a model, on a CPU.

    A file of fixed size runs larger images in windows of its size. Smaller images, and those whose sides are no
    multiples of 32 for a file of dynamic size, are padded with zeros at the right and the bottom.

    Args:
        path: of the file.

    Raises:
        ImportError: if its runtime is not installed.
        ExportError: if it was not written by this package, or holds no logits of normalised images.
    """

    training = False
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, path: Path):
        try:
            self.description = read_description(path)
            values = dict(self.description["model_config"])
            self.config: Any = AutoConfig.for_model(values.pop("model_type"), **values)
        except ImportError:
            raise
        except Exception as error:  # damaged files raise errors of many kinds
            raise ExportError(f"{path} is no file of `segtransformers export`: {error}") from error
        if self.description["takes_pixels"] or self.description["output"] != "logits":
            raise ExportError(
                f"{path} takes pixels or writes label maps: export it without --takes-pixels and with --result logits"
            )
        self.path, self.run = path, runner(path)
        self.size = self.description["height"], self.description["width"]
        if None not in self.size and hasattr(self.config, "sliding_window"):
            if list(self.config.window_size or []) != list(self.size):
                self.config.window_size = list(self.size)
                self.config.window_stride = [max(side * 2 // 3, 1) for side in self.size]
            self.config.inference_mode = "slide"

    def processor(self) -> Any:
        """Return the model's image processor."""
        values = dict(self.description["processor"])
        if values.get("image_processor_type") == SegmentationImageProcessor.__name__:
            return SegmentationImageProcessor.from_dict(values)
        import transformers

        kind: Any = getattr(transformers, str(values.get("image_processor_type")), AutoImageProcessor)
        return kind.from_dict(values)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return a digest of the file as a tensor, which identifies the model."""
        digest = hashlib.sha256()
        for part in files_of(self.path):
            digest.update(part.read_bytes())
        return {"file": torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)}

    def __call__(
        self, pixel_values: torch.Tensor, sliding_window: SlidingWindow | bool | None = None
    ) -> SemanticSegmenterOutput:
        """Map normalised images `(B, channels, H, W)` to `logits` `(B, num_labels, H, W)`.

        Raises:
            ValueError: if the images have another number of channels, or are larger than a file of fixed size and are
                not run in windows.
        """
        window = sliding_window
        if window is None and hasattr(self.config, "sliding_window"):
            window = self.config.sliding_window()
        if isinstance(window, SlidingWindow) and not window.covers(pixel_values.shape[2:]):
            logits = slide(self._logits, pixel_values, window)
        else:
            logits = self._logits(pixel_values)
        return SemanticSegmenterOutput(logits=logits)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        channels, height, width = images.shape[1:]
        if channels != len(self.description["mean"]):  # a compiled program would read beyond the image
            raise ValueError(
                f"{self.path.name} takes images of {len(self.description['mean'])} channels, got {channels}"
            )
        multiple = self.description["multiple"]
        target = [
            max(math.ceil(side / multiple), 2) * multiple if fixed is None else fixed
            for side, fixed in zip((height, width), self.size, strict=True)
        ]
        if height > target[0] or width > target[1]:
            raise ValueError(
                f"{self.path.name} takes images of {target[0]}x{target[1]} pixels, got {height}x{width}: use windows "
                "of that size, or export the model with --dynamic-size"
            )
        padded = F.pad(images, (0, target[1] - width, 0, target[0] - height)).float().numpy()
        parts = [padded] if self.description["batch"] is None else [padded[i : i + 1] for i in range(len(padded))]
        outputs = torch.cat([torch.from_numpy(self.run(part)) for part in parts])
        return outputs[:, :, :height, :width]


__all__ = ["ExportedModel"]

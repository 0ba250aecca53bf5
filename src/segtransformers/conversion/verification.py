# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Check a folder that was written: compare every tensor with the checkpoint, and the outputs after a reload."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.backbone_utils import BackboneMixin

from ..models.layers.separate_trunk import is_of_trunk
from .mapping import ConversionError, listed
from .report import ConversionReport

CHECK_SIZE = (96, 128)  # height and width of the image for the forward pass, in pixels
# the order of additions may differ after a reload of the same float32 weights
EXACT_TOLERANCE = 1e-5


@dataclass
class Verification:
    """Comparison of the outputs of the written folder with those of the converted model in memory.

    Attributes:
        relative_error: L2 distance of the outputs divided by their L2 norm.
        same_class: fraction of the pixels with the same class, from 0 to 1; None for a backbone.
    """

    relative_error: float
    same_class: float | None

    def describe(self) -> str:
        agreement = "" if self.same_class is None else f", same class in {100 * self.same_class:.2f} % of the pixels"
        return f"relative error {self.relative_error:.1e} after a reload in float32{agreement}"

    def to_dict(self) -> dict[str, float | None]:
        return asdict(self)


@torch.no_grad()
def outputs_of(model: PreTrainedModel) -> list[torch.Tensor]:
    """Return the logits, or the feature maps of a backbone, for one synthetic image. The model must be in float32."""
    height, width = CHECK_SIZE
    waves = torch.linspace(0, 9, height)[:, None].sin() * torch.linspace(0, 13, width)[None].cos()
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    outputs = model((2 * waves + noise)[None])
    return list(outputs.feature_maps) if isinstance(model, BackboneMixin) else [outputs.logits]


def verify_outputs(
    folder: Path, model_class: type[PreTrainedModel], expected: list[torch.Tensor], not_finite: Sequence[str] = ()
) -> Verification:
    """Load the folder in float32 and compare its outputs with those of the model that was written.

    Args:
        not_finite: names of the checkpoint's tensors with NaN or infinity, for the error.

    Raises:
        ConversionError: if an output is not finite.
    """
    reloaded = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    actual = outputs_of(reloaded)
    if not all(output.isfinite().all() for output in actual):
        reason = f"as the checkpoint has in {listed(not_finite)}" if not_finite else "choose another --dtype"
        raise ConversionError(f"the written model outputs infinity or NaN: {reason}")
    distance = sum((one - other).double().square().sum() for one, other in zip(actual, expected, strict=True))
    norm = sum(other.double().square().sum() for other in expected)
    same = None
    if not isinstance(reloaded, BackboneMixin):
        same = (actual[0].argmax(1) == expected[0].argmax(1)).double().mean().item()
    return Verification(float(torch.as_tensor(distance).sqrt() / torch.as_tensor(norm).sqrt()), same)


def verify_tensors(
    folder: Path,
    model: PreTrainedModel,
    state_dict: Mapping[str, torch.Tensor],
    report: ConversionReport,
    with_trunk: bool = True,
    after_tensor: Callable[[], None] = lambda: None,
) -> int:
    """Compare every tensor in the folder with the model's, and with the checkpoint's if it was only renamed.

    Args:
        folder: the folder with the written `.safetensors` files.
        model: the model that was written.
        state_dict: the checkpoint's tensors under their original names.
        report: the use of the checkpoint's tensors.
        with_trunk: False if the folder was written without the weights of the trunk.
        after_tensor: function that is called after each comparison.

    Returns:
        the number of tensors.

    Raises:
        ConversionError: naming a tensor that differs, is missing, or overflowed in its new dtype.
    """
    expected = {name: tensor for name, tensor in model.state_dict().items() if with_trunk or not is_of_trunk(name)}
    originals = {new[0]: old for old, new in report.used.items() if old not in report.changed and old in state_dict}
    seen: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # not a mapping
                saved = opened.get_tensor(name)
                seen.add(name)
                sources = [expected[name]]
                if name in originals:
                    sources.append(state_dict[originals[name]])
                _compare(name, saved, sources)
                after_tensor()
    missing = sorted(set(expected) - seen)
    if missing:
        raise ConversionError(f"{folder} lacks the tensor {missing[0]}")
    return len(seen)


def _compare(name: str, saved: torch.Tensor, sources: list[torch.Tensor]) -> None:
    for source in sources:
        if not torch.equal(saved.nan_to_num(), source.to(saved.dtype).nan_to_num()):
            raise ConversionError(f"the written tensor {name} differs from the converted one")
        if saved.isinf().any() and not source.isinf().any():
            raise ConversionError(f"{name} overflows in {saved.dtype}: choose --dtype bf16, or leave --dtype out")

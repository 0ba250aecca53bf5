# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Temperature scaling: the temperature at which the probabilities of a model fit the labels of a data set.

Source: Guo et al., "On Calibration of Modern Neural Networks" (https://arxiv.org/abs/1706.04599).
"""

import base64
import json
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from ..files import complete_file
from ..image_processing import Decision
from ..inference import SegmentedBand

BINS = 15  # of equal width between confidence 0 and 1, as in the paper
LEAST, MOST, STEPS = 0.01, 100.0, 96  # the temperatures that are tried, 10 % apart
SAMPLED_VALUES = 1 << 18  # probabilities of an image that every temperature is tried on
SAMPLED_PIXELS = 256  # at least


class Calibration:
    """Sums over pixels from which the best temperature and the calibration errors are computed.

    Every temperature is tried on a random sample of the pixels of each image, the same in each run. Sums of several
    images and processes can be added, so that nothing else is kept.

    Args:
        decision: the rule of the model, with its temperature so far.
    """

    def __init__(self, decision: Decision):
        self.decision = decision
        tried = np.geomspace(LEAST, MOST, STEPS + 1)
        self.temperatures = [decision.temperature, *(float(f"{value:.4g}") for value in tried)]
        # for each temperature: the sum of the negative log-likelihoods; then pixels, confidences and hits of each bin
        self.sums = torch.zeros((len(self.temperatures), 1 + 3 * BINS), dtype=torch.float64)

    def add_image(self, bands: Iterable[SegmentedBand], references: torch.Tensor, ignore_index: int) -> torch.Tensor:
        """Add an image, and return its label map.

        Args:
            bands: of all rows of the image.
            references: label map `(height, width)`, or the masks of a multi-label model, `(num_labels, height, width)`.
                Each pixel of each mask counts then.
            ignore_index: the label of pixels that do not count.

        Returns:
            the labels of the bands, joined, on their device.
        """
        found, sampled = [], None
        for band in bands:
            found.append(band.labels)
            if sampled is None:
                count = max(SAMPLED_VALUES // len(band.uncalibrated), SAMPLED_PIXELS)
                sampled = _positions(references.shape[-2] * references.shape[-1], count)
            width = band.labels.shape[-1]
            start, stop = (int(torch.searchsorted(sampled, row * width)) for row in (band.rows.start, band.rows.stop))
            own = (sampled[start:stop] - band.rows.start * width).to(band.labels.device)
            labels = references[..., band.rows, :].to(band.labels.device).flatten(-2)[..., own].long()
            predicted = band.labels.flatten(-2)[..., own].long()
            probabilities = band.uncalibrated.flatten(1)[:, own]
            absences = None if band.absences is None else band.absences.flatten(1)[:, own]
            if self.decision.multi_label:  # each mask is a binary label map
                probabilities, predicted, labels = probabilities.reshape(1, -1), predicted.flatten(), labels.flatten()
                absences = None if absences is None else absences.reshape(1, -1)
            valid = labels != ignore_index
            absences = None if absences is None else absences[:, valid]
            self._add(probabilities[:, valid], absences, predicted[valid], labels[valid])
        return torch.cat(found, dim=-2)

    def _add(
        self,
        probabilities: torch.Tensor,
        absences: torch.Tensor | None,
        predicted: torch.Tensor,
        labels: torch.Tensor,
    ) -> None:
        """Add pixels: probabilities and absences at temperature 1 `(num_labels, N)`, classes and labels `(N,)`."""
        decision = replace(self.decision, multi_label=False)
        hits = (predicted == labels).double()
        plain = decision.confidence(predicted, probabilities)
        logarithms = decision.log_outcomes(probabilities, absences)
        if decision.threshold is not None:  # the object is outcome 0
            predicted, labels = 1 - predicted, 1 - labels
        own, true = (logarithms.gather(0, outcome[None])[0] for outcome in (predicted, labels))
        for sums, temperature in zip(self.sums, self.temperatures, strict=True):
            total = (logarithms / temperature).logsumexp(0)
            confidence = (plain if temperature == 1 else (own / temperature - total).exp()).double()
            sums[0] += (total - true / temperature).sum(dtype=torch.float64).cpu()
            bins = (confidence * BINS).long().clamp(0, BINS - 1)
            for index, weights in enumerate((torch.ones_like(hits), confidence, hits)):
                part = torch.bincount(bins, weights, minlength=BINS).cpu()
                sums[1 + index * BINS : 1 + (index + 1) * BINS] += part

    def all_reduce(self) -> None:
        """Replace the sums of each process by those over all processes of `torch.distributed`, if it is in use."""
        if distributed.is_available() and distributed.is_initialized():
            sums = self.sums.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
            distributed.all_reduce(sums)
            self.sums = sums.cpu()

    def packed(self) -> str:
        """Return the sums as text, for a resume log."""
        return base64.b64encode(zlib.compress(self.sums.numpy().tobytes())).decode()

    def add_packed(self, text: str) -> None:
        """Add sums that [`packed`] returned.

        Raises:
            ValueError: if the text is damaged.
        """
        size = self.sums.numel() * self.sums.element_size()
        try:
            values = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size)
            self.sums += torch.from_numpy(np.frombuffer(values, np.float64).reshape(self.sums.shape).copy())
        except (ValueError, zlib.error):
            raise ValueError("the sums of a calibration are damaged") from None

    def results(self) -> dict[str, Any]:
        """Return the best temperature, and the errors before and after.

        The negative log-likelihood has one minimum, because it is convex in the inverse of the temperature.

        Returns:
            `temperature`, with the lowest negative log-likelihood; `ece_before`, `ece_after`: the expected calibration
            error, from 0 to 1, at the temperature so far and at the best one; `nll_before`, `nll_after`: the mean
            negative log-likelihood; `temperature_before`; `pixels`: the number of sampled pixels. If the minimum is not
            between `LEAST` and `MOST`, `temperature` and the errors after are None, and `reason` says why.

        Raises:
            ValueError: if no pixel has a label.
        """
        pixels = self.sums[0, 1 : 1 + BINS].sum().item()
        if pixels == 0:
            raise ValueError("the temperature cannot be measured: no pixel of the data has a label")
        losses = self.sums[:, 0] / pixels
        _, confidences, hits = self.sums[:, 1:].unflatten(1, (3, BINS)).unbind(1)
        errors = (hits - confidences).abs().sum(1) / pixels
        best = 1 + int(losses[1:].argmin())
        reason = None
        if best == 1:
            right = 100 * hits[0].sum().item() / pixels
            reason = (
                f"the best temperature is below {LEAST}, because {right:.2f} % of the sampled pixels are predicted "
                "correctly: measure it on harder images"
            )
        elif best == len(self.temperatures) - 1:
            reason = (
                f"the best temperature is above {MOST:g}, because the probabilities say nothing about these labels: "
                "check the classes and the label map"
            )
        return {
            "temperature": self.temperatures[best] if reason is None else None,
            "ece_before": errors[0].item(),
            "ece_after": errors[best].item() if reason is None else None,
            "nll_before": losses[0].item(),
            "nll_after": losses[best].item() if reason is None else None,
            "temperature_before": self.temperatures[0],
            "pixels": int(pixels),
            **({} if reason is None else {"reason": reason}),
        }


def save_temperature(folder: str | Path, temperature: float) -> None:
    """Write a temperature into the config of the model in a folder.

    Raises:
        OSError: if the config cannot be read or written.
        ValueError: if it is no JSON.
    """
    file = Path(folder) / "config.json"
    fields = json.loads(file.read_text(encoding="utf-8"))
    fields["calibration_temperature"] = temperature
    with complete_file(file) as target:
        target.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _positions(pixels: int, count: int) -> torch.Tensor:
    """Return at most `count` different positions below `pixels`, in order, the same in each call."""
    if pixels <= count:
        return torch.arange(pixels)
    return torch.randint(pixels, (count,), generator=torch.Generator().manual_seed(0)).unique()


__all__ = ["Calibration", "save_temperature"]

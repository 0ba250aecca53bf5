# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Label maps straight from the logits at the head's resolution, by a compiled operator.

The plain way resizes the logits of all classes to every window, adds them up, resizes the means to the image and takes
the largest. For a photo of 512x683 pixels with 150 classes that took 0.55 s beside the 1.3 s of ViT-Adapter-T + UperNet
on two threads. The operator does all of it while it compares, so nothing of the size of classes times pixels is in
memory.
"""

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import torch
from transformers import PreTrainedModel

from ..image_processing import decision_of
from ..models.layers.sliding_windows import SlidingWindow, windows_of_each_call
from ..models.segmentation.modeling_segmentation import BackboneForSemanticSegmentation
from ..models.upernet.upsampled_convolution import is_called_plainly
from ..operators import dispatcher
from .views import View

Forward = Callable[[torch.Tensor], torch.Tensor]


def labels_of_small_logits(
    model: PreTrainedModel, view: View, sizes: Sequence[tuple[int, int]], window: SlidingWindow | None
) -> list[torch.Tensor] | None:
    """Predict the label maps of the images of one view, or return None where the plain way is needed.

    The operator serves optimized models with a class for each pixel, and windows that weight all their pixels alike.
    The labels are those of the plain way, except where two classes differ by rounding only.

    Args:
        model, view, window: as for [`segment_views`].
        sizes: (height, width) of each image.

    Returns:
        int64 `(height, width)` for each image.
    """
    input_size = (view.pixel_values.shape[2], view.pixel_values.shape[3])
    window = SlidingWindow(input_size, input_size) if window is None else window.fitted(input_size)
    is_whole = any(side < least for side, least in zip(input_size, window.size, strict=True))  # the model decides
    if is_whole or view.flipped:
        return None
    dense = _operators(model, window)
    if dense is None:
        return None
    pixel_values = view.pixel_values.to(model.device, model.dtype)

    def forward(part: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=part, sliding_window=False, resize_logits=False).logits.movedim(1, 3).contiguous()

    bands = _bands(forward, pixel_values, window)
    return _label_maps(dense, bands, window.size, (view.size[0], view.size[1]), sizes)


def _operators(model: PreTrainedModel, window: SlidingWindow) -> ModuleType | None:
    """Return the compiled operators if they can label the windows of a model."""
    if not (isinstance(model, BackboneForSemanticSegmentation) and model.is_optimized):
        return None
    if not (is_called_plainly(model) and is_called_plainly(model.resize_logits)):  # a hook expects resized logits
        return None
    decision = decision_of(model.config)
    if decision.threshold is not None or decision.are_query_sums or window.blend != "mean" or window.margin:
        return None
    if model.resize_logits.align_corners or not model._is_enlarged_by_resize(torch.Size(window.size)):
        return None
    return dispatcher.dense_operators(torch.empty(0, device=model.device, dtype=model.dtype))


Windows = list[tuple[tuple[int, int], torch.Tensor]]  # (row, column) and logits `(B, h, w, classes)` of each window


def _bands(forward: Forward, pixel_values: torch.Tensor, window: SlidingWindow) -> Iterator[tuple[int, Windows]]:
    """Yield new windows, and the number of rows from the top that no later window covers."""
    calls = windows_of_each_call(tuple(pixel_values.shape[2:]), window)
    for call, following in zip(calls, [*calls[1:], None], strict=True):
        logits = forward(torch.cat([pixel_values[part] for part in call])).unflatten(0, (len(call), -1))
        finished = pixel_values.shape[2] if following is None else following[0][1].start
        origins = [(rows.start, columns.start) for _, rows, columns in call]
        yield finished, list(zip(origins, logits, strict=True))


def _label_maps(
    dense: ModuleType,
    bands: Iterator[tuple[int, Windows]],
    window: tuple[int, int],
    view: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
) -> list[torch.Tensor]:
    """Label the images of a view while its windows come.

    Args:
        window, view: (height, width) in pixels.
        sizes: (height, width) of each image.
    """
    labels = [torch.empty(tuple(size), dtype=torch.long) for size in sizes]
    held: Windows = []
    done = [0] * len(sizes)  # rows of each image
    for finished, windows in bands:
        held += [(origin, logits) for origin, logits in windows if origin[0] < view[0] and origin[1] < view[1]]
        for index, own in enumerate(labels):
            height, width = own.shape
            # a row of the image needs the rows of the view around its center, and rounding may add one
            end = height if finished >= view[0] else int((finished - 2) * height / view[0] - 0.5)
            if end > done[index]:
                logits = torch.stack([one[index] for _, one in held])
                origins, rows = [origin for origin, _ in held], (done[index], end)
                own[done[index] : end] = dense.label_windows(logits, origins, window, rows, view, (height, width))
                done[index] = end
        needed = min((end - 0.5) * view[0] / len(own) - 2 for end, own in zip(done, labels, strict=True))
        held = [(origin, logits) for origin, logits in held if origin[0] + window[0] > needed]
    return labels


__all__ = ["labels_of_small_logits"]

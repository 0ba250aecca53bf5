# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Loss of Mask2Former (https://arxiv.org/abs/2112.01527): queries are matched to masks and compared at random points.

It follows `mmseg_custom/models/decode_heads/mask2former_head.py` of czczup/ViT-Adapter. Mask logits are products of
mask embeddings and mask features. They are computed with a gradient for matched queries only, so that a training step
stores as many masks as there are labels instead of the masks of all queries in all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import distributed
from torch.nn import functional as F
from transformers.utils.generic import maybe_autocast

from .configuration_seg_mask2former import SegMask2FormerConfig


@dataclass
class Mask2FormerLosses:
    """Weighted losses of each decoder layer's prediction, `(decoder_layers,)` each, float32 or wider."""

    classification: torch.Tensor
    mask: torch.Tensor
    dice: torch.Tensor

    def total(self) -> torch.Tensor:
        """Return the sum of all losses, a scalar."""
        return (self.classification + self.mask + self.dice).sum()


def semantic_targets(
    labels: torch.Tensor, num_labels: int, ignore_index: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Make one mask for each class in a label map. Ignored pixels are background of every mask.

    Args:
        labels: `(B, H, W)` integers in `[0, num_labels)`, or `ignore_index`.

    Returns:
        for each image masks `(n, H, W)`, bool, and their classes `(n,)`, ascending.

    Raises:
        ValueError: if a label is out of range.
    """
    mask_labels, class_labels = [], []
    for image in labels.long():
        classes = image.unique()
        classes = classes[classes != ignore_index]
        _check_classes(classes, num_labels)
        mask_labels.append(image == classes[:, None, None])
        class_labels.append(classes)
    return mask_labels, class_labels


def check_targets(
    mask_labels: Sequence[torch.Tensor], class_labels: Sequence[torch.Tensor], pixel_values: torch.Tensor, num_labels
) -> None:
    """Refuse masks and classes that do not fit the images, each other or the model.

    Raises:
        ValueError: with the value found and the one expected.
    """
    batch, _, height, width = pixel_values.shape
    if len(mask_labels) != batch or len(class_labels) != batch:
        raise ValueError(
            f"mask_labels and class_labels need one tensor for each of the {batch} images, got {len(mask_labels)} and "
            f"{len(class_labels)}"
        )
    for masks, classes in zip(mask_labels, class_labels, strict=True):
        if not isinstance(masks, torch.Tensor) or not isinstance(classes, torch.Tensor):
            raise ValueError(
                f"mask_labels and class_labels must hold tensors, got {type(masks).__name__} and "
                f"{type(classes).__name__}"
            )
        if masks.dim() != 3 or tuple(masks.shape[1:]) != (height, width):
            raise ValueError(
                f"mask_labels must be (masks, height, width) = (n, {height}, {width}) like pixel_values, got "
                f"{tuple(masks.shape)}"
            )
        if tuple(classes.shape) != (masks.shape[0],):
            raise ValueError(
                f"class_labels must hold one class for each of the {masks.shape[0]} masks, got {tuple(classes.shape)}"
            )
        if masks.numel() and masks.device.type == "cpu" and not torch.compiler.is_compiling() and masks.max() > 1:
            raise ValueError(f"mask_labels must hold 0 and 1, got values up to {masks.max()}: divide them by that")
        if not classes.numel():
            continue
        if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
            raise ValueError(f"class_labels must hold integer class indices, got {classes.dtype}")
        _check_classes(classes, num_labels)


def _check_classes(classes: torch.Tensor, num_labels: int) -> None:
    if torch.compiler.is_compiling():
        return  # a compiled graph cannot read values, as README says
    wrong = classes[(classes < 0) | (classes >= num_labels)]
    if wrong.numel():
        raise ValueError(f"labels contain the values {wrong[:8].tolist()}, but the model has num_labels={num_labels}")


def mask2former_losses(
    config: SegMask2FormerConfig,
    class_logits: torch.Tensor,
    mask_embeddings: torch.Tensor,
    mask_features: torch.Tensor,
    mask_labels: Sequence[torch.Tensor],
    class_labels: Sequence[torch.Tensor],
    over_processes: bool,
    mean_masks: torch.Tensor | None = None,
) -> Mask2FormerLosses:
    """Compute the losses of all layers, in float32 (float64 where the arguments are) also under autocast.

    Args:
        class_logits: `(layers, B, queries, num_labels + 1)`; the last class is "no object".
        mask_embeddings: `(layers, B, queries, C)`.
        mask_features: `(B, C, h, w)`; their products with the embeddings are the mask logits.
        mask_labels: for each image masks `(n, H, W)`, which cover the same area as the features.
        class_labels: for each image classes `(n,)`.
        over_processes: whether to average the divisors over the processes of `torch.distributed`, so that the mean of
            the processes' losses is the loss of their joined batch. Every process must then call this function.
        mean_masks: for gradient accumulation: the mean of [`count_masks`] over batches of equal size, so that the mean
            of their losses is the loss of all of them joined. None normalizes by this batch alone.
    """
    dtype = torch.float64 if class_logits.dtype == torch.float64 else torch.float32
    device = class_logits.device
    with maybe_autocast(device.type, enabled=False):
        class_logits, mask_embeddings = class_logits.to(dtype), mask_embeddings.to(dtype)
        mask_features = mask_features.to(dtype)
        class_labels = [classes.to(device).long() for classes in class_labels]
        mask_labels = [masks.to(device) for masks in mask_labels]
        with torch.no_grad():
            costs = [
                torch.stack(
                    [
                        _matching_cost(
                            config,
                            class_logits[layer, image],
                            torch.einsum("qc,chw->qhw", mask_embeddings[layer, image], mask_features[image]),
                            mask_labels[image].to(dtype),
                            class_labels[image],
                        )
                        for layer in range(class_logits.shape[0])
                    ]
                )
                for image in range(class_logits.shape[1])
            ]
        # only now, after all costs are queued, does the CPU wait for the device
        assignments = [_assign(cost) for cost in costs]

        layers, batch, queries, _ = class_logits.shape
        classes = torch.full((layers, batch, queries), config.num_labels, device=device)
        for image, (rows, columns) in enumerate(assignments):
            classes[:, image].scatter_(1, rows, class_labels[image][columns])
        weights = class_logits.new_tensor([*_label_weights(config), config.no_object_weight])
        classification = F.cross_entropy(
            class_logits.flatten(0, 2), classes.flatten(), weight=weights, reduction="none"
        )
        masks, dices = zip(
            *(
                _mask_losses(
                    config,
                    mask_embeddings[:, image].gather(1, rows[..., None].expand(-1, -1, mask_embeddings.shape[-1])),
                    mask_features[image],
                    mask_labels[image].to(dtype),
                    columns,
                )
                for image, (rows, columns) in enumerate(assignments)
            ),
            strict=True,
        )
        if mean_masks is None:
            # all layers match the same number of masks
            matched = class_logits.new_tensor(float(sum(rows.shape[1] for rows, _ in assignments)))
            weighted = (
                matched
                if config.label_weights is None
                else weights[classes[classes < config.num_labels]].sum() / layers
            )
        else:
            matched, weighted = mean_masks.to(device, dtype).expand(2)
        objects = torch.stack([matched, weighted, (batch * queries - matched).clamp(min=0)])
        if over_processes and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(objects)
            objects = objects / distributed.get_world_size()
        count = objects[0].clamp(min=1)
        divisor = objects[1] + config.no_object_weight * objects[2]
        # the divisor is 0 if nothing is matched and no_object_weight is 0
        divisor = divisor.clamp(min=torch.finfo(dtype).tiny)
        return Mask2FormerLosses(
            classification=config.class_weight * classification.view(layers, -1).sum(1) / divisor,
            mask=config.mask_weight * sum(masks) / count,
            dice=config.dice_weight * sum(dices) / count,
        )


def count_masks(config: SegMask2FormerConfig, labels: torch.Tensor) -> torch.Tensor:
    """Count the masks of label maps `(B, H, W)` that will be matched with queries.

    Returns:
        a scalar; with `label_weights` `(2,)`, the number and the sum of their weights. If an image has more masks than
        there are queries, the sum takes the mean weight of its masks.
    """
    classes = torch.arange(config.num_labels, device=labels.device)
    classes = classes[classes != config.semantic_loss_ignore_index]
    present = torch.stack([torch.isin(classes, image) for image in labels])
    counts = present.sum(1)
    matched = counts.clamp(max=config.num_queries)
    if config.label_weights is None:
        return matched.sum()
    weights = torch.tensor(_label_weights(config), device=labels.device)[classes]
    sums = (present * weights).sum(1) * matched / counts.clamp(min=1)
    return torch.stack([matched.sum().to(sums), sums.sum()])


def _label_weights(config: SegMask2FormerConfig) -> list[float]:
    return [1.0] * config.num_labels if config.label_weights is None else list(config.label_weights)


def random_points(count: int, num_points: int, like: torch.Tensor) -> torch.Tensor:
    """Draw `(count, num_points, 2)` uniform (x, y) in the unit square, with the device and dtype of `like`."""
    return torch.rand(count, num_points, 2, device=like.device, dtype=like.dtype)


def sample_points(masks: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Sample masks `(n, h, w)` bilinearly at points `(n, points, 2)`, where 0 and 1 are the outer edges of a mask.

    Returns:
        `(n, points)`.
    """
    return F.grid_sample(masks[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def _matching_cost(
    config: SegMask2FormerConfig,
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    masks: torch.Tensor,
    classes: torch.Tensor,
) -> torch.Tensor:
    """Compute the cost of matching each query with each mask of one image.

    Args:
        class_logits: `(queries, num_labels + 1)`.
        mask_logits: `(queries, h, w)`.
        masks: `(n, H, W)`.
        classes: `(n,)`.

    Returns:
        `(queries, n)`.
    """
    points = random_points(1, config.train_num_points, mask_logits)
    logits = sample_points(mask_logits, points.expand(len(mask_logits), -1, -1))
    targets = sample_points(masks, points.expand(len(masks), -1, -1)).T
    cross_entropy = F.softplus(-logits) @ targets + F.softplus(logits) @ (1 - targets)
    probabilities = logits.sigmoid()
    dice = 1 - (2 * probabilities @ targets + 1) / (probabilities.sum(1, keepdim=True) + targets.sum(0) + 1)
    cost = (
        config.mask_weight * cross_entropy / config.train_num_points
        + config.dice_weight * dice
        - config.class_weight * class_logits.softmax(-1)[:, classes]
    )
    # a step that overflowed is skipped by the gradient scaler; SciPy would raise an error
    return torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)


# an operator of its own, because torch.compile cannot trace SciPy
@torch.library.custom_op("segtransformers::cheapest_matching", mutates_args=())
def _assign(costs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows (ascending) and columns of the cheapest one-to-one matching, `(layers, min(queries, n))` each.

    Args:
        costs: `(layers, queries, n)`.
    """
    from scipy.optimize import linear_sum_assignment  # imported here because it is slow to import

    pairs = [linear_sum_assignment(cost) for cost in costs.cpu().numpy()]
    rows, columns = (torch.stack([torch.from_numpy(pair[side]) for pair in pairs]).to(costs.device) for side in (0, 1))
    return rows, columns


@_assign.register_fake
def _(costs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = costs.new_empty((costs.shape[0], min(costs.shape[1:])), dtype=torch.long)
    return rows, torch.empty_like(rows)


def _mask_losses(
    config: SegMask2FormerConfig,
    embeddings: torch.Tensor,
    features: torch.Tensor,
    masks: torch.Tensor,
    columns: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum binary cross entropy per point and dice loss over the matched masks of one image.

    Args:
        embeddings: `(layers, n, C)` of the matched queries.
        features: `(C, h, w)`.
        masks: `(N, H, W)`.
        columns: `(layers, n)`, the indices of the queries' masks.

    Returns:
        two tensors `(layers,)`.
    """
    layers, count, _ = embeddings.shape
    mask_logits = torch.einsum("nc,chw->nhw", embeddings.flatten(0, 1), features)
    with torch.no_grad():
        points = _uncertain_points(config, mask_logits)
        targets = torch.cat(
            [
                sample_points(masks[chosen], layer_points)
                for chosen, layer_points in zip(columns, points.unflatten(0, (layers, count)), strict=True)
            ]
        )
    logits = sample_points(mask_logits, points)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    probabilities = logits.sigmoid()
    dice = 1 - (2 * (probabilities * targets).sum(1) + 1) / (probabilities.sum(1) + targets.sum(1) + 1)
    return cross_entropy.view(layers, count).sum(1), dice.view(layers, count).sum(1)


def _uncertain_points(config: SegMask2FormerConfig, mask_logits: torch.Tensor) -> torch.Tensor:
    """Return `(n, train_num_points, 2)`: the most uncertain of many random points, and more random points."""
    count = len(mask_logits)
    candidates = random_points(count, int(config.oversample_ratio * config.train_num_points), mask_logits)
    important = int(config.importance_sample_ratio * config.train_num_points)
    chosen = sample_points(mask_logits, candidates).abs().topk(important, dim=1, largest=False).indices
    points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([points, random_points(count, config.train_num_points - important, mask_logits)], dim=1)


__all__ = ["Mask2FormerLosses", "check_targets", "count_masks", "mask2former_losses", "semantic_targets"]

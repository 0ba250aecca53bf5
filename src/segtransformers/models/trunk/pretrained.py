# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Load timm's pre-trained weights into a [`Trunk`]."""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch

from ...hub_names import check_hub_name, without_hub
from ..input_channels import with_input_channels
from ..layers.token_grid import Grid
from .architectures import describe_trunk
from .configuration_trunk import TrunkConfig
from .modeling_trunk import Trunk
from .positions import num_relative_positions, resize_positions, resize_relative_position_table

_EMBEDDINGS = ("patch_embed.", "norm_pre.", "pos_embed", "cls_token", "dist_token", "reg_token")
# layer scales, the final norm and tables of relative positions: all or none must be present
_OPTIONAL = (r".+\.ls[12]\.gamma", r".+\.gamma_[12]", r"norm\..+", r".+\.relative_position_bias_table")
_TABLE = "attn.relative_position_bias_table"
_UNUSED = ("norm.", "fc_norm.", "head.", "head_dist.", "attn_pool.")  # layers behind the last block


class FromTrunkMixin:
    """Mixin with the constructor `from_trunk`, for models with a [`Trunk`] as `self.trunk`."""

    @classmethod
    def from_trunk(cls, trunk: str, pretrained: bool = True, cache_dir: str | None = None, **fields: Any):
        """Build a new model around a trunk of timm, in evaluation mode. All other layers start at random.

        Args:
            trunk: name of a timm architecture, with or without a weight tag, such as `vit_small_patch16_dinov3` or
                `vit_base_patch16_224.augreg_in21k`. Without a tag, timm chooses the weights.
            pretrained: whether to load timm's weights. They are downloaded if they are not cached. If
                `pretrain_image_size` is given, positions are resized to it as the original resizes them.
            cache_dir: folder of the downloads; None is timm's default.
            fields: fields of the model's config. With `num_channels`, the pre-trained weights for RGB are repeated, see
                [`with_input_channels`].

        Raises:
            ValueError: if timm has no such trunk or no such weights, or if `fields` change its shape.
            OSError: if the weights are not cached and cannot be downloaded.
        """
        channels = fields.pop("num_channels", 3)
        if channels != 3:
            model = cls.from_trunk(trunk, pretrained, cache_dir, **fields)
            return with_input_channels(model, channels, random=not pretrained)
        config = cls.config_class(trunk=trunk.partition(".")[0], **fields)
        if pretrained or "." in trunk:
            _check_weights(trunk)
        model = cls(config)
        if pretrained:
            weights = _download(trunk, cache_dir)
            load_trunk_weights(model.trunk, config, *weights, f"timm's weights {trunk!r}")
        return model.eval()


def weights_of_timm(name: str, config: TrunkConfig, cache_dir: str | None = None) -> dict[str, torch.Tensor]:
    """Return pre-trained weights of timm by their names in a [`Trunk`], resized to its grid.

    Args:
        name, cache_dir: as for `from_trunk`.

    Raises:
        ValueError, OSError: as `from_trunk`.
    """
    _check_weights(name)
    weights, grid = _download(name, cache_dir)
    return _fitted_weights(_empty_trunk(config).state_dict(), config, weights, grid, f"timm's weights {name!r}")


def is_architecture(name: str) -> bool:
    """Return whether timm has an architecture of this name, with or without a weight tag."""
    return timm.is_model(name.partition(".")[0])


def expected_weights(config: TrunkConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights of a [`Trunk`] by their names."""
    return {name: tuple(tensor.shape) for name, tensor in _empty_trunk(config).state_dict().items()}


def _empty_trunk(config: TrunkConfig) -> Trunk:
    with torch.device("meta"):
        return Trunk(config)


def _download(name: str, cache_dir: str | None) -> tuple[dict[str, torch.Tensor], Grid]:
    """Return pre-trained weights of timm, and the patch grid of their positions."""
    reachable = check_trunk_available(name, cache_dir)
    with contextlib.nullcontext() if reachable else without_hub():
        model = timm.create_model(name, pretrained=True, num_classes=0, cache_dir=cache_dir)
    return model.state_dict(), tuple(model.patch_embed.grid_size)


def _check_weights(name: str) -> None:
    architecture = name.partition(".")[0]
    describe_trunk(architecture)
    tagged = timm.list_pretrained(f"{architecture}.*")
    known = [architecture, *tagged] if tagged else []
    if name not in known:
        raise ValueError(
            f"timm {timm.__version__} has no pre-trained weights {name!r}; "
            + (f"known are {', '.join(tagged)}" if tagged else "pass pretrained=False to start at random")
        )


def trunk_repository(name: str) -> str:
    """Return the repository on the Hub with timm's weights of a trunk, or an empty text if they are elsewhere.

    Raises:
        ValueError: if timm has no such weights.
    """
    _check_weights(name)
    return timm.get_pretrained_cfg(name).hf_hub_id or ""


def check_trunk_available(name: str, cache_dir: str | None = None) -> bool:
    """Refuse weights that are not cached and cannot be downloaded, before timm tries for a minute.

    Args:
        name, cache_dir: as of `from_trunk`.

    Returns:
        whether the Hub can be reached. False means that the weights are cached.

    Raises:
        ValueError: if timm has no such weights.
        OSError: naming the trunk and what to do.
    """
    repository = trunk_repository(name)
    if not repository:
        return True
    try:
        return check_hub_name(repository, "model", cache_dir)
    except LookupError as error:
        raise OSError(
            f"timm's weights of the trunk {name!r} ({repository} on the Hub) cannot be loaded: {error}. Connect to the "
            "network, pass the cache_dir of an earlier download, or pass pretrained=False to start at random (on the "
            "command line, --trunk-weights takes a file)"
        ) from None


def trunk_normalization(name: str) -> dict[str, list[float]]:
    """Return the image normalization of timm's pre-trained weights, as arguments of an image processor.

    Args:
        name: as for `from_trunk`.

    Returns:
        `image_mean` and `image_std` of red, green and blue in 0..1.

    Raises:
        ValueError: if there are no weights of that name.
    """
    _check_weights(name)
    weights = timm.get_pretrained_cfg(name)
    return {"image_mean": list(weights.mean), "image_std": list(weights.std)}


def load_trunk_weights(
    trunk: Trunk,
    config: TrunkConfig,
    state_dict: Mapping[str, torch.Tensor],
    grid: Grid,
    where: str,
) -> None:
    """Load weights under timm's names into a trunk.

    Positions are resized, and tokens that the trunk lacks are left out. If the weights have no layer scales, no final
    norm or no tables of relative positions, those of the trunk stay: the original adds layer scales to every ViT, and
    EVA-01 adds all three.

    Args:
        config: the config that `trunk` was built from.
        state_dict: weights under timm's names; layers behind the last block are not needed.
        grid: patch grid `(h, w)` of the positions in `state_dict`.
        where: name of the weights in error messages.

    Raises:
        ValueError: naming the weights that are missing, left over or of another shape. The trunk is unchanged then.
    """
    trunk.load_state_dict(_fitted_weights(trunk.state_dict(), config, state_dict, grid, where), strict=False)


def _fitted_weights(
    expected: Mapping[str, torch.Tensor],
    config: TrunkConfig,
    state_dict: Mapping[str, torch.Tensor],
    grid: Grid,
    where: str,
) -> dict[str, torch.Tensor]:
    """Return the weights for [`load_trunk_weights`] by their names in the trunk, whose tensors are `expected`."""
    renamed: dict[str, torch.Tensor] = {}
    problems = []
    for name, tensor in state_dict.items():
        new_name = _trunk_name(name)
        if new_name in expected:
            try:
                tensor = _fitted(new_name, tensor, config, grid)
            except ValueError as error:
                problems.append(f"{name}: {error}")
                tensor = expected[new_name]
            if tensor.shape != expected[new_name].shape:
                problems.append(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[new_name].shape)}")
            renamed[new_name] = tensor
        elif not name.startswith(_UNUSED) and not (name.endswith("_token") and not config.use_prefix_tokens):
            problems.append(f"the trunk has no place for {name}")
    missing = [name for name in expected if name not in renamed]
    for pattern in _OPTIONAL:
        names = {name for name in expected if re.fullmatch(pattern, name)}
        if names.isdisjoint(renamed):
            missing = [name for name in missing if name not in names]
    problems += [f"{name} is missing" for name in missing]
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ValueError(
            f"{where} do not fit the trunk {config.trunk!r} as configured: {'; '.join(problems[:6])}{more}"
        )
    return renamed


def _trunk_name(name: str) -> str:
    if name.startswith("rope."):
        return name.replace("rope.", "rotary.", 1)
    if name.endswith(_TABLE):
        return name.replace(_TABLE, "relative_position_bias_table")
    return f"embeddings.{name}" if name.startswith(_EMBEDDINGS) else name


def _fitted(name: str, tensor: torch.Tensor, config: TrunkConfig, grid: Grid) -> torch.Tensor:
    """Return positions resized to the trunk's grid and prefix tokens, and any other weight as it is."""
    new_grid = config.pretrain_grid
    if name == "embeddings.pos_embed":
        count = grid[0] * grid[1]
        if tensor.dim() != 3 or tensor.shape[1] < count:
            raise ValueError(f"it is {tuple(tensor.shape)}, expected (1, {count} or a few more, channels)")
        has_prefix = config.use_prefix_tokens and config.use_prefix_positions
        prefix = tensor[:, :-count] if has_prefix else tensor[:, :0]
        positions = resize_positions(tensor[:, -count:], grid, new_grid, config.position_interpolation)
        return torch.cat([prefix, positions], dim=1)
    if name.endswith("relative_position_bias_table"):
        rows = num_relative_positions(grid) + 3
        if tensor.dim() != 2 or tensor.shape[0] != rows:
            raise ValueError(f"it is {tuple(tensor.shape)}, expected ({rows}, heads) for {grid[0]}x{grid[1]} patches")
        tensor = resize_relative_position_table(tensor, grid, new_grid)
        return tensor if config.use_prefix_tokens else tensor[: num_relative_positions(new_grid)]
    return tensor


__all__ = [
    "FromTrunkMixin",
    "expected_weights",
    "is_architecture",
    "load_trunk_weights",
    "trunk_normalization",
    "weights_of_timm",
]

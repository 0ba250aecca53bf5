# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Plain vision transformers from timm behind one interface: embed, run a slice of blocks, token grid.

This is the only file that knows timm. The blocks are timm's own; the embedding is ours, because the originals resize
position embeddings in their own way and because only what takes part in the forward pass may own parameters.

Sources: An Image is Worth 16x16 Words (https://arxiv.org/abs/2010.11929); the behaviour around the blocks follows
`segmentation/mmseg_custom/models/backbones/base/vit.py` of czczup/ViT-Adapter.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import timm
import torch
from timm.layers import Attention, DropPath, LayerScale, RmsNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_trunk import TrunkConfig

__all__ = ["DropPath", "Trunk", "TrunkBlock", "TrunkEmbeddings", "describe_trunk", "init_trunk_weights"]

PATCH_SIZE = 16
FITTING_KINDS = (
    "A trunk is a plain ViT of timm's class VisionTransformer with pre-norm blocks, learned position embeddings and "
    f"patches of {PATCH_SIZE} pixels, such as vit_tiny_patch16_224, vit_small_patch16_224, vit_base_patch16_384 or "
    "deit3_base_patch16_224."
)


def _create(name: str, **arguments: Any) -> Any:
    """Build timm's architecture `name`, or say why it cannot be a trunk."""
    if "/" in name or ":" in name or "." in name:
        raise ValueError(
            f"trunk {name!r} must be the bare name of a timm architecture, without a hub prefix or weight tag "
            f"(did you mean {name.rpartition('/')[2].rpartition(':')[2].partition('.')[0]!r}?)"
        )
    if not timm.is_model(name):
        raise ValueError(f"timm {timm.__version__} has no architecture {name!r}. {FITTING_KINDS}")
    model = timm.create_model(name, pretrained=False, **arguments)
    problem = _why_unfit(model)
    if problem:
        raise ValueError(f"timm's {name!r} cannot be a trunk: {problem}. {FITTING_KINDS}")
    return model


def _why_unfit(model: nn.Module) -> str | None:
    if type(model) is not VisionTransformer:
        return f"it is a {type(model).__name__}, no plain ViT"
    if not all(isinstance(block, Block) and type(block.attn) is Attention for block in model.blocks):
        return f"its blocks are {type(model.blocks[0]).__name__} around {_attention_name(model.blocks[0])}"
    if model.pos_embed is None:
        return "it has no learned position embeddings"
    if type(model.patch_embed).__name__ != "PatchEmbed" or model.patch_embed.patch_size != (PATCH_SIZE, PATCH_SIZE):
        size = "x".join(map(str, model.patch_embed.patch_size))
        return f"its embedding is a {type(model.patch_embed).__name__} with patches of {size} pixels"
    return None


def _attention_name(block: nn.Module) -> str:
    return type(getattr(block, "attn", None)).__name__


@functools.lru_cache
def describe_trunk(name: str) -> dict:
    """What timm says about the architecture `name`, under the names of [`TrunkConfig`]'s fields. Costs no memory.

    Raises:
        ValueError: if timm has no such architecture or it is no plain ViT with 16-pixel patches.
    """
    with torch.device("meta"):
        model = _create(name, num_classes=0)
    block = model.blocks[0]
    hidden = block.mlp.fc1.out_features
    mlp_ratio = hidden / model.embed_dim
    if int(model.embed_dim * mlp_ratio) != hidden:  # timm truncates the product again
        mlp_ratio = (hidden + 0.5) / model.embed_dim
    return {
        "pretrain_image_size": list(model.patch_embed.img_size),
        "hidden_size": model.embed_dim,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "mlp_ratio": mlp_ratio,
        "qkv_bias": block.attn.qkv.bias is not None,
        "layer_scale_init_value": block.ls1.init_values if isinstance(block.ls1, LayerScale) else 0.0,
        "layer_norm_eps": block.norm1.eps,
        "timm_version": timm.__version__,
    }


class TrunkBlock(GradientCheckpointingLayer, Block):
    """timm's block, which can also attend in windows. This is what FSDP, device maps and checkpointing treat as one."""

    def forward(  # type: ignore[override]
        self, tokens: torch.Tensor, grid: tuple[int, int], window: int
    ) -> torch.Tensor:
        """From tokens `(B, num_prefix_tokens + h * w, C)` to the same.

        Args:
            grid: the token grid `(h, w)`.
            window: side of the attention window in tokens; 0 is global attention.
        """
        if not window:
            return Block.forward(self, tokens)
        tokens = tokens + self.drop_path1(self.ls1(windowed_attention(self.attn, self.norm1(tokens), grid, window)))
        return tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))


class TrunkEmbeddings(nn.Module):
    """Prefix and patch tokens with their positions.

    Args:
        model: timm's model, whose parts are taken over.
        grid: `(h, w)` of the patches that the position embeddings were made for.
        use_prefix_tokens: whether to keep class and register tokens.
    """

    def __init__(self, model: VisionTransformer, grid: tuple[int, int], use_prefix_tokens: bool):
        super().__init__()
        self.grid = grid
        self.patch_embed = model.patch_embed
        self.norm_pre = model.norm_pre
        self.pos_embed = model.pos_embed
        self.cls_token, self.reg_token = model.cls_token, model.reg_token
        if not use_prefix_tokens:
            self.pos_embed = nn.Parameter(model.pos_embed.detach()[:, -math.prod(grid) :].clone())
            self.cls_token = self.reg_token = None

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """See [`Trunk.embed`]."""
        patches = self.patch_embed.proj(pixel_values)
        grid = (patches.shape[2], patches.shape[3])
        patches = self.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        prefix_positions, positions = self._positions(grid)
        patches = patches + positions.to(patches.dtype)
        prefix_tokens = [token for token in (self.cls_token, self.reg_token) if token is not None]
        if prefix_tokens:
            prefix = torch.cat(prefix_tokens, dim=1)
            if prefix_positions.shape[1]:  # architectures with `no_embed_class` give the prefix no positions
                prefix = prefix + prefix_positions
            patches = torch.cat([prefix.expand(patches.shape[0], -1, -1).to(patches.dtype), patches], dim=1)
        return self.norm_pre(patches), grid

    def _positions(self, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Position embeddings of the prefix `(1, 0 or p, C)` and of a token grid `(1, h * w, C)`.

        Bicubic, align_corners False, no antialiasing, as the original resizes them at every forward pass.
        """
        count = math.prod(self.grid)
        prefix, positions = self.pos_embed[:, :-count], self.pos_embed[:, -count:]
        if grid != self.grid:
            maps = positions.transpose(1, 2).unflatten(2, self.grid)
            maps = maps if maps.dtype == torch.float64 else maps.float()
            maps = F.interpolate(maps, size=grid, mode="bicubic", align_corners=False)
            positions = maps.flatten(2).transpose(1, 2)
        return prefix, positions


class Trunk(nn.Module):
    """The patch embedding and blocks of a plain ViT. Heads, pooling, the final norm and unused tokens are left out.

    Args:
        config: a resolved [`TrunkConfig`].
    """

    def __init__(self, config: TrunkConfig):
        super().__init__()
        describe_trunk(config.trunk)  # an unfit architecture fails here, before it fails on its arguments
        model = _create(
            config.trunk,
            num_classes=0,
            global_pool="avg",  # any pooling will do: it is not taken over, but "token" would demand a class token
            img_size=tuple(config.pretrain_image_size),
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_ratio=config.mlp_ratio,
            qkv_bias=config.qkv_bias,
            init_values=config.layer_scale_init_value,
            drop_path_rate=config.drop_path_rate,
            block_fn=TrunkBlock,
            weight_init="skip",
        )
        for module in model.modules():
            if isinstance(module, (nn.LayerNorm, RmsNorm)):
                module.eps = float(config.layer_norm_eps)
        grid = tuple(side // PATCH_SIZE for side in config.pretrain_image_size)
        self.embeddings = TrunkEmbeddings(model, grid, config.use_prefix_tokens)
        self.blocks = nn.ModuleList(model.blocks)
        self.window_sizes = config.window_sizes or [0] * config.num_hidden_layers
        tokens = (self.embeddings.cls_token, self.embeddings.reg_token)
        self.num_prefix_tokens = sum(token.shape[1] for token in tokens if token is not None)

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Prefix and patch tokens with their positions added.

        Args:
            pixel_values: `(B, 3, H, W)`, both sides multiples of the patch size.

        Returns:
            tokens `(B, num_prefix_tokens + h * w, C)` and the token grid `(h, w)`.
        """
        return self.embeddings(pixel_values)

    def run_blocks(self, tokens: torch.Tensor, first: int, last: int, grid: tuple[int, int]) -> Iterator[torch.Tensor]:
        """Run blocks `first` to `last`, both included.

        Args:
            tokens: `(B, num_prefix_tokens + h * w, C)`.
            grid: the token grid `(h, w)`, used by windowed attention only.

        Yields:
            the tokens after each of these blocks, in the same layout.
        """
        for index in range(first, last + 1):
            tokens = self.blocks[index](tokens, grid, self.window_sizes[index])
            yield tokens


def windowed_attention(attention: Attention, tokens: torch.Tensor, grid: tuple[int, int], window: int) -> torch.Tensor:
    """timm's self-attention among the tokens of each window of `window x window`.

    As in the original, queries, keys and values are computed first and their map is then padded with zeros at the
    right and the bottom: padded keys are exactly zero but take part in the softmax.

    Args:
        tokens: normalised patch tokens `(B, h * w, C)`.
        grid: the token grid `(h, w)`.
    """
    height, width = grid
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    qkv = attention.qkv(tokens).unflatten(1, grid)
    qkv = F.pad(qkv, (0, 0, 0, columns * window - width, 0, rows * window - height))
    qkv = qkv.unflatten(1, (rows, window)).unflatten(3, (columns, window)).transpose(2, 3)
    qkv = qkv.flatten(3, 4).unflatten(-1, (3, attention.num_heads, attention.head_dim))
    query, key, value = qkv.permute(4, 0, 1, 2, 5, 3, 6).unbind(0)  # each (B, rows, columns, heads, window^2, head_dim)
    query, key = attention.q_norm(query), attention.k_norm(key)
    attended = F.scaled_dot_product_attention(query, key, value)
    attended = attended.transpose(3, 4).flatten(4).unflatten(3, (window, window)).transpose(2, 3)
    attended = attended.flatten(3, 4).flatten(1, 2)[:, :height, :width].flatten(1, 2)
    return attention.proj_drop(attention.proj(attention.norm(attended)))


def init_trunk_weights(module: nn.Module, config: TrunkConfig) -> None:
    """Initialise what the trunk adds to the usual linear, convolution and norm layers. For use in `_init_weights`."""
    if isinstance(module, TrunkEmbeddings):
        init.trunc_normal_(module.pos_embed, std=config.initializer_range)
        for token in (module.cls_token, module.reg_token):
            if token is not None:
                init.normal_(token, std=1e-6)
    elif isinstance(module, LayerScale):
        init.constant_(module.gamma, config.layer_scale_init_value)
    elif isinstance(module, RmsNorm):
        init.ones_(module.weight)

# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
import torch
from model_tests import BackboneTests

from segtransformers import InternImageBackbone, InternImageConfig

MAPS = ["stage1", "stage2", "stage3", "stage4"]


def small_internimage(**changes) -> InternImageConfig:
    """The options of InternImage-T."""
    settings = {
        "embed_dim": 16,
        "depths": [1, 1, 3, 1],
        "num_groups": [1, 2, 4, 8],
        "drop_path_rate": 0.2,
        "out_features": MAPS,
    }
    return InternImageConfig(**{**settings, **changes})


class InternImageTests(BackboneTests):
    model_class = InternImageBackbone

    def test_hidden_states(self):
        model, images = self.model(), self.images()
        with torch.no_grad():
            outputs = model(images, output_hidden_states=True)
            assert model(images).hidden_states is None
            picked = model(images, output_hidden_states=[-1]).hidden_states
        shapes = [tuple(state.shape) for state in outputs.hidden_states]
        assert shapes == [(2, 16, 16, 24), (2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)]
        assert all(map(torch.equal, outputs.hidden_states[1:], outputs.feature_maps))
        assert torch.equal(picked[-1], outputs.hidden_states[-1]) and picked[0] is None


class TestT(InternImageTests):
    def config(self):
        return small_internimage()


class TestL(InternImageTests):
    """Post-norm with layer scale and widely spaced points."""

    def config(self):
        return small_internimage(post_norm=True, offset_scale=2.0)


class TestH(InternImageTests):
    """Norms before and after, gates, a larger depthwise kernel, norms between blocks, points without their middle."""

    def config(self):
        return small_internimage(
            layer_scale_init_value=None,
            res_post_norm=True,
            center_feature_scale=True,
            depthwise_kernel_size=5,
            stage3_norm_block_ids=[0, 2],
            remove_center=True,
        )


class TestG(InternImageTests):
    """Post-norm without a layer scale, and gates."""

    def config(self):
        return small_internimage(layer_scale_init_value=None, post_norm=True, center_feature_scale=True)

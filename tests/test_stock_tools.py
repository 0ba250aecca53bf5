# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Stock tools of PyTorch and Hugging Face on every model of the package."""

import pytest
from model_tests import BackboneCase, SegmentationCase
from stock_tools_tests import StockToolsTests
from test_dino_mask2former import frozen_config, native_config
from test_eva01 import eva_config
from test_flash_internimage import small_flash
from test_internimage import small_internimage
from test_seg_linear import small_linear, small_plain_vit
from test_seg_mask2former import small_head as small_mask2former
from test_seg_segformer import small_segformer
from test_seg_upernet import small_head as small_upernet
from test_segmenter import small_segmenter, small_vit
from test_vit_adapter import small_config as small_adapter
from test_vit_comer import small_comer
from test_vit_simple_pyramid import small_pyramid

from segtransformers import (
    InternImageBackbone,
    PlainViTBackbone,
    SegLinearForSemanticSegmentation,
    SegMask2FormerForSemanticSegmentation,
    SegmenterForSemanticSegmentation,
    SegmenterViTBackbone,
    SegSegformerForSemanticSegmentation,
    SegUperNetForSemanticSegmentation,
    ViTAdapterBackbone,
    ViTCoMerBackbone,
    ViTSimplePyramidBackbone,
)


class TestViTAdapter(BackboneCase, StockToolsTests):
    model_class = ViTAdapterBackbone

    def config(self):
        return small_adapter()


class TestViTAdapterOverBeit(BackboneCase, StockToolsTests):
    model_class = ViTAdapterBackbone

    def config(self):
        return small_adapter(trunk="beitv2_base_patch16_224")


class TestViTAdapterOverEva(BackboneCase, StockToolsTests):
    model_class = ViTAdapterBackbone

    def config(self):
        return small_adapter(trunk="vit_small_patch16_dinov3")


@pytest.mark.slow  # 15 s each; quantization and tracing of other adapters are tested by default
class TestDinov2Adapter(BackboneCase, StockToolsTests):
    """SwiGLU, and a token grid apart from the pyramid."""

    model_class = ViTAdapterBackbone

    def config(self):
        return native_config()


@pytest.mark.slow
class TestDinov3Adapter(BackboneCase, StockToolsTests):
    """No injectors, and a final norm on every tap."""

    model_class = ViTAdapterBackbone

    def config(self):
        return frozen_config()


@pytest.mark.slow
class TestEva01Adapter(BackboneCase, StockToolsTests):
    """Windows of a BEiT, and absolute positions."""

    model_class = ViTAdapterBackbone

    def config(self):
        return eva_config(use_prefix_tokens=False, window_sizes=[3, 0, 2, 0])


class TestViTCoMer(BackboneCase, StockToolsTests):
    model_class = ViTCoMerBackbone

    def config(self):
        return small_comer()


class TestInternImage(BackboneCase, StockToolsTests):
    model_class = InternImageBackbone
    runs_in_8_bits = False

    def config(self):
        return small_internimage()


class TestFlashInternImage(BackboneCase, StockToolsTests):
    model_class = InternImageBackbone
    runs_in_8_bits = False

    def config(self):
        return small_flash(depthwise_kernel_size=3)


class TestViTSimplePyramid(BackboneCase, StockToolsTests):
    model_class = ViTSimplePyramidBackbone

    def config(self):
        return small_pyramid()


class TestInternImageH(BackboneCase, StockToolsTests):
    model_class = InternImageBackbone
    runs_in_8_bits = False

    def config(self):
        return small_internimage(
            layer_scale_init_value=None,
            res_post_norm=True,
            center_feature_scale=True,
            depthwise_kernel_size=5,
            stage3_norm_block_ids=[0, 2],
        )


class TestSegmenterViT(BackboneCase, StockToolsTests):
    model_class = SegmenterViTBackbone

    def config(self):
        return small_vit()


class TestPlainViT(BackboneCase, StockToolsTests):
    model_class = PlainViTBackbone

    def config(self):
        return small_plain_vit(
            trunk="vit_small_plus_patch16_dinov3_qkvb", position_interpolation_offset=0, padding="none"
        )


class TestLinear(SegmentationCase, StockToolsTests):
    model_class = SegLinearForSemanticSegmentation

    def config(self):
        return small_linear()


class TestSegmenter(SegmentationCase, StockToolsTests):
    model_class = SegmenterForSemanticSegmentation

    def config(self):
        return small_segmenter()


class TestSegmenterLinear(SegmentationCase, StockToolsTests):
    model_class = SegmenterForSemanticSegmentation

    def config(self):
        return small_segmenter(decoder_type="linear")


class TestUperNet(SegmentationCase, StockToolsTests):
    model_class = SegUperNetForSemanticSegmentation

    def config(self):
        return small_upernet(small_adapter(), auxiliary_num_convs=2, auxiliary_concat_input=True)


class TestMask2Former(SegmentationCase, StockToolsTests):
    model_class = SegMask2FormerForSemanticSegmentation

    def config(self):
        return small_mask2former(small_adapter())


class TestSegformer(SegmentationCase, StockToolsTests):
    model_class = SegSegformerForSemanticSegmentation
    runs_in_8_bits = False

    def config(self):
        return small_segformer()

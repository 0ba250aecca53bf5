# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The table of the published ViT-Adapter checkpoints."""

import pytest

from segtransformers.conversion.convert import empty_model
from segtransformers.conversion.protocol import read_test_pipeline
from segtransformers.datasets import get_dataset_info
from segtransformers.published import PUBLISHED_FIELDS, published_rows

ROWS = published_rows("vit_adapter")


@pytest.mark.parametrize("name", ROWS)
def test_published_row_describes_a_model(name):
    row = ROWS[name]
    model, _, _ = empty_model(row["model"])
    config, backbone = model.config, model.config.backbone_config
    info = get_dataset_info(row["dataset"])
    assert config.num_labels == len(info.classes)
    assert config.window_size == [row["crop_size"]] * 2
    processor = read_test_pipeline(row["test_pipeline"], reduce_labels=info.reduce_zero_label)
    assert (processor.do_normalize and processor.size_divisor == (0 if row["dataset"] == "cityscapes" else 32)) or (
        "mapillary" in name
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    if row["num_parameters"] is not None:  # our models lack the original's unused parameters, mostly positions
        unused = {"ViTAdapter": 1, "BEiTAdapter": 0, "UniPerceiverAdapter": 8}[row["model"]["backbone"]["type"]]
        assert row["num_parameters"] - count == unused * backbone.hidden_size
    if row["parameters"] is not None:  # published in millions, rounded up or down, or for several rows
        assert abs(count / 1e6 - float(row["parameters"].removesuffix("M"))) < 2.2


def test_published_table_is_complete():
    assert len(ROWS) == 24
    for name, row in ROWS.items():
        assert list(row) == [*PUBLISHED_FIELDS, "model", "test_pipeline", "multi_scale_pipeline"], name
        assert (row["miou"] is None) == (row["parameters"] is None)
        assert row["miou"] is not None or row["note"]
        assert row["download"] is None or row["download"].startswith("https://")
        if row["miou_ms"] is not None:
            assert 40 < row["miou"] <= row["miou_ms"] < 90
    assert "46.6 / 47.4" in ROWS["upernet_deit_adapter_small_512_160k_ade20k"]["note"]
    assert "66 names" in ROWS["mask2former_beit_adapter_large_896_80k_mapillary_ss"]["note"]
    light = empty_model(ROWS["upernet_deit_adapter_light_base_512_160k_ade20k"]["model"])[0].config.backbone_config
    assert light.interaction_indexes == [[0, 11]]
    assert not light.use_conv_ffn and not light.use_extra_extractors and not light.add_trunk_features

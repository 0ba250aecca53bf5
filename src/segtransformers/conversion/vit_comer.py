# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The ViT-CoMer backbone of Traffic-X/ViT-CoMer.

Source: `segmentation/mmseg_custom/models/backbones/vit_comer.py`. The network of this name in the repository's folder
`detection` is a different one.
"""

from ..models.vit_comer import ViTCoMerConfig
from .mapping import Backbone, Rule, Settings
from .vit_adapter import PLAIN_VIT_RULES, PYRAMID_RULES, read_plain_vit

_INTERACTION = r"interactions\.(\d+)\."
_NEW = r"interactions.\1."
# Some rules are optional because the original also builds what its config switches off: the feature pyramid of an
# interaction that changes no tokens, and the norms before an attention that does not exist.
RULES = [
    *PLAIN_VIT_RULES,
    *PYRAMID_RULES,
    *(
        Rule(rf"{_INTERACTION}mrfp\.dwconv\.{theirs}\.(.+)", rf"{_NEW}feature_pyramid.levels.{ours}.\2", optional=True)
        for level in range(3)
        for theirs, ours in (
            (f"dwconv{2 * level + 1}", f"{level}.narrow"),
            (f"dwconv{2 * level + 2}", f"{level}.wide"),
            (f"bn{level + 1}", f"{level}.norm"),
        )
    ),
    Rule(_INTERACTION + r"mrfp\.(.+)", _NEW + r"feature_pyramid.\2", optional=True),
    Rule(_INTERACTION + r"cti_tov\.ffn\.dwconv\.dwconv\.(.+)", _NEW + r"to_trunk.ffn.dwconv.\2"),
    Rule(_INTERACTION + r"cti_tov\.(.+)", _NEW + r"to_trunk.\2"),
    *(
        rule
        for theirs, ours in ((r"cti_toc", r"to_pyramid"), (r"extra_CTIs\.(?P<extra>\d)", r"extra_to_pyramid.\g<extra>"))
        for rule in (
            Rule(
                rf"{_INTERACTION}{theirs}\.(?P<name>(?:query|feat)_norm\..+)", rf"{_NEW}{ours}.\g<name>", optional=True
            ),
            Rule(
                rf"{_INTERACTION}{theirs}\.cfinter\.ffn\.dwconv\.dwconv\.(?P<name>.+)",
                rf"{_NEW}{ours}.extractor.ffn.dwconv.\g<name>",
            ),
            Rule(rf"{_INTERACTION}{theirs}\.cfinter\.(?P<name>.+)", rf"{_NEW}{ours}.extractor.\g<name>"),
            Rule(rf"{_INTERACTION}{theirs}\.ffn\.dwconv\.dwconv\.(?P<name>.+)", rf"{_NEW}{ours}.ffn.dwconv.\g<name>"),
            Rule(rf"{_INTERACTION}{theirs}\.(?P<name>.+)", rf"{_NEW}{ours}.\g<name>"),
        )
    ),
]


def read_config(settings: Settings) -> ViTCoMerConfig:
    """Convert the settings of mmseg's `ViTCoMer`; the defaults are the original's."""
    return read_plain_vit(
        settings,
        ViTCoMerConfig,
        use_extra_extractors=settings.take("use_extra_CTI", True),
        receptive_field_ratio=settings.take("dim_ratio", 6.0),
        use_to_trunk=settings.take("use_CTI_toV", True),
        use_to_pyramid=settings.take("use_CTI_toC", True),
        use_feature_interaction=settings.take("cnn_feature_interaction", True),
    )


BACKBONES = {"ViTCoMer": Backbone(RULES, read_config)}

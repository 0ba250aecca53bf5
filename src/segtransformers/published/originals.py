# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""The papers, repositories and licences of the published models, and the terms of their data sets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Original:
    """The paper and the repository of a model family.

    Attributes:
        title: of the paper.
        authors: of the paper, in the form of BibTeX.
        year: of the paper.
        arxiv: number of the paper.
        repository: address of the repository that published the weights.
        license: of these weights, by the Hub's name for it.
        license_name, license_link: name and address of a licence for which the Hub has no name.
    """

    title: str
    authors: str
    year: int
    arxiv: str
    repository: str
    license: str
    license_name: str | None = None
    license_link: str | None = None

    @property
    def shown_license(self) -> str:
        """The name of the licence for a person."""
        return self.license_name or self.license

    @property
    def citation(self) -> str:
        """The BibTeX entry of the paper."""
        key = f"{self.authors.partition(',')[0].lower()}{self.year}{self.title.split()[0].strip(':').lower()}"
        return (
            f"@article{{{key},\n  title = {{{self.title}}},\n  author = {{{self.authors}}},\n"
            f"  journal = {{arXiv:{self.arxiv}}},\n  year = {{{self.year}}}\n}}"
        )


_MMSEGMENTATION = "https://github.com/open-mmlab/mmsegmentation"
ORIGINALS = {
    "vit_adapter": Original(
        "Vision Transformer Adapter for Dense Predictions",
        "Chen, Zhe and Duan, Yuchen and Wang, Wenhai and He, Junjun and Lu, Tong and Dai, Jifeng and Qiao, Yu",
        2022,
        "2205.08534",
        "https://github.com/czczup/ViT-Adapter",
        "apache-2.0",
    ),
    "internimage": Original(
        "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions",
        "Wang, Wenhai and Dai, Jifeng and Chen, Zhe and Huang, Zhenhang and Li, Zhiqi and Zhu, Xizhou and Hu, Xiaowei "
        "and Lu, Tong and Lu, Lewei and Li, Hongsheng and Wang, Xiaogang and Qiao, Yu",
        2022,
        "2211.05778",
        "https://github.com/OpenGVLab/InternImage",
        "mit",
    ),
    "flash_internimage": Original(
        "Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision Applications",
        "Xiong, Yuwen and Li, Zhiqi and Chen, Yuntao and Wang, Feng and Zhu, Xizhou and Luo, Jiapeng and Wang, Wenhai "
        "and Lu, Tong and Li, Hongsheng and Qiao, Yu and Lu, Lewei and Zhou, Jie and Dai, Jifeng",
        2024,
        "2401.06197",
        "https://github.com/OpenGVLab/DCNv4",
        "mit",
    ),
    "eva02": Original(
        "EVA-02: A Visual Representation for Neon Genesis",
        "Fang, Yuxin and Sun, Quan and Wang, Xinggang and Huang, Tiejun and Wang, Xinlong and Cao, Yue",
        2023,
        "2303.11331",
        "https://github.com/baaivision/EVA",
        "mit",
    ),
    "vit_comer": Original(
        "ViT-CoMer: Vision Transformer with Convolutional Multi-scale Feature Interaction for Dense Predictions",
        "Xia, Chunlong and Wang, Xinliang and Lv, Feng and Hao, Xin and Shi, Yifeng",
        2024,
        "2403.07392",
        "https://github.com/Traffic-X/ViT-CoMer",
        "apache-2.0",
    ),
    "segmenter": Original(
        "Segmenter: Transformer for Semantic Segmentation",
        "Strudel, Robin and Garcia, Ricardo and Laptev, Ivan and Schmid, Cordelia",
        2021,
        "2105.05633",
        _MMSEGMENTATION,
        "apache-2.0",
    ),
    "one_peace": Original(
        "ONE-PEACE: Exploring One General Representation Model Toward Unlimited Modalities",
        "Wang, Peng and Wang, Shijie and Lin, Junyang and Bai, Shuai and Zhou, Xiaohuan and Zhou, Jingren and Wang, "
        "Xinggang and Zhou, Chang",
        2023,
        "2305.11172",
        "https://github.com/OFA-Sys/ONE-PEACE",
        "apache-2.0",
    ),
    "eva01": Original(
        "EVA: Exploring the Limits of Masked Visual Representation Learning at Scale",
        "Fang, Yuxin and Wang, Wen and Xie, Binhui and Sun, Quan and Wu, Ledell and Wang, Xinggang and Huang, Tiejun "
        "and Wang, Xinlong and Cao, Yue",
        2022,
        "2211.07636",
        "https://github.com/baaivision/EVA",
        "mit",
    ),
    "dinov2": Original(
        "DINOv2: Learning Robust Visual Features without Supervision",
        "Oquab, Maxime and Darcet, Timoth{\\'e}e and Moutakanni, Th{\\'e}o and others",
        2023,
        "2304.07193",
        "https://github.com/facebookresearch/dinov2",
        "apache-2.0",
    ),
    "dinov3": Original(
        "DINOv3",
        "Sim{\\'e}oni, Oriane and Vo, Huy V. and Seitzer, Maximilian and others",
        2025,
        "2508.10104",
        "https://github.com/facebookresearch/dinov3",
        "other",
        "dinov3-license",
        "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
    ),
}
# papers of MMSegmentation's own zoo, by the type of the backbone or head
_ZOO = {
    "SwinTransformer": Original(
        "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        "Liu, Ze and Lin, Yutong and Cao, Yue and Hu, Han and Wei, Yixuan and Zhang, Zheng and Lin, Stephen and Guo, "
        "Baining",
        2021,
        "2103.14030",
        _MMSEGMENTATION,
        "apache-2.0",
    ),
    "mmcls.ConvNeXt": Original(
        "A ConvNet for the 2020s",
        "Liu, Zhuang and Mao, Hanzi and Wu, Chao-Yuan and Feichtenhofer, Christoph and Darrell, Trevor and Xie, "
        "Saining",
        2022,
        "2201.03545",
        _MMSEGMENTATION,
        "apache-2.0",
    ),
    "UPerHead": Original(
        "Unified Perceptual Parsing for Scene Understanding",
        "Xiao, Tete and Liu, Yingcheng and Zhou, Bolei and Jiang, Yuning and Sun, Jian",
        2018,
        "1807.10221",
        _MMSEGMENTATION,
        "apache-2.0",
    ),
    "Mask2FormerHead": Original(
        "Masked-attention Mask Transformer for Universal Image Segmentation",
        "Cheng, Bowen and Misra, Ishan and Schwing, Alexander G. and Kirillov, Alexander and Girdhar, Rohit",
        2021,
        "2112.01527",
        _MMSEGMENTATION,
        "apache-2.0",
    ),
}
# title of each data set, its name on the Hub if it has one, and the terms of its images
DATA_TERMS = {
    "ade20k": ("ADE20K", "zhoubolei/scene_parse_150", "non-commercial research and education only"),
    "cityscapes": ("Cityscapes", None, "non-commercial purposes only"),
    "mapillary": ("Mapillary Vistas", None, "non-commercial purposes only"),
    "mapillary_as_cityscapes": ("Mapillary Vistas", None, "non-commercial purposes only"),
    "coco_stuff10k": ("COCO-Stuff 10K", None, "those of Flickr, the source of the images"),
    "coco_stuff164k": ("COCO-Stuff 164K", None, "those of Flickr, the source of the images"),
    "pascal_context_59": ("Pascal Context (59 classes)", None, "those of Flickr, the source of the images"),
    "pascal_context_60": ("Pascal Context (60 classes)", None, "those of Flickr, the source of the images"),
    "voc2012": ("PASCAL VOC 2012", None, "those of Flickr, the source of the images"),
    "nyu_depth_v2": ("NYU Depth V2", None, "those of its authors"),
}


def original_of(family: str, row: Mapping[str, Any]) -> Original:
    """Return the original of a published row. In MMSegmentation's own zoo that is the paper of Mask2Former, of the
    backbone, or of UPerNet for a ResNet.
    """
    if family in ORIGINALS:
        return ORIGINALS[family]
    head, backbone = row["model"]["decode_head"]["type"], row["model"]["backbone"]["type"]
    return _ZOO[head] if head == "Mask2FormerHead" or backbone not in _ZOO else _ZOO[backbone]


__all__ = ["DATA_TERMS", "ORIGINALS", "Original", "original_of"]

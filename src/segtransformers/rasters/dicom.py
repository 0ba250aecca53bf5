# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Single slices of DICOM files, through pydicom."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import ArrayRaster
from .raster import Raster, RasterError, check_bytes, check_facts, in_one_line

DEFLATED = "1.2.840.10008.1.2.1.99"  # a whole file in one compressed stream
INSTALL = "pip install 'segtransformers[dicom]'"


def open_dicom(path: Path, name: str) -> Raster:
    """Decode a slice: grey values after the file's rescale, or RGB.

    Raises:
        RasterError: if pydicom is missing, the file holds several frames, or it is damaged.
    """
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise RasterError(f"{name} is a DICOM file, which needs pydicom: {INSTALL}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values that break the standard and are not used here
            syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
            if syntax == DEFLATED:
                raise RasterError(f"{name} is compressed as a whole: save it with another transfer syntax")
            slice_ = pydicom.dcmread(path, defer_size="1 MB")
            return _decoded(slice_, name, pydicom)
    except RasterError:
        raise
    except Exception as error:  # pydicom raises errors of many kinds for files that break the standard
        if isinstance(error, MemoryError):
            raise
        raise RasterError(f"cannot read {name} as a DICOM slice: {in_one_line(error)}") from None


def _decoded(slice_: Any, name: str, pydicom: Any) -> Raster:
    frames = int(slice_.get("NumberOfFrames") or 1)
    if "PixelData" not in slice_:
        raise RasterError(f"{name} is a DICOM file without pixels")
    if frames != 1:
        raise RasterError(f"{name} has {frames} frames: save each as a file of its own")
    bands = int(slice_.get("SamplesPerPixel") or 1)
    shape = bands, int(slice_.Rows), int(slice_.Columns)
    check_facts(name, shape, np.dtype(np.uint8))
    check_bytes(name, shape, np.dtype(np.float64), "its image")
    values = pydicom.pixels.pixel_array(slice_)
    profile = {"driver": "DICOM"}
    if bands > 1:
        return ArrayRaster(name, values.transpose(2, 0, 1), profile=profile)
    padding = slice_.get("PixelPaddingValue")
    valid = None if padding is None else values != int(padding)
    if slice_.get("PhotometricInterpretation") == "MONOCHROME1":
        values = (-1 if int(slice_.get("PixelRepresentation") or 0) else (1 << int(slice_.BitsStored)) - 1) - values
    if "ModalityLUTSequence" in slice_ or "RescaleSlope" in slice_:
        values = pydicom.pixels.apply_modality_lut(values, slice_).astype(np.float32)
    return ArrayRaster(name, values[None], valid, profile=profile)

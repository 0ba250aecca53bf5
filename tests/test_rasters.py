# Copyright 2026 The segtransformers authors. Licensed under the Apache License, Version 2.0.
"""Rasters of every kind of file: facts of the header, windows, pixels without data, and files that are refused."""

import io
import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import PIL.Image
import pytest

from segtransformers.rasters import RasterError, open_raster

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
rasterio_shutil = pytest.importorskip("rasterio.shutil")

WINDOW = slice(3, 30), slice(20, 41)


def drawn(bands=4, height=40, width=50, dtype="uint8", seed=0):
    """Return random values `(bands, height, width)` that fit the type."""
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.normal(0, 100, (bands, height, width)).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(max(limits.min, -5000), min(limits.max, 60000), (bands, height, width)).astype(dtype)


def write_tiff(path, values, **options):
    """Write values `(bands, height, width)` as GeoTIFF."""
    bands, height, width = values.shape
    options = {
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(10, 0, 500000, 0, -10, 5200000),
        "photometric": "MINISBLACK",
        **options,
    }
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=height, width=width, dtype=values.dtype, **options
    ) as file:
        file.write(values)
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(
    "options",
    [
        {"interleave": "pixel"},
        {"interleave": "band", "tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "deflate"},
        {"compress": "zstd", "BIGTIFF": "YES"},
    ],
    ids=["pixel", "planar-tiled", "bigtiff"],
)
def test_a_geotiff_gives_its_facts_and_windows(tmp_path, dtype, options):
    values = drawn(dtype=dtype)
    path = write_tiff(tmp_path / "zip+a!b c.tif", values, nodata=7, **options)
    with open_raster(path) as raster:
        assert (raster.bands, raster.height, raster.width, raster.dtype) == (4, 40, 50, np.dtype(dtype))
        assert raster.nodata == 7 and raster.crs.to_epsg() == 32633 and raster.transform.a == 10
        assert raster.profile["driver"] == "GTiff"
        assert np.array_equal(raster.read(), values)
        assert np.array_equal(raster.read(*WINDOW, bands=[3, 0, 0]), values[[3, 0, 0]][:, WINDOW[0], WINDOW[1]])
        for wrong in ((slice(0, 41), None), (slice(5, 5), None), (None, slice(-1, 4))):
            with pytest.raises(ValueError, match="no window"):
                raster.read(*wrong)
        with pytest.raises(ValueError, match=r"has 4 bands, 0 to 3: band 4 is missing"):
            raster.read(bands=[4])
    with pytest.raises(ValueError, match="closed"):
        raster.read()


def test_pages_of_one_size_are_bands(tmp_path):
    values = drawn(3, dtype="uint16")
    pages = [PIL.Image.fromarray(band) for band in values]
    pages[0].save(tmp_path / "stack!.tif", save_all=True, append_images=pages[1:])
    with open_raster(tmp_path / "stack!.tif") as raster:
        assert raster.bands == 3 and raster.crs is None and raster.transform is None
        assert np.array_equal(raster.read(*WINDOW, bands=[2, 1]), values[[2, 1]][:, WINDOW[0], WINDOW[1]])
    pages[0].save(tmp_path / "mixed.tif", save_all=True, append_images=[pages[1].resize((9, 9))])
    with pytest.raises(RasterError, match="2 pages that differ in size or type"):
        open_raster(tmp_path / "mixed.tif")


def test_jpeg_2000(tmp_path):
    values = drawn(1, 64, 64, dtype="uint16")
    PIL.Image.fromarray(values[0]).save(tmp_path / "band.jp2", irreversible=False)
    with open_raster(tmp_path / "band.jp2") as raster:
        assert (raster.bands, raster.dtype, raster.profile["driver"]) == (1, np.uint16, "JP2OpenJPEG")
        assert np.array_equal(raster.read(*WINDOW), values[:, WINDOW[0], WINDOW[1]])


def test_overviews_of_a_cog_are_no_bands(tmp_path):
    values = drawn(2, 300, 300)
    write_tiff(tmp_path / "scene.tif", values)
    rasterio_shutil.copy(tmp_path / "scene.tif", tmp_path / "cog.tif", driver="COG", blocksize=128, overview_count=2)
    with open_raster(tmp_path / "cog.tif") as raster:
        assert raster.bands == 2 and np.array_equal(raster.read(), values)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numpy_are_mapped(tmp_path, order):
    values = np.asarray(drawn(5, dtype="int16"), order=order)
    files = {"first.npy": values, "last.npy": np.asarray(values.transpose(1, 2, 0), order=order)}
    for name, array in files.items():
        np.save(tmp_path / name, array)
    np.savez(tmp_path / "stored.npz", values)
    np.savez_compressed(tmp_path / "compressed.npz", image=values, other=values[0])
    np.save(tmp_path / "one.npy", values[0])
    for name in (*files, "stored.npz", "compressed.npz"):
        with open_raster(tmp_path / name) as raster:
            assert (raster.bands, raster.height, raster.width, raster.dtype) == (5, 40, 50, np.dtype("int16")), name
            assert np.array_equal(raster.read(*WINDOW, bands=[4, 1]), values[[4, 1]][:, WINDOW[0], WINDOW[1]])
            assert isinstance(raster._values.base, np.memmap) == (name != "compressed.npz") or isinstance(
                raster._values, np.memmap
            )
    with open_raster(tmp_path / "one.npy") as raster:
        assert raster.bands == 1 and np.array_equal(raster.read()[0], values[0])


def test_pixels_without_data(tmp_path):
    values = np.full((2, 4, 5), 9, np.uint8)
    values[0, 0, 0] = values[:, 1, 1] = 0
    with open_raster(write_tiff(tmp_path / "zero.tif", values, nodata=0)) as raster:
        assert np.argwhere(~raster.valid()).tolist() == [[1, 1]]  # black in one band is a measurement
        assert np.argwhere(~raster.valid(slice(1, 3), slice(1, 2))).tolist() == [[0, 0]]
    heights = values.astype(np.float32)
    heights[1, 2, 3], heights[0, 3, 4], heights[0, 3, 3] = np.nan, -9999.123, np.inf
    with open_raster(write_tiff(tmp_path / "heights.tif", heights, nodata=-9999.123)) as raster:
        assert np.argwhere(~raster.valid()).tolist() == [[2, 3], [3, 3], [3, 4]]
        assert np.argwhere(~raster.valid(bands=[1])).tolist() == [[2, 3]]
    with open_raster(write_tiff(tmp_path / "nan.tif", heights, nodata=np.nan)) as raster:  # NaN does not equal itself
        assert np.isnan(raster.nodata) and np.argwhere(~raster.valid()).tolist() == [[2, 3], [3, 3]]
    image = np.full((4, 5, 4), 200, np.uint8)
    image[2, 2, 3] = 0
    PIL.Image.fromarray(image).save(tmp_path / "clear.png")
    transparent = image.transpose(2, 0, 1)
    for path in (
        tmp_path / "clear.png",
        write_tiff(tmp_path / "clear.tif", transparent, alpha="YES", photometric="RGB"),
    ):
        with open_raster(path) as raster:
            assert raster.bands == 3 and np.argwhere(~raster.valid()).tolist() == [[2, 2]]
    with open_raster(write_tiff(tmp_path / "all.tif", np.zeros((1, 3, 3), np.uint8), nodata=0)) as raster:
        assert not raster.valid().any()


def test_the_mask_of_a_geotiff_counts(tmp_path):
    path = write_tiff(tmp_path / "masked.tif", drawn(2))
    mask = np.full((40, 50), 255, np.uint8)
    mask[5, 6] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    with open_raster(path) as raster:
        assert raster.bands == 2 and np.argwhere(~raster.valid()).tolist() == [[5, 6]]


def test_palettes_keep_their_indices(tmp_path):
    indices = drawn(1, dtype="uint8") % 3
    path = write_tiff(tmp_path / "classes.tif", indices, photometric="palette", nodata=2)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (9, 8, 7), 1: (255, 0, 0), 2: (0, 0, 0)})
    image = PIL.Image.fromarray(indices[0], mode="P")
    image.putpalette([9, 8, 7, 255, 0, 0, 0, 0, 0])
    image.save(tmp_path / "classes.png")
    for name in ("classes.tif", "classes.png"):
        with open_raster(tmp_path / name) as raster:
            assert np.array_equal(raster.read(), indices)
            assert raster.palette[:3].tolist() == [[9, 8, 7], [255, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB", "CMYK", "F"])
def test_images_are_rasters(tmp_path, mode):
    values = drawn(1)[0]
    image = PIL.Image.fromarray(values.astype(np.uint16) * 200 if mode == "I;16" else values)
    image = image if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "F") else "a.png")
    image.save(path)
    with open_raster(path) as raster:
        assert raster.bands == {"RGB": 3, "CMYK": 3}.get(mode, 1)
        assert raster.dtype == {"I;16": "uint16", "F": "float32"}.get(mode, "uint8")
        if mode != "CMYK":
            expected = np.asarray(image)
            assert np.array_equal(raster.read(*WINDOW)[0], (expected[..., 0] if mode == "RGB" else expected)[WINDOW])


def dicom_file(path, values, **tags):
    """Write a slice `(height, width)` of 16 bits."""
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = pydicom.uid.CTImageStorage, "1.2.3"
    meta.TransferSyntaxUID = tags.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    slice_ = pydicom.dataset.Dataset()
    slice_.file_meta = meta
    slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = *values.shape, 1
    slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 12, 11
    slice_.PixelRepresentation, slice_.PhotometricInterpretation = 0, "MONOCHROME2"
    for name, value in tags.items():
        setattr(slice_, name, value)
    slice_.PixelData = values.astype(np.uint16).tobytes()
    pydicom.dcmwrite(path, slice_, enforce_file_format=True)
    return path


def test_dicom_slices(tmp_path):
    values = drawn(1, dtype="uint16")[0] % 4096
    with open_raster(dicom_file(tmp_path / "plain", values)) as raster:
        assert raster.dtype == np.uint16 and np.array_equal(raster.read()[0], values)
    values[2, 3] = 63
    tags = {"RescaleSlope": 2, "RescaleIntercept": -1024, "PixelPaddingValue": 63}
    with open_raster(dicom_file(tmp_path / "ct.dcm", values, **tags)) as raster:
        assert raster.dtype == np.float32 and np.array_equal(raster.read()[0], values * 2.0 - 1024)
        assert not raster.valid()[2, 3] and np.array_equal(raster.valid(), values != 63)
    with open_raster(dicom_file(tmp_path / "x.dcm", values, PhotometricInterpretation="MONOCHROME1")) as raster:
        assert np.array_equal(raster.read()[0], 4095 - values)
    for name, tags, message in (
        ("frames.dcm", {"NumberOfFrames": 3}, "has 3 frames"),
        ("huge.dcm", {"Rows": 65535, "Columns": 65535}, r"32\.0 GiB"),
        ("short.dcm", {"Rows": 400}, "cannot read"),
        ("deflated.dcm", {"syntax": "1.2.840.10008.1.2.1.99"}, "compressed as a whole"),
    ):
        with pytest.raises(RasterError, match=message):
            open_raster(dicom_file(tmp_path / name, values, **tags))


def npy_header(shape, dtype="'|u1'"):
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def bomb(path, shape, size):
    """Write an `.npz` of zeros, compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        file.write(npy_header(shape))
        file.write(bytes(size))


def test_damaged_and_hostile_files_are_refused_in_one_line(tmp_path):
    files = {
        "empty.tif": (b"", "is empty"),
        "text.tif": (b"no image at all", "expected is a GeoTIFF"),
        "start.tif": (b"II*\0" + bytes(8), "cannot read"),
        "objects.npy": (npy_header((2, 2), "'|O'"), "type object"),
        "fields.npy": (npy_header((2, 2), "[('a', '<f4')]"), "values of type"),
        "complex.npy": (npy_header((2, 2), "'<c8'") + bytes(32), "complex64"),
        "long.npy": (npy_header((100_000, 100_000)), "cannot read"),
        "wide.npy": (npy_header((2, 1 << 40)), "sides of"),
        "negative.npy": (npy_header((-2, 2)), "cannot read|sides of"),
        "line.npy": (npy_header((4,)) + bytes(4), r"shape \(4,\)"),
        "header.npy": (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "cannot read"),
        "a.npz": (b"PK\x03\x04" + bytes(40), "cannot read"),
        "pickle.npy": (b"\x80\x04cos\nsystem\n", "expected is a GeoTIFF"),
        "scene.vrt": (b"<VRTDataset rasterXSize='1' rasterYSize='1'/>", "expected is a GeoTIFF"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RasterError, match=message) as caught:
            open_raster(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value), name
    with zipfile.ZipFile(tmp_path / "none.npz", "w") as archive:
        archive.writestr("readme", "x")
    bomb(tmp_path / "bomb.npz", (1 << 16, 1 << 16), 1000)
    bomb(tmp_path / "short.npz", (100, 100), 999)
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    for name, message in (
        ("none", "0 arrays"),
        ("bomb", "damaged"),
        ("short", "damaged"),
        ("two", r"2 arrays \(a, b\)"),
    ):
        with pytest.raises(RasterError, match=message):
            open_raster(tmp_path / f"{name}.npz")
    with pytest.raises(RasterError, match="is a folder"):
        open_raster(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_raster(tmp_path / "missing.tif")
    os.mkfifo(tmp_path / "pipe.tif")
    with pytest.raises(RasterError, match="pipe"):
        open_raster(tmp_path / "pipe.tif")


def test_damaged_tiles_and_unknown_compressions_are_named(tmp_path):
    values = drawn(1, 512, 512)
    path = write_tiff(tmp_path / "cut.tif", values, tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(RasterError, match=r"cut.tif"), open_raster(path) as raster:
        raster.read()
    buffer = io.BytesIO()
    PIL.Image.fromarray(values[0]).save(buffer, "TIFF", compression="tiff_deflate")
    content = buffer.getvalue()
    entry = struct.pack("<HHI", 259, 3, 1)  # the tag of the compression
    assert content.count(entry) == 1
    unknown = content.replace(entry + struct.pack("<H", 8), entry + struct.pack("<H", 65000))
    (tmp_path / "unknown.tif").write_bytes(unknown)
    with pytest.raises(RasterError, match=r"65000.*COMPRESS=DEFLATE"), open_raster(tmp_path / "unknown.tif") as raster:
        raster.read()


def test_a_window_of_a_huge_raster_takes_the_memory_of_a_window(tmp_path):
    """A sparse file of 100,000 x 100,000 pixels in four bands declares 80 GB."""
    path = tmp_path / "huge.tif"
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "SPARSE_OK": True, "BIGTIFF": "YES"}
    with rasterio.open(
        path, "w", driver="GTiff", count=4, height=100_000, width=100_000, dtype="uint16", nodata=0, **options
    ) as file:
        file.write(np.ones((4, 512, 512), np.uint16), window=rasterio.windows.Window(70_000, 90_000, 512, 512))
    script = f"""
import resource
import numpy
from segtransformers.rasters import RasterError, open_raster
with open_raster({str(path)!r}) as raster:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    window = raster.read(slice(89_000, 91_000), slice(69_000, 71_000))
    assert window.shape == (4, 2000, 2000) and int(window.sum()) == 4 * 512 * 512
    try:
        raster.read()
    except RasterError as error:
        assert "74.5 GiB" in str(error), error
    else:
        raise AssertionError("the whole raster was read")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300 * 1024  # KiB; the window has 32 MB, GDAL's cache at most 128


def test_a_file_in_one_tile_is_not_decoded(tmp_path):
    entries = {256: 40_000, 257: 40_000, 258: 8, 259: 8, 262: 1, 277: 1, 322: 40_000, 323: 40_000, 324: 122, 325: 8}
    content = b"II*\0" + struct.pack("<IH", 8, len(entries))
    content += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items()) + bytes(12)
    (tmp_path / "tile.tif").write_bytes(content)
    with pytest.raises(RasterError, match="blocks of 40000 x 40000 pixels"):
        open_raster(tmp_path / "tile.tif")


def test_without_rasterio_plain_tiffs_still_open(tmp_path, monkeypatch):
    values = drawn(3)
    PIL.Image.fromarray(values.transpose(1, 2, 0)).save(tmp_path / "rgb.tif")
    write_tiff(tmp_path / "geo.tif", values)
    write_tiff(tmp_path / "grey.tif", values[:1])
    write_tiff(tmp_path / "four.tif", drawn(4), crs=None, transform=None)
    page = PIL.Image.fromarray(values[0])
    page.save(tmp_path / "pages.tif", save_all=True, append_images=[page])
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with open_raster(tmp_path / "rgb.tif") as raster:
        assert np.array_equal(raster.read(), values)
    for name, message in (
        ("geo", "cannot read"),
        ("grey", "georeference"),
        ("four", "cannot read"),
        ("pages", "several pages"),
    ):
        with pytest.raises(RasterError, match=rf"(?s){message}.*pip install 'segtransformers\[geo\]'"):
            open_raster(tmp_path / f"{name}.tif")


def test_changed_bytes_are_read_or_refused(tmp_path):
    """Whatever stands in a file, it is read, or there is one line about it."""
    files = [
        write_tiff(tmp_path / "a.tif", drawn(3, 64, 64), tiled=True, blockxsize=16, blockysize=16, compress="deflate"),
        dicom_file(tmp_path / "d.dcm", drawn(1, 30, 30, "uint16")[0] % 4096, RescaleSlope=1, RescaleIntercept=-10),
    ]
    for name, save in (("a.npy", np.save), ("c.npz", np.savez_compressed)):
        save(tmp_path / name, drawn(3, 20, 20))
        files.append(tmp_path / name)
    generator = np.random.default_rng(0)
    read = refused = 0
    for index in range(400):
        content = bytearray(files[index % len(files)].read_bytes())
        for _ in range(int(generator.integers(1, 5))):
            start = int(generator.integers(min(len(content), 400)))
            content[start : start + 4] = [b"\xff" * 4, b"\0" * 4, generator.bytes(1)][int(generator.integers(3))]
        path = tmp_path / f"changed{files[index % len(files)].suffix}"
        path.write_bytes(content)
        try:
            with open_raster(path) as raster:
                window = slice(0, min(raster.height, 64)), slice(0, min(raster.width, 64)), [0]
                raster.valid(*window, raster.read(*window))
            read += 1
        except RasterError as error:
            refused += 1
            assert "\n" not in str(error) and path.name in str(error)
    assert read > 20 and refused > 100

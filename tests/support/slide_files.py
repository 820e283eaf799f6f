"""Files of slide scanners, written by the tests: small, with levels of known pixels."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

RGB = NDArray[np.uint8]

REGIONS_XY = ((100, 60), (1100, 760))
"""Where the regions of `write_scn` lie."""


def scene(height: int, width: int, seed: int = 0) -> RGB:
    """Random pixels: a shift by one is noticed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def halves(pixels: RGB, num: int) -> list[RGB]:
    """Every 2nd, 4th, ... pixel, of sizes rounded down."""
    height, width = pixels.shape[:2]
    return [pixels[: height // f * f : f, : width // f * f : f] for f in (2**k for k in range(num))]


def write_svs(path: Path, levels: list[RGB], mpp: float = 0.25) -> None:
    """An SVS as Aperio's scanners write it: full size, thumbnail, coarser levels, a label."""
    height, width = levels[0].shape[:2]
    told = f"Aperio Image Library v12\r\n{width}x{height} -> {width}x{height}|MPP = {mpp}"
    options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        for number, pixels in enumerate(levels):
            file.write(pixels, tile=(256, 256), compression="zlib", description=told, **options)
            if number == 0:
                file.write(np.ascontiguousarray(pixels[::9, ::9]), description=told, **options)
        label = np.zeros((40, 50, 3), np.uint8)
        file.write(label, description="Aperio\r\nlabel 50x40", subfiletype=1, **options)


def write_scn(path: Path, regions: list[RGB], nm: int = 500) -> None:
    """A Leica SCN of 1500 x 2000 pixels, with two levels of each region at `REGIONS_XY`."""
    images = []
    for number, (pixels, (x, y)) in enumerate(zip(regions, REGIONS_XY, strict=False)):
        height, width = pixels.shape[:2]
        levels = "".join(
            f'<dimension sizeX="{width >> level}" sizeY="{height >> level}" r="{level}" '
            f'ifd="{2 * number + level}"/>'
            for level in (0, 1)
        )
        images.append(
            _scn_image(levels, (width, height), (width * nm, height * nm), (x * nm, y * nm), 20)
        )
    macro = f'<dimension sizeX="200" sizeY="150" r="0" ifd="{2 * len(regions)}"/>'
    images.append(_scn_image(macro, (200, 150), (2000 * nm, 1500 * nm), (0, 0), 1))
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" '
        f'uuid="urn:uuid:1"><collection name="c" uuid="urn:uuid:2" sizeX="{2000 * nm}" '
        f'sizeY="{1500 * nm}" barcode="">{"".join(images)}</collection></scn>'
    )
    pages = [page for pixels in regions for page in (pixels, pixels[::2, ::2])]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, pixels in enumerate([*pages, np.full((150, 200, 3), 9, np.uint8)]):
            factor = 1 + number % 2
            file.write(
                pixels,
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                description=xml if number == 0 else None,
                metadata=None,
                resolution=(1e7 / (nm * factor),) * 2,
                resolutionunit="CENTIMETER",
            )


def _scn_image(
    levels: str, size: tuple[int, int], view: tuple[int, int], offset: tuple[int, int], power: int
) -> str:
    return (
        f'<image name="i" uuid="urn:uuid:{offset[0]}-{power}"><creationDate>2010-01-01T00:00:00Z'
        '</creationDate><device model="Leica SCN400" version="1"/>'
        f'<pixels sizeX="{size[0]}" sizeY="{size[1]}">{levels}</pixels><view sizeX="{view[0]}" '
        f'sizeY="{view[1]}" offsetX="{offset[0]}" offsetY="{offset[1]}" spacingZ="0"/>'
        f"<scanSettings><objectiveSettings><objective>{power}</objective></objectiveSettings>"
        "<illuminationSettings><numericalAperture>0.4</numericalAperture>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings>"
        "</scanSettings></image>"
    )


def write_bif(path: Path, pixels: RGB, overlap: int = 16) -> None:
    """A Ventana BIF of 2 x 3 tiles of 256 pixels that overlap, with a level of half the size."""
    step = 256 - overlap
    stored = np.concatenate(
        [
            np.concatenate([pixels[y : y + 256, x : x + 256] for x in (0, step, 2 * step)], axis=1)
            for y in (0, step)
        ]
    )
    # Numbered from the lower left corner, to the right, and back above.
    right = [(1, 2), (2, 3)]
    up = [(3, 4), (2, 5), (1, 6)]
    joints = "".join(
        f'<TileJointInfo FlagJoined="1" Confidence="100" Direction="{direction}" Tile1="{one}" '
        f'Tile2="{two}" OverlapX="{x}" OverlapY="{y}"/>'
        for direction, pairs, x, y in (("RIGHT", right, overlap, 0), ("UP", up, 0, overlap))
        for one, two in pairs
    )
    placed = (
        '<EncodeInfo Ver="2"><SlideInfo><AoiInfo XIMAGESIZE="256" YIMAGESIZE="256" NumRows="2" '
        'NumCols="3" Pos-X="0" Pos-Y="0"/></SlideInfo><SlideStitchInfo><ImageInfo AOIScanned="1" '
        'AOIIndex="0" NumRows="2" NumCols="3" Width="256" Height="256" Pos-X="0" Pos-Y="0">'
        f'{joints}</ImageInfo></SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/>'
        "</AoiOrigin></EncodeInfo>"
    )
    scanned = '<iScan Magnification="20" ScanRes="0.5" UnitNumber="1"></iScan>'

    def page(rgb: RGB, told: str, xmp: str = "", **options: Any) -> None:
        tags = [(700, 1, len(xmp), xmp.encode(), True)] if xmp else []
        file.write(
            rgb, photometric="rgb", description=told, metadata=None, extratags=tags, **options
        )

    tiles: dict[str, Any] = {"tile": (256, 256), "compression": "zlib"}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        page(np.full((100, 50, 3), 200, np.uint8), "Label Image", scanned)
        page(stored, "level=0 mag=20 quality=95", placed, **tiles)
        page(stored[::2, ::2], "level=1 mag=10 quality=95", **tiles)


def write_dicom(folder: Path, levels: list[RGB], mpp: float = 0.5, tile: int = 256) -> None:
    """A whole-slide image of DICOM, one tiled-full instance per level."""
    from pydicom.uid import generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    uids = [generate_uid() for _ in range(3)]
    for number, pixels in enumerate(levels):
        size = mpp * 2**number / 1000
        _dicom_level(folder / f"{number}.dcm", pixels, size, uids, number, tile)


def _dicom_level(
    path: Path, pixels: RGB, spacing_mm: float, uids: list[Any], number: int, tile: int
) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    height, width = pixels.shape[:2]
    rows, columns = -(-height // tile), -(-width // tile)
    padded = np.zeros((rows * tile, columns * tile, 3), np.uint8)
    padded[:height, :width] = pixels
    ds, meta = Dataset(), FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = generate_uid()
    ds.file_meta = meta
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uids
    ds.Modality, ds.InstanceNumber = "SM", number + 1
    kind = ["DERIVED", "RESAMPLED"] if number else ["ORIGINAL", "NONE"]
    ds.ImageType = [kind[0], "PRIMARY", "VOLUME", kind[1]]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    ds.NumberOfFrames, ds.Rows, ds.Columns = rows * columns, tile, tile
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.TotalPixelMatrixColumns, ds.TotalPixelMatrixRows = width, height
    ds.TotalPixelMatrixFocalPlanes, ds.DimensionOrganizationType = 1, "TILED_FULL"
    ds.ImagedVolumeWidth, ds.ImagedVolumeHeight = width * spacing_mm, height * spacing_mm
    ds.ImagedVolumeDepth, ds.ImageOrientationSlide = 1.0, [0, -1, 0, -1, 0, 0]
    origin, path_of_light, measures, shared = (Dataset() for _ in range(4))
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    ds.TotalPixelMatrixOriginSequence = [origin]
    path_of_light.OpticalPathIdentifier = "1"
    ds.NumberOfOpticalPaths, ds.OpticalPathSequence = 1, [path_of_light]
    measures.PixelSpacing, measures.SliceThickness = [spacing_mm] * 2, 1
    shared.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = padded.reshape(rows, tile, columns, tile, 3).transpose(0, 2, 1, 3, 4)
    ds.PixelData = frames.tobytes()
    ds["PixelData"].VR = "OB"
    ds.save_as(path, enforce_file_format=True)


def write_czi(path: Path, pixels: RGB, mpp: float = 0.25, coarse: RGB | None = None) -> None:
    """A mosaic of two tiles in RGB, away from the origin; with a level of half the size.

    The writer makes no coarser levels: of ``coarse`` the logical size is changed afterwards.
    """
    from pylibCZIrw import czi

    # As ZEISS stores them: blue, green, red.
    stored = np.ascontiguousarray(pixels[..., ::-1])
    cut = pixels.shape[1] * 3 // 5
    with czi.create_czi(str(path), compression_options="uncompressed:") as file:
        file.write(stored[:, :cut], location=(-10, 20))
        file.write(stored[:, cut:], location=(cut - 10, 20))
        if coarse is not None:
            file.write(np.ascontiguousarray(coarse[..., ::-1]), location=(-10, 20))
        file.write_metadata("made by a test", scale_x=mpp * 1e-6, scale_y=mpp * 1e-6)
    if coarse is None:
        return
    written = bytearray(path.read_bytes())
    for letter, start, length in ((b"X", -10, coarse.shape[1]), (b"Y", 20, coarse.shape[0])):
        entry = letter.ljust(4, b"\0") + struct.pack("<ii", start, length)
        place, num = written.find(entry), 0
        while place >= 0:
            written[place + 8 : place + 12] = struct.pack("<i", 2 * length)
            place, num = written.find(entry, place + 1), num + 1
        assert num == 2  # in the directory, and before the pixels
    path.write_bytes(written)


def write_czi_stack(path: Path, stack: NDArray[np.uint16], names: list[str]) -> None:
    """Grey channels: (C, Z, Y, X) uint16, 1 x 1 x 2 micrometres, the first one shown in blue."""
    from pylibCZIrw import czi

    blue = czi.Rgb8Color(np.uint8(0), np.uint8(0), np.uint8(255))
    shown = czi.ChannelDisplaySettingsDataClass(True, czi.TintingMode.Color, blue, 0.0, 1.0)
    with czi.create_czi(str(path)) as file:
        for channel, z in np.ndindex(stack.shape[:2]):
            file.write(stack[channel, z][..., None], plane={"C": channel, "Z": z})
        file.write_metadata(
            "made by a test",
            channel_names=dict(enumerate(names)),
            scale_x=1e-6,
            scale_y=1e-6,
            scale_z=2e-6,
            display_settings={0: shown},
        )

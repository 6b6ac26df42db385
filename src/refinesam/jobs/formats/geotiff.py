"""Where on the map a GeoTIFF lies (OGC GeoTIFF 1.1)."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass

import numpy as np
import tifffile
from numpy.typing import NDArray

from refinesam.errors import ImageError
from refinesam.files import JsonObject
from refinesam.training.sources.shards import is_remote, read_file

__all__ = ["GeoReference", "read_georeference"]

PIXEL_IS_POINT = 2  # GTRasterTypeGeoKey: coordinates are those of pixels' centres


@dataclass(frozen=True, eq=False)
class GeoReference:
    """From pixels to the map.

    Attributes:
        matrix: (2, 3) float64, from pixel edges (x, y, 1) to map coordinates.
        epsg: the coordinate system's code, None where the file has none.
    """

    matrix: NDArray[np.float64]
    epsg: int | None

    def to_map(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the map coordinates (N, 2) of pixel-edge points (N, 2)."""
        return np.asarray(points @ self.matrix[:, :2].T + self.matrix[:, 2])


def read_georeference(location: str) -> GeoReference | None:
    """Read where an image lies; None for one that does not say.

    Raises:
        ImageError: a TIFF file that is not there any more, or damaged.
    """
    if os.path.splitext(location)[1].lower() not in (".tif", ".tiff"):
        return None
    try:
        if not is_remote(location):
            return _of_file(location)
        with tempfile.NamedTemporaryFile(suffix=".tif") as file:
            file.write(read_file(location))
            file.flush()
            return _of_file(file.name)
    except (OSError, ValueError) as error:
        raise ImageError(f"{location} cannot be read for its coordinates: {error}. Put the image back.") from error


def _of_file(path: str) -> GeoReference | None:
    with tifffile.TiffFile(path) as tif:
        tags: JsonObject = tif.pages[0].aspage().geotiff_tags or {}
    matrix = _matrix(tags)
    if matrix is None:
        return None
    if tags.get("GTRasterTypeGeoKey", 1) == PIXEL_IS_POINT:
        matrix = matrix @ np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    code = tags.get("ProjectedCSTypeGeoKey") or tags.get("GeographicTypeGeoKey")
    # 32767 stands for a system that is described instead of named.
    return GeoReference(matrix[:2], int(code) if code and int(code) != 32767 else None)


def _matrix(tags: JsonObject) -> NDArray[np.float64] | None:
    """Return (3, 3), from raster to map coordinates."""
    if "ModelTransformation" in tags:
        return np.asarray(tags["ModelTransformation"], np.float64).reshape(4, 4)[np.ix_([0, 1, 3], [0, 1, 3])]
    if "ModelPixelScale" not in tags or "ModelTiepoint" not in tags:
        return None
    scale_x, scale_y, *_ = tags["ModelPixelScale"]
    column, row, _, x, y, *_ = tags["ModelTiepoint"]
    return np.array([[scale_x, 0, x - column * scale_x], [0, -scale_y, y + row * scale_y], [0, 0, 1]], np.float64)

"""A job's results as images with named objects: what every format is written from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath

from refinesam.errors import OutputError
from refinesam.jobs.folder import result_rows
from refinesam.jobs.rows import Row
from refinesam.rle import Rle, decode_rle
from refinesam.types import BoolArray

__all__ = ["Category", "LabeledImage", "LabeledObject", "NewFolder", "Results", "relative_name"]

# The class of objects that have none.
UNNAMED = "object"


@dataclass(frozen=True)
class Category:
    """A class: its id, and its place among all classes, from 0."""

    id: int
    name: str
    index: int


@dataclass(frozen=True)
class LabeledObject:
    """One object with a mask.

    Attributes:
        number: of the object in its image, from 0; failed ones have numbers, too.
        category: its class.
        score: the detector's, else the mask's predicted IoU.
        predicted_iou: of the mask.
        rle: the mask.
        box: (4,) XYXY around the mask.
        area: in pixels.
    """

    number: int
    category: Category
    score: float
    predicted_iou: float
    rle: Rle
    box: tuple[float, ...]
    area: int

    @property
    def mask(self) -> BoolArray:
        """(H, W) bool."""
        return decode_rle(self.rle)


@dataclass(frozen=True)
class LabeledImage:
    """One image that was read; `name` as the job has it, `location` its path or URL."""

    name: str
    location: str
    image_hw: tuple[int, int]
    objects: tuple[LabeledObject, ...]

    @property
    def largest_first(self) -> list[LabeledObject]:
        """The objects in the order in which they are painted: what is small stays in sight."""
        return sorted(self.objects, key=lambda labeled: -labeled.area)


class Results:
    """The results of a job that is done.

    Attributes:
        categories: all classes. Their ids are the prompts', where each has one of its own, else they count from 1.
        left_out: images and objects that failed, and empty masks; counted as `images` runs.
    """

    def __init__(self, path: Path) -> None:
        """Look at what classes there are.

        Raises:
            DatasetError: the folder holds no results, or the job is not done.
        """
        self.path, self.left_out = path, 0
        classes = {(row["class_id"], row["class_name"] or UNNAMED) for row in result_rows(path) if row["area"]}
        ids = {number for number, _ in classes}
        names = sorted({name for _, name in classes})
        own = None not in ids and len(ids) == len(names) == len(classes)
        pairs = sorted(classes) if own else list(enumerate(names, start=1))
        self.categories = [Category(int(number), name, index) for index, (number, name) in enumerate(pairs)]
        self._by_name = {category.name: category for category in self.categories}

    def images(self) -> Iterator[LabeledImage]:
        """Give every image that could be read, in the job's order."""
        self.left_out = 0
        for name, rows in groupby(result_rows(self.path), key=lambda row: row["image"]):
            first, *more = rows
            objects = [self._object(row) for row in (first, *more) if row["area"]]
            self.left_out += sum(row["object"] is not None or row["error"] is not None for row in (first, *more))
            self.left_out -= len(objects)
            if first["height"] is not None:
                yield LabeledImage(name, first["location"], (first["height"], first["width"]), tuple(objects))

    def _object(self, row: Row) -> LabeledObject:
        return LabeledObject(
            number=row["object"],
            category=self._by_name[row["class_name"] or UNNAMED],
            score=row["predicted_iou"] if row["score"] is None else row["score"],
            predicted_iou=row["predicted_iou"],
            rle={"size": [row["height"], row["width"]], "counts": row["rle"]},
            box=tuple(row["box"]),
            area=row["area"],
        )


class NewFolder:
    """Places for files of a new folder, one for each image."""

    def __init__(self, path: Path) -> None:
        """Check that the folder is new or empty; OutputError otherwise."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path} is there and not empty: give a new folder, so that nothing is lost.")
        self.path, self._taken = path, dict[Path, str]()

    def place(self, image: LabeledImage, below: str, suffix: str) -> Path:
        """Return a path below a folder's part, with the image's name and another suffix.

        Raises:
            OutputError: two images differ by their suffix only.
        """
        place = self.path / below / relative_name(image.name).with_suffix(suffix)
        if self._taken.setdefault(place, image.name) != image.name:
            raise OutputError(f"{self._taken[place]} and {image.name} would both become {place}: rename one of them.")
        return place


def relative_name(name: str) -> PurePosixPath:
    """Return an image's name as a path that stays below a folder, also for URLs."""
    parts = PurePosixPath(name.partition("://")[2] or name).parts
    return PurePosixPath(*[part for part in parts if part not in ("/", "..")])

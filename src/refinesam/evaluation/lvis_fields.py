"""What LVIS' annotation files hold besides COCO's format, checked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal

from refinesam.errors import DatasetError
from refinesam.evaluation.json_fields import field_of
from refinesam.files import JsonObject
from refinesam.rle import shown

__all__ = ["FREQUENCIES", "ListName", "check_listed", "frequencies_of", "listed_categories"]

# By how many training images show a category: fewer than 10, fewer than 100, more.
FREQUENCIES: Final = ("r", "c", "f")

# Lists of category ids in every image record.
ListName = Literal["neg_category_ids", "not_exhaustive_category_ids"]


def frequencies_of(content: JsonObject, where: str) -> dict[int, str]:
    """Return the frequencies of a document's categories by id, each one of `FREQUENCIES`.

    Raises:
        DatasetError: no categories, or one without its frequency; the message starts with `where`.
    """
    if not content.get("categories"):
        raise DatasetError(f"{where} needs 'categories', each with its frequency: give an LVIS file, not a COCO one.")
    frequencies = {}
    for index, category in enumerate(content["categories"]):
        place = f"{where}: categories[{index}]"
        frequency = field_of(category, "frequency", str, place)
        if frequency not in FREQUENCIES:
            raise DatasetError(f"{place}.frequency must be r, c or f (rare, common, frequent), got {shown(frequency)}.")
        frequencies[field_of(category, "id", int, place)] = frequency
    return frequencies


def listed_categories(image: object, key: ListName, where: str, categories: Collection[int]) -> frozenset[int]:
    """Return the category ids that an image record lists under a key.

    Args:
        image: the record.
        key: the list's name.
        where: the record's place, with which messages start.
        categories: ids of all categories.

    Raises:
        DatasetError: no list, or something in it that is not the id of a category.
    """
    numbers = field_of(image, key, list, where)
    unknown = [number for number in numbers if type(number) is not int or number not in categories]
    if unknown:
        raise DatasetError(f"{where}.{key} holds {shown(unknown[0])}, which is not the id of any of 'categories'.")
    return frozenset(numbers)


def check_listed(image: object, where: str, categories: Collection[int]) -> None:
    """Raise DatasetError unless both lists of an image record are sound."""
    listed_categories(image, "neg_category_ids", where, categories)
    listed_categories(image, "not_exhaustive_category_ids", where, categories)

"""The folder of a job's results: shards, each written once and whole, and what they were made with.

::

    job.json              the settings, by which another command on the same folder is told
    shards/00000.parquet  the rows of the first images, and so on
    failures.csv          what failed, and why; made of the shards
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from refinesam.errors import DatasetError, OutputError
from refinesam.evaluation.parquet import write_rows
from refinesam.files import JsonObject, write_json, writing
from refinesam.jobs.rows import COLUMNS, Row, Task, read_rows

__all__ = ["BatchResults", "JobFolder", "Totals", "result_rows"]

JOB, SHARDS, FAILURES = "job.json", "shards", "failures.csv"
FAILURE_COLUMNS = ("image", "object", "prompt_id", "class_name", "error", "shard")
VERSION = 1
# What is told of those that stand in job.json as a digest.
DIGESTS = {
    "image_names": "other images, or the same in another place or order",
    "prompts": "other prompts",
    "weights_sha256": "other content of the weights",
}


@dataclass(frozen=True)
class Totals:
    """Of a job's results so far: images, objects with a mask, and failures."""

    images: int
    objects: int
    failures: int


class JobFolder:
    """A job's results, and what is still to be done."""

    def __init__(
        self, path: Path, settings: Mapping[str, object], tasks: Sequence[Task], images_per_shard: int
    ) -> None:
        """Open a folder of results, or make one.

        Args:
            path: of the folder; empty, missing, or that of the same job.
            settings: what decides on the answers, as JSON takes it.
            tasks: all of the job's.
            images_per_shard: images in each shard.

        Raises:
            OutputError: the folder holds something else, or the results of other settings.
        """
        self.path, self.tasks, self.images_per_shard = path, tasks, images_per_shard
        described = {
            "version": VERSION,
            **settings,
            "images_per_shard": images_per_shard,
            "images": len(tasks),
            "image_names": _digest([task.source for task in tasks]),
            "prompts": _digest([task.prompts for task in tasks]),
        }
        job = path / JOB
        if job.is_file():
            _check_same(job, json.loads(json.dumps(described)))
            return
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"{path} is there and holds no results of refinesam batch: give an empty or new folder.")
        write_json(job, described, indent=1)

    def shard(self, number: int) -> Path:
        """Return the place of a shard."""
        return self.path / SHARDS / f"{number:05d}.parquet"

    def tasks_of(self, number: int) -> Sequence[Task]:
        """Return the tasks of a shard."""
        return self.tasks[number * self.images_per_shard : (number + 1) * self.images_per_shard]

    @property
    def shards(self) -> range:
        """The numbers of all shards."""
        return range(-(-len(self.tasks) // self.images_per_shard))

    def missing(self, retry_failures: bool = False) -> list[int]:
        """Return the shards that are still to be made, with `retry_failures` also those that hold failures."""
        return [n for n in self.shards if not self.shard(n).is_file() or (retry_failures and self._failed(n))]

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Write a shard."""
        about = {"version": VERSION, "images": len(self.tasks_of(number))}
        write_rows(self.shard(number), rows, COLUMNS, ("refinesam", about), "batch")

    def write_failures(self) -> Totals:
        """List what failed in failures.csv; return the totals of all shards that are there."""
        images, objects, failures = set[str](), 0, 0
        with writing(self.path / FAILURES) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, FAILURE_COLUMNS, extrasaction="ignore")
            table.writeheader()
            for number in self.shards:
                if not self.shard(number).is_file():
                    continue
                for row in read_rows(self.shard(number), ["object", "rle", *FAILURE_COLUMNS[:-1]]):
                    images.add(row["image"])
                    objects += row["rle"] is not None
                    if row["error"] is not None:
                        failures += 1
                        table.writerow(row | {"shard": self.shard(number).name})
        return Totals(len(images), objects, failures)

    def _failed(self, number: int) -> bool:
        return any(row["error"] is not None for row in read_rows(self.shard(number), ["error"]))


class BatchResults:
    """What `refinesam batch` has written so far, whether or not the job is done.

    Attributes:
        path: the folder.
        job: what the job was started with, as its job.json has it; "images" is the number of its images.
        shards: the files of rows that are there, in the order of the images.
        missing: the names of those that are not there yet.
    """

    def __init__(self, path: Path) -> None:
        """Look at what is there; DatasetError where it is no folder of results."""
        job = path / JOB
        if not job.is_file():
            raise DatasetError(f"{path} holds no results of refinesam batch: give the folder that was its --output.")
        self.path, self.job = path, _read_job(job)
        self._count = -(-self.job["images"] // self.job["images_per_shard"])
        shards = [path / SHARDS / f"{number:05d}.parquet" for number in range(self._count)]
        self.shards = [shard for shard in shards if shard.is_file()]
        self.missing = [shard.name for shard in shards if shard not in self.shards]

    @property
    def digest(self) -> str:
        """Of the job's settings, images and prompts."""
        return _digest(sorted(self.job.items()))

    def rows(self, shard: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Read a shard's rows, image by image, with all columns or some; DatasetError where it is damaged."""
        return read_rows(shard, columns)

    def check_done(self) -> None:
        """Raise DatasetError if shards are missing."""
        if self.missing:
            raise DatasetError(
                f"{len(self.missing)} of {self._count} shards of {self.path} are not there yet, such as "
                f"{self.missing[0]}: run the same refinesam batch again, which goes on where it stopped."
            )


def result_rows(path: Path) -> Iterator[Row]:
    """Read all rows of a folder of results, image by image, in the order of the images.

    Raises:
        DatasetError: it is no such folder, or the job is not done.
    """
    results = BatchResults(path)
    results.check_done()
    for shard in results.shards:
        yield from results.rows(shard)


def _read_job(job: Path) -> JsonObject:
    try:
        content = json.loads(job.read_text("utf-8"))
        if not isinstance(content["images"], int) or not content["images_per_shard"] >= 1:
            raise ValueError("no numbers of images")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{job} is damaged ({error}): take another --output, or delete the folder.") from error
    return dict(content)


def _check_same(job: Path, described: Mapping[str, object]) -> None:
    before = _read_job(job)
    names = sorted(described.keys() | before.keys())
    changed = [
        DIGESTS.get(name) or f"{name}: {before.get(name)} there, {described.get(name)} now"
        for name in names
        if before.get(name) != described.get(name)
    ]
    if changed:
        raise OutputError(
            f"{job.parent} holds results of other settings ({'; '.join(changed)}). Give another --output, or the same "
            "settings as before, or delete that folder."
        )


def _digest(values: Sequence[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(f"{value!r}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]

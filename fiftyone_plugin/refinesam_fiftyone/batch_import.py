"""Import of what `refinesam batch` has written: its masks, classes and scores become labels of the samples.

Images and samples are matched by their files. A job that is not done is read as far as it is, and a later import adds
what came since: a sample is done when its digest, that of its rows, is written.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import fiftyone as fo

from refinesam import DatasetError, RefineSAMError, decode_rle
from refinesam.hosts import BatchResults, match_images

from .compare import check_images
from .files import file_name
from .label_runs import LabelRun, Stored, check_label_run, digest_of
from .labels import detection_from_mask, label_id
from .sample_result import SampleResult, failed_sample, failure_label
from .samples import Target, target_of
from .schema import Fields, check_whole

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

__all__ = ["import_batch"]

Row = Mapping[str, Any]
# Of a sample that was imported, the job's rows; how long they took to make is no part of what they say.
_NO_ANSWER: Final = "seconds"


class _Sample(NamedTuple):
    id: str
    path: str
    image_hw: tuple[int | None, int | None]
    digest: str | None


def import_batch(
    samples: SampleCollection,
    folder: str | os.PathLike[str],
    *,
    run_key: str = "batch",
    masks_dir: str | None = None,
    batch_size: int = 16,
    on_progress: Callable[[int, int], object] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Stored:
    """Write the masks that `refinesam batch` made into the field "{key}_labels".

    An image is that of a sample with the same file; else of the only file whose path ends in the image's name, else of
    the only one of the same last part. Its size has to be the sample's. Labels have the class, as their confidence the
    detector's score, or without one the IoU that the model predicted, "predicted_iou", "kept", and "source_id", the id
    that the prompt had. What failed in the job is listed in the run's failures.

    Args:
        samples: a dataset or view of images.
        folder: the job's output; shards that are not there yet are left for another call.
        run_key: the start of the fields' names.
        masks_dir: folder for the masks; None keeps them in the database.
        batch_size: samples stored at a time.
        on_progress: called after every batch with the images read so far and their number.
        should_stop: asked after every batch; True ends the call, and a later one goes on from there.

    Returns:
        What was done; `left_out` has the images that match no sample, and shards that cannot be read, with the reason.

    Raises:
        ConfigError: the name is taken, or has the labels of another job.
        DatasetError: the samples are no images, or the folder holds no results.
    """
    run = Fields(run_key)
    check_whole("batch_size", batch_size, at_least=1)
    check_images(samples)
    target, results = target_of(samples), BatchResults(Path(folder))
    check_label_run(target, run, "batch")
    work = LabelRun(target, run, "batch", {"folder": str(folder), "masks_dir": masks_dir}, sorted(results.job.items()))
    locations, left_out = _locations(results)
    there = _samples(target, run)
    paths, unmatched = _matched(locations, sorted({sample.path for sample in there}))
    left_out |= unmatched
    work.begin()
    by_path = defaultdict(list)
    for sample in there:
        by_path[sample.path].append(sample)
    images = _images(results, left_out)
    done = 0
    while batch := list(islice(images, batch_size)):
        if should_stop is not None and should_stop():
            return work.summary(len(there), stopped=True, left_out=left_out)
        made = (_results(work, by_path[paths[name]], name, rows, left_out) for name, rows in batch if name in paths)
        work.store([*chain.from_iterable(made)])
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(locations))
    return work.summary(len(there), left_out=left_out)


def _locations(results: BatchResults) -> tuple[dict[str, str], dict[str, str]]:
    """Return image -> location, of all images that there are rows of; and shard -> why it cannot be read."""
    locations: dict[str, str] = {}
    damaged: dict[str, str] = {}
    for shard in results.shards:
        try:
            locations |= {row["image"]: row["location"] for row in results.rows(shard, ["image", "location"])}
        except DatasetError as error:
            damaged[shard.name] = str(error)
    return locations, damaged


def _images(results: BatchResults, left_out: dict[str, str]) -> Iterator[tuple[str, Sequence[Row]]]:
    """Yield the rows of each image; note shards that turn out to be damaged."""
    for shard in results.shards:
        if shard.name in left_out:
            continue
        try:
            by_image = [(str(name), [*rows]) for name, rows in groupby(results.rows(shard), itemgetter("image"))]
        except DatasetError as error:
            left_out[shard.name] = str(error)
        else:
            yield from by_image


def _samples(target: Target, run: Fields) -> list[_Sample]:
    names = ["id", "filepath", "metadata.height", "metadata.width"]
    view = target.view()
    columns = view.values([*names, run.digest] if target.field(run.digest) is not None else names)
    digests = columns[4] if len(columns) > len(names) else [None] * len(columns[0])
    return [_Sample(i, path, (h, w), d) for i, path, h, w, d in zip(*columns[:4], digests, strict=True)]


def _matched(locations: Mapping[str, str], paths: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return image -> path of its sample, and image -> why it has none."""
    there, asked = set(paths), {}
    for name, location in locations.items():
        path = os.path.abspath(location)
        asked[path if path in there else name] = name
    given, unmatched = match_images(asked, paths)
    by_last = defaultdict(list)
    for path in paths:
        by_last[os.path.basename(path)].append(path)
    reasons = {}
    for one in unmatched:
        last = os.path.basename(one)
        found = by_last[last]
        if len(found) > 1:
            reasons[asked[one]] = f"{len(found)} files of samples end in {last}: which one is not known."
        elif found:
            reasons[asked[one]] = f"Another image of the job fits the sample of {found[0]} as well or better."
        else:
            reasons[asked[one]] = f"No sample has a file {last}."
    return {asked[one]: path for path, one in given.items()}, reasons


def _other_size(sample: _Sample, row: Row) -> str | None:
    """Say if the job's image has another size than the sample's, which its masks then do not fit."""
    if row["height"] is None:
        return None
    size = sample.image_hw
    if None in size:
        try:
            metadata = fo.ImageMetadata.build_for(sample.path)
            size = metadata.height, metadata.width
        except (OSError, ValueError, TypeError):
            return f"The size of {Path(sample.path).name}, which the masks must fit, cannot be read: restore the file."
    if size == (row["height"], row["width"]):
        return None
    return (
        f"The image had {row['width']} x {row['height']} pixels, and that of the sample has {size[1]} x {size[0]}: "
        "they are not the same."
    )


def _results(
    work: LabelRun, samples: Sequence[_Sample], name: str, rows: Sequence[Row], left_out: dict[str, str]
) -> Iterator[SampleResult]:
    """Make what is not stored yet of an image's rows; note the image where a sample has another size."""
    digest = digest_of([{key: value for key, value in row.items() if key != _NO_ANSWER} for row in rows])
    for sample in samples:
        if problem := _other_size(sample, rows[0]):
            left_out[name] = problem
        elif not work.is_done(sample.digest, digest):
            yield _result(work, sample, rows, digest)


def _result(work: LabelRun, sample: _Sample, rows: Sequence[Row], digest: str) -> SampleResult:
    first = rows[0]
    if first["height"] is None:
        return failed_sample(work.run, sample.id, digest, "unreadable_image", first["error"] or "It was not read.")
    result = SampleResult(sample.id, digest)
    for row in rows:
        key = f"{sample.id}-{row['object'] or 0:04d}"
        if row["error"] is not None:
            result.failures.append(failure_label(work.run, key, "bad_prompt", row["error"]))
        elif row["rle"] is not None:
            try:
                result.labels.append(_label(work, sample, key, row))
            except RefineSAMError as error:
                result.failures.append(failure_label(work.run, key, "unreadable_mask", str(error)))
            except OSError as error:
                reason = f"The mask could not be written: {error.strerror}. Make room or choose another folder."
                return failed_sample(work.run, sample.id, "", "not_stored", reason)
    return result


def _label(work: LabelRun, sample: _Sample, prompt_id: str, row: Row) -> fo.Detection:
    mask = decode_rle({"size": [row["height"], row["width"]], "counts": row["rle"]})
    number = row["class_id"]
    return detection_from_mask(
        mask,
        mask_path=work.folder and work.folder / sample.id / file_name(prompt_id, "labels", mask),
        id=label_id(work.run.key, prompt_id, "labels"),
        label=row["class_name"] or ("object" if number is None else str(number)),
        confidence=row["predicted_iou"] if row["score"] is None else row["score"],
        prompt_id=prompt_id,
        predicted_iou=row["predicted_iou"],
        kept=row["kept"],
        source_id=row["prompt_id"],
    )

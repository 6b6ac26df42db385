"""Writing into the dataset: results field by field, and single values of many samples at once.

A result that the database refuses costs only its own sample; a sample that somebody changed meanwhile is passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import fiftyone as fo
from bson import ObjectId
from bson.errors import BSONError
from mongoengine.errors import MongoEngineException
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, PyMongoError

from .others import labels_of_others, tags_of
from .private import backing_dataset, documents_of
from .record import made
from .sample_result import SampleResult, failed_sample
from .samples import Target
from .schema import ALL_ROLES, FAILURES, Fields, Role

__all__ = ["store", "store_values"]

logger = logging.getLogger(__name__)

# What the database says to one document; that it cannot be reached is another matter and ends the run.
_REFUSALS = (PyMongoError, BSONError, MongoEngineException, ValueError, OverflowError)


def store(target: Target, run: Fields, results: Sequence[SampleResult]) -> Iterator[SampleResult]:
    """Write a batch of results and yield what was stored of each.

    The digests, which say that samples are done, are written last.

    Raises:
        PyMongoError: the database cannot be reached; what was stored before stays.
    """
    if not results:
        return
    try:
        _write(target, run, results)
    except _REFUSALS as error:
        if len(results) > 1:
            for result in results:
                yield from store(target, run, [result])
            return
        # A document beyond MongoDB's 16 MiB, most likely: many masks, all in the database.
        (result,) = results
        logger.warning("Sample %s could not be stored: %s", result.sample_id, error)
        reason = f"The database refused the masks ({error}). If they are too large, keep masks as files."
        failed = failed_sample(run, result.sample_id, result.digest, "not_stored", reason[:500])
        _write(target, run, [failed])
        yield failed
        return
    yield from results


def _write(target: Target, run: Fields, results: Sequence[SampleResult]) -> None:
    ids = [result.sample_id for result in results]
    tags, others = tags_of(target, run, ids), labels_of_others(target, run, ids)

    def with_others(name: str, sample_id: str, labels: Sequence[fo.Label]) -> list[fo.Label]:
        for label in labels:
            label.tags = tags.get(label.id, [])
        new = {label.id for label in labels}
        return [*labels, *(label for label in others.get(name, {}).get(sample_id, ()) if label.id not in new)]

    def masks(role: Role) -> dict[str, fo.Detections]:
        name = run.masks(role)
        by_sample = {result.sample_id: with_others(name, result.sample_id, getattr(result, role)) for result in results}
        return {sample_id: fo.Detections(detections=labels) for sample_id, labels in by_sample.items()}

    points = {result.sample_id: with_others(run.points, result.sample_id, result.points) for result in results}
    columns: dict[str, dict[str, Any]] = {
        **{run.masks(role): masks(role) for role in ALL_ROLES},
        run.points: {sample_id: fo.Keypoints(keypoints=labels) for sample_id, labels in points.items()},
        run.failures: {result.sample_id: fo.Classifications(classifications=result.failures) for result in results},
    }
    # Not every run has all of them, and a field of that name may be the user's.
    own = made(target, run)
    columns = {name: values for name, values in columns.items() if name in own}
    for name, values in columns.items():
        target.set_values(name, values)
    target.samples.select(ids).untag_samples([run.failure_tag(kind) for kind in FAILURES])
    for failure in {label.label for result in results for label in result.failures}:
        tagged = [result.sample_id for result in results if any(label.label == failure for label in result.failures)]
        target.samples.select(tagged).tag_samples(run.failure_tag(failure))
    target.set_values(run.digest, {result.sample_id: result.digest for result in results})


def store_values(target: Target, updates: Mapping[str, tuple[datetime | None, Mapping[str, Any]]]) -> dict[str, str]:
    """Set values by their paths in many samples' documents at once; return the ids of those refused, and why.

    One write a sample is some fifteen times as fast as FiftyOne's own by field. Labels are named by their position in
    those paths, so a sample that somebody changed since it was read is left alone.

    Args:
        target: where the samples are.
        updates: sample id -> when it was last modified as it was read, and path -> value.
    """
    # MongoDB keeps milliseconds.
    now = datetime.now(UTC)
    now = now.replace(microsecond=now.microsecond // 1000 * 1000)
    wanted = {sample_id: update for sample_id, update in updates.items() if update[1]}
    if not wanted:
        return {}
    operations = [
        UpdateOne({"_id": ObjectId(sample_id), "last_modified_at": read}, {"$set": {**values, "last_modified_at": now}})
        for sample_id, (read, values) in wanted.items()
    ]
    refused: dict[str, str] = {}
    collection = documents_of(backing_dataset(target.samples))
    try:
        matched = collection.bulk_write(operations, ordered=False).matched_count
    except BulkWriteError as error:
        matched = error.details["nMatched"]
        for refusal in error.details["writeErrors"]:
            refused[list(wanted)[refusal["index"]]] = f"The database refused the scores ({refusal['errmsg']})."[:500]
    if matched + len(refused) < len(wanted):
        among = {"_id": {"$in": [ObjectId(i) for i in wanted]}, "last_modified_at": {"$ne": now}}
        for document in collection.find(among, {"_id": True}):
            refused.setdefault(str(document["_id"]), "The sample was changed while it was evaluated: evaluate again.")
    target.written({path.partition(".")[0] for _, values in wanted.values() for path in values}, list(wanted))
    return refused

"""Comparing: every prompt of every sample answered twice from one encoding, as it is and with AMR, and stored.

A sample is done when its digest is written, which comes last: a run that was killed takes up where it stopped, and a
sample whose image, prompts, settings or model changed is done again. Labels have ids made of what they stand for, so
doing it again replaces them.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

import refinesam
from refinesam import AMRConfig, ConfigError, DatasetError, Item, RefineSAMError, Session, segment_batch

from .files import folder_of
from .prompting import Asked, ask, file_digest, file_stamp, source_digest, source_field
from .runs import begin_run, check_run
from .sample_result import SampleResult, failed_sample, sample_result
from .samples import Target, target_of
from .schema import Failure, Fields, Settings, check_whole
from .storing import store

if TYPE_CHECKING:
    import fiftyone as fo
    from fiftyone.core.collections import SampleCollection

__all__ = ["Comparison", "check_images", "check_samples", "compare", "loaded_session", "read_pixels"]

# Images read ahead of the model; more would only take memory.
READ_AHEAD: Final = 4


@dataclass(frozen=True)
class Comparison:
    """What a call of `compare` did.

    Attributes:
        samples: how many it was asked for.
        done: how many it stored, those without any answer too.
        skipped: how many were done before.
        encoded: images that the model encoded.
        prompts: prompts that were answered.
        failures: how many prompts or samples failed, by kind.
        stopped: it was asked to stop before the end.
    """

    samples: int
    done: int = 0
    skipped: int = 0
    encoded: int = 0
    prompts: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    stopped: bool = False


def compare(
    samples: SampleCollection,
    settings: Settings,
    *,
    run_key: str = "refinesam",
    device: str = "auto",
    batch_size: int = 16,
    resume: bool = True,
    session: Session | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Comparison:
    """Answer the prompts of samples with and without Adaptive Mask Refinement, and write both into the dataset.

    Each image is encoded once; "full" refinement encodes the surroundings of each object besides. A damaged image, a
    missing file or a bad prompt costs only itself: it is listed in the run's failures field, with the reason, and its
    sample is tagged. Several processes may each take a part of a dataset at the same time. Label filters of a view do
    not limit the prompts, only its samples count.

    Args:
        samples: a dataset or view of images.
        settings: prompts, model, refinement and storage.
        run_key: the start of the fields' names.
        device: as `refinesam.load` takes it.
        batch_size: samples stored at a time.
        resume: leave samples alone that are done with the same settings, model, image and prompts.
        session: use this model instead of loading `settings.weights`.
        on_progress: called after every batch with the samples finished so far and their number.
        should_stop: asked after every batch; True ends the call, and a later one goes on from there.

    Raises:
        ConfigError: bad settings or fields.
        DatasetError: the samples are no images.
        WeightsError: the model cannot be loaded.
    """
    run = Fields(run_key)
    check_samples(samples, settings)
    check_whole("batch_size", batch_size, at_least=1)
    target = target_of(samples)
    check_run(target, run, settings)
    session = session or loaded_session(settings.weights, device)
    ids = target.ids
    work = _Work(target, run, settings, session, resume)
    begin_run(target, run, settings, work.asked_digest)
    for start in range(0, len(ids), batch_size):
        if should_stop is not None and should_stop():
            return work.summary(len(ids), stopped=True)
        work.do(ids[start : start + batch_size])
        if on_progress is not None:
            on_progress(min(start + batch_size, len(ids)), len(ids))
    return work.summary(len(ids), stopped=False)


def check_images(samples: SampleCollection) -> None:
    """Raise DatasetError unless the samples are images."""
    if samples.media_type == "group":
        slices = [name for name, kind in samples.group_media_types.items() if kind == "image"]
        raise DatasetError(
            f"The samples are groups: choose slices of images, samples.select_group_slices({slices!r}), or one of them."
        )
    if samples.media_type not in ("image", None):
        frames = " Of a video's frames make images: samples.to_frames(sample_frames=True)."
        raise DatasetError(
            f"The samples are of media type {samples.media_type!r}; refinesam segments images."
            + (frames if samples.media_type == "video" else "")
        )


def check_samples(samples: SampleCollection, settings: Settings) -> None:
    """Raise ConfigError or DatasetError unless the samples are images that have the fields the settings name."""
    check_images(samples)
    wanted = [(settings.truth_field, "Detections")]
    if settings.prompts in ("boxes", "keypoints"):
        wanted.append((settings.prompt_field, "Keypoints" if settings.prompts == "keypoints" else "Detections"))
    schema = target_of(samples).samples.get_field_schema()
    for name, kind in wanted:
        if name is None:
            continue
        has_kind = getattr(getattr(schema.get(name), "document_type", None), "__name__", None)
        if has_kind != kind:
            has = "does not have" if name not in schema else f"has as {has_kind or type(schema[name]).__name__}"
            fits = [key for key, value in schema.items() if _is(value, kind)]
            raise ConfigError(
                f"A {kind} field is needed and {name!r} is one that the dataset {has}. "
                f"Its {kind} fields: {', '.join(fits) or 'none'}."
            )


def _is(field_: fo.Field, kind: str) -> bool:
    return getattr(getattr(field_, "document_type", None), "__name__", None) == kind


@lru_cache(maxsize=2)
def loaded_session(weights: str, device: str) -> Session:
    """Return a session of these weights; the App's next run finds it loaded."""
    return refinesam.load(weights, device=device)


@dataclass
class _Work:
    """One call of `compare` in progress."""

    target: Target
    run: Fields
    settings: Settings
    session: Session
    resume: bool
    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def summary(self, samples: int, stopped: bool) -> Comparison:
        """Return what was done."""
        counts = {name: self.counts[name] for name in ("done", "skipped", "encoded", "prompts")}
        return Comparison(samples, **counts, failures=dict(self.failures), stopped=stopped)

    def do(self, ids: Sequence[str]) -> None:
        """Answer and store a batch of samples."""
        selected = [name for name in (source_field(self.settings), self.run.digest) if name]
        pending, moved = [], {}
        for sample in self.target.select(ids).select_fields(selected):
            labels = self._labels(sample)
            asked, path = self._digest_of(labels), Path(sample.filepath)
            kept, stamp = sample[self.run.digest] or "", file_stamp(path)
            done = self.resume and kept.startswith(f"{asked}-")
            if done and kept.endswith(f":{stamp}"):
                self.counts["skipped"] += 1
                continue
            digest = f"{asked}-{file_digest(path)}:{stamp}"
            if done and kept.partition(":")[0] == digest.partition(":")[0]:
                # The same file, written or put elsewhere since.
                moved[sample.id] = digest
                self.counts["skipped"] += 1
            else:
                pending.append((sample.id, sample.filepath, labels, digest))
        if moved:
            self.target.set_values(self.run.digest, moved)
        results = [self._result(*sample) for sample in self._read(pending)]
        for result in store(self.target, self.run, results):
            self.counts["done"] += 1
            self.counts["prompts"] += len(result.baseline)
            self.failures.update(failure.label for failure in result.failures)

    def _labels(self, sample: fo.Sample) -> list[fo.Label] | None:
        """Return the labels that prompts are made from; None to segment everything."""
        name = source_field(self.settings)
        if name is None:
            return None
        labels, kind = sample[name], "keypoints" if self.settings.prompts == "keypoints" else "detections"
        return [] if labels is None else list(labels[kind])

    @cached_property
    def _config(self) -> AMRConfig:
        return AMRConfig.named(self.settings.amr)

    @property
    def asked_digest(self) -> str:
        """Digest of the settings, the model and the refinement: the same for all samples of a call."""
        return hashlib.blake2b(repr(self._asked).encode(), digest_size=16).hexdigest()

    @cached_property
    def _folder(self) -> Path | None:
        if self.settings.masks == "database" or not self.settings.masks_dir:
            return None
        return folder_of(self.target.root, self.run, self.settings.masks_dir)

    @cached_property
    def _asked(self) -> tuple[object, ...]:
        """What a result hangs on beside its own sample."""
        settings = self.settings.to_dict()
        if self.settings.prompts != "random-2":
            del settings["truth_field"]  # Asked for by the evaluation alone.
        if not self.settings.candidates:
            del settings["candidates"]  # What was answered before there was a choice stays answered.
        return sorted(settings.items()), repr(self._config), self.session.model.fingerprint

    def _digest_of(self, labels: list[fo.Label] | None) -> str:
        """Digest of what a sample's answers hang on beside its image."""
        source = "" if labels is None else source_digest(labels, masks=self.settings.prompts == "random-2")
        return hashlib.blake2b(repr((*self._asked, source)).encode(), digest_size=16).hexdigest()

    def _read(self, pending: Sequence[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        """Yield the samples with their pixels, or what is wrong with them; a few files are read ahead."""
        with ThreadPoolExecutor(min(READ_AHEAD, os.cpu_count() or 1)) as pool:
            waiting = iter(pending)
            futures: list[tuple[tuple[Any, ...], Future[Any]]] = []
            while True:
                for sample in islice(waiting, READ_AHEAD - len(futures)):
                    futures.append((sample, pool.submit(read_pixels, sample[1], sample[2])))
                if not futures:
                    return
                sample, future = futures.pop(0)
                yield (*sample, future.result())

    def _result(
        self,
        sample_id: str,
        path: str,
        labels: list[fo.Label] | None,
        digest: str,
        pixels: NDArray[np.uint8] | tuple[Failure, str],
    ) -> SampleResult:
        if isinstance(pixels, tuple):
            return failed_sample(self.run, sample_id, digest, *pixels)
        image_hw = (pixels.shape[0], pixels.shape[1])
        asked = None if labels is None else ask(labels, self.settings, image_hw)
        prompts = None if asked is None else [prompted.prompt for prompted in asked if prompted.prompt is not None]
        answers: Sequence[Any] = ()
        if prompts is None or prompts:
            item = Item(pixels, prompts)
            grid = {"points_per_side": self.settings.points_per_side}
            record = next(iter(segment_batch(self.session, [item], refine=self._config, everything=grid)))
            if record.error is not None:
                return failed_sample(self.run, sample_id, digest, "unreadable_image", record.error)
            self.counts["encoded"] += 1
            answers = record.answers
        if asked is None:
            asked = [Asked(f"{sample_id}-{i:04d}", "object", answer.prompt) for i, answer in enumerate(answers)]
        candidates = self.settings.candidates
        return sample_result(self.run, self._folder, sample_id, digest, image_hw, asked, answers, candidates)


def read_pixels(path: str, labels: list[fo.Label] | None) -> NDArray[np.uint8] | tuple[Failure, str]:
    """Read an image; or say, as a failure and its reason, why there is nothing to do."""
    name = Path(path).name
    if labels is not None and not labels:
        return "no_prompts", "The sample has no label to make a prompt from: annotate it, or leave it out."
    if not Path(path).is_file():
        return "missing_file", f"There is no file {name}: restore it, or remove the sample."
    try:
        return refinesam.read_image(path)
    except RefineSAMError as error:
        return "unreadable_image", str(error).replace(path, name)

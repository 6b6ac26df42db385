"""Finding what is like some labels: each is an example of its class, and every object like it becomes a label.

What is found keeps its similarity, so that a threshold can be moved in the App. A sample is done when its digest is
written, which comes last: a search that was stopped goes on where it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args

import fiftyone as fo
import numpy as np
from numpy.typing import NDArray

import refinesam
from refinesam import ConfigError, EncodedImage, PromptError, RefineSAMError, Session
from refinesam.hosts import MOST_EXAMPLES

from .compare import check_images, loaded_session, read_pixels
from .files import file_name
from .label_runs import LabelRun, Stored, check_label_run, digest_of
from .labels import detection_from_mask, label_id, mask_from_detection, prompt_from_box
from .private import is_patches
from .prompting import file_stamp, source_digest
from .regions import Region, iou, region_of
from .sample_result import SampleResult, failed_sample, failure_label
from .samples import Target, target_of
from .schema import Fields, check_whole

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

__all__ = ["LEAST_SIMILARITY", "WHERE", "SimilarSettings", "check_search", "find_similar"]

Where = Literal["same", "others", "both"]
WHERE: Final[tuple[Where, ...]] = get_args(Where)
# Objects less alike are not stored, if nothing else is asked for: most of them are none of the kind.
LEAST_SIMILARITY: Final = 0.25
# Of two masks that overlap by more, in IoU, the one less alike goes; what overlaps an example so is the example.
SAME_OBJECT: Final = 0.5


@dataclass(frozen=True)
class SimilarSettings:
    """What a search was asked for; kept with the dataset.

    Attributes:
        fields: Detections that hold the examples, with masks or as boxes.
        where: "same": in the samples that hold examples, each by its own. "others": in the other samples, by all
            examples. "both".
        least: least similarity of what is stored, 0 to 1.
        weights: a name that `refinesam.load` knows, or a file.
        masks_dir: folder for the masks; None keeps them in the database.

    Raises:
        ConfigError: an unknown value, or no field.
    """

    fields: Sequence[str]
    where: Where = "others"
    least: float = LEAST_SIMILARITY
    weights: str = "builtin"
    masks_dir: str | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        if isinstance(self.fields, str) or not self.fields:
            raise ConfigError(f"fields is {self.fields!r}; give a list of the Detections fields that hold examples.")
        if self.where not in WHERE:
            raise ConfigError(f"where is {self.where!r}; choose one of {', '.join(WHERE)}.")
        if not 0 <= self.least <= 1:
            raise ConfigError(f"least is {self.least!r}; give a similarity from 0 to 1.")


def find_similar(
    samples: SampleCollection,
    examples: SampleCollection,
    settings: SimilarSettings,
    *,
    run_key: str = "similar",
    device: str = "auto",
    batch_size: int = 4,
    session: Session | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Stored:
    """Find every object that is like some labels, and write it into the field "{key}_labels".

    Nothing is trained. Each class is searched for by its own examples; where a sample has more than five of a class,
    the five whose size is the most typical are taken. What is found has the example's class, "similarity" (0 to 1) and,
    as its confidence, the IoU that the model predicts; the examples themselves are not among it. A damaged image or a
    label that shows nothing costs only itself.

    Args:
        samples: a dataset or view of images to be searched, as `settings.where` says.
        examples: a view that has the examples alone in its labels, such as ``dataset.select_labels(...)``.
        settings: fields of the examples, where to search, model and storage.
        run_key: the start of the fields' names.
        device: as `refinesam.load` takes it.
        batch_size: samples stored at a time.
        session: use this model instead of loading `settings.weights`.
        on_progress: called after every batch with the samples finished so far and their number.
        should_stop: asked after every batch; True ends the call, and a later one goes on from there.

    Raises:
        ConfigError: bad settings, or a run of that name that found something else.
        DatasetError: the samples are no images.
        PromptError: there is no example that can be used.
        WeightsError: the model cannot be loaded.
    """
    run = Fields(run_key)
    check_whole("batch_size", batch_size, at_least=1)
    target = check_search(samples, examples, settings)
    check_label_run(target, run, "similar")
    session = session or loaded_session(settings.weights, device)
    search = _Search(target, run, settings, session, _examples_by_sample(examples, settings.fields))
    search.work.begin()
    ids = search.ids
    for start in range(0, len(ids), batch_size):
        if should_stop is not None and should_stop():
            return search.work.summary(len(ids), stopped=True, left_out=search.left_out)
        search.do(ids[start : start + batch_size])
        if on_progress is not None:
            on_progress(min(start + batch_size, len(ids)), len(ids))
    return search.work.summary(len(ids), left_out=search.left_out)


def check_search(samples: SampleCollection, examples: SampleCollection, settings: SimilarSettings) -> Target:
    """Return where the samples are.

    Raises:
        ConfigError: examples of another dataset, patches of them, or fields that hold no Detections.
        DatasetError: the samples are no images.
    """
    check_images(samples)
    target = target_of(samples)
    if is_patches(examples) or target_of(examples).root.name != target.root.name:
        raise ConfigError("The examples must be a view of the samples' dataset, not patches: dataset.select_labels().")
    for name in settings.fields:
        if getattr(target.field(name), "document_type", None) is not fo.Detections:
            raise ConfigError(f"Examples are labels of Detections fields, and {name!r} is none: choose other labels.")
    return target


def _examples_by_sample(examples: SampleCollection, fields: Sequence[str]) -> dict[str, list[fo.Detection]]:
    found = {}
    for sample in examples.select_fields(list(fields)):
        labels = [label for name in fields if sample[name] is not None for label in sample[name].detections]
        if labels:
            found[sample.id] = labels
    if not found:
        raise PromptError("There is no label to take as an example: select one to five objects of a kind.")
    return found


@dataclass(frozen=True, eq=False)
class _Examples:
    """One sample's examples of a class, as the search has seen them."""

    label: str
    regions: Sequence[Region]
    generator: refinesam.SimilarMaskGenerator


@dataclass(frozen=True, eq=False)
class _Found:
    label: str
    similarity: float
    score: float
    region: Region


class _Search:
    """One call of `find_similar` in progress."""

    def __init__(
        self,
        target: Target,
        run: Fields,
        settings: SimilarSettings,
        session: Session,
        examples: Mapping[str, list[fo.Detection]],
    ) -> None:
        self.target, self.run, self.settings, self.session, self.examples = target, run, settings, session, examples
        self.left_out: dict[str, str] = {}
        self.digests = {key: source_digest(labels, masks=True) for key, labels in examples.items()}
        shown = sorted(self.digests.items()) if settings.where != "same" else []
        self.asked = (sorted(asdict(settings).items()), session.model.fingerprint, shown)
        noted = {**asdict(settings), "fields": list(settings.fields)}
        self.work = LabelRun(target, run, "similar", noted, self.asked)
        # Read before the run is noted: without any example it must not begin.
        self.of_all = list(self._of_all()) if settings.where != "same" else []
        if settings.where != "same" and not self.of_all:
            raise PromptError(f"None of the examples can be used: {next(iter(self.left_out.values()))}")

    @property
    def ids(self) -> list[str]:
        """Of the samples to be searched."""
        others = [one for one in self.target.ids if one not in self.examples]
        return {"same": list(self.examples), "others": others, "both": [*self.examples, *others]}[self.settings.where]

    def do(self, ids: Sequence[str]) -> None:
        """Search a batch of samples and store what is found."""
        results = []
        for sample in self.target.select(ids).select_fields(self.run.digest):
            stamp = file_stamp(Path(sample.filepath))
            digest = f"{digest_of(self.asked, self.digests.get(sample.id))}-{stamp}"
            if not self.work.is_done(sample[self.run.digest], digest):
                results.append(self._result(sample.id, sample.filepath, digest))
        self.work.store(results)

    def _result(self, sample_id: str, path: str, digest: str) -> SampleResult:
        pixels = read_pixels(path, None)
        if isinstance(pixels, tuple):
            return failed_sample(self.run, sample_id, digest, *pixels)
        try:
            encoded = self.session.encode(pixels)
            examples = list(self._of_sample(encoded, sample_id)) if sample_id in self.examples else self.of_all
            found = list(_found(encoded, examples, self.settings.least))
            if sample_id in self.examples:
                known = [region for one in examples for region in one.regions]
                found = [one for one in found if all(iou(one.region, region) < SAME_OBJECT for region in known)]
            labels = [self._label(sample_id, n, one, encoded.image_hw) for n, one in enumerate(_thinned(found))]
        except RefineSAMError as error:
            return failed_sample(self.run, sample_id, digest, "unreadable_image", str(error))
        except OSError as error:
            reason = f"The masks could not be written: {error.strerror}. Make room or choose another folder, run again."
            return failed_sample(self.run, sample_id, digest, "not_stored", reason)
        bad = [key for key in (str(label.id) for label in self.examples.get(sample_id, ())) if key in self.left_out]
        failures = [failure_label(self.run, key, "bad_prompt", self.left_out[key]) for key in bad]
        return SampleResult(sample_id, digest, labels=labels, failures=failures)

    def _label(self, sample_id: str, number: int, one: _Found, image_hw: tuple[int, int]) -> fo.Detection:
        mask, prompt_id, folder = one.region.frame(image_hw), f"{sample_id}-{number:04d}", self.work.folder
        return detection_from_mask(
            mask,
            mask_path=folder and folder / sample_id / file_name(prompt_id, "labels", mask),
            id=label_id(self.run.key, prompt_id, "labels"),
            label=one.label,
            confidence=one.score,
            prompt_id=prompt_id,
            similarity=one.similarity,
            predicted_iou=one.score,
        )

    def _of_all(self) -> Iterator[_Examples]:
        paths = self.target.select(list(self.examples)).values("filepath")
        for sample_id, path in zip(self.examples, paths, strict=True):
            pixels = read_pixels(path, None)
            if isinstance(pixels, tuple):
                self.left_out |= {str(label.id): pixels[1] for label in self.examples[sample_id]}
            else:
                yield from self._of_sample(self.session.encode(pixels), sample_id)

    def _of_sample(self, encoded: EncodedImage, sample_id: str) -> Iterator[_Examples]:
        """Yield a sample's examples, class by class."""
        by_class: dict[str, list[NDArray[np.bool_]]] = {}
        for label in self.examples[sample_id]:
            try:
                by_class.setdefault(label.label or "object", []).append(_mask(encoded, label))
            except RefineSAMError as error:
                self.left_out[str(label.id)] = str(error)
        for name, masks in by_class.items():
            regions = [region_of(mask) for mask in masks]
            middle = float(np.median([region.area for region in regions]))
            masks = sorted(masks, key=lambda mask: abs(np.count_nonzero(mask) - middle))[:MOST_EXAMPLES]
            yield _Examples(name, regions, refinesam.SimilarMaskGenerator(self.session, encoded, masks))


def _mask(encoded: EncodedImage, label: fo.Detection) -> NDArray[np.bool_]:
    mask = mask_from_detection(label, encoded.image_hw)
    if mask is None:
        mask = encoded.predict(prompt_from_box(label.bounding_box, encoded.image_hw)).mask
    if not mask.any():
        raise PromptError("The example has no pixel in the image: choose another one.")
    return mask


def _found(encoded: EncodedImage, examples: Sequence[_Examples], least: float) -> Iterator[_Found]:
    for one in examples:
        for prediction in one.generator.iterate(encoded):
            similarity = prediction.similarity or 0.0
            if similarity >= least:
                yield _Found(one.label, similarity, prediction.score, region_of(prediction.mask))


def _thinned(found: Sequence[_Found]) -> list[_Found]:
    """Of masks that several examples found, keep the one that is most like its own."""
    kept: list[_Found] = []
    for one in sorted(found, key=lambda item: -item.similarity):
        if all(iou(one.region, other.region) < SAME_OBJECT for other in kept):
            kept.append(one)
    return kept

"""A run's masks as FiftyOne's own detection evaluation: TP, FP, FN and confusions, for its Model Evaluation panel.

FiftyOne matches and keeps the results. It gets masks as refinesam reads them, pixel by pixel in the image's frame: by
itself it shifts masks whose boxes are not whole pixels, and a single empty or damaged mask ends its evaluation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import fiftyone as fo
from fiftyone.utils.eval.coco import COCOEvaluation, COCOEvaluationConfig

from refinesam import ConfigError

from .pairing import box_iou
from .record import check_free, declare, require
from .regions import StoredLabel, StoredSample, iou, read_samples
from .runs import evaluations_of, present_truth, run_of
from .samples import Target
from .schema import FieldKind, Fields, Settings
from .scoring import score_kinds
from .storing import store_values

if TYPE_CHECKING:
    from fiftyone.core.collections import SampleCollection

__all__ = ["Matches", "check_matching", "default_eval_key", "match_detections"]

BATCH: Final = 32
# A mask whose box overlaps that of a ground truth label without a usable mask by this is not judged either.
SAME_BOX: Final = 0.5
_NO_CLASS: Final = "object"
Match = tuple[Any, ...]
Evaluated = Literal["baseline", "amr"]


@dataclass(frozen=True)
class Matches:
    """What a call of `match_detections` found.

    Attributes:
        eval_key: of FiftyOne's evaluation.
        samples: that were evaluated.
        tp: masks that match a ground truth label of their class.
        fp: the other masks.
        fn: ground truth labels that no mask of their class matches.
        empty: masks without a pixel: no detection, so they count as nothing.
        left_out: id of a label or sample that could not be judged -> why.
    """

    eval_key: str
    samples: int
    tp: int
    fp: int
    fn: int
    empty: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)


def default_eval_key(run: Fields, masks: str) -> str:
    """Return the name of the evaluation of a run's "baseline" or "amr" masks."""
    return f"{run.key}_eval_{masks}"


def match_detections(
    samples: SampleCollection,
    *,
    run_key: str = "refinesam",
    masks: Evaluated = "amr",
    eval_key: str | None = None,
    iou: float = 0.5,
    classwise: bool = False,
    on_progress: Callable[[int, int], object] | None = None,
) -> Matches:
    """Evaluate a run's masks as `evaluate_detections(..., use_masks=True)` does, and keep the results with the dataset.

    `dataset.load_evaluation_results(eval_key)` and FiftyOne's Model Evaluation panel have them then. Labels of both
    fields get the attributes `eval_key`, `eval_key`_id and `eval_key`_iou, and samples the fields `eval_key`_tp, _fp
    and _fn. Confidence is the predicted IoU. A mask without a class, as those of a run without prompts, takes the class
    of the label that it fits best. Label filters of a view are not looked at.

    Args:
        samples: a dataset or view of images.
        run_key: of a run that `compare` made, with ground truth.
        masks: "amr", those after refinement, or "baseline", the first ones.
        eval_key: of the evaluation; None: `default_eval_key`.
        iou: that a match needs.
        classwise: match masks and labels of the same class alone; otherwise those of two classes are confusions.
        on_progress: called after every batch with the samples evaluated so far and their number.

    Raises:
        ConfigError: no such run, one without ground truth or of frames or groups, a key that is taken, or a value out
            of range.
    """
    target, run, settings = run_of(samples, run_key)
    eval_key = default_eval_key(run, masks) if eval_key is None else eval_key
    truth = check_matching(target, run, settings, masks, eval_key)
    _check_iou(iou)
    declare(target, run, _kinds(run.masks(masks), truth, eval_key))
    config = COCOEvaluationConfig(run.masks(masks), truth, iou=float(iou), classwise=classwise, use_masks=True)
    method = config.build()
    method.register_samples(target.samples, None)
    matcher, ids = _Matcher(method, target, run.masks(masks), truth, eval_key), target.ids
    for start, batch in enumerate(read_samples(target, ids, [run.masks(masks), truth], others=matcher.others)):
        matcher.match(batch)
        if on_progress is not None:
            on_progress(min(len(ids), (start + 1) * BATCH), len(ids))
    target.root.reload()
    # A view of all samples would list their ids.
    evaluated = target.samples if len(ids) == len(target.samples) else target.select(ids)
    method.register_run(evaluated, eval_key, overwrite=False)
    results = method.generate_results(evaluated, matcher.matches, eval_key=eval_key)
    method.save_run_results(evaluated, eval_key, results)
    method.add_fields_to_sidebar_group(evaluated, eval_key, omit_fields=(config.pred_field, config.gt_field))
    counts = {name: matcher.counts[name] for name in ("tp", "fp", "fn", "empty", "samples")}
    return Matches(eval_key, **counts, left_out=matcher.left_out)


def check_matching(target: Target, run: Fields, settings: Settings, masks: Evaluated, eval_key: str) -> str:
    """Return the ground truth field; raise ConfigError for what evaluation lacks, and for a key that is taken."""
    if masks not in get_args(Evaluated):
        raise ConfigError(f"masks is {masks!r}; choose baseline or amr.")
    if target.frames or target.root.media_type == "group":
        raise ConfigError(
            "Evaluations for FiftyOne's panel are made of datasets of images alone, not of groups or frames: use "
            "refinesam's own evaluation for these."
        )
    require(target, run, [run.masks(masks)])
    truth = present_truth(target, settings)
    if truth is None:
        raise ConfigError(
            f"The run {run.key!r} has no ground truth to match with: compare again with a field of ground truth masks."
        )
    if not eval_key.isidentifier():
        raise ConfigError(f"The evaluation's name is {eval_key!r}: give letters, digits and underscores alone.")
    if eval_key in target.root.list_evaluations():
        own = " This run made it." if eval_key in evaluations_of(target, run) else ""
        raise ConfigError(
            f"The dataset has an evaluation {eval_key!r} already.{own} Choose another name, or delete it first: "
            f"dataset.delete_evaluation({eval_key!r}), or in the panel Model Evaluation."
        )
    kinds = _kinds(run.masks(masks), truth, eval_key)
    if taken := sorted(kinds.keys() & (run.kinds | score_kinds(run, truth)).keys()):
        raise ConfigError(f"An evaluation {eval_key!r} would write over the run's own {taken[0]}: choose another name.")
    check_free(target, run, kinds)
    return truth


def _check_iou(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"iou is {value!r}; give a number above 0, and at most 1.")


def _kinds(masks: str, truth: str, eval_key: str) -> dict[str, FieldKind]:
    kinds: dict[str, FieldKind] = {f"{eval_key}_{name}": fo.IntField for name in ("tp", "fp", "fn")}
    for labels in (f"{masks}.detections", f"{truth}.detections"):
        kinds |= {f"{labels}.{eval_key}": fo.StringField, f"{labels}.{eval_key}_id": fo.StringField}
        kinds[f"{labels}.{eval_key}_iou"] = fo.FloatField
    return kinds


class _Matcher:
    """FiftyOne's matching, sample by sample; what came of it is stored as it goes.

    Attributes:
        matches: as FiftyOne's results want them.
        counts: of samples, true and false positives, false negatives, and empty masks.
        left_out: id of a label or sample -> why it was not judged.
    """

    def __init__(self, method: COCOEvaluation, target: Target, masks: str, truth: str, eval_key: str) -> None:
        self._method, self._target, self._masks, self._truth, self._key = method, target, masks, truth, eval_key
        self._crowds = f"{truth}.detections.iscrowd"
        self.others = [self._crowds] if target.field(self._crowds) is not None else []
        self.matches: list[Match] = []
        self.counts = Counter[str]()
        self.left_out: dict[str, str] = {}

    def match(self, batch: Iterable[StoredSample]) -> None:
        """Match the masks of some samples, and store what came of it."""
        found, updates = {}, {}
        for sample in batch:
            if sample.failure is not None:
                self.left_out[sample.id] = sample.failure[1]
                continue
            found[sample.id], values = self._matched(sample)
            updates[sample.id] = (sample.modified, values)
        refused = store_values(self._target, updates)
        self.left_out |= refused
        for sample_id in found.keys() - refused:
            tally = {name: updates[sample_id][1][f"{self._key}_{name}"] for name in ("tp", "fp", "fn")}
            self.counts.update(tally, samples=1)
        self.matches += [match for sample_id, one in found.items() if sample_id not in refused for match in one]

    def _matched(self, sample: StoredSample) -> tuple[list[Match], dict[str, Any]]:
        truths, unusable = self._usable_truths(sample)
        crowds = sample.others.get(self._crowds) or {}
        labels = {
            self._truth: [
                _detection(one, sample.image_hw, one.label, iscrowd=bool(crowds[one.position]) if crowds else False)
                for one in truths
            ],
            self._masks: [
                _detection(one, sample.image_hw, one.label or _nearest_class(one, truths), confidence=one.predicted_iou)
                for one in self._usable_masks(sample, unusable)
            ],
        }
        matches = self._method.evaluate(
            {name: fo.Detections(detections=own) for name, own in labels.items()}, eval_key=self._key
        )
        values: dict[str, Any] = dict(
            zip((f"{self._key}_{n}" for n in ("tp", "fp", "fn")), _tally(matches), strict=True)
        )
        for name, own in labels.items():
            judged = {one.id: one for one in own}
            for label in sample.labels[name]:
                for attribute in (self._key, f"{self._key}_id", f"{self._key}_iou"):
                    # What is not judged loses what an attempt that was stopped gave it.
                    values[f"{name}.detections.{label.position}.{attribute}"] = (
                        judged[label.id][attribute] if label.id in judged else None
                    )
        return matches, values

    def _usable_truths(self, sample: StoredSample) -> tuple[list[StoredLabel], list[StoredLabel]]:
        usable, unusable = [], []
        for label in sample.labels[self._truth]:
            if label.region is not None and label.region.area:
                usable.append(label)
            else:
                unusable.append(label)
                self.left_out[label.id] = label.problem or "The ground truth label has no mask, or one without a pixel."
        return usable, unusable

    def _usable_masks(self, sample: StoredSample, unusable: Iterable[StoredLabel]) -> Iterable[StoredLabel]:
        for label in sample.labels[self._masks]:
            if label.region is None:
                self.left_out[label.id] = label.problem or "The label has no mask."
            elif not label.region.area:
                self.counts["empty"] += 1
            elif any(
                label.prompt_id == one.id or box_iou(label.bounding_box, one.bounding_box) >= SAME_BOX
                for one in unusable
            ):
                self.left_out[label.id] = "The ground truth of the mask cannot be used."
            else:
                yield label


def _detection(label: StoredLabel, image_hw: tuple[int, int], name: str | None, **attributes: Any) -> fo.Detection:
    """Return a label whose box are the whole pixels of its mask."""
    assert label.region is not None
    region, (rows, columns) = label.region, image_hw
    height, width = region.part.shape
    box = [region.left / columns, region.top / rows, width / columns, height / rows]
    return fo.Detection(id=label.id, label=name or _NO_CLASS, bounding_box=box, mask=region.part, **attributes)


def _nearest_class(label: StoredLabel, truths: Iterable[StoredLabel]) -> str | None:
    assert label.region is not None
    found = [(iou(label.region, truth.region), truth.label) for truth in truths if truth.region is not None]
    best, name = max(found, key=lambda pair: pair[0], default=(0.0, None))
    return name if best else None


def _tally(matches: Iterable[Match]) -> tuple[int, int, int]:
    """Count true and false positives and false negatives, as FiftyOne does."""
    tp = fp = fn = 0
    for truth, predicted, *_ in matches:
        if truth == predicted:
            tp += 1
        else:
            fp += predicted is not None
            fn += truth is not None
    return tp, fp, fn

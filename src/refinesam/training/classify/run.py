"""What a pretrained encoder is worth: a linear probe on its frozen features, or finetuning, on labelled images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinesam.errors import RefineSAMError
from refinesam.files import write_json
from refinesam.loading import resolve_device
from refinesam.models.build import build_model, normalise
from refinesam.models.config import config_named
from refinesam.models.image_encoder import LightEncoder
from refinesam.training.classify.config import ClassifyConfig
from refinesam.training.classify.data import DAMAGED, LabelledImages, image_batches, read_labelled
from refinesam.training.encoder_file import load_encoder
from refinesam.training.loop import learning_rate, read_checkpoint, taking_over, use_bf16, write_checkpoint
from refinesam.training.pretrain.masked import initialise_like_mae, width_of
from refinesam.training.settings import changed_settings, refuse_changes

__all__ = ["Accuracy", "Classifier", "accuracy_of", "classify", "layer_groups", "linear_probe"]

EVALUATED_AT_ONCE = 32
PROBE_ITERATIONS = 500
NOT_LEARNT = frozenset({"precision", "data.workers"})


@dataclass(frozen=True)
class Accuracy:
    """How many of the validation images were classified rightly.

    Attributes:
        images, correct: counted.
        top1: correct / images.
        interval: 95 % of Wilson's score interval for top1.
        class_mean: mean over the classes of the accuracy in each, for classes of different size.
        classes: how many the classifier tells apart.
        train_images: that it was trained on.
        damaged: validation images that could not be read, which are not counted.
    """

    images: int
    correct: int
    top1: float
    interval: tuple[float, float]
    class_mean: float
    classes: int
    train_images: int
    damaged: int


class Classifier(nn.Module):
    """An encoder's mean token, normalised, and a linear layer."""

    def __init__(self, encoder: LightEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(width_of(encoder), eps=1e-6)
        self.head = nn.Linear(width_of(encoder), classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def features(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels: (B, 3, S, S) -> (B, C)."""
        return self.encoder.tokens(pixels).mean((1, 2))

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify normalised pixels: (B, 3, S, S) -> logits (B, classes)."""
        return self.head(self.norm(self.features(pixels)))


def classify(
    config: ClassifyConfig,
    data: Path,
    output: Path,
    device: str = "auto",
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Accuracy:
    """Train a classifier and measure it; finetuning that was killed goes on with its last whole epoch.

    Args:
        config: the settings.
        data: folder with the labelled images.
        output: folder for `accuracy.json`, and finetuning's `checkpoint.pt`.
        device: "auto", "cpu", "cuda", ...
        on_progress: told the stage, what is done of it, and of how much.

    Raises:
        ConfigError: the device doesn't fit, or the folder holds a run of other settings.
        DatasetError: the data are missing, malformed, or not two classes.
        WeightsError: the weights to start from, or the checkpoint, are damaged or of another variant.
        RefineSAMError: the loss became NaN or infinite, or the disk is full.
    """
    classes, images = read_labelled(data, config.data)
    chosen, size = resolve_device(device), config.encoder.input_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        model = _classifier(config, len(classes)).to(chosen)
    train = LabelledImages(images["train"], size)
    val = LabelledImages(images["val"], size)
    try:
        output.mkdir(parents=True, exist_ok=True)
        if config.mode == "probe":
            predicted = _probe(model, train, val, config, chosen, on_progress)
        else:
            _finetune(model, train, config, output / "checkpoint.pt", chosen, on_progress)
            logits, labels = _over(val, model, config.data.workers, chosen, "validation", on_progress)
            predicted = logits.argmax(1), labels
        accuracy = accuracy_of(*predicted, len(classes), len(train))
        settings = config.model_dump(mode="json")
        write_json(output / "accuracy.json", {"accuracy": asdict(accuracy), "classes": classes, "config": settings}, 1)
    except OSError as error:
        raise RefineSAMError(f"Writing to {output} failed ({error}). Make room there and start again.") from error
    return accuracy


def _classifier(config: ClassifyConfig, classes: int) -> Classifier:
    model = build_model(config_named(config.encoder.variant))
    encoder = model.image_encoder
    assert isinstance(encoder, LightEncoder)  # so are all of pretrain.config.STUDENTS
    initialise_like_mae(encoder)
    if config.encoder.init:
        load_encoder(model, config.encoder.init)
    return Classifier(encoder, classes)


@torch.no_grad()
def _over(
    images: LabelledImages,
    function: Callable[[Tensor], Tensor],
    workers: int,
    device: torch.device,
    stage: str,
    on_progress: Callable[[str, int, int], None],
) -> tuple[Tensor, Tensor]:
    """Apply a function of normalised pixels to all images: (n, ...) float32 on the CPU, and labels (n,)."""
    results, labels = [], []
    for pixels, its_labels in image_batches(images, EVALUATED_AT_ONCE, workers):
        results.append(function(normalise(pixels.to(device))).float().cpu())
        labels.append(its_labels)
        on_progress(stage, min(len(results) * EVALUATED_AT_ONCE, len(images)), len(images))
    return torch.cat(results), torch.cat(labels)


def _probe(
    model: Classifier,
    train: LabelledImages,
    val: LabelledImages,
    config: ClassifyConfig,
    device: torch.device,
    on_progress: Callable[[str, int, int], None],
) -> tuple[Tensor, Tensor]:
    """Return the predicted and the true classes of the validation images."""
    model.eval()
    features, labels = _over(train, model.features, config.data.workers, device, "train features", on_progress)
    readable = labels != DAMAGED
    predict = linear_probe(features[readable], labels[readable], model.head.out_features, config.optim.penalty)
    features, labels = _over(val, model.features, config.data.workers, device, "val features", on_progress)
    return predict(features).argmax(1), labels


def linear_probe(features: Tensor, labels: Tensor, classes: int, penalty: float) -> Callable[[Tensor], Tensor]:
    """Fit a multinomial logistic regression on standardised features; its loss is convex, so that nothing is tuned.

    MAE standardises likewise, by a batch norm without parameters, before its linear layer.

    Args:
        features: (n, C).
        labels: (n,).
        classes: K.
        penalty: lambda; lambda / 2 ||W||^2 is added to the mean cross-entropy.

    Returns:
        From features (m, C) to logits (m, K).
    """
    mean, scale = features.mean(0), features.std(0, correction=0).clamp_min(1e-6)
    inputs = ((features - mean) / scale).double()
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=PROBE_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weight.T + bias, labels) + 0.5 * penalty * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    fitted_weight, fitted_bias = weight.detach().float(), bias.detach().float()
    return lambda given: (given - mean) / scale @ fitted_weight.T + fitted_bias


def _finetune(
    model: Classifier,
    images: LabelledImages,
    config: ClassifyConfig,
    checkpoint: Path,
    device: torch.device,
    on_progress: Callable[[str, int, int], None],
) -> None:
    optim = config.optim
    optimizer = torch.optim.AdamW(layer_groups(model, optim.layer_decay, optim.weight_decay), betas=optim.betas)
    done = _resume(model, optimizer, config, checkpoint) if checkpoint.exists() else 0
    per_epoch = math.ceil(len(images) / optim.batch_size)
    for epoch in range(done, optim.epochs):
        shown = LabelledImages(images.images, images.size, config.seed + epoch, optim.least_crop_area)
        order = np.random.default_rng((config.seed, epoch)).permutation(len(images)).tolist()
        model.train()
        for batch, (pixels, labels) in enumerate(image_batches(shown, optim.batch_size, config.data.workers, order)):
            step, steps = epoch * per_epoch + batch, optim.epochs * per_epoch
            rate = learning_rate(step, steps, optim.learning_rate, 0.0, optim.warmup_epochs * per_epoch, "cosine")
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            if not (labels != DAMAGED).any():
                continue
            with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(config.precision, device)):
                logits = model(normalise(pixels.to(device)))
            loss = F.cross_entropy(
                logits.float(), labels.to(device), ignore_index=DAMAGED, label_smoothing=optim.label_smoothing
            )
            if not math.isfinite(loss.item()):
                raise RefineSAMError(f"At step {step} the loss is {loss.item()}. Lower optim.learning_rate.")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        write_checkpoint(checkpoint, state | {"config": config.model_dump(mode="json")})
        on_progress("epochs", epoch + 1, optim.epochs)
    model.eval()


def _resume(model: Classifier, optimizer: torch.optim.Optimizer, config: ClassifyConfig, checkpoint: Path) -> int:
    """Take over a checkpoint; returns how many epochs are done."""
    state = read_checkpoint(checkpoint)
    with taking_over(checkpoint, "classifier"):
        written = ClassifyConfig.model_validate(state["config"])
        refuse_changes(checkpoint, changed_settings(written, config, NOT_LEARNT))
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch = int(state["epoch"])
    return epoch


def layer_groups(model: Classifier, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Divide the parameters by layer: "scale" is 1 for norm and head, and falls by `layer_decay` a block downwards.

    What lies below the blocks has the lowest. Vectors and positions don't decay. Parameters that take no part in
    classification (neck, high-resolution maps) are frozen.
    """
    blocks = len(model.encoder.blocks)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        place = name.removeprefix("encoder.")
        if place.startswith(("neck.", "high_res")):
            parameter.requires_grad_(False)
            continue
        layer = blocks + 1
        if place != name:
            layer = int(place.split(".")[1]) + 1 if place.startswith("blocks.") else 0
        decays = parameter.ndim > 1 and not place.startswith("pos_embed")
        groups.setdefault((layer, decays), []).append(parameter)
    return [
        {"params": its, "scale": layer_decay ** (blocks + 1 - layer), "weight_decay": weight_decay * decays, "lr": 0.0}
        for (layer, decays), its in groups.items()
    ]


def accuracy_of(predicted: Tensor, labels: Tensor, classes: int, train_images: int) -> Accuracy:
    """Compare predicted with true classes, (n,) each; those labelled `DAMAGED` are not counted."""
    readable = labels != DAMAGED
    right = (predicted == labels)[readable]
    images, correct = len(right), int(right.sum())
    by_class = [right[labels[readable] == label].float().mean() for label in labels[readable].unique()]
    return Accuracy(
        images=images,
        correct=correct,
        top1=correct / images if images else 0.0,
        interval=_wilson(correct, images),
        class_mean=float(torch.stack(by_class).mean()) if by_class else 0.0,
        classes=classes,
        train_images=train_images,
        damaged=int((~readable).sum()),
    )


def _wilson(correct: int, images: int) -> tuple[float, float]:
    if not images:
        return 0.0, 1.0
    z, share = 1.959964, correct / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z * math.sqrt(share * (1 - share) / images + z**2 / (4 * images**2)) / (1 + z**2 / images)
    return max(0.0, centre - half), min(1.0, centre + half)

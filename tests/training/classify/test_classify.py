"""Transfer to classification: labels from folders and annotations, an optimal probe, finetuning that resumes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from refinesam.errors import ConfigError, DatasetError, WeightsError
from refinesam.images import write_png
from refinesam.models.build import build_model
from refinesam.models.config import CONFIGS
from refinesam.models.image_encoder import LightEncoder
from refinesam.training.classify.config import ClassifyConfig, LabelledSection
from refinesam.training.classify.data import DAMAGED, Labelled, LabelledImages, read_labelled
from refinesam.training.classify.run import Classifier, accuracy_of, classify, layer_groups, linear_probe
from refinesam.training.commands import app
from refinesam.training.encoder_file import save_encoder

COLOURS = {"blue": (30, 40, 200), "red": (200, 40, 30), "white": (220, 220, 220)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noisy colours as ImageNet has them: 4 images each to train on, 3 to validate on."""
    root = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for name, colour in COLOURS.items():
            for number in range(count):
                pixels = np.clip(rng.normal(colour, 25, (40, 50, 3)), 0, 255).astype(np.uint8)
                write_png(root / split / name / "deeper" / f"{number}.png", pixels)
    return root


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def config_of(**sections: Any) -> ClassifyConfig:
    values: dict[str, Any] = {
        "encoder": {"variant": "hybrid_ti", "input_size": 32},
        "data": {"workers": 0},
        "optim": {"epochs": 2, "warmup_epochs": 1, "batch_size": 6},
        "precision": "fp32",
    }
    for name, value in sections.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    return ClassifyConfig.model_validate(values)


def classifier(variant: str = "efficientsam_ti", classes: int = 3) -> Classifier:
    encoder = build_model(CONFIGS[variant]).image_encoder
    assert isinstance(encoder, LightEncoder)
    return Classifier(encoder, classes)


# ---------------------------------------------------------------- labels


def test_folders_name_the_classes(folders: Path) -> None:
    classes, images = read_labelled(folders, LabelledSection())
    assert classes == ("blue", "red", "white")
    for split, count in (("train", 4), ("val", 3)):
        assert [(image.path.parts[-3], image.label) for image in images[split]] == [
            (name, label) for label, name in enumerate(classes) for _ in range(count)
        ]


def test_sources_and_objects_are_classes_too(tmp_path: Path, draw_shapes: Any, write_source: Any) -> None:
    for name, seeds in (("cells", (0, 1)), ("cats", (2,))):
        for split in ("train", "val"):
            write_source(tmp_path, name, [draw_shapes(seed) for seed in seeds], split)
    classes, images = read_labelled(tmp_path, LabelledSection(kind="sources", sources=("cells", "cats")))
    assert classes == ("cats", "cells")
    assert [image.label for image in images["train"]] == [1, 1, 0]
    assert all(image.bbox_xywh is None for image in images["train"])
    path = tmp_path / "cells" / "instances_train.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 2, "name": "other"})
    content["annotations"][0]["category_id"] = 2
    path.write_text(json.dumps(content))
    classes, images = read_labelled(tmp_path, LabelledSection(kind="objects", sources=("cells",)))
    assert classes == ("other", "shape")
    assert [image.label for image in images["train"]] == [0] + [1] * (len(content["annotations"]) - 1)
    boxes = {tuple(annotation["bbox"]) for annotation in content["annotations"]}
    assert {image.bbox_xywh for image in images["train"]} == boxes


def test_labels_that_cannot_be_are_named(tmp_path: Path, folders: Path, draw_shapes: Any, write_source: Any) -> None:
    with pytest.raises(DatasetError, match="no folder .*train"):
        read_labelled(tmp_path, LabelledSection())
    with pytest.raises(DatasetError, match=r"'objects' needs data\.sources"):
        read_labelled(tmp_path, LabelledSection(kind="objects"))
    for split in ("train", "val"):
        write_source(tmp_path, "one", [draw_shapes(0)], split)
    with pytest.raises(DatasetError, match="classes shape; two or more"):
        read_labelled(tmp_path, LabelledSection(kind="objects", sources=("one",)))
    alien = tmp_path / "alien"
    shutil.copytree(folders, alien)
    shutil.rmtree(alien / "train" / "red")
    with pytest.raises(DatasetError, match="validation images of red have no training image"):
        read_labelled(alien, LabelledSection())


# ---------------------------------------------------------------- images


def test_an_object_is_seen_with_its_surroundings(tmp_path: Path) -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[20:40, 30:40] = 255
    write_png(tmp_path / "a.png", pixels)

    images = LabelledImages([Labelled(tmp_path / "a.png", 5, (30.0, 20.0, 10.0, 20.0))], 24)
    seen, label = images[0]
    # A square of the longer side, 20, and a tenth of it on each side: 24 pixels, so nothing is resized.
    assert label == 5
    assert np.array_equal(seen.numpy().transpose(1, 2, 0), pixels[18:42, 23:47])


def test_a_damaged_image_and_a_box_outside_have_no_label(tmp_path: Path, folders: Path) -> None:
    classes, images = read_labelled(folders, LabelledSection())
    whole = images["train"][0]
    (tmp_path / "bad.png").write_bytes(b"x")
    odd = [whole, replace(whole, path=tmp_path / "bad.png"), replace(whole, bbox_xywh=(500.0, 3.0, 9.0, 9.0))]
    labels = [label for _, label in (LabelledImages(odd, 16)[index] for index in range(3))]
    assert labels == [0, DAMAGED, DAMAGED]


def test_training_crops_change_with_the_seed_alone(folders: Path) -> None:
    images = read_labelled(folders, LabelledSection())[1]["train"]
    first, again, other = (LabelledImages(images, 32, seed, 0.35)[0][0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(*(LabelledImages(images, 32, seed)[0][0] for seed in (1, 2)))


# ---------------------------------------------------------------- probe


def test_the_probe_minimises_its_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (200,), generator=generator)
    features = torch.randn(200, 6, generator=generator) * 3 + 5 + torch.randn(4, 6, generator=generator)[labels]
    predict = linear_probe(features, labels, 4, penalty=0.05)
    # Logits at 0 and at the unit vectors of the standardised space give bias and weights back.
    mean, scale = features.mean(0), features.std(0, correction=0)
    bias = predict(mean[None])[0]
    weight = (predict(mean + torch.diag(scale)) - bias).T.double().requires_grad_()
    bias = bias.double().requires_grad_()
    inputs = ((features - mean) / scale).double()
    assert torch.allclose(inputs @ weight.T + bias, predict(features).double(), atol=1e-4)
    loss = F.cross_entropy(inputs @ weight.T + bias, labels) + 0.025 * weight.square().sum()
    loss.backward()
    # A convex loss is least where its gradient vanishes.
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-4


def test_a_constant_feature_harms_no_probe() -> None:
    features = torch.tensor([[1.0, -2.0], [1.0, 2.0], [1.0, -3.0], [1.0, 3.0]])
    predict = linear_probe(features, torch.tensor([0, 1, 0, 1]), 2, penalty=1e-3)
    assert predict(features).argmax(1).tolist() == [0, 1, 0, 1]


def test_accuracy_counts_what_could_be_read() -> None:
    predicted = torch.tensor([0, 0, 1, 1, 2, 0, 0, 0, 0, 1, 1])
    labels = torch.tensor([0, 0, 1, 0, DAMAGED, 0, 0, 0, 0, 1, 0])
    found = accuracy_of(predicted, labels, 3, 40)
    assert (found.images, found.correct, found.top1, found.damaged) == (10, 8, 0.8, 1)
    assert found.class_mean == pytest.approx((6 / 8 + 2 / 2) / 2)
    # Wilson 1927, for 8 of 10.
    assert found.interval == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert accuracy_of(labels[4:5], labels[4:5], 3, 40).images == 0


@pytest.mark.parametrize("variant", ["hybrid_ti", "efficientsam_ti"])
def test_a_random_encoder_tells_colours_apart(folders: Path, output: Path, variant: str) -> None:
    stages: list[tuple[str, int, int]] = []
    found = classify(
        config_of(encoder={"variant": variant}), folders, output, "cpu", on_progress=lambda *told: stages.append(told)
    )
    assert (found.images, found.correct, found.classes, found.train_images) == (9, 9, 3, 12)
    assert stages == [("train features", 12, 12), ("val features", 9, 9)]
    written = json.loads((output / "accuracy.json").read_text())
    assert (written["accuracy"]["top1"], written["classes"]) == (1.0, ["blue", "red", "white"])
    assert written["config"]["encoder"]["variant"] == variant


def test_the_probe_sees_the_encoder_it_is_given(folders: Path, output: Path, tmp_path: Path) -> None:
    model = build_model(CONFIGS["hybrid_ti"])
    with torch.no_grad():
        # An encoder that is blind: every image has the same tokens.
        model.image_encoder.get_parameter("stem16.weight").zero_()
    save_encoder(model, tmp_path / "blind.safetensors", "test")
    found = classify(config_of(encoder={"init": str(tmp_path / "blind.safetensors")}), folders, output, "cpu")
    assert found.top1 == pytest.approx(1 / 3)
    with pytest.raises(WeightsError, match="encoder of hybrid_ti, needed is one of efficientsam_ti"):
        encoder = {"variant": "efficientsam_ti", "init": str(tmp_path / "blind.safetensors")}
        classify(config_of(encoder=encoder), folders, output, "cpu")


# ---------------------------------------------------------------- finetuning


@pytest.mark.parametrize("variant", ["efficientsam_ti", "hybrid_ti"])
def test_rates_fall_from_the_head_downwards(variant: str) -> None:
    model = classifier(variant)
    groups = layer_groups(model, 0.5, 0.05)
    depth = CONFIGS[variant].depth
    scale_of = {id(p): group["scale"] for group in groups for p in group["params"]}
    decay_of = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(scale_of) == sum(len(group["params"]) for group in groups)
    for name, parameter in model.named_parameters():
        if name.startswith(("encoder.neck", "encoder.high_res")):
            assert not parameter.requires_grad and id(parameter) not in scale_of
            continue
        below = 0 if not name.startswith("encoder.") else depth + 1
        if name.startswith("encoder.blocks."):
            below = depth - int(name.split(".")[2])
        assert scale_of[id(parameter)] == pytest.approx(0.5**below), name
        expected = 0.0 if parameter.ndim == 1 or "pos_embed" in name else 0.05
        assert decay_of[id(parameter)] == expected, name


def test_the_classifier_averages_the_tokens() -> None:
    model, pixels = classifier(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.encoder.tokens(pixels).view(2, 4, 192)
        mean = sum(tokens[:, place] for place in range(4)) / 4
        centred = mean - mean.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        assert torch.allclose(model(pixels), model.head(normed), atol=1e-4)


def test_finetuning_that_is_killed_resumes_with_its_last_epoch(folders: Path, output: Path, assert_same: Any) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("epochs", 1):
            raise KeyboardInterrupt

    config = config_of(mode="finetune")
    whole = classify(config, folders, output / "whole", "cpu")
    with pytest.raises(KeyboardInterrupt):
        classify(config, folders, output / "killed", "cpu", on_progress=stop)
    torch.manual_seed(77)
    assert classify(config, folders, output / "killed", "cpu") == whole
    states = [torch.load(output / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")]
    assert_same(*states)
    with pytest.raises(ConfigError, match=r"optim\.epochs\. Restore"):
        classify(config_of(mode="finetune", optim={"epochs": 3}), folders, output / "killed", "cpu")


def test_finetuning_learns_colours(folders: Path, output: Path) -> None:
    config = config_of(mode="finetune", optim={"epochs": 8, "warmup_epochs": 1, "learning_rate": 3e-3})
    found = classify(config, folders, output, "cpu")
    assert found.correct >= 8


# ---------------------------------------------------------------- command line


def test_the_command_prints_accuracy_with_its_number_of_images(folders: Path, output: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[encoder]\nvariant = 'hybrid_ti'\ninput_size = 32\n[data]\nworkers = 0\n")
    arguments = ["classify", str(tmp_path / "c.toml"), "--data", str(folders), "--output", str(output)]
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    low = 1 / (1 + 1.959964**2 / 9)
    assert math.isclose(low, 0.7008, abs_tol=1e-4)
    assert "Top-1 100.0% (9 of 9 images, 95 % interval 70.1% to 100.0%), mean over 3 classes 100.0%" in done.output

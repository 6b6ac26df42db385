"""Calibration: the error by hand, and that every score is of the prompt and the mask that it is said to be of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from refinesam.models.config import ModelConfig
from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.promptable import PromptableModel
from refinesam.training.finetune.prompts import self_made_prompt
from refinesam.training.finetune.validate import PROTOCOLS, WholeImages
from refinesam.training.sources.layouts import load_sources
from scripts import script

BENCHMARK = script("benchmarks/calibration")
SECOND_PROMPTS, Scores, scores_by_prompt = BENCHMARK.SECOND_PROMPTS, BENCHMARK.Scores, BENCHMARK.scores_by_prompt
CPU = torch.device("cpu")
CONFIG = ModelConfig("hybrid_ti", "hybrid", width=48, depth=1, heads=3, input_size=64, pos_grid=4)
SLOTS = {"val_click": [2], "val_3_clicks": [2, 3, 4], "val_box": [0, 1]}


def test_the_bias_is_signed_and_the_error_that_of_the_bins() -> None:
    # Bin 0: +0.3 and -0.1, mean 0.1 of two. Bin 5: -0.4. Bin 9: twice 0.1 over.
    predicted = np.array([0.05, 0.09, 0.5, 0.92, 1.0])
    true = predicted + np.array([0.3, -0.1, -0.4, -0.1, -0.1])
    assert Scores(predicted, true).error == pytest.approx((2 * 0.1 + 0.4 + 2 * 0.1) / 5)
    assert Scores(predicted, true).bias == pytest.approx((-0.3 + 0.1 + 0.4 + 0.1 + 0.1) / 5)


class Answers(PromptableModel):
    """Gives masks that depend on the prompt, so that each can be told from the others; remembers what was asked."""

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.asked: list[tuple[Tensor, Tensor]] = []
        self.answers: list[tuple[Tensor, Tensor]] = []

    def encode(self, pixels: Tensor) -> ImageFeatures:
        return ImageFeatures(pixels)

    def decode(
        self, features: Any, points: Tensor, labels: Tensor, mask_logits: Any = None, multimask_output: bool = True
    ) -> tuple[Tensor, Tensor]:
        assert mask_logits is None
        objects = points.shape[1]
        generator = torch.Generator().manual_seed(len(self.asked))
        y, x = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(16) + 0.5, indexing="ij")
        centres = 4 + 8 * torch.rand(2, 1, objects, 3, 1, 1, generator=generator)
        logits = 4 - ((x - centres[0]) ** 2 + (y - centres[1]) ** 2).sqrt()
        self.asked.append((points, labels))
        self.answers.append((logits, torch.rand(1, objects, 3, generator=generator)))
        return self.answers[-1]


def test_each_score_is_of_the_prompt_made_from_that_first_answer(shapes_root: Path) -> None:
    samples = WholeImages(load_sources(shapes_root, ("shapes",), "val"), 64, 9)
    model = Answers()
    found = scores_by_prompt(model, samples, CPU)
    assert found.keys() == PROTOCOLS.keys() == SLOTS.keys()
    assert all(list(kinds) == ["first", *SECOND_PROMPTS] for kinds in found.values())
    expected: dict[tuple[str, str], list[tuple[float, float]]] = {}
    step = 0
    for index in range(len(samples)):
        sample = samples[index]
        target = sample["target"].numpy() > 0.5
        for protocol, slots in SLOTS.items():
            points, labels = sample["points"][:, slots].numpy(), sample["labels"][:, slots].numpy()
            first = chosen(*model.answers[step])
            for kind in ("first", *SECOND_PROMPTS):
                asked_points, asked_labels = (part[0].numpy() for part in model.asked[step])
                shown, claimed = chosen(*model.answers[step])
                for o in range(len(target)):
                    if kind == "first":
                        prompt = points[o], labels[o]
                    else:
                        enlarged = torch.nn.functional.interpolate(first[0][None], size=(64, 64), mode="bilinear")[0]
                        prompt = self_made_prompt((enlarged[o] > 0).numpy(), points[o], labels[o], kind)
                    assert np.array_equal(asked_points[o], prompt[0])
                    assert np.array_equal(asked_labels[o], prompt[1])
                    mask = shown[o].numpy() > 0
                    iou = (mask & target[o]).sum() / (mask | target[o]).sum()
                    expected.setdefault((protocol, kind), []).append((float(claimed[o]), float(iou)))
                step += 1
    assert step == len(model.asked) == 3 * 3 * (1 + len(SECOND_PROMPTS))
    for (protocol, kind), values in expected.items():
        predicted, true = np.array(values).T
        assert found[protocol][kind].predicted == pytest.approx(predicted)
        assert found[protocol][kind].true == pytest.approx(true)
    assert len({round(float(scores.true.sum()), 9) for kinds in found.values() for scores in kinds.values()}) > 10


def chosen(logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
    """Of every object's three masks the one with the highest claim: (P, h, w), and the claim (P,)."""
    best = iou[0].argmax(-1).tolist()
    return torch.stack([logits[0, o, c] for o, c in enumerate(best)]), torch.stack(
        [iou[0, o, c] for o, c in enumerate(best)]
    )


def test_without_any_object_there_are_no_scores(tmp_path: Path, draw_shapes: Any, write_source: Any) -> None:
    folder = write_source(tmp_path, "shapes", [draw_shapes(1)], split="val")
    (folder / "images" / "val1.png").unlink()
    samples = WholeImages(load_sources(tmp_path, ("shapes",), "val"), 64, 9)
    assert scores_by_prompt(Answers(), samples, CPU) == {}

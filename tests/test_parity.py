"""Agreement with the two public reference implementations, on weights and an image given by a formula."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import formula
from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.models.frames import Frame
from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.promptable import PromptableModel

PARITY = Path(__file__).parent / "parity"
TOLERANCE = 1e-3

Points = tuple[list[list[float]], list[int]]
Arrays = dict[str, NDArray[np.float32]]

BOX: Points = ([[140, 120], [380, 360]], [2, 3])
EFFICIENTSAM_PROMPTS: dict[str, Points] = {
    "one_point": ([[256, 240]], [1]),
    "two_points": ([[256, 240], [300, 200]], [1, 1]),
    "box": BOX,
    "box_and_point": ([*BOX[0], [256, 240]], [2, 3, 1]),
    "six_points": ([[200, 200], [220, 210], [240, 220], [260, 230], [280, 240], [300, 250]], [1] * 6),
    "background_label": ([[256, 240], [50, 50]], [1, 0]),
}
SAM_PROMPTS: dict[str, Points] = {
    "pos_neg": ([[256, 240], [60, 60]], [1, 0]),
    "box": BOX,
    "box_and_points": ([[256, 240], [150, 130], *BOX[0]], [1, 0, 2, 3]),
}


@dataclass
class Encoded:
    """A model with the formula's weights, and the formula's image in it."""

    name: str
    model: PromptableModel
    frame: Frame
    features: ImageFeatures

    def decode(self, prompt: Points, mask_logits: Tensor | None = None, multimask_output: bool = True) -> Arrays:
        points = torch.from_numpy(self.frame.to_input(np.reshape(prompt[0], (-1, 2))))
        labels = torch.tensor(prompt[1])
        with torch.inference_mode():
            logits, iou = self.model.decode(
                self.features, points[None, None], labels.long()[None, None], mask_logits, multimask_output
            )
            full = self.frame.upsample(logits[0, 0])
        return {"low_res_logits": logits[0, 0].numpy(), "logits": full.numpy(), "iou": iou[0, 0].numpy()}

    def answers(self) -> Iterator[tuple[str, Arrays]]:
        """Everything that a fixture holds."""
        if self.name.startswith("efficientsam"):
            for name, prompt in EFFICIENTSAM_PROMPTS.items():
                yield name, self.decode(prompt)
            return
        for name, prompt in SAM_PROMPTS.items():
            yield f"{name}.multi", self.decode(prompt)
            yield f"{name}.single", self.decode(prompt, multimask_output=False)
        # The prior is the box's own single mask.
        prior = torch.from_numpy(self.decode(BOX, multimask_output=False)["low_res_logits"])[None]
        yield "box_then_mask", self.decode(BOX, prior, multimask_output=False)
        yield "mask_only", self.decode(([], []), prior)


@pytest.fixture(scope="module", params=["efficientsam_ti", "efficientsam_s", "mobile_sam", "sam_vit_b"])
def encoded(request: pytest.FixtureRequest) -> Encoded:
    """Encoding at 1024 takes seconds: once per model."""
    config = config_named(request.param)
    with torch.device("meta"):
        model = build_model(config)
    model.load_state_dict(formula.weights(model.state_dict()), assign=True)
    image = formula.image()
    frame = Frame.of(config, image.shape[:2])
    with torch.inference_mode():
        features = model.eval().encode(frame.resize(image)[None])
    return Encoded(request.param, model, frame, features)


def stored(name: str) -> Arrays:
    with np.load(PARITY / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def differences(answers: Iterator[tuple[str, Arrays]], expected: Arrays) -> dict[str, NDArray[np.float32]]:
    """Absolute differences by stored array; every stored array must have been answered."""
    sampled: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
        "low_res_logits": lambda a: a[:, ::4, ::4],
        "logits": lambda a: a[:, ::16, ::16],
        "iou": lambda a: a,
    }
    found = {
        f"{name}.{kind}": np.abs(sample(arrays[kind]) - expected[f"{name}.{kind}"])
        for name, arrays in answers
        for kind, sample in sampled.items()
        if f"{name}.{kind}" in expected
    }
    assert found.keys() == {key for key in expected if key.endswith((".low_res_logits", ".logits", ".iou"))}
    return found


def test_embedding(encoded: Encoded) -> None:
    embedding = encoded.features.embedding[0, ::16, ::4, ::4].numpy()
    assert np.abs(embedding - stored(encoded.name)["embedding"]).max() < TOLERANCE


def test_decoder(encoded: Encoded) -> None:
    expected = stored(encoded.name)
    if encoded.name.startswith("efficientsam"):
        for name, (points, labels) in EFFICIENTSAM_PROMPTS.items():
            assert expected[f"{name}.coords"].tolist() == points and expected[f"{name}.labels"].tolist() == labels
    found = differences(encoded.answers(), expected)
    assert {name: float(d.max()) for name, d in found.items() if d.max() >= TOLERANCE} == {}

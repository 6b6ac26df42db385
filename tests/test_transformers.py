"""Agreement with the SAM of the `transformers` library itself, where that is installed; nothing here needs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import formula
from refinesam.models.config import CONFIGS, ModelConfig
from refinesam.models.frames import Frame
from refinesam.weights import load_model

transformers = pytest.importorskip("transformers")

SMALL = ModelConfig("sam_small", "sam", width=32, depth=2, heads=2, pos_grid=64, global_blocks=(1,))


def test_its_saved_model_loads_and_answers_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, SMALL.name, SMALL)
    vision = {"hidden_size": 32, "mlp_dim": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.SamConfig(vision_config=vision | {"global_attn_indexes": [1]})
    theirs = transformers.SamModel(config).eval()
    weights = formula.weights(theirs.state_dict())
    positions = "shared_image_embedding.positional_embedding"
    weights["prompt_encoder.shared_embedding.positional_embedding"] = weights[positions].clone()
    theirs.load_state_dict(weights)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path / "model.safetensors")
    assert ours.config == SMALL

    image = formula.image()
    pixels = Frame.of(SMALL, image.shape[:2]).resize(image)[None]
    points, labels = torch.tensor([[[[400.0, 380.0], [100.0, 100.0]]]]), torch.tensor([[[1, 0]]])
    corners = torch.tensor([[[[220.0, 190.0], [600.0, 570.0]]]])
    with torch.inference_mode():
        embedding = theirs.get_image_embeddings(pixels)
        features = ours.encode(pixels)

        def compare(prompt: dict[str, Tensor], points: Tensor, labels: Tensor, prior: Tensor | None = None) -> Tensor:
            given = prompt | ({} if prior is None else {"input_masks": prior})
            expected = theirs(image_embeddings=embedding, multimask_output=prior is None, **given)
            logits, iou = ours.decode(features, points, labels, prior, multimask_output=prior is None)
            torch.testing.assert_close(logits, expected.pred_masks, rtol=0, atol=1e-4)
            torch.testing.assert_close(iou, expected.iou_scores, rtol=0, atol=1e-4)
            return logits

        torch.testing.assert_close(features.embedding, embedding, rtol=0, atol=1e-4)
        compare({"input_points": points, "input_labels": labels}, points, labels)
        box = {"input_boxes": corners.flatten(2)}
        first = compare(box, corners, torch.tensor([[[2, 3]]]))
        compare(box, corners, torch.tensor([[[2, 3]]]), first[:, :, 0])

"""The hybrid's IoU head: what it sees of a mask, and that it does not shape the masks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from refinesam.models.build import build_model
from refinesam.models.config import config_named
from refinesam.models.mask_decoder import MaskScoreHead, best_mask, merged_mask, with_merged_best


def test_evidence_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 3, 5, 6, generator=generator) * 3
    maps = torch.randn(1, 2, 4, 5, 6, generator=generator)
    found = MaskScoreHead.evidence(logits, maps)
    assert found.shape == (1, 2, 3, 2 * 4 + 5)
    for prompt in range(2):
        masks = [1 / (1 + np.exp(-logits[0, prompt, c].double().numpy())) for c in range(3)]
        for c, p in enumerate(masks):
            expected = [float((p * m).sum() / (p.sum() + 1)) for m in maps[0, prompt].double().numpy()]
            expected += [float((p * m).sum() / (abs(m).sum() + 1)) for m in maps[0, prompt].double().numpy()]
            raw = logits[0, prompt, c].numpy()
            outline = abs(np.diff(p, axis=0)).sum() + abs(np.diff(p, axis=1)).sum()
            ious = [(p * q).sum() / (p.sum() + q.sum() - (p * q).sum() + 1) for d, q in enumerate(masks) if d != c]
            expected += [
                math.log(p.sum() / 30 + 1e-4) / 4,
                (raw > 1).sum() / max(1, (raw > -1).sum()),
                outline / (4 * math.sqrt(p.sum() + 1)),
                (p**2).sum() / (p.sum() + 1e-4),
                sum(ious) / 2,
            ]
            np.testing.assert_allclose(found[0, prompt, c].numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [-80.0, 80.0])
def test_evidence_of_empty_and_full_masks_is_finite(value: float) -> None:
    found = MaskScoreHead.evidence(torch.full((1, 1, 3, 8, 8), value), torch.zeros(1, 1, 43, 8, 8))
    assert torch.isfinite(found).all()


def test_the_score_does_not_shape_the_masks() -> None:
    torch.manual_seed(0)
    model = build_model(replace(config_named("hybrid_ti"), input_size=64))
    features = model.encode(torch.randn(1, 3, 64, 64))
    _, iou = model.decode(features, torch.full((1, 1, 1, 2), 30.0), torch.ones(1, 1, 1, dtype=torch.int64))
    iou.sum().backward()
    assert all(p.grad is None for p in model.mask_decoder.output_hypernetworks_mlps.parameters())
    assert all(p.grad is None for p in model.mask_decoder.upscale4.parameters())
    assert model.mask_decoder.iou_token.weight.grad.abs().sum() > 0


def test_single_output_is_the_best_of_the_three() -> None:
    torch.manual_seed(0)
    model = build_model(replace(config_named("hybrid_ti"), input_size=64)).eval()
    points, labels = torch.rand(1, 5, 2, 2) * 64, torch.ones(1, 5, 2, dtype=torch.int64)
    with torch.no_grad():
        features = model.encode(torch.randn(1, 3, 64, 64))
        logits, iou = model.decode(features, points, labels)
        one, one_iou = model.decode(features, points, labels, multimask_output=False)
    assert one.shape == (1, 5, 1, 16, 16)
    for prompt in range(5):
        best = int(iou[0, prompt].argmax())
        assert torch.equal(one[0, prompt, 0], logits[0, prompt, best])
        assert one_iou[0, prompt, 0] == iou[0, prompt].max()


def test_best_mask_follows_the_scores() -> None:
    logits = torch.arange(6.0).view(1, 2, 3, 1, 1)
    iou = torch.tensor([[[0.1, 0.9, 0.2], [0.8, 0.3, 0.4]]])
    chosen, score = best_mask(logits, iou)
    assert chosen.flatten().tolist() == [1.0, 3.0]
    assert score.flatten().tolist() == pytest.approx([0.9, 0.8])


def test_a_merged_mask_by_hand() -> None:
    logits = torch.tensor([4.0, -2.0, 1.0]).view(1, 1, 3, 1, 1)
    # Scores a temperature apart weigh e : 1; one far below weighs nothing.
    merged = merged_mask(logits, torch.tensor([[[0.75, 0.7, 0.0]]]))
    share = math.e / (1 + math.e)
    assert merged.shape == (1, 1, 1, 1)
    assert merged.item() == pytest.approx(4 * share - 2 * (1 - share), abs=1e-4)
    assert merged_mask(logits, torch.tensor([[[0.0, 0.9, 0.0]]])).item() == pytest.approx(-2, abs=1e-4)


def test_the_merged_mask_takes_the_place_of_the_best() -> None:
    generator = torch.Generator().manual_seed(3)
    logits, iou = torch.randn(2, 4, 3, 5, 6, generator=generator), torch.rand(2, 4, 3, generator=generator)
    found = with_merged_best(logits, iou)
    merged = merged_mask(logits, iou)
    for b, p in np.ndindex(2, 4):
        for c in range(3):
            best = c == int(iou[b, p].argmax())
            assert torch.equal(found[b, p, c], merged[b, p] if best else logits[b, p, c])


def test_training_sees_the_masks_that_the_merged_one_is_made_of() -> None:
    torch.manual_seed(0)
    model = build_model(replace(config_named("hybrid_ti"), input_size=64))
    points, labels = torch.rand(1, 2, 1, 2) * 64, torch.ones(1, 2, 1, dtype=torch.int64)
    with torch.no_grad():
        features = model.encode(torch.randn(1, 3, 64, 64))
        raw, iou = model.train().decode(features, points, labels)
        shown, same_iou = model.eval().decode(features, points, labels)
    # Without training, attention sums in another order.
    torch.testing.assert_close(iou, same_iou, rtol=0, atol=1e-5)
    torch.testing.assert_close(shown, with_merged_best(raw, iou), rtol=0, atol=1e-4)
    assert (shown - raw).abs().max() > 1e-2


def test_affinity_is_highest_under_the_click() -> None:
    torch.manual_seed(0)
    model = build_model(replace(config_named("hybrid_ti"), input_size=128)).eval()
    with torch.no_grad():
        features = model.encode(torch.randn(1, 3, 128, 128))
        # The centre of stride-4 pixel (12, 20).
        xy = torch.tensor([[[[12.5 / 32, 20.5 / 32]]]])
        positive = model.prompt_encoder.affinity(features, xy, torch.ones(1, 1, 1, dtype=torch.int64))
        negative = model.prompt_encoder.affinity(features, xy, torch.zeros(1, 1, 1, dtype=torch.int64))
    assert positive.shape == (1, 1, 4, 32, 32)
    # Maps: stride 16 positive, negative; stride 4 positive, negative.
    assert positive[0, 0, 2].argmax() == 20 * 32 + 12
    assert positive[0, 0, 2].max() == pytest.approx(1.0, abs=1e-5)
    assert positive[0, 0, (1, 3), :, :].abs().max() == 0
    assert torch.equal(negative[0, 0, 3], positive[0, 0, 2])

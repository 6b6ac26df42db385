"""The MAE baseline against naive versions written from He et al.'s text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refinesam.models.build import build_model
from refinesam.models.config import CONFIGS
from refinesam.models.image_encoder import LightEncoder
from refinesam.training.pretrain.mae import Mae, pixel_targets
from refinesam.training.pretrain.masked import DecoderShape, Masking, encode_visible, positions_2d, random_masking


def small_mae() -> Mae:
    torch.manual_seed(0)
    encoder = build_model(CONFIGS["efficientsam_ti"]).image_encoder
    assert isinstance(encoder, LightEncoder)
    return Mae(encoder, DecoderShape(16, 2, 2), grid=4)


def masking() -> Masking:
    return random_masking(torch.rand(2, 16, generator=torch.Generator().manual_seed(1)), 0.75)


@pytest.mark.parametrize("normalise", [False, True])
def test_targets_are_each_patchs_pixels(normalise: bool) -> None:
    pixels = torch.randn(2, 3, 48, 48)
    targets = pixel_targets(pixels, normalise)
    assert targets.shape == (2, 9, 768)
    for image in range(2):
        for patch in range(9):
            y, x = 16 * (patch // 3), 16 * (patch % 3)
            values = np.array(
                [pixels[image, c, y + i, x + j].item() for i in range(16) for j in range(16) for c in range(3)]
            )
            if normalise:
                values = (values - values.mean()) / np.sqrt(values.var(ddof=1) + 1e-6)
            assert targets[image, patch].numpy() == pytest.approx(values, abs=1e-5)


def test_a_flat_patch_has_a_finite_target() -> None:
    assert not pixel_targets(torch.full((1, 3, 16, 16), 2.0), True).any()


@torch.no_grad()
def test_the_decoder_attends_among_all_tokens() -> None:
    model, pixels, hidden = small_mae(), torch.randn(2, 3, 64, 64), masking()
    torch.nn.init.normal_(model.mask_token)
    latent = model.embed(model.encoder_norm(encode_visible(model.encoder, pixels, hidden)))
    found = model.reconstruct(pixels, hidden)
    for image in range(2):
        tokens = model.mask_token[0].repeat(16, 1)
        for place, patch in enumerate(hidden.visible[image].tolist()):
            tokens[patch] = latent[image, place]
        x = (tokens + positions_2d(16, 4)[0])[None]
        for block in model.blocks:
            x = block(x)
        assert torch.allclose(found[image], model.head(model.norm(x))[0], atol=1e-4)


@torch.no_grad()
def test_the_loss_is_the_mean_over_masked_patches_alone() -> None:
    model, pixels, hidden = small_mae(), torch.randn(2, 3, 64, 64), masking()
    target = pixel_targets(pixels, True)
    found = model.reconstruct(pixels, hidden)
    errors = [
        np.mean((target[image, patch].numpy() - found[image, patch].numpy()) ** 2)
        for image in range(2)
        for patch in hidden.masked[image].tolist()
    ]
    loss = model(pixels, target, hidden)
    assert loss.item() == pytest.approx(float(np.mean(errors)), rel=1e-5)
    for image in range(2):
        target[image, hidden.visible[image]] += 7.0
    assert model(pixels, target, hidden).item() == loss.item(), "what is visible doesn't count"


def test_every_weight_learns_from_the_loss() -> None:
    model, pixels = small_mae(), torch.randn(2, 3, 64, 64)
    model(pixels, pixel_targets(pixels, True), masking()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.startswith("encoder.neck") for name in silent), silent

"""SAMI's pieces against naive versions written from the papers' text: masks, attention, merging, loss, positions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from refinesam.models.build import build_model
from refinesam.models.config import CONFIGS
from refinesam.models.image_encoder import LightEncoder
from refinesam.training.pretrain.masked import (
    DecoderShape,
    Masking,
    encode_visible,
    gather_tokens,
    initialise_like_mae,
    merge_tokens,
    positions_2d,
    random_masking,
)
from refinesam.training.pretrain.sami import CrossAttention, CrossAttentionBlock, CrossAttentionDecoder, Sami

STUDENTS = ["efficientsam_ti", "hybrid_ti", "hybrid_lite0"]


def encoder_of(variant: str, seed: int = 0) -> LightEncoder:
    torch.manual_seed(seed)
    encoder = build_model(CONFIGS[variant]).image_encoder
    assert isinstance(encoder, LightEncoder)
    return encoder


def masking_of(images: int, patches: int, seed: int = 0, ratio: float = 0.75) -> Masking:
    return random_masking(torch.rand(images, patches, generator=torch.Generator().manual_seed(seed)), ratio)


def shaken(module: nn.Module, seed: int = 1) -> nn.Module:
    """Give every parameter a random value, so that no zero bias and no unit scale hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize(("ratio", "visible"), [(0.5, 98), (0.75, 49), (0.85, 29), (0.999, 1)])
def test_the_patches_of_least_noise_are_visible(ratio: float, visible: int) -> None:
    noise = torch.rand(5, 196, generator=torch.Generator().manual_seed(3))
    masking = random_masking(noise, ratio)
    for image in range(5):
        by_noise = sorted(range(196), key=lambda patch: float(noise[image, patch]))  # noqa: B023  # used at once
        assert masking.visible[image].tolist() == sorted(by_noise[:visible])
        assert masking.masked[image].tolist() == sorted(by_noise[visible:])


def test_every_patch_is_visible_equally_often_and_every_image_has_its_own_mask() -> None:
    masking = masking_of(4000, 16)
    often = torch.bincount(masking.visible.flatten(), minlength=16) / 4000
    # Five standard deviations of a share of 1/4 in 4000 draws.
    assert (often - 0.25).abs().max() < 5 * math.sqrt(0.25 * 0.75 / 4000)
    assert len({tuple(row) for row in masking.visible.tolist()}) > 1500


def test_merging_puts_each_token_where_it_came_from() -> None:
    tokens = torch.randn(3, 12, 5)
    masking = masking_of(3, 12)
    merged = torch.full_like(tokens, torch.nan)
    visible, masked = gather_tokens(tokens, masking.visible), gather_tokens(tokens, masking.masked)
    for image in range(3):
        for place, patch in enumerate(masking.visible[image].tolist()):
            assert torch.equal(visible[image, place], tokens[image, patch])
            merged[image, patch] = visible[image, place]
        for place, patch in enumerate(masking.masked[image].tolist()):
            merged[image, patch] = masked[image, place]
    assert torch.equal(merge_tokens(visible, masked, masking), tokens)
    assert torch.equal(merged, tokens)


def test_one_set_of_positions_serves_all_images() -> None:
    positions, masking = torch.randn(1, 12, 4), masking_of(3, 12)
    taken = gather_tokens(positions, masking.visible)
    assert all(torch.equal(taken[image], positions[0, masking.visible[image]]) for image in range(3))


# ---------------------------------------------------------------- positions


def test_positions_are_sines_and_cosines_of_row_and_column() -> None:
    width, grid = 16, 5
    positions = positions_2d(width, grid)
    assert positions.shape == (1, grid * grid, width)
    for row in range(grid):
        for column in range(grid):
            expected: list[float] = []
            for place in (row, column):
                rates = [1 / 10000 ** (i / (width / 4)) for i in range(width // 4)]
                expected += [math.sin(place * rate) for rate in rates] + [math.cos(place * rate) for rate in rates]
            assert positions[0, row * grid + column].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("variant", STUDENTS)
def test_first_weights_are_maes(variant: str) -> None:
    encoder = encoder_of(variant)
    initialise_like_mae(encoder)
    linear = [module for module in encoder.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 4 * CONFIGS[variant].depth
    for module in linear:
        bound = math.sqrt(6 / (module.in_features + module.out_features))
        assert 0.95 * bound < module.weight.abs().max() <= bound
        assert not module.bias.any()
    positions = encoder.pos_embed.detach().flatten(0, -2)
    grid = CONFIGS[variant].pos_grid
    assert torch.equal(positions[-(grid**2) :], positions_2d(192, grid)[0])
    assert not positions[: -(grid**2)].any(), "the class token's slot, which no patch uses"
    assert encoder.pos_embed.requires_grad


# ---------------------------------------------------------------- attention


def naive_attention(module: CrossAttention, queries: Tensor, context: Tensor) -> Tensor:
    """Vaswani et al., equation 1, one image, head and query at a time."""
    width = queries.shape[-1]
    dim = width // module.heads
    key_weight, value_weight = module.kv.weight[:width], module.kv.weight[width:]
    key_bias, value_bias = module.kv.bias[:width], module.kv.bias[width:]
    images = []
    for asked, known in zip(queries, context, strict=True):
        q, k, v = module.q(asked), known @ key_weight.T + key_bias, known @ value_weight.T + value_bias
        answers = []
        for query in q:
            parts = []
            for head in range(module.heads):
                part = slice(head * dim, (head + 1) * dim)
                scores = torch.stack([query[part] @ key[part] / math.sqrt(dim) for key in k])
                share = scores.exp() / scores.exp().sum()
                parts.append(sum(s * value[part] for s, value in zip(share, v, strict=True)))
            answers.append(torch.cat(parts))
        images.append(module.proj(torch.stack(answers)))
    return torch.stack(images)


def naive_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def naive_block(block: CrossAttentionBlock, masked: Tensor, visible: Tensor) -> Tensor:
    """Queries from masked tokens; keys and values from the encoder's visible features and the masked tokens."""
    queries = naive_norm(block.norm1, masked)
    context = torch.cat([naive_norm(block.norm1, visible), queries], dim=1)
    masked = masked + naive_attention(block.attn, queries, context)
    hidden = naive_norm(block.norm2, masked) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return masked + hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias


@torch.no_grad()
def test_attention_is_softmax_of_scaled_products() -> None:
    module = shaken(CrossAttention(12, 3))
    queries, context = torch.randn(2, 5, 12), torch.randn(2, 7, 12)
    assert torch.allclose(module(queries, context), naive_attention(module, queries, context), atol=1e-5)


@torch.no_grad()
def test_a_block_asks_with_masked_tokens_and_looks_at_all() -> None:
    block = shaken(CrossAttentionBlock(12, 3))
    masked, visible = torch.randn(2, 6, 12), torch.randn(2, 3, 12)
    assert torch.allclose(block(masked, visible), naive_block(block, masked, visible), atol=1e-5)


@torch.no_grad()
def test_the_decoder_is_its_blocks_on_positioned_mask_tokens() -> None:
    decoder = shaken(CrossAttentionDecoder(DecoderShape(12, 3, 3), grid=4))
    masking, visible = masking_of(2, 16), torch.randn(2, 4, 12)
    positions = positions_2d(12, 4)[0]
    placed = torch.stack([visible[i] + positions[masking.visible[i]] for i in range(2)])
    masked = torch.stack([decoder.mask_token[0] + positions[masking.masked[i]] for i in range(2)])
    for block in decoder.blocks:
        masked = naive_block(block, masked, placed)
    assert torch.allclose(decoder(visible, masking), naive_norm(decoder.norm, masked), atol=1e-4)


def test_the_papers_decoder_has_eight_blocks_of_512() -> None:
    decoder = CrossAttentionDecoder(DecoderShape(), grid=14)
    assert len(decoder.blocks) == 8
    assert decoder.mask_token.shape == (1, 1, 512)
    # Queries, keys, values, output: 4 C^2; MLP: 8 C^2; with their biases and two norms.
    assert sum(p.numel() for p in decoder.blocks[0].parameters()) == 12 * 512**2 + 9 * 512 + 4 * 512


# ---------------------------------------------------------------- student


@torch.no_grad()
def test_a_vit_student_encodes_nothing_but_its_visible_patches() -> None:
    encoder = encoder_of("efficientsam_ti")
    pixels, masking = torch.randn(2, 3, 64, 64), masking_of(2, 16)
    for image in range(2):
        tokens = []
        for patch in masking.visible[image].tolist():
            y, x = 16 * (patch // 4), 16 * (patch % 4)
            square = pixels[image, :, y : y + 16, x : x + 16].flatten()
            tokens.append(encoder.patch_embed.proj.weight.flatten(1) @ square + encoder.patch_embed.proj.bias)
        stored = encoder.pos_embed[:, 1:].view(1, 14, 14, 192).permute(0, 3, 1, 2)
        positions = nn.functional.interpolate(stored, size=(4, 4), mode="bicubic", align_corners=False)
        x = torch.stack(tokens) + positions[0].flatten(1).T[masking.visible[image]]
        for block in encoder.blocks:
            x = block(x[None])[0]
        one = Masking(*(part[image : image + 1] for part in masking))
        encoded = encode_visible(encoder, pixels[image : image + 1], one)
        assert torch.allclose(encoded[0], x, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("variant", STUDENTS)
def test_masked_pixels_have_no_way_into_the_student(variant: str) -> None:
    encoder = encoder_of(variant)
    pixels, masking = torch.randn(2, 3, 64, 64), masking_of(2, 16)
    encoded = encode_visible(encoder, pixels, masking)
    for image in range(2):
        for kind, changes in (("masked", False), ("visible", True)):
            for patch in getattr(masking, kind)[image].tolist():
                y, x = 16 * (patch // 4), 16 * (patch % 4)
                other = pixels.clone()
                other[image, :, y : y + 16, x : x + 16] += 1.0
                assert torch.equal(encode_visible(encoder, other, masking), encoded) != changes, (kind, patch)


@pytest.mark.parametrize("variant", STUDENTS)
def test_tokens_lead_to_the_same_features_as_before(variant: str) -> None:
    encoder = encoder_of(variant).eval()
    pixels = torch.randn(1, 3, 64, 64)
    everything = Masking(torch.arange(16)[None], torch.zeros(1, 0, dtype=torch.int64))
    with torch.no_grad():
        tokens = encoder.tokens(pixels)
        assert torch.allclose(encode_visible(encoder, pixels, everything), tokens.flatten(1, 2), atol=1e-5)
        assert torch.equal(encoder.neck(tokens.permute(0, 3, 1, 2)), encoder(pixels).embedding)


# ---------------------------------------------------------------- the whole


def small_sami(variant: str = "efficientsam_ti", target_dim: int = 10) -> Sami:
    encoder = encoder_of(variant)
    return Sami(encoder, DecoderShape(16, 2, 2), target_dim, grid=4)


@torch.no_grad()
def test_reconstruction_is_one_head_over_encoder_and_decoder_outputs_in_image_order() -> None:
    model = small_sami()
    pixels, masking = torch.randn(2, 3, 64, 64), masking_of(2, 16)
    visible = model.embed(naive_norm(model.encoder_norm, encode_visible(model.encoder, pixels, masking)))
    masked = model.decoder(visible, masking)
    found = model.reconstruct(pixels, masking)
    assert found.shape == (2, 16, 10)
    for image in range(2):
        for place, patch in enumerate(masking.visible[image].tolist()):
            assert torch.allclose(found[image, patch], model.head(visible[image, place]), atol=1e-5)
        for place, patch in enumerate(masking.masked[image].tolist()):
            assert torch.allclose(found[image, patch], model.head(masked[image, place]), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("variant", STUDENTS)
def test_the_loss_is_equation_2_over_all_tokens(variant: str) -> None:
    model = small_sami(variant)
    pixels, target, masking = torch.randn(2, 3, 64, 64), torch.randn(2, 16, 10), masking_of(2, 16)
    found = model.reconstruct(pixels, masking).numpy().astype(np.float64)
    total = 0.0
    for image in range(2):
        tokens = [np.mean((target[image, j].numpy() - found[image, j]) ** 2) for j in range(16)]
        total += sum(tokens) / 16
    assert model(pixels, target, masking).item() == pytest.approx(total / 2, rel=1e-5)


def test_every_weight_of_encoder_decoder_and_head_learns_from_the_loss() -> None:
    model = small_sami()
    model(torch.randn(2, 3, 64, 64), torch.randn(2, 16, 10), masking_of(2, 16)).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Of the qkv bias a part (the keys') has no effect, the neck is behind what is pretrained.
    assert all(name.startswith("encoder.neck") for name in silent), silent


def test_the_released_architecture_pretrains_at_the_papers_size() -> None:
    torch.manual_seed(0)
    model = Sami(encoder_of("efficientsam_ti"), DecoderShape(), 1280, grid=14)
    masking = masking_of(1, 196)
    assert masking.visible.shape == (1, 49)
    with torch.no_grad():
        assert model.reconstruct(torch.randn(1, 3, 224, 224), masking).shape == (1, 196, 1280)
    assert (model.embed.weight.shape, model.head.weight.shape) == ((512, 192), (1280, 512))

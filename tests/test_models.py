from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refinesam.models.build import build_model
from refinesam.models.config import CONFIGS, ModelConfig, config_named
from refinesam.models.image_encoder import ImageFeatures
from refinesam.models.layers import CachedPosEmbed, Upscale2d, resize_pos_embed
from refinesam.models.prompt_encoder import PADDING, PositionEmbedding
from refinesam.models.promptable import PromptableModel
from refinesam.models.sam_image_encoder import (
    SamBlock,
    SamImageEncoder,
    attend_with_masks,
    attend_with_wide_queries,
    resize_rel_pos,
)
from refinesam.models.transformer import CrossAttention

PARITY = Path(__file__).parent / "parity"
RELEASED = ["efficientsam_ti", "efficientsam_s", "mobile_sam", "sam_vit_b"]

# Small enough to run in milliseconds; every kind of block is there.
SMALL = {
    "efficientsam": ModelConfig("efficientsam_ti", "efficientsam", width=32, depth=2, heads=2, input_size=128),
    "sam": ModelConfig("sam_vit_b", "sam", 32, depth=2, heads=2, input_size=256, pos_grid=16, global_blocks=(1,)),
    "hybrid": ModelConfig("hybrid_ti", "hybrid", width=32, depth=2, heads=2, input_size=128, pos_grid=8),
}
FAMILIES = list(SMALL)
WITH_MASK_PROMPT = [name for name, config in SMALL.items() if config.capabilities.mask_prompt]

CLICKS = [[30.0, 40.0], [70.0, 80.0]]
BOX = [[20.0, 24.0], [90.0, 100.0]]


def on_meta(name: str) -> PromptableModel:
    """A model without memory: shapes only."""
    with torch.device("meta"):
        return build_model(CONFIGS[name])


def small_model(family: str, seed: int = 0) -> PromptableModel:
    torch.manual_seed(seed)
    model = build_model(SMALL[family]).eval()
    for name, parameter in model.named_parameters():
        # Fresh tables are zero, which would hide what is done with them.
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter)
    return model


def pixels_for(model: PromptableModel, batch: int = 1) -> Tensor:
    side = model.config.input_size
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def prompts(*rows: tuple[list[list[float]], list[int]]) -> tuple[Tensor, Tensor]:
    """Prompts of one image: points (1, P, T, 2) and labels (1, P, T)."""
    return torch.tensor([[row[0] for row in rows]]), torch.tensor([[row[1] for row in rows]])


def earlier_logits(model: PromptableModel, batch: int = 1, count: int = 1) -> Tensor:
    side = model.config.input_size // 4
    return 4 * torch.randn(batch, count, side, side, generator=torch.Generator().manual_seed(2))


def parameters_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", RELEASED)
def test_the_state_dict_is_that_of_the_reference(name: str) -> None:
    with np.load(PARITY / f"{name}.npz") as stored:
        expected = dict(zip(stored["keys"].tolist(), stored["shapes"].tolist(), strict=True))
    assert {key: str(tuple(value.shape)) for key, value in on_meta(name).state_dict().items()} == expected


# The random frequencies of the position embedding are a buffer, in the state dict but not among the parameters.
@pytest.mark.parametrize(
    ("name", "total", "encoder"),
    [
        ("efficientsam_ti", 10_223_204, 6_163_840),
        ("efficientsam_s", 26_413_028, 22_353_664),
        ("mobile_sam", 10_130_092, 6_065_532),
        ("sam_vit_b", 93_735_472, 89_670_912),
        ("sam_vit_l", 312_342_832, 308_278_272),
        ("sam_vit_h", 641_090_608, 637_026_048),
    ],
)
def test_parameter_counts(name: str, total: int, encoder: int) -> None:
    model = on_meta(name)
    assert parameters_of(model) == total
    assert parameters_of(model.image_encoder) == encoder
    assert parameters_of(model.mask_decoder) == 4_058_340
    assert sum(buffer.numel() for buffer in model.prompt_encoder.buffers()) == 2 * 128


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_shapes(family: str, multimask_output: bool) -> None:
    model = small_model(family)
    with torch.inference_mode():
        features = model.encode(pixels_for(model, batch=2))
        points, labels = torch.tensor(CLICKS).expand(2, 3, 2, 2), torch.ones(2, 3, 2, dtype=torch.int64)
        logits, iou = model.decode(features, points, labels, multimask_output=multimask_output)
    side, masks = model.config.input_size, 3 if multimask_output else 1
    assert features.embedding.shape == (2, 256, side // 16, side // 16)
    assert logits.shape == (2, 3, masks, side // 4, side // 4)
    assert iou.shape == (2, 3, masks)


@pytest.mark.parametrize("side", [256, 384])
def test_the_hybrid_takes_other_input_sizes(side: int) -> None:
    model = build_model(replace(config_named("hybrid_ti"), input_size=side)).eval()
    with torch.inference_mode():
        features = model.encode(torch.randn(1, 3, side, side))
        logits, iou = model.decode(features, *prompts((CLICKS, [1, 0])), torch.zeros(1, 1, side // 4, side // 4))
    assert features.embedding.shape == (1, 256, side // 16, side // 16)
    assert [tuple(m.shape) for m in features.high_res] == [(1, 64, side // 8, side // 8), (1, 32, side // 4, side // 4)]
    assert logits.shape == (1, 1, 3, side // 4, side // 4) and iou.shape == (1, 1, 3)
    assert features.nbytes == 4 * (256 * (side // 16) ** 2 + 64 * (side // 8) ** 2 + 32 * (side // 4) ** 2)


@pytest.mark.parametrize("multimask_output", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_in_one_batch_equal_prompts_one_by_one(family: str, multimask_output: bool) -> None:
    model = small_model(family)
    points, labels = prompts((CLICKS, [1, 1]), (CLICKS[::-1], [1, 0]), ([[5.0, 5.0], [60.0, 9.0]], [1, 1]))
    masks = earlier_logits(model, count=3) if family in WITH_MASK_PROMPT else None
    with torch.inference_mode():
        features = model.encode(pixels_for(model))
        together = model.decode(features, points, labels, masks, multimask_output)
        for i in range(3):
            own = slice(i, i + 1)
            mask = None if masks is None else masks[:, own]
            alone = model.decode(features, points[:, own], labels[:, own], mask, multimask_output)
            for got, expected in zip(together, alone, strict=True):
                torch.testing.assert_close(got[:, own], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_in_one_batch_equal_images_one_by_one(family: str) -> None:
    model = small_model(family)
    pixels = pixels_for(model, batch=2)
    points, labels = prompts((CLICKS, [1, 1]), (BOX, [2, 3]))
    with torch.inference_mode():
        both = model.decode(model.encode(pixels), points.expand(2, -1, -1, -1), labels.expand(2, -1, -1))
        for i in range(2):
            alone = model.decode(model.encode(pixels[i : i + 1]), points, labels)
            for got, expected in zip(both, alone, strict=True):
                torch.testing.assert_close(got[i : i + 1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_mask_is_one_of_its_own_and_with_its_own_iou(family: str) -> None:
    model = small_model(family)
    with torch.inference_mode():
        features = model.encode(pixels_for(model))
        many, many_iou = model.decode(features, *prompts((CLICKS, [1, 1])))
        one, one_iou = model.decode(features, *prompts((CLICKS, [1, 1])), multimask_output=False)
    if family == "hybrid":
        best = many_iou.argmax().item()
        torch.testing.assert_close(one[0, 0, 0], many[0, 0, best])
        assert one_iou.item() == pytest.approx(many_iou.max().item(), abs=1e-6)
    else:
        # A token of its own, trained for prompts that leave no choice.
        assert all((one[0, 0, 0] - mask).abs().max() > 1e-3 for mask in many[0, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter(family: str) -> None:
    model = small_model(family)
    features = model.encode(pixels_for(model))
    # Every label, with and without a mask prompt, three masks and one.
    plain = prompts(([*CLICKS, [9.0, 9.0]], [1, 0, PADDING])), prompts(([*BOX, [9.0, 9.0]], [2, 3, 1]))
    logits = [
        model.decode(features, *prompt, multimask_output=multimask) for prompt in plain for multimask in (True, False)
    ]
    if family in WITH_MASK_PROMPT:
        logits.append(model.decode(features, *plain[0], earlier_logits(model)))
    sum(masks.square().mean() + iou.square().mean() for masks, iou in logits).backward()
    untouched = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert untouched == []


@pytest.mark.parametrize("family", WITH_MASK_PROMPT)
def test_every_kind_of_prompt_changes_the_masks(family: str) -> None:
    model = small_model(family)
    mask = earlier_logits(model)
    padded = [*CLICKS, [0.0, 0.0], [0.0, 0.0]]
    boxed = [*CLICKS, *BOX]
    with torch.inference_mode():
        features = model.encode(pixels_for(model))
        answers = {
            "click": model.decode(features, *prompts((padded, [1, PADDING, PADDING, PADDING])))[0],
            "two clicks": model.decode(features, *prompts((padded, [1, 1, PADDING, PADDING])))[0],
            "negative click": model.decode(features, *prompts((padded, [1, 0, PADDING, PADDING])))[0],
            "box": model.decode(features, *prompts((boxed, [1, PADDING, 2, 3])))[0],
            "mask": model.decode(features, *prompts((padded, [1, PADDING, PADDING, PADDING])), mask)[0],
            "other mask": model.decode(features, *prompts((padded, [1, PADDING, PADDING, PADDING])), -mask)[0],
        }
    for i, (name, answer) in enumerate(answers.items()):
        for other, same in list(answers.items())[:i]:
            assert (answer - same).abs().max() > 1e-4, f"{name} answers as {other}"


@pytest.mark.parametrize("family", WITH_MASK_PROMPT)
def test_a_mask_alone_is_a_prompt(family: str) -> None:
    model = small_model(family)
    nothing = torch.zeros(1, 1, 0, 2), torch.zeros(1, 1, 0, dtype=torch.int64)
    with torch.inference_mode():
        logits, iou = model.decode(model.encode(pixels_for(model)), *nothing, earlier_logits(model))
    assert logits.isfinite().all() and iou.isfinite().all()


@pytest.mark.parametrize("mask", [None, "earlier"])
def test_for_the_hybrid_padding_changes_nothing(mask: str | None) -> None:
    model = small_model("hybrid")
    earlier = earlier_logits(model) if mask else None
    padded = prompts(([*CLICKS, [0.0, 0.0], [9.0, 9.0]], [1, 0, PADDING, PADDING]))
    with torch.inference_mode():
        features = model.encode(pixels_for(model))
        plain = model.decode(features, *prompts((CLICKS, [1, 0])), earlier)
        for got, expected in zip(model.decode(features, *padded, earlier), plain, strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_for_the_hybrid_an_all_zero_mask_says_nothing() -> None:
    model = small_model("hybrid")
    with torch.inference_mode():
        features = model.encode(pixels_for(model))
        without = model.decode(features, *prompts((CLICKS, [1, 0])))
        zero = model.decode(features, *prompts((CLICKS, [1, 0])), torch.zeros(1, 1, 32, 32))
    for got, expected in zip(zero, without, strict=True):
        assert torch.equal(got, expected)


def test_the_released_efficientsam_refuses_a_mask_prompt() -> None:
    model = small_model("efficientsam")
    with torch.inference_mode(), pytest.raises(ValueError, match="no mask prompt"):
        model.decode(model.encode(pixels_for(model)), *prompts((CLICKS, [1, 1])), torch.zeros(1, 1, 32, 32))


def test_the_released_efficientsam_pads_to_six_points_at_minus_one() -> None:
    model = small_model("efficientsam")
    padded = prompts(([*CLICKS, *4 * [[-1.0, -1.0]]], [1, 1, *4 * [PADDING]]))
    elsewhere = prompts(([*CLICKS, *4 * [[0.0, 0.0]]], [1, 1, *4 * [PADDING]]))
    with torch.inference_mode():
        features = model.encode(pixels_for(model))
        logits = model.decode(features, *prompts((CLICKS, [1, 1])))[0]
        torch.testing.assert_close(logits, model.decode(features, *padded)[0])
        assert (logits - model.decode(features, *elsewhere)[0]).abs().max() > 1e-4


class TestSamPadding:
    """SAM was trained with one padding point in every prompt that has no box."""

    model = small_model("sam")

    def decode(self, points: list[list[float]], labels: list[int]) -> Tensor:
        with torch.inference_mode():
            features = ImageFeatures(torch.randn(1, 256, 16, 16, generator=torch.Generator().manual_seed(3)))
            return self.model.decode(features, *prompts((points, labels)))[0]

    @pytest.mark.parametrize("labels", [[1, 1], [1, 0], [0, 0]])
    def test_clicks_get_one(self, labels: list[int]) -> None:
        padded = self.decode([*CLICKS, [0.0, 0.0]], [*labels, PADDING])
        torch.testing.assert_close(self.decode(CLICKS, labels), padded)

    def test_where_it_lies_does_not_matter(self) -> None:
        labels = [1, 1, PADDING]
        assert torch.equal(self.decode([*CLICKS, [0.0, 0.0]], labels), self.decode([*CLICKS, [99.0, 7.0]], labels))

    @pytest.mark.parametrize("points", [BOX, [*CLICKS, *BOX]])
    def test_a_box_gets_none(self, points: list[list[float]]) -> None:
        labels = [1] * (len(points) - 2) + [2, 3]
        padded = self.decode([*points, [0.0, 0.0]], [*labels, PADDING])
        assert (self.decode(points, labels) - padded).abs().max() > 1e-4

    def test_a_click_beside_a_box_counts_its_padding(self) -> None:
        points, labels = prompts((BOX, [2, 3]), ([CLICKS[0], [0.0, 0.0]], [1, PADDING]))
        features = ImageFeatures(torch.randn(1, 256, 16, 16, generator=torch.Generator().manual_seed(3)))
        with torch.inference_mode():
            together = self.model.decode(features, points, labels)[0]
        torch.testing.assert_close(together[:, 0], self.decode(BOX, [2, 3])[:, 0], atol=1e-4, rtol=0)
        torch.testing.assert_close(together[:, 1], self.decode(CLICKS[:1], [1])[:, 0], atol=1e-4, rtol=0)


class Interpolations:
    """Counts the calls of F.interpolate, which still does its work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self._interpolate = 0, F.interpolate
        monkeypatch.setattr(F, "interpolate", self)

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        self.count += 1
        return self._interpolate(*args, **kwargs)  # type: ignore[arg-type]


# EfficientSAM: 14 -> 8. SAM's positions 16 -> 14, and two tables of relative positions 31 -> 27 in the global block.
# The hybrid: 8 -> 4.
@pytest.mark.parametrize(("family", "side", "tables"), [("efficientsam", 128, 1), ("sam", 224, 3), ("hybrid", 64, 1)])
def test_positions_are_interpolated_once(family: str, side: int, tables: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(family)
    pixels = torch.randn(1, 3, side, side)
    calls = Interpolations(monkeypatch)
    with torch.inference_mode():
        first = model.encode(pixels).embedding
        assert calls.count == tables
        assert torch.equal(model.encode(pixels).embedding, first)
        assert calls.count == tables
    # New weights are seen, loaded in place or not, and so is the old size.
    changed = {key: value + 0.5 for key, value in model.state_dict().items()}
    for assign in (False, True):
        model.load_state_dict({k: v + assign for k, v in changed.items()}, assign=assign)
        fresh = copy.deepcopy(model)
        with torch.inference_mode():
            assert torch.equal(model.encode(pixels).embedding, fresh.encode(pixels).embedding)
            assert not torch.equal(model.encode(pixels).embedding, first)


def test_a_cached_position_embedding_survives_inference_mode() -> None:
    model = small_model("sam")
    pixels = torch.randn(1, 3, 224, 224)
    model.requires_grad_(False)
    with torch.inference_mode():
        model.encode(pixels)
    for block in model.image_encoder.blocks:
        block.mlp.requires_grad_(True)
        block.attn.qkv.requires_grad_(True)
    model.encode(pixels).embedding.sum().backward()
    assert model.image_encoder.blocks[0].attn.qkv.weight.grad.any()


def test_a_position_embedding_made_in_inference_mode_is_cached_too() -> None:
    cached = CachedPosEmbed()
    with torch.inference_mode():
        table = torch.randn(1, 4, 4, 3)
        assert torch.equal(cached.get(table, 2), resize_pos_embed(table, 2))
        assert cached.get(table, 2) is cached.get(table, 2)


def test_point_positions_keep_their_precision_under_autocast() -> None:
    embedding = PositionEmbedding()
    unit = torch.rand(50, 2)
    expected = embedding(unit)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(embedding(unit), expected)


def test_relative_positions_of_the_same_grid_are_looked_up() -> None:
    table = torch.arange(7.0).unsqueeze(1)
    assert resize_rel_pos(table, 4)[..., 0].tolist() == [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]


def test_relative_positions_of_another_grid_are_interpolated() -> None:
    # A table that is linear in the distance stays so: entry [i, j] then depends on i - j alone, and grows with it.
    table = torch.linspace(-1, 1, 127).unsqueeze(1).expand(-1, 5)
    resized = resize_rel_pos(table, 14)
    assert resized.shape == (14, 14, 5)
    by_distance = [resized.diagonal(-d).reshape(-1) for d in range(-13, 14)]
    assert all((values == values[0]).all() for values in by_distance)
    steps = torch.stack([values[0] for values in by_distance]).diff()
    torch.testing.assert_close(steps, torch.full((26,), 2 / 126 * 127 / 27), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attend", [attend_with_masks, attend_with_wide_queries])
def test_relative_attention_is_its_equation(attend: object) -> None:
    side, dim = 3, 4
    q, k, v = torch.randn(3, 2, 2, side * side, dim, dtype=torch.float64)
    vertical, horizontal = torch.randn(2, side, side, dim, dtype=torch.float64)
    expected = torch.empty_like(q)
    for b in range(2):
        for head in range(2):
            for i in range(side * side):
                query = q[b, head, i]
                scores = torch.stack(
                    [
                        query @ k[b, head, j] / dim**0.5
                        + query @ vertical[i // side, j // side]
                        + query @ horizontal[i % side, j % side]
                        for j in range(side * side)
                    ]
                )
                expected[b, head, i] = scores.softmax(0) @ v[b, head]
    torch.testing.assert_close(attend(q, k, v, vertical, horizontal), expected)  # type: ignore[operator]


def test_windows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    windowed, everywhere = SamBlock(16, 2, grid=None).eval(), SamBlock(16, 2, grid=20).eval()
    x = torch.randn(1, 20, 20, 16)
    changed = x.clone()
    changed[:, 3, 5] *= -1
    with torch.inference_mode():
        moved = (windowed(x) != windowed(changed)).any(-1)[0]
        moved_everywhere = (everywhere(x) != everywhere(changed)).any(-1)[0]
    # Windows are 14 x 14 and padded: rows and columns 14 to 19 belong to others.
    assert moved[:14, :14].all() and not moved[14:].any() and not moved[:, 14:].any()
    assert moved_everywhere.all()


def test_a_window_with_padding_is_the_block_on_the_padded_map() -> None:
    torch.manual_seed(0)
    block = SamBlock(16, 2, grid=None).eval()
    torch.nn.init.normal_(block.attn.rel_pos_h)
    x = torch.randn(2, 20, 20, 16)
    with torch.inference_mode():
        normed = F.pad(block.norm1(x), (0, 0, 0, 8, 0, 8))
        attended = torch.cat(
            [torch.cat([block.attn(normed[:, i : i + 14, j : j + 14]) for j in (0, 14)], dim=2) for i in (0, 14)],
            dim=1,
        )[:, :20, :20]
        expected = x + attended
        expected = expected + block.mlp(block.norm2(expected))
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("side", [224, 256])
def test_sams_tokens_are_what_its_neck_gets(side: int) -> None:
    encoder = small_model("sam").image_encoder
    assert isinstance(encoder, SamImageEncoder)
    pixels = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        tokens = encoder.tokens(pixels)
        assert tokens.shape == (2, side // 16, side // 16, 32)
        torch.testing.assert_close(encoder(pixels).embedding, encoder.neck(tokens.permute(0, 3, 1, 2)))
        assert encoder(pixels).high_res == ()


@pytest.mark.parametrize("channels_last", [False, True])
def test_upscaling_is_the_transposed_convolution(channels_last: bool) -> None:
    torch.manual_seed(0)
    layer = Upscale2d(6, 5)
    x = torch.randn(2, 6, 3, 4)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    assert list(layer.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(layer(x), F.conv_transpose2d(x, layer.weight, layer.bias, stride=2))


def test_the_grid_of_positions_follows_its_frequencies() -> None:
    torch.manual_seed(0)
    pe = PositionEmbedding()
    first = pe.grid(4)
    assert pe.grid(4) is first
    centres = (torch.arange(4) + 0.5) / 4
    assert torch.equal(first[6], pe(torch.stack([centres[2], centres[1]])))
    pe.load_state_dict({"positional_encoding_gaussian_matrix": torch.randn(2, 128)})
    assert torch.equal(pe.grid(4)[6], pe(torch.stack([centres[2], centres[1]])))
    assert pe.grid(8).shape == (64, 256)


def test_drawn_affinity_is_the_cosine() -> None:
    model = small_model("hybrid")
    features = model.encode(pixels_for(model))
    encoder = model.prompt_encoder
    # Clicks in the middle of cells, so that nothing is interpolated under them.
    points = torch.tensor([[[[16.5 / 32, 0.5 / 32], [3.5 / 32, 9.5 / 32]]]])
    fine = encoder.affinity(features, points, torch.tensor([[[1, 0]]]))[0, 0, 2:]
    keys = encoder.affinity4(features.high_res[-1])[0]
    for found, (x, y) in zip(fine, ((16, 0), (3, 9)), strict=True):
        expected = F.cosine_similarity(keys, keys[:, y, x, None, None], dim=0)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("many_first", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_without_projecting_the_many_is_the_same(many_first: bool, masked: bool) -> None:
    torch.manual_seed(0)
    attend = CrossAttention(64, heads=4, downsample_rate=2).double()
    few, many, values = torch.randn(2, 3, 5, 64), torch.randn(2, 3, 30, 64), torch.randn(2, 3, 30, 64)
    q, k, v = (many, few, few + 1) if many_first else (few, many, values)
    valid = torch.rand(2, 3, k.shape[2]) > 0.3 if masked else None
    with torch.no_grad():
        expected = attend.train()(q.double(), k.double(), v.double(), valid)
        found = attend.eval()(q.double(), k.double(), v.double(), valid)
    assert not torch.equal(expected, found)  # another order of the same sums
    torch.testing.assert_close(found, expected)

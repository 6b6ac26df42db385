"""Muon: its direction against the singular value decomposition, its steps against torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from refinesam.training.finetune.state import Finetuning
from refinesam.training.loop import make_optimizers
from refinesam.training.muon import Muon, orthogonalised
from refinesam.training.processes import Processes

CPU = Processes(0, 1, torch.device("cpu"))
SHAPES = [(8, 12), (12, 8), (8, 12), (5, 5), (1, 6)]


def random_matrices(seed: int, shapes: list[tuple[int, int]] = SHAPES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def trained(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], seeds: range) -> list[nn.Parameter]:
    for seed in seeds:
        for parameter, gradient in zip(parameters, random_matrices(seed), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return parameters


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(matrix) for matrix in random_matrices(99)]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 9)])
def test_the_direction_keeps_singular_vectors_and_makes_all_values_alike(shape: tuple[int, int]) -> None:
    matrices = torch.stack(random_matrices(1, [shape] * 3)) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    found = orthogonalised(matrices)
    assert found.dtype == torch.float32
    for matrix, direction in zip(matrices, found, strict=True):
        u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
        values = u.T @ direction @ vt.T
        off_diagonal = values - values.diagonal().diag()
        assert off_diagonal.abs().max() < 0.05
    # Small singular values of a matrix near the singular take more rounds to come up.
    well = torch.linalg.svdvals(orthogonalised(torch.linalg.qr(torch.stack(random_matrices(2, [(12, 6)])))[0]))
    assert ((well > 0.6) & (well < 1.25)).all()


def test_no_direction_follows_from_a_zero_gradient() -> None:
    assert orthogonalised(torch.zeros(1, 3, 4)).abs().max() == 0


def test_steps_are_those_of_torch() -> None:
    theirs, ours = parameters(), parameters()
    settings: Any = {"lr": 0.01, "weight_decay": 0.05}
    trained(torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings), theirs, range(5))
    trained(Muon(ours, **settings), ours, range(5))
    for expected, found, before in zip(theirs, ours, parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert (found - before).abs().max() > 0.01


def test_steps_resume_from_the_optimisers_state() -> None:
    whole, halves = parameters(), parameters()
    trained(Muon(whole, lr=0.01), whole, range(4))
    first = Muon(halves, lr=0.01)
    trained(first, halves, range(2))
    second = Muon(halves, lr=0.5)
    second.load_state_dict(first.state_dict())
    trained(second, halves, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


def test_a_matrix_without_gradient_stays() -> None:
    moved, still = parameters()[:2]
    before = still.detach().clone()
    moved.grad = torch.ones_like(moved)
    Muon([moved, still], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(still, before)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="matrices alone"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_muon_takes_the_linear_layers_and_adamw_all_else(tiny_config: Any) -> None:
    model = Finetuning(tiny_config(), CPU).model
    muon, adamw = make_optimizers(model, "muon", 0.07, (0.9, 0.99))
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    assert {id(p) for group in muon.param_groups for p in group["params"]} == linear
    others = [p for group in adamw.param_groups for p in group["params"]]
    assert {id(p) for p in others} == {id(p) for p in model.parameters()} - linear
    assert len(others) + len(linear) == len(list(model.parameters()))
    assert [group["weight_decay"] for group in muon.param_groups + adamw.param_groups] == [0.07, 0.07, 0.0]


def test_where_no_linear_layer_is_trained_there_is_no_muon(tiny_config: Any) -> None:
    model = Finetuning(tiny_config(model={"trainable": "image_encoder.stem4"}), CPU).model
    (adamw,) = make_optimizers(model, "muon", 0.07, (0.9, 0.99))
    assert isinstance(adamw, torch.optim.AdamW)
    assert sum(len(group["params"]) for group in adamw.param_groups) == sum(p.requires_grad for p in model.parameters())

"""Muon: momentum whose direction is made orthogonal, for the matrices of linear layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Muon", "orthogonalised"]

# Of the quintic iteration: singular values come near 1, between 0.7 and 1.2, in five rounds (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
TINY = 1e-7


def orthogonalised(matrices: Tensor) -> Tensor:
    """Replace U S V^T by about U V^T through Newton-Schulz iteration (Jordan et al. 2024): (N, A, B) -> (N, A, B).

    In bfloat16, which is as precise as the iteration.
    """
    x = matrices.bfloat16()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=TINY)
    first, second, third = COEFFICIENTS
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), x, beta=first)
    return (x if wide else x.mT).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay (Jordan et al. 2024).

    Updates are scaled by 0.2 sqrt(max(A, B)), to the size of AdamW's (Liu et al. 2025), so that one learning rate
    serves both. The steps are those of `torch.optim.Muon`, which came with torch 2.9; but matrices of one shape are
    orthogonalised together, since one by one the many small ones of a light model keep no processor busy.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        """Prepare to train matrices (A, B).

        Raises:
            ValueError: one of them is no matrix.
        """
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        if any(matrix.ndim != 2 for group in self.param_groups for matrix in group["params"]):
            raise ValueError("Muon trains matrices alone; give all else to another optimiser.")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step; matrices without gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape, matrix.device].append(matrix)
            for (shape, _), matrices in by_shape.items():
                updates = orthogonalised(torch.stack([self._direction(m, group["momentum"]) for m in matrices]))
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(updates.unbind()), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)
        return loss

    def _direction(self, matrix: Tensor, momentum: float) -> Tensor:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        mean = state["momentum"].lerp_(matrix.grad, 1 - momentum)
        return matrix.grad.lerp(mean, momentum)

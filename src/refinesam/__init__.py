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

Every name is imported when it is first used (PEP 562), so `import refinesam` is quick and loads no torch. What authors
of hosts need besides (plugins, servers, commands) is in `refinesam.hosts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refinesam.lazy_names import lazy_names

if TYPE_CHECKING:
    from refinesam.amr import AMRConfig
    from refinesam.automatic import AutomaticMaskGenerator
    from refinesam.batch import Answer, Item, Record, segment_batch
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
    from refinesam.images import INTENSITY_POLICIES, as_rgb, read_image
    from refinesam.loading import load
    from refinesam.masks import box_from_mask, coco_annotation, mask_iou, polygons_from_mask
    from refinesam.rle import decode_rle, encode_rle
    from refinesam.session import Session
    from refinesam.similar import SimilarMaskGenerator
    from refinesam.threads import settle_threads
    from refinesam.types import Capabilities, Prediction, Prompt, RefinementReport

    __version__: str

__all__ = [
    "AMRConfig",
    "Answer",
    "AutomaticMaskGenerator",
    "Capabilities",
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
    "SimilarMaskGenerator",
    "WeightsError",
    "__version__",
    "as_rgb",
    "box_from_mask",
    "coco_annotation",
    "decode_rle",
    "encode_rle",
    "load",
    "mask_iou",
    "polygons_from_mask",
    "read_image",
    "segment_batch",
    "settle_threads",
]

# Type checkers read the imports above, the interpreter reads this table.
_get, __dir__ = lazy_names(
    __name__,
    {
        "refinesam.amr.config": "AMRConfig",
        "refinesam.automatic": "AutomaticMaskGenerator",
        "refinesam.batch": "Answer Item Record segment_batch",
        "refinesam.encoded_image": "EncodedImage",
        "refinesam.errors": "ConfigError DatasetError ImageError MissingExtraError OutputError PromptError "
        "RefineSAMError WeightsError",
        "refinesam.images": "INTENSITY_POLICIES as_rgb read_image",
        "refinesam.loading": "load",
        "refinesam.masks": "box_from_mask coco_annotation mask_iou polygons_from_mask",
        "refinesam.rle": "decode_rle encode_rle",
        "refinesam.session": "Session",
        "refinesam.similar": "SimilarMaskGenerator",
        "refinesam.threads": "settle_threads",
        "refinesam.types": "Capabilities Prediction Prompt RefinementReport",
    },
)


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name != "__version__":
        return _get(name)
    from importlib.metadata import version

    return version("refinesam")

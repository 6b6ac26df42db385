"""What authors of hosts need beside `refinesam` itself: plugins, servers and commands that segment for their users.

Files that are never half written:

- `replacing` writes a file of any kind, `write_json` one of JSON; the old file stays until the new one is whole.
- `check_outputs` finds out before the work whether its results can be written, `write_outputs` loses none of them.

Weights:

- `known_weights` has the names that `refinesam.load` takes, each with its `WeightsEntry`: what it is good at, its size,
  licence and citation, and whether its file is here.
- `fetch` downloads and verifies weights where they are missing, and says how far it is.
- `variant_of` tells the model variant of a name or file, which finetuning has to be told.

Results of jobs:

- `BatchResults` reads what `refinesam batch` has written so far.

Measures of masks and what is known of their mean:

- `boundary_iou` compares outlines, `size_of` names COCO's size of an area, `coco_scores` counts AP and AR as COCO does.
- `MOST_EXAMPLES` are taken by the search for similar objects, and at `LIKELY_SIMILARITY` what it finds is shown.
- `bootstrap_interval` is the interval of a mean over objects that come in groups, such as images.

What others found, as `refinesam batch` takes it:

- `prompts_by_image` reads a detector's boxes, each an `ObjectPrompt`; `match_images` finds the images they belong to.
- `JobImages` reads what `refinesam batch` wrote, as far as it is.

Every name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from refinesam.lazy_names import lazy_names

if TYPE_CHECKING:
    from refinesam.boundary import boundary_iou
    from refinesam.evaluation.coco import CocoScores, coco_scores
    from refinesam.evaluation.metrics import bootstrap_interval, size_of
    from refinesam.files import check_outputs, replacing, write_json, write_outputs
    from refinesam.jobs.folder import BatchResults
    from refinesam.jobs.images import JobImages
    from refinesam.jobs.prompts import ObjectPrompt, match_images, prompts_by_image
    from refinesam.registry import WeightsEntry, fetch, known_weights
    from refinesam.types import LIKELY_SIMILARITY, MOST_EXAMPLES
    from refinesam.weights import variant_of

__all__ = [
    "LIKELY_SIMILARITY",
    "MOST_EXAMPLES",
    "BatchResults",
    "CocoScores",
    "JobImages",
    "ObjectPrompt",
    "WeightsEntry",
    "bootstrap_interval",
    "boundary_iou",
    "check_outputs",
    "coco_scores",
    "fetch",
    "known_weights",
    "match_images",
    "prompts_by_image",
    "replacing",
    "size_of",
    "variant_of",
    "write_json",
    "write_outputs",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "refinesam.boundary": "boundary_iou",
        "refinesam.evaluation.coco": "CocoScores coco_scores",
        "refinesam.evaluation.metrics": "bootstrap_interval size_of",
        "refinesam.files": "check_outputs replacing write_json write_outputs",
        "refinesam.jobs.folder": "BatchResults",
        "refinesam.jobs.images": "JobImages",
        "refinesam.jobs.prompts": "ObjectPrompt match_images prompts_by_image",
        "refinesam.registry": "WeightsEntry fetch known_weights",
        "refinesam.types": "LIKELY_SIMILARITY MOST_EXAMPLES",
        "refinesam.weights": "variant_of",
    },
)

"""Take the pictures of docs/fiftyone.md from the real App, with real mouse and key events.

    PYTHONPATH=tests/fiftyone:tests python docs/fiftyone_screenshots.py
    PYTHONPATH=tests python docs/fiftyone_screenshots.py --report refinesam-report --run random_2_full

The second takes that of the README, from the dataset that benchmarks/fiftyone_report.py leaves in one's own MongoDB.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import data, filters

PICTURES = Path(__file__).parent / "fiftyone"
# Of the picture of coins: rows and columns of the tiles that become samples.
TILE_ROWS, TILE_COLUMNS = 2, 3
SMALLEST_COIN_PX = 300


def coins(folder: Path) -> Any:
    """Tiles of the coins as samples; the ground truth is what is brighter than the background, piece by piece."""
    import fiftyone as fo

    from refinesam_fiftyone.labels import detection_from_mask, label_id

    image = data.coins()
    smooth = filters.gaussian(image, 1.5)
    bright = ndimage.binary_fill_holes(smooth > filters.threshold_local(smooth, 151))
    pieces, count = ndimage.label(ndimage.binary_opening(bright, iterations=4))
    dataset, samples = fo.Dataset("coins"), []
    rows, columns = (size // parts for size, parts in zip(image.shape, (TILE_ROWS, TILE_COLUMNS), strict=True))
    for index in range(TILE_ROWS * TILE_COLUMNS):
        top, left = index // TILE_COLUMNS * rows, index % TILE_COLUMNS * columns
        window = np.s_[top : top + rows, left : left + columns]
        path = folder / f"coins_{index}.png"
        Image.fromarray(image[window]).convert("RGB").save(path)
        masks = [pieces[window] == piece for piece in range(1, count + 1)]
        large = [mask for mask in masks if mask.sum() >= SMALLEST_COIN_PX]
        # The random clicks hang on the ids.
        truths = [
            detection_from_mask(mask, label="coin", id=label_id("coin", str(index), str(number)))
            for number, mask in enumerate(large)
        ]
        samples.append(fo.Sample(filepath=str(path), ground_truth=fo.Detections(detections=truths)))
    dataset.add_samples(samples)
    dataset.compute_metadata()
    return dataset


def take(person: Any, name: str, panel_alone: bool = False) -> None:
    # Overlays are drawn late.
    person.page.mouse.move(5, 5)
    person.page.wait_for_timeout(8000)
    PICTURES.mkdir(exist_ok=True)
    clip = None
    if panel_alone:
        tab, window = person.page.locator('[data-cy="panel-tab-comparison"]').bounding_box(), person.page.viewport_size
        clip = {**tab, "width": window["width"] - tab["x"], "height": window["height"] - tab["y"]}
    with Image.open(io.BytesIO(person.page.screenshot(clip=clip))) as image:
        image.convert("RGB").save(PICTURES / f"{name}.png", optimize=True)
    print(PICTURES / f"{name}.png")


def main(home: Path) -> None:
    # It starts a MongoDB of its own and keeps FiftyOne away from the user's; before FiftyOne is imported.
    import conftest  # noqa: F401
    from real_fiftyone import app

    dataset = coins(home)
    with app(viewport=(1500, 940)) as person:
        page = person.page
        person.open_dataset(dataset.name)
        person.open_operator("Compare masks with and without refinement")
        page.get_by_text("Two random clicks in each ground truth mask").click()
        page.get_by_text("Seed", exact=True).wait_for()
        take(person, "form")
        page.get_by_role("button", name="Compare", exact=True).click()
        page.get_by_text(f"in {len(dataset)} of {len(dataset)} samples").wait_for(timeout=300_000)
        page.get_by_role("button", name="Done").click()
        page.locator(".js-plotly-plot").nth(1).wait_for()
        page.get_by_role("combobox").filter(has_text="All objects").click()
        page.get_by_role("option", name="Parts of the first mask").click()
        take(person, "panel")
        page.get_by_role("button", name="Explain", exact=True).click()
        page.locator("img[src^='data:image/png;base64']").wait_for()
        take(person, "explain")


def report(name: str, run_key: str) -> None:
    """Take the picture of one run of a dataset that is there."""
    os.environ["FIFTYONE_PLUGINS_DIR"] = str(Path(__file__).parents[1] / "fiftyone_plugin")
    import fiftyone as fo

    from real_fiftyone import app
    from refinesam_fiftyone.rows import read_rows
    from refinesam_fiftyone.runs import list_runs

    dataset = fo.load_dataset(name)
    # What the panel shows at first.
    newest = list_runs(dataset)[-1]
    helped = int((read_rows(dataset, run_key)["bucket"] == "amr_helped").sum())
    with app(viewport=(1900, 1200)) as person:
        page = person.page
        person.open_dataset(name)
        person.open_panel()
        person.plot(1).wait_for()
        if newest != run_key:
            page.get_by_role("combobox").filter(has_text=newest).click()
            page.get_by_role("option", name=run_key, exact=True).click()
        page.get_by_text(f"Refinement helped: {helped}").wait_for()
        page.get_by_role("combobox").filter(has_text="All objects").click()
        page.get_by_role("option", name="Size of the object").click()
        page.get_by_role("cell", name="medium").wait_for()
        # The samples are not ours to show.
        take(person, "report", panel_alone=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", help="name of a dataset")
    parser.add_argument("--run", default="random_2_full")
    arguments = parser.parse_args()
    if arguments.report:
        report(arguments.report, arguments.run)
        raise SystemExit
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))

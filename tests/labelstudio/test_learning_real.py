"""`refinesam labelstudio serve --learn` under a real Label Studio: accepted annotations arrive through its webhook."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from real_label_studio import free_port
from refinesam import decode_rle
from refinesam_labelstudio.corrections import VALIDATION_EVERY
from refinesam_labelstudio.labeling_config import EXAMPLES, LabelingConfig
from refinesam_labelstudio.results import regions_from_mask

if TYPE_CHECKING:
    from real_label_studio import LabelStudio

PATIENCE_S = 90


def png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def until(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, "the backend ended"
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).is_success
    except httpx.TransportError:
        return False


def approved(folder: Path, project_id: int) -> int:
    command = [sys.executable, "-m", "refinesam.cli", "labelstudio", "approve", f"--project={project_id}", "--yes"]
    return subprocess.call([*command, f"--folder={folder}"])


def test_an_accepted_annotation_becomes_training_data(label_studio: LabelStudio, tmp_path: Path) -> None:
    project = label_studio.project(EXAMPLES["brush"], {"one.png": png(data.coins()[:120, :120])})
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": label_studio.personal_token,
    }
    command = [sys.executable, "-m", "refinesam.cli", "labelstudio", "serve", "--learn", f"--port={port}"]
    process = subprocess.Popen([*command, f"--folder={tmp_path}", "--device=cpu"], env=environment)
    try:
        until(lambda: healthy(url), process)
        hook = {"url": f"{url}/webhook", "project": project.id, "send_payload": True, "send_for_all_actions": True}
        label_studio.call("POST", "/api/webhooks/", json=hook)
        mask = np.zeros((120, 120), np.bool_)
        mask[30:70, 28:68] = True
        mask[45:50, 40:45] = False
        tag = LabelingConfig.parse(EXAMPLES["brush"]).output_for("Object")
        (region,) = regions_from_mask(mask, tag, "Object", (120, 120))
        task = project.tasks["one.png"]
        address = f"/api/tasks/{task}/annotations/"
        made = label_studio.call("POST", address, json={"result": [{**region, "id": "drawn"}]})["id"]
        # The server numbers tasks over all tests, and some numbers are for validation.
        split = "val" if task % VALIDATION_EVERY == 0 else "train"
        until(lambda: any(tmp_path.rglob(f"instances_{split}.json")), process)
        (path,) = tmp_path.rglob(f"instances_{split}.json")
        assert json.loads(path.read_text())["annotations"] == []
        # Anybody may send this, and it isn't true.
        said = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": made}], "project": {"id": project.id}}
        assert httpx.post(f"{url}/webhook", json=said).json() == {"status": "accepted"}
        assert approved(tmp_path, project.id) == 0
        document = json.loads(path.read_text())
        (annotation,), (image,) = document["annotations"], document["images"]
        assert np.array_equal(decode_rle(annotation["segmentation"]), mask)
        assert (path.parent / "images" / image["file_name"]).is_file()
        # This is.
        label_studio.client.request("DELETE", f"/api/annotations/{made}/")
        until(lambda: json.loads(path.read_text())["annotations"] == [], process)
        # An answer that is accepted as it came teaches nothing.
        label_studio.call("POST", address, json={"result": [region]})
        corrected = {**region, "value": regions_from_mask(~mask, tag, "Object", (120, 120))[0]["value"]}
        label_studio.call("POST", address, json={"result": [region, corrected]})
        until(lambda: list(path.parent.glob("tasks/*.json")), process)
        assert approved(tmp_path, project.id) == 0
        (annotation,) = json.loads(path.read_text())["annotations"]
        assert np.array_equal(decode_rle(annotation["segmentation"]), ~mask)
    finally:
        process.terminate()
        process.wait(20)

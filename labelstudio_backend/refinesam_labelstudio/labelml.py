"""`RefineSAM`: the same service for teams that deploy with label-studio-ml, its release 1.0.9 or its 2.x git line.

label-studio-ml 1.0.9 keeps one model for all projects and hides from it what a request says, and 2.x makes a new one
for every request. So the class holds no state: it takes the request itself, and one service of the process answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from refinesam import ConfigError
from refinesam_labelstudio.environment import DEFAULT_FOLDER, options_from, start_service
from refinesam_labelstudio.service import Service

try:
    from flask import has_request_context, request  # type: ignore[import-not-found,unused-ignore]
    from label_studio_ml.model import LabelStudioMLBase  # type: ignore[import-not-found,unused-ignore]
except ImportError as error:
    raise ConfigError(
        f"{error.name} is needed here and is not installed: pip install flask rq redis colorama appdirs requests "
        "lxml, and then pip install --no-deps label-studio-ml==1.0.9 label-studio-tools==0.0.4, whose own requirements "
        "are too old. Without label-studio-ml, use `refinesam labelstudio serve`."
    ) from error

__all__ = ["RefineSAM", "service"]


@cache
def service() -> Service:
    """Return the process's service, started at the first call; the environment says how, as for `serve`.

    REFINESAM_WEIGHTS, REFINESAM_ALSO, REFINESAM_DEVICE and REFINESAM_EXTRA_PARAMS hold what `serve` takes as options of
    these names.
    """
    return start_service(
        os.environ.get("REFINESAM_WEIGHTS", "builtin"),
        os.environ.get("REFINESAM_DEVICE", "auto"),
        options_from(False, os.environ.get("REFINESAM_EXTRA_PARAMS", "")),
        Path(os.environ.get("REFINESAM_LABELSTUDIO_FOLDER", DEFAULT_FOLDER)),
        learn=os.environ.get("REFINESAM_LEARN", "") == "1",
        also=os.environ.get("REFINESAM_ALSO", "").split(),
    )


class RefineSAM(LabelStudioMLBase):  # type: ignore[misc,unused-ignore]
    """The model as label-studio-ml wants it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take what either line of label-studio-ml gives; within /setup, take note of the project."""
        super().__init__(*args, **kwargs)
        if has_request_context() and request.path == "/setup":
            version = service().setup(_body())["model_version"]
            if hasattr(self, "set"):  # 2.x; 1.0.9 calls every model "INITIAL", its predictions say better
                self.set("model_version", version)

    def predict(
        self, tasks: Sequence[Any], context: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> list[dict[str, Any] | list[Any]]:
        """Answer tasks: one prediction or [] for each, in order; see `Service.predict`."""
        body = {**_body(), "tasks": list(tasks), "params": {"context": context}}
        results: list[dict[str, Any] | list[Any]] = service().predict(body)["results"]
        return results

    def set_extra_params(self, extra_params: object) -> None:
        """Keep a project's extra params as text: 2.x can't store the object that Label Studio may send."""
        self.set("extra_params", extra_params if isinstance(extra_params, str) else json.dumps(extra_params))

    def fit(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Pass an event of 2.x on; 1.0.9 calls this in a process of its own, where nobody listens."""
        if len(args) == 2 and isinstance(args[0], str):
            service().webhook({**args[1], "action": args[0]})
        return {}


def _body() -> dict[str, Any]:
    body = request.get_json(silent=True) if has_request_context() else None
    return dict(body) if isinstance(body, Mapping) else {}

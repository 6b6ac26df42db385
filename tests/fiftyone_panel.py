"""The comparison panel without a browser: FiftyOne runs it, and what it asks of the App is kept as the App does."""

from __future__ import annotations

import copy
from typing import Any

import fiftyone as fo
import fiftyone.operators as foo
import pydash

URI = "@refinesam/amr/comparison"


class Shown:
    """The panel as the App keeps it: its state, its data, its layout, and the view that it asked for."""

    def __init__(self, samples: Any) -> None:
        self.dataset = samples._root_dataset
        self.view = samples.view()
        self.state: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.layout: dict[str, Any] = {}
        self.notes: list[str] = []
        self.opened: list[str] = []
        self.call("on_load")

    def call(self, method: str, **params: Any) -> None:
        params = {**params, "__method__": method, "panel_id": "one", "panel_state": copy.deepcopy(self.state)}
        result = foo.execute_operator(URI, view=self.view, params=params)
        for one in result.executor.to_json()["requests"]:
            name, given = one["operator_uri"], one["params"]
            if name == "patch_panel_state":
                for path, value in given["state"].items():
                    pydash.set_(self.state, path, value)
            elif name == "patch_panel_data":
                for path, value in given["data"].items():
                    pydash.set_(self.data, path, value)
            elif name == "show_panel_output":
                self.layout = given["output"]["type"]["properties"]
            elif name == "set_view":
                self.view = fo.DatasetView._build(self.dataset, given["view"])
            elif name == "clear_view":
                self.view = self.dataset.view()
            elif name == "open_sample":
                self.opened.append(given["id"])
            elif name == "notify":
                self.notes.append(given["message"])
        if method != "on_change_view":
            self.call("on_change_view")

    @property
    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = self.data[self.state["shown"]]
        return found

    @property
    def objects(self) -> int:
        return sum(self.content["change"][0]["y"])

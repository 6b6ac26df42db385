"""The panel: what the objects of the current view say about refinement, and ways from every number to its samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import fiftyone.operators as foo
import pandas as pd
from fiftyone.operators import types

from refinesam import RefineSAMError

from .explain import data_uri, explain
from .figures import BUCKET_NAMES, HISTOGRAM_LAYOUT, SCATTER_LAYOUT, SUMMARY_COLUMNS, rows_of_bar
from .history import can_go_back, former_view, remember, show
from .operators.explaining import chosen_object
from .panel_content import COLUMNS, content_of, partly, sort_after
from .private import documents_of
from .report import GROUPINGS, groups
from .rows import read_rows
from .runs import list_runs
from .schema import BUCKETS, Fields
from .views import bucket_view, view_of_rows

if TYPE_CHECKING:
    from fiftyone.operators.executor import ExecutionContext

__all__ = ["ComparisonPanel"]

_GROUP_NAMES: Final = {
    "all": "All objects",
    "label": "Class",
    "size": "Size of the object",
    "kappa": "Parts of the first mask",
    "compactness": "Compactness of the first mask",
}
# Of the table of objects, which scrolls in itself so that the plots stay in sight.
TABLE_HEIGHT_PX: Final = 200
_START: Final = """
### Nothing was compared yet

Choose **Compare masks with and without refinement** above the samples, or press the button below. With ground truth
masks the panel then shows where refinement helped and where it hurt; without, which masks deserve a look first.
"""


class ComparisonPanel(foo.Panel):
    """Table, histogram, scatter and outcomes of one run, of the samples and labels of the current view."""

    @property
    def config(self) -> foo.PanelConfig:
        """How the App shows it."""
        return foo.PanelConfig(
            name="comparison", label="Mask refinement", icon="compare", surfaces="grid", help_markdown=_START
        )

    def on_load(self, ctx: ExecutionContext) -> None:
        """Show the newest run."""
        self._refresh(ctx)

    def on_change_view(self, ctx: ExecutionContext) -> None:
        """Show the new view; the App calls this several times for one change, and once the panel has loaded."""
        if ctx.panel.state.shown_for != _shown_for(ctx):
            self._refresh(ctx)

    def on_change_dataset(self, ctx: ExecutionContext) -> None:
        """Show the new dataset."""
        self._refresh(ctx)

    def refresh(self, ctx: ExecutionContext) -> None:
        """Read the view again."""
        self._refresh(ctx)

    def choose_run(self, ctx: ExecutionContext) -> None:
        """Show another run; the App also calls this when it first shows the choice."""
        if ctx.params["value"] != ctx.panel.state.run_key:
            ctx.panel.state.run_key = ctx.params["value"]
            self._refresh(ctx)

    def choose_grouping(self, ctx: ExecutionContext) -> None:
        """Group the table otherwise; the App also calls this when it first shows the choice."""
        if ctx.params["value"] != ctx.panel.state.grouping:
            ctx.panel.state.grouping = ctx.params["value"]
            self._refresh(ctx)

    def open_bucket(self, ctx: ExecutionContext) -> None:
        """Open the objects of one outcome."""
        with _told(ctx):
            show(ctx, bucket_view(ctx.view, ctx.params["bucket"], run_key=ctx.panel.state.run_key))

    def open_bar(self, ctx: ExecutionContext) -> None:
        """Open the objects that a bar counts."""
        if ctx.params.get("id"):
            self._open(ctx, lambda rows: rows_of_bar(rows, ctx.params["id"]))

    def open_points(self, ctx: ExecutionContext) -> None:
        """Open the objects of the point that was clicked, or of those that were drawn around."""
        chosen = [point.get("id") for point in ctx.params.get("data") or ()] or [ctx.params.get("id")]
        self._open(ctx, lambda rows: rows[rows["prompt_id"].isin([prompt_id for prompt_id in chosen if prompt_id])])

    def open_group(self, ctx: ExecutionContext) -> None:
        """Open the objects that a row of the table counts."""
        names, grouping = ctx.panel.state.groups or [], ctx.panel.state.grouping
        if grouping in GROUPINGS and 0 <= ctx.params.get("row", -1) < len(names):
            name = names[ctx.params["row"]]
            # The rows may have changed since they were shown.
            self._open(ctx, lambda rows: dict(groups(rows[rows["bucket"].notna()], grouping)).get(name, rows[:0]))

    def click_objects(self, ctx: ExecutionContext) -> None:
        """Sort the table of objects by the heading that was clicked, or open the sample of the row."""
        state, row = ctx.panel.state, ctx.params.get("row", -1)
        objects = state.objects or []
        if row == -1:
            sort = sort_after(state.kind, state.sort, ctx.params.get("column", -1))
            if sort is not None:
                state.sort = list(sort)
                self._refresh(ctx)
        elif 0 <= row < len(objects):
            sample_id, prompt_id = objects[row]
            if ctx.view.media_type == "group":
                # The App opens whole groups alone.
                self._open(ctx, lambda rows: rows[rows["prompt_id"] == prompt_id])
            else:
                ctx.ops.open_sample(id=sample_id)

    def show_all(self, ctx: ExecutionContext) -> None:
        """Show the whole dataset."""
        remember(ctx, ctx.dataset.view())
        ctx.ops.clear_view()
        ctx.ops.clear_sidebar_filters()

    def go_back(self, ctx: ExecutionContext) -> None:
        """Go back to the view that was shown before the plugin opened the last one."""
        with _told(ctx):
            ctx.ops.set_view(former_view(ctx))

    def compare(self, ctx: ExecutionContext) -> None:
        """Open the form that compares."""
        ctx.prompt(f"{self.plugin_name}/compare")

    def explain(self, ctx: ExecutionContext) -> None:
        """Explain the selected label, or the worst object of the samples that are selected or in the view."""
        state = ctx.panel.state
        with _told(ctx):
            sample_id, prompt_id = chosen_object(ctx, state.run_key)
            explained = explain(ctx.view, run_key=state.run_key, prompt_id=prompt_id, sample_id=sample_id)
            content = {"picture": data_uri(explained.picture)}
            path = _path("explained", content)
            ctx.panel.data.set(path, content)
            state.set({"explained": path, "facts": explained.facts})

    def close_explanation(self, ctx: ExecutionContext) -> None:
        """Hide the explanation."""
        ctx.panel.state.explained = None

    def render(self, ctx: ExecutionContext) -> types.Property:
        """Lay out what the last refresh found."""
        shown, state = types.Object(), ctx.panel.state
        if state.kind in (None, "nothing"):
            shown.md(_START, name="start")
            shown.btn("compare", label="Compare masks", on_click=self.compare, variant="contained")
            return _page(shown)
        self._controls(shown, state)
        shown.md(state.headline or "", name="headline")
        if state.explained:
            self._explained(shown, state)
        if state.kind == "evaluated":
            self._outcomes(shown, state)
        elif state.kind == "ranked":
            self._objects(shown.v_stack(state.shown, align_x="left"), state)
        return _page(shown)

    def _controls(self, shown: types.Object, state: Any) -> None:
        controls = shown.h_stack("controls", gap=2, align_y="center")
        runs = types.DropdownView(label="Run")
        for key in state.runs or []:
            runs.add_choice(key, label=key)
        controls.enum("run", runs.values(), default=state.run_key, view=runs, on_change=self.choose_run)
        if state.kind == "evaluated":
            by = types.DropdownView(label="Group by")
            for name, label in _GROUP_NAMES.items():
                by.add_choice(name, label=label)
            controls.enum("by", by.values(), default=state.grouping, view=by, on_change=self.choose_grouping)
        # A row of their own: side by side with the choices they would be wider than half a window.
        controls = shown.h_stack("actions", gap=2)
        controls.btn(
            "back",
            label="Former view",
            icon="undo",
            on_click=self.go_back,
            disabled=not state.can_go_back,
            variant="outlined",
        )
        controls.btn("all", label="Whole dataset", icon="apps", on_click=self.show_all, variant="outlined")
        controls.btn("explain", label="Explain", icon="help_outline", on_click=self.explain, variant="outlined")
        controls.btn("refresh", label="Refresh", icon="refresh", on_click=self.refresh, variant="outlined")

    def _explained(self, shown: types.Object, state: Any) -> None:
        body = shown.v_stack(state.explained, variant="outline", pad=1, gap=1)
        body.view("picture", types.ImageView(width="100%", alt="Both masks of one object"))
        body.md("\n".join(f"- {name}: **{value}**" for name, value in (state.facts or {}).items()), name="facts")
        body.btn("close", label="Close", icon="close", on_click=self.close_explanation, variant="outlined")

    def _outcomes(self, shown: types.Object, state: Any) -> None:
        buckets = shown.h_stack("buckets", gap=1)
        for bucket in BUCKETS:
            count = (state.counts or {}).get(bucket, 0)
            buckets.btn(
                bucket,
                label=f"{BUCKET_NAMES[bucket]}: {count}",
                on_click=self.open_bucket,
                params={"bucket": bucket},
                disabled=not count,
                variant="outlined",
            )
        body = shown.v_stack(state.shown, gap=2)
        body.list("table", types.Object(), view=_table(SUMMARY_COLUMNS, on_click_row=self.open_group))
        self._objects(body, state)
        body.plot("change", layout=HISTOGRAM_LAYOUT, on_click=self.open_bar)
        body.plot("agreement", layout=SCATTER_LAYOUT, on_click=self.open_points, on_selected=self.open_points)

    def _objects(self, body: types.Object, state: Any) -> None:
        key, descending = state.sort
        columns = dict(COLUMNS[state.kind])
        columns[key] += " ▼" if descending else " ▲"
        view = _table(columns, height_px=TABLE_HEIGHT_PX, on_click_cell=self.click_objects)
        body.list("objects", types.Object(), view=view)

    def _open(self, ctx: ExecutionContext, chosen: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        run_key = ctx.panel.state.run_key
        with _told(ctx):
            rows = chosen(read_rows(ctx.view, run_key))
            if len(rows):
                show(ctx, view_of_rows(ctx.view, Fields(run_key), rows))

    def _refresh(self, ctx: ExecutionContext) -> None:
        state, runs = ctx.panel.state, list_runs(ctx.dataset) if ctx.dataset is not None else []
        changes: dict[str, Any] = {"runs": runs, "shown_for": _shown_for(ctx), "explained": None, "kind": "nothing"}
        content: dict[str, Any] = {}
        if runs:
            changes["can_go_back"] = can_go_back(ctx)
            run_key = state.run_key if state.run_key in runs else runs[-1]
            changes |= {"run_key": run_key, "grouping": state.grouping or "all"}
            try:
                more, content = content_of(read_rows(ctx.view, run_key), changes["grouping"], state.sort)
            except RefineSAMError as error:
                # Somebody renamed or deleted one of its fields, or looks at videos of a run of frames.
                more = {"kind": "empty", "headline": str(error)}
            changes |= more | {"headline": more["headline"] + partly(ctx.dataset, Fields(run_key))}
        # What is written to a path that has content is merged with it, so other content has another path. The same
        # content has the same one: the App asks several times at once, and every answer must fit every other.
        changes["shown"] = _path("shown", content)
        if state.shown and state.shown != changes["shown"]:
            ctx.panel.data.set(state.shown, None)
        ctx.panel.data.set(changes["shown"], content)
        state.set(changes)


@contextmanager
def _told(ctx: ExecutionContext) -> Iterator[None]:
    """Tell an error of ours in the App instead of a traceback."""
    try:
        yield
    except RefineSAMError as error:
        ctx.ops.notify(str(error), variant="warning")


def _page(shown: types.Object) -> types.Property:
    return types.Property(shown, view=types.GridView(orientation="vertical", pad=2, gap=2))


def _table(columns: Any, height_px: int | None = None, **events: Any) -> types.TableView:
    # The App's own least width is more than half a window has.
    props: dict[str, Any] = {"table": {"sx": {"minWidth": 0}}}
    if height_px is not None:
        props["table"]["stickyHeader"] = True
        props["tableContainer"] = {"sx": {"maxHeight": height_px}}
        props["tableBodyCell"] = props["tableHeadCell"] = {"sx": {"paddingX": 1, "paddingY": 0.5}}
    table = types.TableView(componentsProps=props, **events)
    for key, label in columns.items():
        table.add_column(key, label=label)
    return table


def _path(name: str, content: Any) -> str:
    return f"{name}_{hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()}"


def _shown_for(ctx: ExecutionContext) -> str:
    """Return what the panel's content hangs on: the view, and when a sample was last written to."""
    names = ("view", "view_name", "filters", "extended")
    parts = [ctx.dataset_name, *(ctx.request_params.get(name) or None for name in names)]
    if ctx.dataset is not None:
        name = "last_modified_at"
        collections = [documents_of(ctx.dataset)]
        if ctx.dataset.get_frame_field_schema():
            collections.append(documents_of(ctx.dataset, frames=True))
        for collection in collections:
            newest = collection.find_one(sort=[(name, -1)], projection=[name])
            parts.append(newest and newest.get(name))
    return json.dumps(parts, sort_keys=True, default=str)

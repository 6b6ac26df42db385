"""That connection, command and project mean the same model version.

Label Studio shows annotators the predictions of one version, the project's "model_version", and the data manager shows
the scores of that one. A project that was connected to a model has the model's title there: its predictions are then
asked for live, under whatever version it answers as, and no score is shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from refinesam import ConfigError
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.json_types import JsonView
from refinesam_labelstudio.options import ServiceOptions

__all__ = ["compare_versions", "options_of", "show_version"]


def options_of(connections: Sequence[JsonView]) -> ServiceOptions:
    """Return what the only connection of a project asks for in its extra params.

    The defaults, where there are several, or its extra params are another model's.
    """
    extra = connections[0].get("extra_params") if len(connections) == 1 else None
    with contextlib.suppress(ConfigError):
        return ServiceOptions().updated(extra)
    return ServiceOptions()


def compare_versions(connections: Sequence[JsonView], version: str) -> str:
    """Return in words how a connection answers otherwise than this version, "" if none does."""
    others = [(str(row.get("title")), str(row.get("model_version"))) for row in connections]
    if not others or version in [other for _, other in others]:
        return ""
    named = ", ".join(f"{title!r} as {other}" for title, other in others)
    return (
        f"The connected model answers {named}, this command as {version}. Retrieve and the label stream take these for "
        "different models: give this command and the connection's extra params (and `serve`) the same settings and "
        "weights."
    )


def show_version(
    server: ProjectServer, project_id: int, version: str, connections: Sequence[JsonView], wanted: bool | None
) -> str:
    """Let a project show the predictions of a version, and return in words what it shows.

    Args:
        server: Label Studio.
        project_id: the project's.
        version: of predictions that are stored.
        connections: of the project.
        wanted: True shows them whatever the project shows now, False changes nothing; None changes it where the project
            shows nothing, a connected model, or another version of the same weights, and leaves somebody's choice.

    Raises:
        ServerError: not reached, or refused.
    """
    project = server.project(project_id)
    shown, on = str(project.get("model_version") or ""), project.get("show_collab_predictions") is not False
    if shown == version and on:
        return f"Project {project_id} shows {version}."
    titles = {str(row.get("title")) for row in connections}
    ours = not shown or shown in titles or shown.partition("+")[0] == version.partition("+")[0]
    if wanted or (wanted is None and ours and on):
        server.update_project(project_id, {"model_version": version, "show_collab_predictions": True})
        live = f" For tasks to come, choose {shown!r} again under Settings, Predictions." if shown in titles else ""
        return f"Project {project_id} now shows {version}" + (f" instead of {shown!r}.{live}" if shown else ".")
    what = "shows annotators no predictions" if not on else f"shows {shown!r}"
    return (
        f"Project {project_id} {what}, so {version} reaches neither the label stream nor the data manager's scores: "
        "choose it under Settings, Predictions, or give --show."
    )

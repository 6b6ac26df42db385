"""`ProjectServer`: what only the command line asks of Label Studio, beside what the backend does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from refinesam_labelstudio.access import LabelStudioServer
from refinesam_labelstudio.responses import ServerError, check_status

__all__ = ["ProjectServer"]


class ProjectServer(LabelStudioServer):
    """A Label Studio server whose projects are prepared and examined."""

    def whoami(self) -> dict[str, Any]:
        """Return the token's user, with "email"; ServerError if the token is refused."""
        return self._object("GET", "/api/current-user/whoami")

    def update_prediction(self, prediction_id: int, row: Mapping[str, Any]) -> None:
        """Replace a stored prediction in place; doing so twice is the same as once.

        Args:
            prediction_id: the prediction's.
            row: with "result", "score" and "model_version".

        Raises:
            ServerError: not reached, or refused.
        """
        self._object("PATCH", f"/api/predictions/{int(prediction_id)}/", content=dict(row))

    def update_project(self, project_id: int, changes: Mapping[str, Any]) -> None:
        """Change settings of a project; ServerError if the server can't be reached or refuses."""
        self._object("PATCH", f"/api/projects/{int(project_id)}", content=dict(changes))

    def delete_prediction(self, prediction_id: int) -> None:
        """Delete a stored prediction; ServerError if the server can't be reached or refuses."""

        def read(response: httpx.Response) -> None:
            if response.status_code != 404:  # gone already
                check_status(response)

        self._call("DELETE", f"/api/predictions/{int(prediction_id)}/", read)

    def ml_backends(self, project_id: int) -> list[dict[str, Any]]:
        """Return the models that a project is connected to, each with "url", "state" and "is_interactive".

        The server asks each of them for its health and setup first, so "state" is fresh.

        Raises:
            ServerError: not reached, refused, or no list.
        """
        return self._list("/api/ml", project_id)

    def webhooks(self, project_id: int) -> list[dict[str, Any]]:
        """Return a project's webhooks, each with "url", "headers" and "is_active"; ServerError as `ml_backends`."""
        return self._list("/api/webhooks/", project_id)

    def ask(self, connection_id: int, task_id: int, context: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a connected model answers to a context, as to an annotator's click; "error" says why not.

        Raises:
            ServerError: the server can't be reached or refuses.
        """
        path = f"/api/ml/{int(connection_id)}/interactive-annotating"
        answer = self._object("POST", path, content={"task": task_id, "context": dict(context)})
        data = answer.get("data")
        return data if isinstance(data, dict) else {"error": " ".join(map(str, answer.get("errors") or ["no answer"]))}

    def _list(self, path: str, project_id: int) -> list[dict[str, Any]]:
        def read(response: httpx.Response) -> list[dict[str, Any]]:
            check_status(response)
            content = response.json()
            if not isinstance(content, list):
                raise ServerError(f"{self.url}{path} answered with no list: is it Label Studio 1.x?")
            return content

        return self._call("GET", path, read, params={"project": int(project_id)})

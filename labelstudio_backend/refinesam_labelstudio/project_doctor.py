"""What `doctor` says of a project: its labeling config, a real question, its connection, what it shows, its webhooks.

The question is a click in the middle of a task's image. The backend answers it directly, with its own token and its own
way to the image, and by way of Label Studio; either says in its answer what kept it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from refinesam import ConfigError
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.findings import SSRF, Finding, is_private, object_of
from refinesam_labelstudio.json_types import JsonObject, JsonView
from refinesam_labelstudio.labeling_config import MESSAGES, LabelingConfig
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.responses import ServerError

__all__ = ["examine_project"]

LOOPBACK = "Where Label Studio runs in a container, 'localhost' is that container: give the backend's service name."
UNTOLD = (
    f"; annotators are not told why an answer is missing: `refinesam labelstudio configs` has the <TextArea "
    f'name="{MESSAGES}"> that tells them'
)
# How the server writes a connection's state.
STATES = {"CO": "connected", "DI": "disconnected", "ER": "error", "TR": "training", "PR": "predicting"}
# The weights may have to load, and the image to come from a slow host.
ANSWER_S = 100.0


@dataclass(frozen=True)
class Backend:
    """The backend as it is reached from here.

    Attributes:
        url: its address.
        auth: user name and password, where it asks for them.
    """

    url: str
    auth: tuple[str, str] | None


def examine_project(server: ProjectServer, project_id: int, backend: Backend | None) -> Iterator[Finding]:
    """Look at a project; the backend is None where it isn't there to be asked."""
    try:
        project, connections = server.project(project_id), server.ml_backends(project_id)
        tasks, hooks = server.tasks(project_id, page_size=1), server.webhooks(project_id)
    except ServerError as error:
        yield Finding("labeling config", False, f"Project {project_id}: {error}")
        return
    xml = str(project.get("label_config") or "")
    try:
        config = LabelingConfig.parse(xml)
    except ConfigError as error:
        yield Finding(
            "labeling config", False, f"{error} `refinesam labelstudio configs` has whole ones, ready to paste."
        )
        return
    yield from _labeling_config(config)
    if not tasks:
        yield Finding("answer", False, f"Project {project_id} has no task, so nothing can be asked: import an image.")
    answer = _direct(backend, project_id, xml, tasks[0], config) if backend is not None and tasks else None
    if answer is not None:
        yield _judged(answer, tasks[0], "asked directly")
    if not connections:
        address = "the backend's address" if backend is None else backend.url
        private = f" {SSRF}" if backend is not None and is_private(backend.url) else ""
        yield Finding(
            "connection",
            False,
            f"Project {project_id} is connected to no model: under Settings, Model, connect {address}, with "
            f"Interactive preannotations on.{private}",
        )
    for row in connections:
        yield from _connection(server, row, config, tasks, answer)
    yield from _shown(project, connections)
    if backend is not None:
        yield _webhooks(hooks, backend, connections)


def _labeling_config(config: LabelingConfig) -> Iterator[Finding]:
    outputs = ", ".join(f"{tag.kind} ({tag.from_name})" for tag in config.outputs)
    bitmask = "; Label Studio's own exports leave bitmasks out, `refinesam labelstudio export` has them"
    kinds = {tag.kind for tag in config.outputs}
    yield from (Finding("labeling config", False, reason) for reason in config.unanswered)
    yield Finding("labeling config", True, f"answers go to {outputs}{bitmask if 'bitmask' in kinds else ''}")
    if not config.prompts:
        yield Finding(
            "smart tags",
            False,
            'No KeyPointLabels or RectangleLabels has smart="true", so clicks ask for nothing: add it, as in '
            '<KeyPointLabels name="point" toName="image" smart="true"><Label value="Object"/></KeyPointLabels>.',
        )
    problems: dict[str, None] = {}
    for prompt in config.prompts:
        for label in prompt.labels:
            try:
                config.output_for(label, None, prompt.to_name)
            except ConfigError as error:
                problems[str(error)] = None
    for problem in problems:
        yield Finding("smart tags", False, problem)
    if config.prompts and not problems:
        names = ", ".join(f"{tag.kind} ({tag.from_name})" for tag in config.prompts)
        untold = "" if config.messages is not None else UNTOLD
        yield Finding("smart tags", True, f"clicks come from {names}{untold}")


def _click(config: LabelingConfig) -> JsonObject:
    """Return the context of a click in the middle of the image that most of the config's tags are about."""
    output = config.outputs[0]
    labels = [output.labels[0]] if output.labels else []
    value = {"x": 50, "y": 50, "width": 0.5, "keypointlabels": labels}
    return {"result": [{"id": "doctor", "type": "keypointlabels", "to_name": output.to_name, "value": value}]}


def _direct(backend: Backend, project_id: int, xml: str, task: JsonView, config: LabelingConfig) -> JsonView:
    """Return the backend's answer to one task, with "error" where it gave none."""
    body = {"tasks": [task], "project": f"{project_id}.0", "label_config": xml, "params": {"context": _click(config)}}
    try:
        response = httpx.post(f"{backend.url}/predict", json=body, auth=backend.auth, timeout=ANSWER_S)
    except httpx.HTTPError as error:
        return {"error": f"the backend gave no answer ({type(error).__name__}: {error})"}
    results = object_of(response).get("results")
    if isinstance(results, list) and results and isinstance(results[0], dict):
        return dict(results[0])
    return {"error": object_of(response).get("error") or f"it answered with status {response.status_code}"}


def _judged(answer: JsonView, task: JsonView, how: str) -> Finding:
    problems = answer.get("problems") or ([answer["error"]] if answer.get("error") else [])
    if not problems:
        what = "a mask" if answer.get("result") else "nothing in the middle of the image"
        return Finding("answer", True, f"task {task['id']}, {how}: {what}, version {answer.get('model_version')}")
    return Finding("answer", False, f"Task {task['id']}, {how}: {' '.join(map(str, problems))}")


def _connection(
    server: ProjectServer, row: JsonView, config: LabelingConfig, tasks: list[JsonObject], direct: JsonView | None
) -> Iterator[Finding]:
    """Look at a model as Label Studio sees it, and ask by way of it."""
    url, state = str(row.get("url")), str(row.get("state"))
    problems = list(_extra_params(row, config))
    yield from problems
    if state not in ("CO", "TR", "PR"):
        said = str(row.get("error_message") or "")[:300]
        yield Finding(
            "connection",
            False,
            f"Label Studio has {url} as {STATES.get(state, state)}{f' ({said})' if said else ''}: see that the backend "
            "runs and that its user name and password are entered, then press Validate and Save. Until then smart "
            "tools give no answer, and Label Studio shows annotators no reason.",
        )
        yield from _network(url)
    elif row.get("is_interactive") is False:
        yield Finding(
            "connection",
            False,
            f"{url} is connected, but not for smart tools: turn on Interactive preannotations in its settings.",
        )
    elif tasks:
        answer = server.ask(int(row["id"]), int(tasks[0]["id"]), _click(config))
        if direct is not None and answer.get("backend") != direct.get("backend") and "error" not in answer:
            other = "another backend" if answer.get("backend") else "another model"
            yield Finding(
                "connection",
                False,
                f"The project is connected to {other}, at {url}, than the one that was asked directly: connect that "
                "one, or give this one's address as --backend.",
            )
        elif direct is None or "error" in answer:
            yield _judged(answer, tasks[0], f"asked by Label Studio of {url}")
        yield Finding("connection", True, f"{url} is connected, version {row.get('model_version') or 'not named yet'}")
    else:
        yield Finding("connection", True, f"{url} is connected, version {row.get('model_version') or 'not named yet'}")


def _extra_params(row: JsonView, config: LabelingConfig) -> Iterator[Finding]:
    try:
        options = ServiceOptions().updated(row.get("extra_params"))
        config.output_for(options.label, options.output)
    except ConfigError as error:
        yield Finding("connection", False, f"The extra params of {row.get('url')}: {error}")
        return
    kinds = {tag.kind for tag in config.outputs}
    if options.output is not None and options.output not in kinds:
        yield Finding(
            "connection",
            False,
            f'The extra params of {row.get("url")} ask for "output": "{options.output}", and the labeling config has '
            f"no tag for it, only {', '.join(sorted(kinds))}: add the tag, or ask for one of these.",
        )


def _network(url: str) -> Iterator[Finding]:
    """Say why Label Studio may not reach an address that it isn't connected to."""
    try:
        host = urlsplit(url).hostname or ""
        private = bool(host) and is_private(url)
    except ValueError:
        yield Finding("network", False, f"{url!r} is no address: correct it in the project's settings, under Model.")
        return
    if private:
        inside = f" {LOOPBACK}" if host == "localhost" or host.startswith("127.") else ""
        yield Finding("network", False, f"{host} is a private address. {SSRF}{inside}")


def _shown(project: JsonView, connections: list[JsonObject]) -> Iterator[Finding]:
    """Look at which predictions annotators get to see."""
    shown = str(project.get("model_version") or "")
    versions = {str(row.get("model_version")) for row in connections}
    if project.get("show_collab_predictions") is False:
        yield Finding(
            "model version",
            False,
            "The project shows annotators no predictions: turn on Use predictions to prelabel tasks under Settings, "
            "Annotation.",
        )
    elif shown in {str(row.get("title")) for row in connections}:
        yield Finding(
            "model version",
            True,
            f"the project shows the connected model {shown!r} live; the data manager has scores of stored versions "
            "only: choose one under Settings, Predictions, to see them",
        )
    elif connections and shown not in versions:
        yield Finding(
            "model version",
            False,
            f"The project shows {shown or 'no version'!r}, the connected model answers as {', '.join(versions)}: "
            "choose that, or the model, under Settings, Predictions.",
        )


def _webhooks(hooks: list[JsonObject], backend: Backend, connections: list[JsonObject]) -> Finding:
    """Look at the webhooks that lead to the backend; others are none of ours and are sent nothing.

    Label Studio makes one itself when a model is connected, without the user name and password that it may need.
    """
    if _heard(backend, backend.auth, {}) != "accepted":
        return Finding("webhook", True, "annotations aren't collected, since the backend runs without --learn")
    known = {f"{base.rstrip('/')}/webhook" for base in (backend.url, *(str(row.get("url")) for row in connections))}
    ours = [hook for hook in hooks if str(hook.get("url")).rstrip("/") in known]
    on = [hook for hook in ours if hook.get("is_active") and hook.get("send_payload")]
    if not on:
        what = "is off, or sends no payload" if ours else "is missing"
        return Finding(
            "webhook",
            False,
            f"The backend collects annotations, but the project's webhook to it {what}: under Settings, Webhooks, add "
            f"{backend.url}/webhook, active, with payload, or mend it.",
        )
    said = [_heard(backend, None, dict(hook.get("headers") or {})) for hook in on]
    if "accepted" in said:
        return Finding("webhook", True, f"{backend.url}/webhook hears what is annotated")
    return Finding(
        "webhook",
        False,
        f"The project's webhook to the backend is refused ({said[0]}): where the backend asks for a user name and "
        "password, give the webhook the header Authorization with 'Basic ' and base64 of user:password.",
    )


def _heard(backend: Backend, auth: tuple[str, str] | None, headers: Mapping[str, str]) -> str:
    """Send the backend an event that means nothing, and return what it says of it."""
    try:
        response = httpx.post(
            f"{backend.url}/webhook", json={"action": "DOCTOR"}, auth=auth, headers=dict(headers), timeout=10
        )
    except (httpx.HTTPError, TypeError, UnicodeError) as error:
        return type(error).__name__
    return str(object_of(response).get("status") or response.status_code)

"""From settings and the environment to a service: what the command line and label-studio-ml's class start alike.

Secrets come from the environment alone, since other users of a machine can see a command's arguments.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import refinesam
from refinesam import ConfigError
from refinesam_labelstudio.access import ProjectServer
from refinesam_labelstudio.corrections import Corrections
from refinesam_labelstudio.hosts import host_of
from refinesam_labelstudio.image_access import FileCache, ImageAccess, image_for_task
from refinesam_labelstudio.learning import weights_for
from refinesam_labelstudio.options import ServiceOptions
from refinesam_labelstudio.recent import RecentImages
from refinesam_labelstudio.service import Service
from refinesam_labelstudio.task_prediction import ReadImage

__all__ = [
    "DEFAULT_FOLDER",
    "TOKEN",
    "URL",
    "annotations_folder",
    "basic_auth",
    "image_reader",
    "journal_path",
    "label_studio",
    "model_name",
    "options_from",
    "required_label_studio",
    "start_service",
]

USER, PASSWORD = "REFINESAM_LABELSTUDIO_USER", "REFINESAM_LABELSTUDIO_PASSWORD"
URL, TOKEN = "LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"
DEFAULT_FOLDER = Path("~/.refinesam/labelstudio")
# The server may restart meanwhile, which takes it half a minute.
PATIENT_ATTEMPTS = 14


def start_service(
    weights: str = "builtin",
    device: str = "auto",
    options: ServiceOptions | None = None,
    folder: Path = DEFAULT_FOLDER,
    local_roots: Iterable[Path] = (),
    allowed_hosts: Iterable[str] = (),
    learn: bool = False,
    also: Iterable[str] = (),
) -> Service:
    """Return a service whose weights load in the background.

    Args:
        weights: a name, a file, or a versions.json.
        device: "auto", "cpu", "cuda", ...
        options: of projects that don't say otherwise.
        folder: for downloads and annotations.
        local_roots: see `ImageAccess`.
        allowed_hosts: see `LabelStudioServer`.
        learn: collect accepted annotations from the webhook.
        also: further weights, which projects may choose as "model"; they load when they are first asked for.

    Raises:
        ConfigError: settings that don't fit each other, or half of a connection to Label Studio.
    """
    server = label_studio(allowed_hosts)
    if learn and server is None:
        raise ConfigError(f"--learn reads annotations from Label Studio: set {URL} and {TOKEN}.")
    read_image = image_reader(server, folder, local_roots)
    corrections = Corrections(annotations_folder(folder), server, read_image) if learn and server is not None else None
    factories = {}
    for given in (weights, *also):
        name = model_name(given)
        if name in factories:
            raise ConfigError(f"Two of the weights are called {name!r}: leave one out, or rename its file.")
        # On the service's thread, torch's import too.
        factories[name] = partial(refinesam.load, weights_for(given), device=device)
    return Service(
        factories,
        RecentImages(read_image),  # a click after the first on a large photograph decodes no file
        options=options or ServiceOptions(),
        on_event=corrections.on_event if corrections is not None else None,
    )


def model_name(weights: str) -> str:
    """Return the name by which projects choose weights: their own, or a file's without its suffix."""
    path = Path(weights)
    return path.stem if path.is_file() else weights


def options_from(refine: bool, extra_params: str) -> ServiceOptions:
    """Return the options of the settings; ConfigError if the extra params can't be read."""
    options = ServiceOptions().updated({"amr": True}) if refine else ServiceOptions()
    return options.updated(extra_params)


def label_studio(allowed_hosts: Iterable[str] = (), attempts: int = 8) -> ProjectServer | None:
    """Return the server that the environment names, None if it names none; ConfigError if it names half of one."""
    url, token = os.environ.get(URL, ""), os.environ.get(TOKEN, "")
    if not url and not token:
        return None
    if not url or not token:
        raise ConfigError(f"{URL if token else TOKEN} is not set, {TOKEN if token else URL} is: both are needed.")
    return ProjectServer(url, token, allowed_hosts=allowed_hosts, attempts=attempts)


def required_label_studio(allowed_hosts: Iterable[str]) -> ProjectServer:
    """Return the server that the environment names, ready to outlive its restarts; ConfigError if it names none."""
    server = label_studio(allowed_hosts, PATIENT_ATTEMPTS)
    if server is None:
        raise ConfigError(f"{URL} and {TOKEN} are not set: set them to Label Studio's address and a token.")
    return server


def image_reader(server: ProjectServer | None, folder: Path, local_roots: Iterable[Path]) -> ReadImage:
    """Return what reads a task's image, by way of a cache in the folder."""
    access = ImageAccess(server, FileCache(folder.expanduser() / "images"), tuple(local_roots))
    return lambda value, task_id: image_for_task(value, access, task_id)


def annotations_folder(folder: Path) -> Path:
    """Return where accepted annotations are collected."""
    return folder.expanduser() / "annotations"


def journal_path(folder: Path, url: str, project_id: int) -> Path:
    """Return the journal of a server's project."""
    return folder.expanduser() / "journals" / f"{host_of(url).replace(':', '_')}-{project_id}.jsonl"


def basic_auth() -> tuple[str, str] | None:
    """Return the user name and password that the backend asks for; ConfigError if only one of them is set."""
    user, password = os.environ.get(USER, ""), os.environ.get(PASSWORD, "")
    if bool(user) != bool(password):
        raise ConfigError(f"{PASSWORD if user else USER} is not set, {USER if user else PASSWORD} is: both are needed.")
    return (user, password) if user else None

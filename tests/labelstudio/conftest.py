"""Fixtures of the backend's tests: a real Label Studio, and the backend in a real web server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from real_label_studio import Backend, LabelStudio


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    """A server that started from an empty data directory."""
    import real_label_studio

    if os.environ.get("REFINESAM_SKIP_LABEL_STUDIO") == "1":
        pytest.skip("REFINESAM_SKIP_LABEL_STUDIO=1")
    if not real_label_studio.PROGRAM.is_file():
        pytest.fail(
            f"There is no Label Studio at {real_label_studio.PROGRAM}: run `make labelstudio`, set LABEL_STUDIO_BIN, "
            "or leave these tests out with REFINESAM_SKIP_LABEL_STUDIO=1."
        )
    with real_label_studio.label_studio(tmp_path_factory.mktemp("label_studio")) as server:
        yield server


@pytest.fixture(scope="session")
def backend(label_studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The backend with the built-in weights, which reads images by a personal access token."""
    import real_label_studio

    with real_label_studio.backend(label_studio, tmp_path_factory.mktemp("cache")) as serving:
        yield serving

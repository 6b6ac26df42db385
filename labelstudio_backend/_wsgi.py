"""The backend under label-studio-ml: gunicorn --chdir labelstudio_backend --threads 8 _wsgi:app, or python _wsgi.py."""

from __future__ import annotations

import os

from label_studio_ml import api  # type: ignore[import-not-found,unused-ignore]

import refinesam
from refinesam_labelstudio.labelml import RefineSAM, service

refinesam.settle_threads(concurrency=2)
app = api.init_app(model_class=RefineSAM)
if hasattr(api, "_manager"):
    # 1.0.9 answers no prediction before the first setup, as after a restart; so it gets a model here.
    app_manager = api._manager
    app_manager.model_dir = os.environ.get("MODEL_DIR", ".")
    app_manager.fetch()
# The weights load now and not with the first request.
service()

if __name__ == "__main__":
    app.run(os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "9090")), threaded=True)

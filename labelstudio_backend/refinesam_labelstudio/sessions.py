"""`Sessions`: the models that a service may answer with, each loaded in the background when it is first needed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait

from refinesam import ConfigError, RefineSAMError, Session
from refinesam_labelstudio.options import weights_version

__all__ = ["NotReadyError", "Sessions"]

_logger = logging.getLogger(__name__)


class NotReadyError(RefineSAMError, RuntimeError):
    """The weights are still loading, or could not be loaded.

    Attributes:
        loading: they are, so that a later try may succeed.
    """

    def __init__(self, message: str, loading: bool) -> None:
        """Say what is the matter."""
        super().__init__(message)
        self.loading = loading


class Sessions:
    """Sessions by the names that projects choose them by; safe to use from any number of threads."""

    def __init__(self, factories: Mapping[str, Callable[[], Session]]) -> None:
        """Start to load the first, which is the default, on a thread of its own; nothing waits for it here."""
        self._factories, self._default = dict(factories), next(iter(factories))
        self._lock = threading.Lock()
        self._loaded: dict[str, Future[tuple[Session, str]]] = {}
        self._begun(self._default)

    def check(self, name: str | None) -> None:
        """Raise ConfigError for a name that there is no model for; None is the default."""
        if name is not None and name not in self._factories:
            raise ConfigError(
                f'"model" is {name!r}, and this backend serves {", ".join(self._factories)}: choose one of these, or '
                f"start it with --also {name}."
            )

    def get(self, name: str | None, wait_s: float) -> tuple[Session, str]:
        """Return a session and the version of its weights.

        Raises:
            NotReadyError: still loading after `wait_s` seconds, or not to be loaded.
            ConfigError: no such model.
        """
        self.check(name)
        loaded = self._begun(name or self._default)
        wait([loaded], timeout=wait_s)
        if not loaded.done():
            raise NotReadyError("The weights are still loading: try again in a moment.", loading=True)
        if (error := loaded.exception()) is not None:
            raise NotReadyError(
                f"The weights could not be loaded ({type(error).__name__}: {error}): correct that and start again.",
                loading=False,
            ) from error
        return loaded.result()

    @property
    def state(self) -> str:
        """Whether the default is "loading", "ready" or "failed"."""
        loaded = self._begun(self._default)
        if not loaded.done():
            return "loading"
        return "failed" if loaded.exception() else "ready"

    @property
    def problem(self) -> str:
        """Why the default could not be loaded; "" unless that is so."""
        loaded = self._begun(self._default)
        error = loaded.exception() if loaded.done() else None
        return "" if error is None else _why(error)

    def version(self, name: str | None) -> str | None:
        """Return the version of a model's weights, None while that isn't known."""
        with self._lock:
            loaded = self._loaded.get(name or self._default)
        return None if loaded is None or not loaded.done() or loaded.exception() else loaded.result()[1]

    def _begun(self, name: str) -> Future[tuple[Session, str]]:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = Future()
                # A daemon, since a download that hangs must not keep the process alive.
                arguments = (self._factories[name], self._loaded[name])
                threading.Thread(target=_load, args=arguments, name="refinesam-load", daemon=True).start()
            return self._loaded[name]


def _load(factory: Callable[[], Session], loaded: Future[tuple[Session, str]]) -> None:
    try:
        session = factory()
        loaded.set_result((session, weights_version(session)))
    except BaseException as error:
        # An error of ours says what to do; where in the code it was raised tells nobody more.
        _logger.error(
            "The weights could not be loaded. %s", _why(error), exc_info=not isinstance(error, RefineSAMError)
        )
        loaded.set_exception(error)


def _why(error: BaseException) -> str:
    return str(error) if isinstance(error, RefineSAMError) else f"{type(error).__name__}: {error}"

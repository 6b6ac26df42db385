"""The views that the user had before the plugin opened others, kept with the dataset, and the way back to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from refinesam import ConfigError

from .private import stages_of, view_of_stages

if TYPE_CHECKING:
    import fiftyone as fo
    from fiftyone.operators.executor import ExecutionContext

__all__ = ["can_go_back", "former_view", "remember", "show"]

_STORE: Final = "refinesam"
_KEY: Final = "former views"
# Older ones are forgotten, and all of them after a day. A view of many chosen samples is long; MongoDB takes 16 MB.
MOST: Final = 20
MOST_CHARACTERS: Final = 8_000_000
_FORGOTTEN_AFTER_S: Final = 24 * 3600


def show(ctx: ExecutionContext, view: fo.DatasetView) -> Any:
    """Remember the view that is shown, and return what asks the App for another one."""
    remember(ctx, view)
    return ctx.ops.set_view(view)


def remember(ctx: ExecutionContext, opened: fo.DatasetView) -> None:
    """Remember the view that is shown, its filters too, before another one is opened."""
    stages, known = stages_of(ctx.view), _known(ctx)
    if stages not in (stages_of(opened), *known[-1:]):
        _keep(ctx, [*known, stages])


def can_go_back(ctx: ExecutionContext) -> bool:
    """Say whether there is a view to go back to, other than the one that is shown."""
    current = stages_of(ctx.view)
    return any(stages != current for stages in _known(ctx))


def former_view(ctx: ExecutionContext) -> fo.DatasetView:
    """Return the view that was shown before the plugin opened the last one, and forget it.

    Raises:
        ConfigError: there is none, or none that can still be opened.
    """
    current, known = stages_of(ctx.view), _known(ctx)
    reason = "this is the view that you had."
    view = None
    while known and view is None:
        stages = known.pop()
        if stages == current:
            continue
        try:
            view = view_of_stages(ctx.dataset, stages)
            view.count()
        except Exception as error:  # Whatever a stage raises whose field, saved view or sample is gone.
            view, reason = None, f"the former view cannot be opened any more ({error})."
    _keep(ctx, known)
    if view is None:
        raise ConfigError(f"There is no way back: {reason}")
    return view


def _known(ctx: ExecutionContext) -> list[str]:
    return list(ctx.store(_STORE).get(_KEY) or [])


def _keep(ctx: ExecutionContext, known: list[str]) -> None:
    known = known[-MOST:]
    while sum(map(len, known)) > MOST_CHARACTERS:
        known = known[1:]
    ctx.store(_STORE).set(_KEY, known, ttl=_FORGOTTEN_AFTER_S)

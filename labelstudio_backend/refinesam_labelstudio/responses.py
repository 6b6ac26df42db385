"""What the server's answers mean: an object, a file, or a `ServerError` that says whether to try again."""

from __future__ import annotations

from pathlib import Path

import httpx

from refinesam import ImageError, RefineSAMError
from refinesam_labelstudio.hosts import without_query
from refinesam_labelstudio.json_types import JsonObject

__all__ = ["ServerError", "check_status", "json_object", "unreached", "write_body"]

# What a proxy, or a server that starts or is too busy, answers with.
PASSING = frozenset({429, 502, 503, 504})
# Of them, those that leave open whether the request was carried out.
UNCERTAIN = frozenset({502, 504})


class ServerError(RefineSAMError, RuntimeError):
    """Label Studio can't be reached or refuses what it was asked.

    Attributes:
        status: of the HTTP answer, None when there was none.
        retry: the request can be repeated without harm and may then succeed.
        may_have_run: the request changes something, and whether it did is not known.
    """

    def __init__(
        self, message: str, status: int | None = None, *, retry: bool = False, may_have_run: bool = False
    ) -> None:
        """Say what happened."""
        super().__init__(message)
        self.status, self.retry, self.may_have_run = status, retry, may_have_run


def unreached(error: httpx.RequestError, repeatable: bool) -> ServerError:
    """Return the error of a request that got no answer."""
    untaken = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    retry = repeatable or untaken
    return ServerError(
        f"{without_query(str(error.request.url))} gave no answer ({type(error).__name__}: {error}): check that Label "
        "Studio runs and can be reached from here.",
        retry=retry,
        may_have_run=not retry,
    )


def check_status(response: httpx.Response, repeatable: bool = True) -> None:
    """Raise ServerError unless the answer says success."""
    status = response.status_code
    if response.is_success:
        return
    advice = {
        401: 'the token is refused. Make another one under "Account & Settings"',
        403: "this token's user may not do that: give the user access, or use another's token",
        404: "there is no such thing, or this token's user may not see it",
    }.get(status, "look into its log for the reason")
    if response.has_redirect_location:
        advice = f"it redirects to {without_query(response.headers['location'])}: give the address that it redirects to"
    uncertain = status in UNCERTAIN or (status >= 500 and status not in PASSING)
    raise ServerError(
        f"{response.request.method} {without_query(str(response.url))} was answered with status {status}: {advice}.",
        status,
        retry=status in PASSING and (repeatable or not uncertain),
        may_have_run=uncertain and not repeatable,
    )


def json_object(response: httpx.Response, repeatable: bool = True) -> JsonObject:
    """Return the answer's JSON object.

    Raises:
        ServerError: no success, or something else than a JSON object.
    """
    check_status(response, repeatable)
    try:
        content = response.json()
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ServerError(
            f"{without_query(str(response.url))} answered with no JSON object: is it the address of Label Studio?",
            response.status_code,
        )
    return content


def write_body(response: httpx.Response, to: Path, max_bytes: int) -> None:
    """Write the body of a streamed answer.

    Raises:
        ImageError: it is larger than `max_bytes`.
        ServerError: it broke off.
    """
    written = 0
    try:
        with to.open("wb") as file:
            for chunk in response.iter_bytes():
                written += len(chunk)
                # Counted here and not by the header, which says nothing of what was packed.
                if written > max_bytes:
                    raise ImageError(
                        f"{without_query(str(response.url))} is larger than {max_bytes} bytes, the limit: make the "
                        "image smaller, or raise the limit."
                    )
                file.write(chunk)
    except httpx.RequestError as error:
        raise unreached(error, repeatable=True) from error

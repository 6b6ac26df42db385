"""The tokens that Label Studio knows: what kind one is, and how long it lives."""

from __future__ import annotations

import base64
import json
import re
from typing import Literal

from refinesam import ConfigError
from refinesam_labelstudio.json_types import JsonObject

__all__ = ["TokenKind", "kind_of", "lifetime"]

# personal: a JSON web token, which is traded for access tokens; legacy: 40 hexadecimal digits.
TokenKind = Literal["personal", "legacy"]
# An access token's life where it doesn't say so itself.
ACCESS_SECONDS = 300.0


def kind_of(token: str) -> TokenKind:
    """Return a token's kind, by its form; ConfigError if it has neither kind's, or is an access token."""
    if re.fullmatch(r"[0-9a-fA-F]{40}", token):
        return "legacy"
    if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token, re.ASCII):
        raise ConfigError(
            f"A token of {len(token)} characters is neither a personal access token (three parts with dots between "
            'them) nor a legacy token (40 hexadecimal digits): copy it again from "Account & Settings".'
        )
    if _claims(token).get("token_type") == "access":
        raise ConfigError(
            "This is an access token, which lives for minutes only. Give the personal access token that it came from."
        )
    return "personal"


def _claims(token: str) -> JsonObject:
    """What a JSON web token says of itself, unverified: it was made for the server to check, not for us."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, IndexError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def lifetime(access: str) -> float:
    """Seconds that an access token lives, from its own two times: this machine's clock may differ from the server's."""
    claims = _claims(access)
    try:
        return max(0.0, float(claims["exp"]) - float(claims["iat"]))
    except (KeyError, TypeError, ValueError):
        return ACCESS_SECONDS

"""The cookie with a token that opens the user's stream."""

from __future__ import annotations

import hmac
import json
import time
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any

from django.utils.cache import patch_cache_control

from . import conf
from .identity import User, user_id
from .topics import granted_topics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.http import HttpResponseBase

COOKIE_BYTES = 4096
"""Browsers ignore a cookie whose name and value are longer."""


def create_token(user: User, *, topics: Iterable[str] | None = None) -> str:
    """A JSON Web Token, signed with HS256.

    It grants the topics, by default those of TIDINGS_TOPICS, besides the user's subscriptions.
    """
    expires = int(time.time() + conf.token_lifetime().total_seconds())
    claims = {"sub": user_id(user), "exp": expires}
    if granted := granted_topics(user, topics):
        claims["topics"] = granted
    content = f"{_encode({'alg': 'HS256', 'typ': 'JWT'})}.{_encode(claims)}"
    signature = hmac.digest(conf.require_jwt_secret().encode(), content.encode(), "sha256")
    return f"{content}.{_base64(signature)}"


def set_cookie(response: HttpResponseBase, user: User) -> None:
    name, token = conf.cookie_name(), create_token(user)
    if len(name) + len(token) > COOKIE_BYTES:
        raise ValueError(
            f"The cookie with {user}'s token would be longer than the {COOKIE_BYTES} bytes that "
            "browsers keep: let TIDINGS_TOPICS return fewer topics, and use subscribe()."
        )
    response.set_cookie(
        name,
        token,
        max_age=conf.token_lifetime(),
        path=conf.cookie_path(),
        secure=conf.cookie_secure(),
        httponly=True,
        samesite="Strict",
    )
    # No shared cache may keep a page with a user's token.
    patch_cache_control(response, private=True)


def delete_cookie(response: HttpResponseBase) -> None:
    response.delete_cookie(conf.cookie_name(), path=conf.cookie_path(), samesite="Strict")


def _encode(claims: dict[str, Any]) -> str:
    return _base64(json.dumps(claims, separators=(",", ":")).encode())


def _base64(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()

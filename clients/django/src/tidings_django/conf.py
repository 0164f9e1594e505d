"""The settings and their defaults. Each use reads them, so that `override_settings` works."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from django.conf import settings
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.http.request import split_domain_port
from django.utils.crypto import salted_hmac
from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from django.http import HttpRequest

T = TypeVar("T")

NAMES = frozenset(
    f"TIDINGS_{name}"
    for name in (
        "BINARY",
        "COOKIE_NAME",
        "COOKIE_PATH",
        "COOKIE_SECURE",
        "DATABASE",
        "DEV_PORT",
        "JWT_SECRET",
        "SCHEMA",
        "STREAM_URL",
        "TOKEN_LIFETIME",
        "TOPICS",
        "USER_ID",
    )
)

DEFAULT_STREAM_URL = "/stream"

SECRET_BYTES = 32
"""The bridge accepts no shorter secret."""


def database() -> str:
    return _get("DATABASE", "default")


def schema() -> str:
    return _get("SCHEMA", "tidings")


def jwt_secret() -> str:
    """The secret with which tokens are signed, or an empty string.

    While secrets are rotated, the bridge accepts several, one per line. The first one signs.
    """
    secret = _get("JWT_SECRET", "")
    if not secret and (settings.DEBUG or is_testing()):
        # `manage.py tidings dev` and runserver are two processes that must have the same secret.
        return salted_hmac("tidings_django", "jwt", algorithm="sha256").hexdigest()
    return secret.strip().partition("\n")[0].strip()


def is_testing() -> bool:
    """Whether a test runner has called `setup_test_environment()`, which creates the outbox."""
    return hasattr(mail, "outbox")


def token_lifetime() -> timedelta:
    return _get("TOKEN_LIFETIME", timedelta(hours=1))


def user_attribute() -> str | Callable[[Any], Any]:
    """By what Tidings knows users: an attribute, or a function of the user."""
    value = _get("USER_ID", "pk")
    return import_string(value) if isinstance(value, str) and "." in value else value


def topics() -> Callable[[Any], Iterable[str]] | None:
    """A function of the user: the topics that tokens and tickets grant."""
    value = _get("TOPICS", None)
    return import_string(value) if isinstance(value, str) else value


def stream_url(request: HttpRequest) -> str:
    url = _get("STREAM_URL", "")
    if not url and settings.DEBUG:
        # The same host as the page's, because cookies belong to a host, whatever the port.
        host, _ = split_domain_port(request.get_host())
        return f"http://{host}:{dev_port()}/stream"
    return url or DEFAULT_STREAM_URL


def stream_path() -> str:
    return urlsplit(_get("STREAM_URL", "") or DEFAULT_STREAM_URL).path or "/"


def uses_tickets(request: HttpRequest) -> bool:
    """Whether the stream is on another host, which doesn't get the cookie."""
    stream = urlsplit(stream_url(request)).hostname
    return stream is not None and stream != urlsplit(f"//{request.get_host()}").hostname


def cookie_name() -> str:
    return _get("COOKIE_NAME", "tidings_token")


def cookie_path() -> str:
    return _get("COOKIE_PATH", "") or stream_path()


def cookie_secure() -> bool:
    return _get("COOKIE_SECURE", not settings.DEBUG)


def dev_port() -> int:
    return _get("DEV_PORT", 8080)


def binary() -> str | None:
    return _get("BINARY", "") or os.environ.get("TIDINGS_BINARY")


def _get(name: str, default: T) -> T:
    value: T = getattr(settings, f"TIDINGS_{name}", default)
    return value


def require_jwt_secret() -> str:
    secret = jwt_secret()
    if len(secret.encode()) < SECRET_BYTES:
        raise ImproperlyConfigured(f"TIDINGS_JWT_SECRET must have at least {SECRET_BYTES} bytes.")
    return secret

"""System checks: `manage.py check`, and with `--database default` what the database allows."""

from __future__ import annotations

from datetime import timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004
from django.db import connections
from django.urls import NoReverseMatch, reverse

from . import conf
from .database import quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MIDDLEWARE = "tidings_django.middleware.TidingsMiddleware"
DAY = timedelta(hours=24)


def check_settings(**kwargs: Any) -> list[CheckMessage]:
    return [
        *_check_names(),
        *_check_database_setting(),
        *_check_secret(),
        *_check_lifetime(),
        *_check_user_id(),
        *_check_topics(),
        *_check_cookie(),
        *_check_middleware(),
    ]


def check_urls(**kwargs: Any) -> list[CheckMessage]:
    try:
        reverse("tidings_django:cookie")
    except NoReverseMatch:
        return [
            Error(
                "The URLs of tidings_django are missing.",
                hint='Add path("tidings/", include("tidings_django.urls")) to urlpatterns.',
                id="tidings.E007",
            )
        ]
    return []


def check_database(
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    if conf.database() not in (databases or ()):
        return []
    connection = connections[conf.database()]
    if connection.vendor != "postgresql":
        return []  # E001
    with connection.cursor() as cursor:
        cursor.execute(PRIVILEGES, [conf.schema()])
        privileges = cursor.fetchone()
        cursor.execute("select current_user")
        (role,) = cursor.fetchone()
    # Warnings, because errors would keep `migrate` from running, which may come first and which
    # another role may run.
    if privileges is None:
        return [
            Warning(
                f"The schema {conf.schema()!r} of the database {conf.database()!r} doesn't contain "
                f"Tidings, or an earlier version, or {role!r} may not use it.",
                hint="Run `manage.py tidings migrate`, or set TIDINGS_SCHEMA.",
                id="tidings.W002",
            )
        ]
    groups = ("tidings_writer", "tidings_issuer")
    missing = [group for group, has in zip(groups, privileges, strict=True) if not has]
    if not missing:
        return []
    return [
        Warning(
            f"{role!r} lacks privileges in the schema {conf.schema()!r}.",
            hint=f"Let its owner run: grant {', '.join(missing)} to {quote(role)}",
            id="tidings.W003",
        )
    ]


PRIVILEGES = """
select
  has_column_privilege(c.oid, 'user_id', 'insert') and has_column_privilege(c.oid, 'id', 'select'),
  (
    select bool_and(has_function_privilege(p.oid, 'execute'))
    from pg_proc as p
    where
      p.pronamespace = n.oid
      and p.proname in ('create_stream_ticket', 'disconnect_user', 'subscribe', 'unsubscribe')
  )
from pg_namespace as n
join pg_class as c on c.relnamespace = n.oid and c.relname = 'notifications'
join pg_attribute as a on a.attrelid = c.oid and a.attname = 'topic'
where n.nspname = %s and has_schema_privilege(n.oid, 'usage')
"""


def _check_names() -> Iterator[CheckMessage]:
    for name in dir(settings):
        if name.startswith("TIDINGS_") and name not in conf.NAMES:
            meant = get_close_matches(name, conf.NAMES, n=1)
            yield Warning(
                f"The setting {name} is unknown.",
                hint=f"Did you mean {meant[0]}?" if meant else None,
                id="tidings.W001",
            )


def _check_database_setting() -> Iterator[CheckMessage]:
    alias = conf.database()
    if alias not in connections:
        yield Error(f"TIDINGS_DATABASE: DATABASES has no {alias!r}.", id="tidings.E001")
    elif connections[alias].vendor != "postgresql":
        yield Error(
            f"The database {alias!r} is not PostgreSQL.",
            hint="Tidings works in the database in which the application writes, so that a "
            "notification is sent if and only if its transaction commits.",
            id="tidings.E001",
        )


def _check_secret() -> Iterator[CheckMessage]:
    secret = conf.jwt_secret()
    if not secret:
        yield Error(
            "TIDINGS_JWT_SECRET is not set.",
            hint="Set it to the same secret as the bridge's (`openssl rand -hex 32`).",
            id="tidings.E002",
        )
    elif len(secret.encode()) < conf.SECRET_BYTES:
        yield Error(
            f"TIDINGS_JWT_SECRET has fewer than {conf.SECRET_BYTES} bytes.",
            hint="The bridge rejects it. Generate one with `openssl rand -hex 32`.",
            id="tidings.E002",
        )


def _check_lifetime() -> Iterator[CheckMessage]:
    lifetime = conf.token_lifetime()
    if not isinstance(lifetime, timedelta) or not timedelta() < lifetime <= DAY:
        yield Error(
            f"TIDINGS_TOKEN_LIFETIME is {lifetime!r}.",
            hint="Set it to a timedelta of at most 24 hours: a token that was copied is "
            "valid until it expires, also after a logout.",
            id="tidings.E003",
        )


def _check_user_id() -> Iterator[CheckMessage]:
    try:
        attribute = conf.user_attribute()
    except ImportError as error:
        yield Error(f"TIDINGS_USER_ID can't be imported: {error}", id="tidings.E004")
    else:
        if not callable(attribute) and not isinstance(attribute, str):
            yield Error(
                f"TIDINGS_USER_ID is {attribute!r}.",
                hint="Set it to the name of an attribute of users, or to the path of a function.",
                id="tidings.E004",
            )


def _check_topics() -> Iterator[CheckMessage]:
    try:
        function = conf.topics()
    except ImportError as error:
        yield Error(f"TIDINGS_TOPICS can't be imported: {error}", id="tidings.E008")
    else:
        if function is not None and not callable(function):
            yield Error(
                f"TIDINGS_TOPICS is {function!r}.",
                hint="Set it to the path of a function that returns the topics of a user.",
                id="tidings.E008",
            )


def _check_cookie() -> Iterator[CheckMessage]:
    path, name, stream = conf.cookie_path(), conf.cookie_name(), conf.stream_path()
    # RFC 6265, 5.1.4.
    if stream != path and not stream.startswith(path.rstrip("/") + "/"):
        yield Error(
            f"TIDINGS_COOKIE_PATH is {path!r}, so the stream at {stream!r} doesn't get the cookie.",
            id="tidings.E005",
        )
    if name.startswith("__Host-") and (path != "/" or not conf.cookie_secure()):
        yield Error(
            f"Browsers ignore a cookie named {name} unless it is secure and its path is /.",
            hint='Set TIDINGS_COOKIE_PATH = "/" and TIDINGS_COOKIE_SECURE = True.',
            id="tidings.E005",
        )


def _check_middleware() -> Iterator[CheckMessage]:
    middleware = list(settings.MIDDLEWARE)
    if MIDDLEWARE not in middleware:
        yield Error(
            "TidingsMiddleware is missing from MIDDLEWARE, so no cookie is set.",
            hint=f'Add "{MIDDLEWARE}" after Django\'s AuthenticationMiddleware.',
            id="tidings.E006",
        )

"""Notifications are rows: they are inserted in the caller's transaction, and sent if it commits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.core.exceptions import EmptyResultSet
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections
from django.db.models import F, QuerySet, TextField
from django.db.models.functions import Cast
from django.utils import timezone
from django.utils.functional import Promise

from . import conf
from .database import qualified
from .identity import User, user_id

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


def send_notification(
    user: User,
    text: str | Promise | None = None,
    *,
    data: Any = None,
    event: str | None = None,
    expires_at: datetime | None = None,
    ref: str | None = None,
    using: str | None = None,
) -> int:
    """Notifies a user, and returns the notification's id.

    `user` is a user, or the value that identifies one. The notification is either `text` or `data`,
    which is sent as JSON.
    """
    columns = _columns(text, data, event, expires_at, ref)
    return _insert(columns, "(values (%s))", [user_id(user)], using)[0]


def send_notifications(
    users: QuerySet[Any] | Iterable[User],
    text: str | Promise | None = None,
    *,
    data: Any = None,
    event: str | None = None,
    expires_at: datetime | None = None,
    ref: str | None = None,
    using: str | None = None,
) -> list[int]:
    """Notifies many users with one statement, and returns the notifications' ids.

    A queryset of users is evaluated by the database, and no user is loaded.
    """
    columns = _columns(text, data, event, expires_at, ref)
    using = using or conf.database()
    attribute = conf.user_attribute()
    # A function can't run in the database, and the users may be in another one.
    if not isinstance(users, QuerySet) or callable(attribute) or users.db != using:
        return _insert(columns, "unnest(%s::text[])", [[user_id(user) for user in users]], using)
    ids = users.values_list(Cast(F(attribute), TextField()))
    try:
        sql, params = ids.query.get_compiler(using).as_sql()
    except EmptyResultSet:
        return []
    return _insert(columns, f"({sql})", params, using)


asend_notification = sync_to_async(send_notification)
asend_notifications = sync_to_async(send_notifications)


def disconnect_user(user: User, *, using: str | None = None) -> None:
    """Ends the user's streams and removes the user's tickets, as at logout.

    Pages whose cookie is still valid reconnect.
    """
    with connections[using or conf.database()].cursor() as cursor:
        cursor.execute(f"select {qualified('disconnect_user')}(%s::text)", [user_id(user)])


def create_stream_ticket(user: User, *, using: str | None = None) -> str:
    """Returns a ticket that opens the user's stream with `?ticket=` until it expires."""
    with connections[using or conf.database()].cursor() as cursor:
        cursor.execute(
            f"select {qualified('create_stream_ticket')}(%s, %s)",
            [user_id(user), f"{conf.token_lifetime().total_seconds()} seconds"],
        )
        (ticket,) = cursor.fetchone()
    return str(ticket)


def _columns(
    text: str | Promise | None,
    data: Any,
    event: str | None,
    expires_at: datetime | None,
    ref: str | None,
) -> dict[str, Any]:
    if (text is None) == (data is None):
        raise TypeError("Pass either text or data.")
    if text is None:
        text = json.dumps(data, cls=DjangoJSONEncoder, ensure_ascii=False)
    elif not isinstance(text, (str, Promise)):
        raise TypeError(f"The text must be a string, not {type(text).__name__}; use data for JSON.")
    if expires_at is not None and timezone.is_naive(expires_at):
        expires_at = timezone.make_aware(expires_at)
    columns = {"text": str(text), "event": event, "expires_at": expires_at, "ref": ref}
    return {name: value for name, value in columns.items() if value is not None}


def _insert(
    columns: dict[str, Any], users: str, params: Iterable[Any], using: str | None
) -> list[int]:
    """Inserts a row with these columns for each user in an SQL expression of a FROM clause."""
    names = ", ".join(columns)
    values = ", ".join(["%s"] * len(columns))
    with connections[using or conf.database()].cursor() as cursor:
        cursor.execute(
            f"insert into {qualified('notifications')} (user_id, {names}) "  # noqa: S608
            f"select u.user_id, {values} from {users} as u (user_id) returning id",
            [*columns.values(), *params],
        )
        return [id_ for (id_,) in cursor.fetchall()]

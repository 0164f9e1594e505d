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
from .topics import EVERYONE, granted_topics

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
    return _insert(columns, "user_id", "(values (%s))", [user_id(user)], using)[0]


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
        ids = [user_id(user) for user in users]
        return _insert(columns, "user_id", "unnest(%s::text[])", [ids], using)
    selected = users.values_list(Cast(F(attribute), TextField()))
    try:
        sql, params = selected.query.get_compiler(using).as_sql()
    except EmptyResultSet:
        return []
    return _insert(columns, "user_id", f"({sql})", params, using)


def send_to_topic(
    topic: str,
    text: str | Promise | None = None,
    *,
    data: Any = None,
    event: str | None = None,
    expires_at: datetime | None = None,
    ref: str | None = None,
    using: str | None = None,
) -> int:
    """Notifies everyone who is subscribed to a topic, with one row, and returns its id."""
    if not isinstance(topic, str):
        raise TypeError(f"A topic is a string such as 'project:7', not {type(topic).__name__}.")
    columns = _columns(text, data, event, expires_at, ref)
    return _insert(columns, "topic", "(values (%s))", [topic], using)[0]


def send_to_everyone(
    text: str | Promise | None = None,
    *,
    data: Any = None,
    event: str | None = None,
    expires_at: datetime | None = None,
    ref: str | None = None,
    using: str | None = None,
) -> int:
    """Notifies all users, with one row, and returns its id."""
    return send_to_topic(
        EVERYONE, text, data=data, event=event, expires_at=expires_at, ref=ref, using=using
    )


def subscribe(user: User, topic: str, *, using: str | None = None) -> bool:
    """Subscribes a user to what is sent to a topic from now on.

    Returns False, and changes nothing, if the user was subscribed before.
    """
    return bool(_call(using, "subscribe(%s::text, %s)", [user_id(user), topic]))


def unsubscribe(user: User, topic: str, *, using: str | None = None) -> bool:
    """Ends a subscription. What the user hasn't received yet isn't delivered any more.

    Returns False if the user was not subscribed.
    """
    return bool(_call(using, "unsubscribe(%s::text, %s)", [user_id(user), topic]))


asend_notification = sync_to_async(send_notification)
asend_notifications = sync_to_async(send_notifications)
asend_to_topic = sync_to_async(send_to_topic)
asend_to_everyone = sync_to_async(send_to_everyone)
asubscribe = sync_to_async(subscribe)
aunsubscribe = sync_to_async(unsubscribe)


def disconnect_user(user: User, *, using: str | None = None) -> None:
    """Ends the user's streams and removes the user's tickets, as at logout.

    Pages whose cookie is still valid reconnect.
    """
    _call(using, "disconnect_user(%s::text)", [user_id(user)])


def create_stream_ticket(
    user: User | None,
    *,
    topics: Iterable[str] | None = None,
    using: str | None = None,
) -> str:
    """Returns a ticket that opens the user's stream with `?ticket=` until it expires.

    It grants the topics, by default those of TIDINGS_TOPICS, besides the user's subscriptions.
    Without a user, it opens a stream that has only these topics.
    """
    granted = granted_topics(user, topics)
    if user is None and not granted:
        raise TypeError("A ticket needs a user or topics.")
    arguments = [
        None if user is None else user_id(user),
        f"{conf.token_lifetime().total_seconds()} seconds",
    ]
    if not granted:
        return str(_call(using, "create_stream_ticket(%s, %s)", arguments))
    call = "create_stream_ticket(%s::text, %s::interval, %s::text[])"
    return str(_call(using, call, [*arguments, granted]))


def _call(using: str | None, call: str, arguments: list[Any]) -> Any:
    """Calls a function of Tidings, and returns its result."""
    with connections[using or conf.database()].cursor() as cursor:
        cursor.execute(f"select {qualified(call)}", arguments)
        (result,) = cursor.fetchone()
    return result


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
    columns: dict[str, Any],
    addressee: str,
    addressees: str,
    params: Iterable[Any],
    using: str | None,
) -> list[int]:
    """Inserts a row with these columns for each addressee in an SQL expression of a FROM clause.

    The addressee is a column, too: user_id or topic.
    """
    names = ", ".join(columns)
    values = ", ".join(["%s"] * len(columns))
    with connections[using or conf.database()].cursor() as cursor:
        cursor.execute(
            f"insert into {qualified('notifications')} ({addressee}, {names}) "  # noqa: S608
            f"select a.addressee, {values} from {addressees} as a (addressee) returning id",
            [*columns.values(), *params],
        )
        return [id_ for (id_,) in cursor.fetchall()]

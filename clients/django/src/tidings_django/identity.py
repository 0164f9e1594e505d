"""By which string Tidings knows a user: the same in rows, tokens, tickets and at logout."""

from __future__ import annotations

from operator import attrgetter
from typing import TypeAlias
from uuid import UUID

from django.db.models import Model

from . import conf

User: TypeAlias = Model | str | int | UUID
"""A user, or what Tidings knows the user by."""


def user_id(user: User) -> str:
    if isinstance(user, str):
        identifier: object = user
    elif isinstance(user, (int, UUID)):
        if conf.user_attribute() != "pk":
            # A number would be the user's primary key, under which no user would get the row.
            raise TypeError("With TIDINGS_USER_ID, pass a user or a string.")
        identifier = user
    else:
        attribute = conf.user_attribute()
        identifier = attribute(user) if callable(attribute) else attrgetter(attribute)(user)
    if identifier is None or identifier == "":
        raise ValueError(f"{user!r} has no id: only users that were saved can be notified.")
    return str(identifier)

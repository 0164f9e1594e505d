"""Names under which one notification reaches many users, and which of them credentials grant."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from django.db.models import Model

from . import conf

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .identity import User

EVERYONE = "*"
"""The topic that every user has."""

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

MOST = 100
"""How many topics the bridge accepts in a token or ticket."""


def granted_topics(user: User | None, topics: Iterable[str] | None) -> list[str]:
    """The topics that a token or ticket grants: these, or those of TIDINGS_TOPICS for the user."""
    if topics is None:
        function = conf.topics()
        if function is None or user is None:
            return []
        if not isinstance(user, Model):
            # Not none at all: the stream would lack them unnoticed.
            raise TypeError("With TIDINGS_TOPICS, pass a user, or topics.")
        topics = function(user)
    if isinstance(topics, str):
        raise TypeError(f"Pass a list of topics, not the string {topics!r}.")
    names = [name for name in dict.fromkeys(topics) if name != EVERYONE]
    for name in names:
        if not isinstance(name, str) or not 1 <= len(name.encode()) <= 255 or CONTROL.search(name):
            raise ValueError(f"A topic has 1 to 255 bytes and no control characters: {name!r}.")
    if len(names) > MOST:
        raise ValueError(
            f"A token or ticket grants at most {MOST} topics, not {len(names)}. "
            "Use subscribe(), which has no limit."
        )
    return names

"""The SQL that subscribes users to topics as an application's table says.

Tidings has triggers for it. All fields are SQL: quoted names, and literals.
"""

from __future__ import annotations

from dataclasses import dataclass

from .database import qualified

TRIGGERS = (
    "tidings_watch_insert",
    "tidings_watch_update",
    "tidings_watch_delete",
    "tidings_watch_truncate",
)


@dataclass(frozen=True)
class Memberships:
    table: str
    """Qualified."""
    literal: str
    user: str
    topic: str
    prefix: str


def watch(memberships: Memberships) -> str:
    m = memberships
    arguments = f"{m.literal}, {m.user}, {m.topic}, {m.prefix}"
    return f"select {qualified('tidings_watch')}({arguments})"


def unwatch(memberships: Memberships) -> list[str]:
    m = memberships
    return [
        *(f"drop trigger if exists {trigger} on {m.table}" for trigger in TRIGGERS),
        f"select {qualified('tidings_sync_memberships')}({m.prefix}, '{{}}', '{{}}')",
    ]

"""Names in the database."""

from __future__ import annotations

from . import conf


def qualified(name: str) -> str:
    """A name of Tidings, with its schema."""
    return f"{quote(conf.schema())}.{name}"


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

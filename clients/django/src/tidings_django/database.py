"""Names in the database."""

from __future__ import annotations

from . import conf


def qualified(name: str) -> str:
    """The name in Tidings' schema, quoted."""
    return f"{quote(conf.schema())}.{quote(name)}"


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

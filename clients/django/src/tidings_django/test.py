"""For applications' tests."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from django.db.models import Max

from .models import Notification

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def captured_notifications(*, using: str | None = None) -> Iterator[list[Notification]]:
    """Collects the notifications that the block inserts, however it does, oldest first.

    The list is filled when the block ends. It doesn't contain what the block rolled back.
    """
    notifications = Notification.objects.using(using) if using else Notification.objects.all()
    last = notifications.aggregate(last=Max("id"))["last"] or 0
    captured: list[Notification] = []
    yield captured
    captured.extend(notifications.filter(id__gt=last).order_by("id"))

from __future__ import annotations

from typing import Any

from django.db import models

from . import conf
from .database import qualified, quote


class NotificationManager(models.Manager["Notification"]):
    def get_queryset(self) -> models.QuerySet[Notification]:
        return super().get_queryset().using(conf.database())


class Notification(models.Model):
    """Tidings' table, with the columns that an application writes.

    Inserting is all that an application's role may do, unless it was granted more: use `create()`
    and `bulk_create()`, or `send_notification()`. To read rows, it needs `grant select`.
    """

    id = models.BigAutoField(primary_key=True)
    # Either a user or a topic. Not a ForeignKey, which would compare a number with text.
    user_id = models.TextField(null=True, blank=True)  # noqa: DJ001 (null means none)
    topic = models.TextField(null=True, blank=True)  # noqa: DJ001
    text = models.TextField()
    event = models.TextField(null=True, blank=True)  # noqa: DJ001
    expires_at = models.DateTimeField(null=True, blank=True)
    ref = models.TextField(null=True, blank=True)  # noqa: DJ001

    objects = NotificationManager()

    class Meta:
        managed = False
        # Django has no option for the schema, but uses a quoted name verbatim.
        db_table = qualified(quote("notifications"))
        default_permissions = ()

    def __str__(self) -> str:
        return self.text

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise TypeError("A notification can't be changed after it was inserted.")
        kwargs.setdefault("using", conf.database())
        super().save(*args, **kwargs)

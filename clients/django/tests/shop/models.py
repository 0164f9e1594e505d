from django.conf import settings
from django.db import models


class Notification(models.Model):
    """The model of the question that Tidings answers."""

    text = models.CharField(max_length=200)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    sent = models.BooleanField(default=False)


class Message(models.Model):
    """A model with names that have to be quoted, and values that may be null."""

    id = models.UUIDField(primary_key=True)
    title = models.TextField(db_column="the Title")
    body = models.TextField(null=True)
    recipient = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, null=True)
    sent_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "Shop's Messages"


class Team(models.Model):
    members = models.ManyToManyField(settings.AUTH_USER_MODEL)


class Seat(models.Model):
    """A membership with names that have to be quoted, and values that may be null."""

    room = models.TextField(db_column="the Room", null=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, null=True)

    class Meta:
        db_table = "Shop's Seats"
        unique_together = [("user", "room")]

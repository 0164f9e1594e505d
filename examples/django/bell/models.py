from django.conf import settings
from django.db import models


class Notification(models.Model):
    """Nothing here is about Tidings: a migration makes it send each new row."""

    text = models.CharField(max_length=200)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    sent = models.BooleanField(default=False)

    def __str__(self):
        return self.text

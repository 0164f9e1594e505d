from django.contrib.auth.models import AbstractUser
from django.db import models


class User(AbstractUser):
    """The tests name users, so the name is the primary key."""

    username = models.CharField(primary_key=True, max_length=150)

"""One channel for each user, formatted from the path as in the README."""

import django_eventstream
from django.urls import include, path

urlpatterns = [
    path(
        "events/<user>/",
        include(django_eventstream.urls),
        {"format-channels": ["user-{user}"]},
    ),
]

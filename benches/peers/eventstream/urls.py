"""One channel for each user, as the README formats channels from what the path says."""

import django_eventstream
from django.urls import include, path

urlpatterns = [
    path(
        "events/<user>/",
        include(django_eventstream.urls),
        {"format-channels": ["user-{user}"]},
    ),
]

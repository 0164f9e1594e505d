"""The package's own storage, which gives its connection back."""

from django.db import connection
from django_eventstream.storage import DjangoModelStorage


class Storage(DjangoModelStorage):
    """Django returns a request's connection when the response ends. A stream's doesn't, so each
    open stream would keep one: PostgreSQL's hundred are used up by a hundred streams.
    """

    def get_events(self, channel, last_id, limit=100):
        try:
            return super().get_events(channel, last_id, limit)
        finally:
            connection.close()

    def get_current_id(self, channel):
        try:
            return super().get_current_id(channel)
        finally:
            connection.close()

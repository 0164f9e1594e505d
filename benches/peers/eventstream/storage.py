"""The package's own storage, modified to return its database connection to the pool."""

from django.db import connection
from django_eventstream.storage import DjangoModelStorage


class Storage(DjangoModelStorage):
    """Django returns a request's connection when the response ends. A stream's response doesn't end,
    so each open stream would keep one: a hundred streams use up PostgreSQL's hundred connections.
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

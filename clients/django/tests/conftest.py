from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection

from tests import postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 120
"""Seconds after which a test gives up on what it waits for."""


@dataclass(frozen=True)
class Event:
    name: str
    data: str


class Stream:
    """A connection to the bridge, which reads one event after the other."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        request = urllib.request.Request(url, headers=headers or {})
        self.response = urllib.request.urlopen(request, timeout=PATIENCE)

    def __iter__(self) -> Iterator[Event]:
        fields: dict[str, str] = {}
        for line in self.response:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif "data" in fields:
                yield Event(fields.get("event", "message"), fields["data"])
                fields = {}

    def next_of(self, name: str) -> str:
        return next(event.data for event in self if event.name == name)

    def until_live(self) -> Stream:
        self.next_of("tidings.caught-up")
        return self

    def close(self) -> None:
        self.response.close()


class Bridge:
    """A real bridge, for the tests' database."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [postgres.tidings(), "serve", "--log-format=json", *arguments],
            env={
                "DATABASE_URL": postgres.server.url("shop", "bridge"),
                "TIDINGS_SCHEMA": "tidings",
                "TIDINGS_MIGRATE": "never",
                "TIDINGS_JWT_SECRET": settings.TIDINGS_JWT_SECRET,
                "TIDINGS_LISTEN": "127.0.0.1:0",
                "TIDINGS_ADMIN_LISTEN": "127.0.0.1:0",
                "TIDINGS_SETTLE": "100ms",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = self._url()

    def _url(self) -> str:
        for line in self.process.stderr:
            entry = json.loads(line)
            if "admin_address" in entry:
                # It writes little more than it keeps in the pipe, but it must not wait for it.
                Thread(target=self.process.stderr.read, daemon=True).start()
                return f"http://{entry['address']}/stream"
        raise AssertionError("the bridge didn't start")

    def stream(self, cookie: str) -> Stream:
        """The stream of the user for whom a response set this cookie."""
        return Stream(self.url, {"Cookie": f"tidings_token={cookie}"})

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0


@pytest.fixture
def alice(db) -> User:
    return User.objects.create_user("alice")


@pytest.fixture
def bob(db) -> User:
    return User.objects.create_user("bob")


@pytest.fixture
def bridge(transactional_db) -> Iterator[Bridge]:
    bridge = Bridge()
    yield bridge
    bridge.stop()


@pytest.fixture
def tickets_for_topics(db) -> None:
    with connection.cursor() as cursor:
        cursor.execute("select 1 from pg_proc where proname = 'create_stream_ticket' and pronargs = 3")
        if cursor.fetchone() is None:
            pytest.skip("migration 29 is missing")


@pytest.fixture
def eventually():
    """Waits until something holds."""

    def wait(condition) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.02)

    return wait

"""Applications' tests run without Tidings being installed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from django.apps import apps
from django.db import connection
from django.db.migrations.state import ProjectState

from tests import postgres
from tidings_django import (
    create_stream_ticket,
    send_to_everyone,
    send_to_topic,
    stand_in,
    subscribe,
    unsubscribe,
)
from tidings_django.operations import WatchMemberships

EXAMPLE = postgres.CHECKOUT / "examples/django"


def test_the_examples_tests_pass_with_a_database_that_has_no_tidings():
    run = subprocess.run(
        [sys.executable, "manage.py", "test"],
        cwd=EXAMPLE,
        env={
            "PYTHONPATH": str(postgres.CHECKOUT / "clients/django/src"),
            "PGHOST": str(postgres.server.folder),
            "PGUSER": postgres.SUPERUSER,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert re.search(r"Ran \d+ tests", run.stderr)


@pytest.mark.django_db
def test_an_installed_tidings_is_not_replaced():
    with connection.cursor() as cursor:
        cursor.execute("select 'tidings.notifications'::regclass::oid")
        before = cursor.fetchone()
        stand_in.create("default")
        cursor.execute("select 'tidings.notifications'::regclass::oid")
        assert cursor.fetchone() == before


@pytest.mark.django_db
def test_it_has_the_tables_columns(settings):
    """Which an application may use; the others are only for the bridge."""
    settings.TIDINGS_SCHEMA = "another"
    columns = (
        "select attname, format_type(atttypid, atttypmod), attnotnull, attidentity "
        "from pg_attribute where attrelid = %s::regclass and attnum > 0 and attname <> 'xid' "
        "order by attname"
    )
    with connection.cursor() as cursor:
        stand_in.create("default")
        cursor.execute(columns, ["another.notifications"])
        stood_in = cursor.fetchall()
        cursor.execute(columns, ["tidings.notifications"])
        assert stood_in == cursor.fetchall()
        cursor.execute("select another.send_notification('7', 'x', expires_at => now())")
        cursor.execute("select another.disconnect_user('7'), another.create_stream_ticket('7')")
        send_to_topic("team:7", "Hello")
        send_to_everyone("Hello")
        cursor.execute("select another.send_to_topic('team:7', 'x'), another.send_to_everyone('x')")
        cursor.execute("select topic from another.notifications where user_id is null order by id")
        assert cursor.fetchall() == [("team:7",), ("*",), ("team:7",), ("*",)]
        assert [subscribe("7", "team:7"), subscribe("7", "team:7")] == [True, False]
        assert [unsubscribe("7", "team:7"), unsubscribe("7", "team:7")] == [True, False]
        assert create_stream_ticket(None, topics=["team:7"])
        with connection.schema_editor() as editor:
            watch = WatchMemberships("Seat", topic="room", prefix="room:")
            state = ProjectState.from_apps(apps)
            watch.database_forwards("shop", editor, state, state)
            watch.database_backwards("shop", editor, state, state)

"""Applications' tests run without Tidings being installed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from django.db import connection

from tests import postgres
from tidings_django import stand_in

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

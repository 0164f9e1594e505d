from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings as project
from django.core import mail
from django.core.checks import run_checks
from django.db import connection, connections
from django.test import override_settings


def found(**options) -> dict[str, str]:
    messages = run_checks(**options)
    return {m.id: f"{m.msg} {m.hint}" for m in messages if m.id.startswith("tidings.")}


def test_a_project_as_the_readme_describes_it_has_no_problems():
    assert found() == {}


@pytest.mark.parametrize(
    ("name", "value", "id_", "text"),
    [
        ("TIDINGS_COOKIE_NAM", "x", "tidings.W001", "Did you mean TIDINGS_COOKIE_NAME?"),
        ("TIDINGS_DATABASE", "absent", "tidings.E001", "no 'absent'"),
        ("TIDINGS_JWT_SECRET", "x" * 31, "tidings.E002", "fewer than 32 bytes"),
        ("TIDINGS_TOKEN_LIFETIME", 3600, "tidings.E003", "timedelta"),
        ("TIDINGS_TOKEN_LIFETIME", timedelta(), "tidings.E003", "timedelta"),
        ("TIDINGS_TOKEN_LIFETIME", timedelta(days=2), "tidings.E003", "24 hours"),
        ("TIDINGS_USER_ID", "tests.absent.f", "tidings.E004", "No module named"),
        ("TIDINGS_USER_ID", 7, "tidings.E004", "7"),
        ("TIDINGS_TOPICS", "tests.absent.f", "tidings.E008", "No module named"),
        ("TIDINGS_TOPICS", ["team:7"], "tidings.E008", "path of a function"),
        ("TIDINGS_COOKIE_PATH", "/str", "tidings.E005", "doesn't get the cookie"),
        ("TIDINGS_COOKIE_NAME", "__Host-x", "tidings.E005", 'TIDINGS_COOKIE_PATH = "/"'),
        ("MIDDLEWARE", project.MIDDLEWARE[:-1], "tidings.E006", "no cookie is set"),
        ("ROOT_URLCONF", "tests.no_urls", "tidings.E007", "include("),
    ],
)
def test_a_setting_that_can_not_work_is_found(settings, name, value, id_, text):
    setattr(settings, name, value)
    problems = found()
    assert list(problems) == [id_]
    assert text in problems[id_]


@pytest.mark.parametrize(
    ("path", "stream"), [("/", "/stream"), ("/live", "/live/stream"), ("/live/", "/live/stream")]
)
def test_a_path_that_covers_the_stream_is_no_problem(settings, path, stream):
    settings.TIDINGS_COOKIE_PATH, settings.TIDINGS_STREAM_URL = path, stream
    assert found() == {}


def test_a_missing_secret_is_a_problem_in_production_only(settings, monkeypatch):
    settings.TIDINGS_JWT_SECRET = ""
    assert found() == {}  # while testing
    monkeypatch.delattr(mail, "outbox")
    assert "not set" in found()["tidings.E002"]
    settings.DEBUG = True
    assert found() == {}


def test_another_database_than_postgres_is_found(monkeypatch):
    monkeypatch.setattr(connections["default"], "vendor", "sqlite")
    assert "not PostgreSQL" in found()["tidings.E001"]


@pytest.mark.django_db
class TestDatabase:
    def test_a_role_with_the_privileges_has_no_problems(self):
        assert found(databases=["default"]) == {}

    def test_a_missing_schema_is_found(self, settings):
        settings.TIDINGS_SCHEMA = "absent"
        problems = found(databases=["default"])
        assert "doesn't contain Tidings" in problems["tidings.W002"]
        assert found() == {}

    def test_a_tidings_without_topics_is_found(self):
        with connection.cursor() as cursor:
            cursor.execute("create schema old create table notifications (user_id text)")
            with override_settings(TIDINGS_SCHEMA="old"):
                assert "an earlier version" in found(databases=["default"])["tidings.W002"]

    @pytest.mark.parametrize(
        ("role", "id_", "text"),
        [
            ("plain_writer", "tidings.W003", 'grant tidings_issuer to "plain_writer"'),
            ("pg_monitor", "tidings.W002", "'pg_monitor' may not use it"),
        ],
    )
    def test_missing_privileges_are_found(self, role, id_, text):
        with connection.cursor() as cursor:
            cursor.execute(f"set local role {role}")
            problems = found(databases=["default"])
            cursor.execute("reset role")
        assert list(problems) == [id_]
        assert text in problems[id_]

"""`manage.py tidings`, which replaces itself by the program."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from tests import postgres
from tests.conftest import PATIENCE
from tests.website import Project, create_database
from tidings_django.management.commands import tidings as command


@pytest.fixture(scope="module")
def project():
    return Project(postgres.CHECKOUT / "examples/django", create_database("command"))


def test_a_command_of_the_program_runs_with_djangos_database(project: Project):
    project.run("python manage.py tidings migrate")
    assert json.loads(project.run("python manage.py tidings status --json"))
    id_ = project.run("python manage.py tidings send 7 Hello --event greeting")
    assert id_.strip() == "1"


def test_its_exit_code_is_the_programs(project: Project):
    assert project.try_to_run("python manage.py tidings absent").returncode == 2


def test_dev_stops_as_the_program_does(project: Project):
    process = project.start_bridge()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0


def test_a_mistake_in_the_arguments_is_explained(project: Project):
    done = project.try_to_run("python manage.py tidings dev x")
    assert "Usage: manage.py tidings dev" in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [(None, "pip install tidings-bridge"), ("/absent", "/absent can't be run")],
)
def test_a_missing_program_is_explained(settings, monkeypatch, tmp_path, given, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TIDINGS_BINARY", raising=False)
    settings.TIDINGS_BINARY = given
    with pytest.raises(CommandError, match=message):
        call_command("tidings", "status")


def test_a_program_beside_python_needs_no_path(settings, monkeypatch, tmp_path: Path):
    monkeypatch.delenv("TIDINGS_BINARY", raising=False)
    monkeypatch.setattr(command.sysconfig, "get_path", lambda _: str(tmp_path))
    program = tmp_path / "tidings"
    program.write_text("")
    program.chmod(0o755)
    assert command._program() == str(program)


@pytest.mark.django_db
def test_the_database_is_that_of_djangos_connection(transactional_db):
    assert command._database_url().split()[1:4] == ["port='5432'", "dbname='shop'", "user='app'"]


def test_values_with_quotes_and_backslashes_are_escaped():
    assert command._quote("it's a \\") == "'it\\'s a \\\\'"


def test_pages_of_runservers_addresses_may_open_streams():
    settings = command._dev_settings("0.0.0.0:9000")
    assert settings["TIDINGS_CORS_ORIGINS"].split(",") == [
        "http://localhost:9000",
        "http://127.0.0.1:9000",
        "http://[::1]:9000",
        "http://0.0.0.0:9000",
    ]

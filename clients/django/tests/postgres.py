"""A private PostgreSQL with Tidings, and with roles that have no more privileges than they need.

A plugin of pytest, which starts the server before Django's settings are read. `tidings` is found
through TIDINGS_BINARY, and PostgreSQL through PG_BIN_DIR; both have defaults.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
TEMPLATE = "tidings_template"
SUPERUSER = "postgres"

# An application's role, as in docs/install.md. It may also read the table, which
# `captured_notifications` needs; `tests/test_sending.py` tries what works without.
INSTALLED = """
create role app login createdb;
grant tidings_writer, tidings_issuer to app;
grant select on tidings.notifications to app;
create role plain_writer;
grant tidings_writer to plain_writer;
grant plain_writer, pg_monitor to app;
create role bridge login;
grant tidings_bridge to bridge;
"""

server: Server | None = None


def tidings() -> str:
    program = os.environ.get("TIDINGS_BINARY", str(CHECKOUT / "target/debug/tidings"))
    if shutil.which(program) is None:
        raise pytest.UsageError(f"{program} can't be run: build it, or set TIDINGS_BINARY")
    return program


class Server:
    def __init__(self) -> None:
        # Short, because the path of a socket may have at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="tidings-", dir="/tmp"))
        # PostgreSQL refuses to run as root.
        self.account = {"user": SUPERUSER, "extra_groups": []} if os.geteuid() == 0 else {}
        if self.account:
            shutil.chown(self.folder, SUPERUSER)
        self.data = self.folder / "data"
        self._run("initdb", "-D", self.data, "-U", SUPERUSER, "-E", "UTF8", "-A", "trust", "-N")
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off"
        self._run(
            "pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "-o", options, "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def url(self, database: str, role: str = SUPERUSER) -> str:
        return f"host={self.folder} dbname={database} user={role}"

    def sql(self, database: str, sql: str) -> None:
        """Runs statements as a superuser."""
        self._psql(database, "-c", sql)

    def install(self, database: str) -> None:
        """Installs Tidings in the database, as docs/install.md does."""
        self.sql("postgres", f"create database {database}")
        self._psql(database, "-v", "schema=tidings", "-f", CHECKOUT / "sql/roles.sql")
        environment = {"DATABASE_URL": self.url(database), "TIDINGS_SCHEMA": "tidings"}
        subprocess.run([tidings(), "migrate"], env=environment, check=True, capture_output=True)

    def _psql(self, database: str, *arguments: object) -> None:
        command = ["psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", self.url(database)]
        self._check([*command, *map(str, arguments)])

    def _run(self, program: str, *arguments: object) -> None:
        self._check([_program(program), *map(str, arguments)], cwd=self.folder, **self.account)

    @staticmethod
    def _check(command: list[str], **options: object) -> None:
        # Not a pipe: the server inherits it, and it would never end.
        with tempfile.TemporaryFile("w+") as output:
            done = subprocess.run(command, stdout=output, stderr=output, check=False, **options)
            output.seek(0)
            assert done.returncode == 0, f"{command}: {output.read()}"


def _program(name: str) -> str:
    folders = [
        os.environ.get("PG_BIN_DIR", ""),
        *map(str, Path("/usr/lib/postgresql").glob("*/bin")),
    ]
    found = shutil.which(name, path=os.pathsep.join([*folders, os.environ["PATH"]]))
    if found is None:
        raise pytest.UsageError(f"{name} was not found: install PostgreSQL, or set PG_BIN_DIR")
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    global server
    server = Server()
    atexit.register(server.stop)
    os.environ["TIDINGS_TEST_HOST"] = str(server.folder)
    server.install(TEMPLATE)
    server.sql(TEMPLATE, INSTALLED)
    server.sql("postgres", f"alter database {TEMPLATE} is_template true")

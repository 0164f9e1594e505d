from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from argparse import REMAINDER
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from tidings_django import conf

if TYPE_CHECKING:
    from argparse import ArgumentParser

RUNSERVER_PORT = "8000"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class Command(BaseCommand):
    help = (
        "Runs the program tidings with Django's database and settings, for example "
        "`manage.py tidings status`. `manage.py tidings dev` installs the schema and runs a bridge "
        "for runserver (`manage.py tidings dev PORT` if runserver doesn't listen on 8000)."
    )
    # The program has checks of its own, and these would report what `migrate` is about to install.
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("subcommand", help="dev, or a command of the program")
        parser.add_argument("arguments", nargs=REMAINDER, help="passed on to the program")

    def handle(self, *, subcommand: str, arguments: list[str], **options: Any) -> None:
        program = _program()
        environment = {**_inherited(), **_settings()}
        if subcommand == "dev":
            environment |= _dev_settings(*arguments)
            migrated = subprocess.run([program, "migrate"], env=environment, check=False)  # noqa: S603
            if migrated.returncode:
                raise CommandError("tidings migrate failed", returncode=migrated.returncode)
            self.stdout.write(
                f"The bridge listens on {environment['TIDINGS_LISTEN']}, for pages of "
                f"{environment['TIDINGS_CORS_ORIGINS']}. Quit it with Control-C."
            )
            self.stdout.flush()
            subcommand, arguments = "serve", []
        # The program takes this process's place, so that signals and exit codes are its own.
        os.execve(program, [program, subcommand, *arguments], environment)  # noqa: S606


def _program() -> str:
    given = conf.binary()
    # Where `pip install tidings-bridge` puts it; a virtual environment needn't be on the PATH.
    installed = str(Path(sysconfig.get_path("scripts"), "tidings"))
    program = shutil.which(given or installed) or (None if given else shutil.which("tidings"))
    if program is None:
        raise CommandError(
            f"{given} can't be run: see TIDINGS_BINARY."
            if given
            else "The program tidings is not installed. Run `pip install tidings-bridge`, or set "
            "TIDINGS_BINARY to its path."
        )
    return program


def _inherited() -> dict[str, str]:
    """This process's environment, without what would contradict or isn't known to the program."""
    replaced = {"TIDINGS_BINARY", "DATABASE_URL_FILE", "TIDINGS_JWT_SECRET_FILE"}
    return {name: value for name, value in os.environ.items() if name not in replaced}


def _settings() -> dict[str, str]:
    settings = {
        "DATABASE_URL": _database_url(),
        "TIDINGS_SCHEMA": conf.schema(),
        "TIDINGS_COOKIE_NAME": conf.cookie_name(),
        "TIDINGS_JWT_SECRET": conf.jwt_secret(),
    }
    return {name: value for name, value in settings.items() if value}


def _dev_settings(runserver: str = RUNSERVER_PORT, *rest: str) -> dict[str, str]:
    """What a bridge beside runserver needs, given runserver's argument."""
    host, _, port = runserver.rpartition(":")
    if rest or not port.isdecimal():
        raise CommandError("Usage: manage.py tidings dev [runserver's port, or address:port]")
    hosts = dict.fromkeys([*LOOPBACK, *([host] if host else [])])
    return {
        "TIDINGS_CORS_ORIGINS": ",".join(f"http://{host}:{port}" for host in hosts),
        "TIDINGS_LISTEN": f"127.0.0.1:{conf.dev_port()}",
        "TIDINGS_ADMIN_LISTEN": f"127.0.0.1:{conf.dev_port() + 1}",
    }


def _database_url() -> str:
    """The parameters of Django's own connection, which may come from a service file or libpq."""
    connection = connections[conf.database()]
    connection.ensure_connection()
    info = connection.connection.info
    known = getattr(info, "dsn_parameters", None) or info.get_parameters()
    parameters = {
        "host": info.host,
        "port": info.port,
        "dbname": info.dbname,
        "user": info.user,
        "password": info.password,
        **{name: known.get(name) for name in ("sslmode", "sslrootcert", "sslcert", "sslkey")},
    }
    connection.close()
    return " ".join(f"{name}={_quote(str(value))}" for name, value in parameters.items() if value)


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

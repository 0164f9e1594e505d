"""The README's steps, as written, in a project that Django's own commands have just made."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

from tests.website import Browser, Project, free_ports

PACKAGE = Path(__file__).parents[1]
BLOCK = re.compile(r"^( *)```\w+ (\S+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
STEPS = re.compile(r"^## From .*?(?=^## )", re.MULTILINE | re.DOTALL)

README = (PACKAGE / "README.md").read_text()
FILES = {path: dedent(code) for _, path, code in BLOCK.findall(README)}


def test_there_are_at_most_six_steps():
    steps = re.findall(r"^(\d+)\. ", STEPS.search(README)[0], re.MULTILINE)
    assert 0 < len(steps) <= 6


def test_every_setting_is_documented():
    from tidings_django import conf

    documented = re.findall(r"^\| `(TIDINGS_\w+)` \|", README, re.MULTILINE)
    assert set(documented) == conf.NAMES


def test_every_function_is_documented():
    import tidings_django

    for name in tidings_django.__all__:
        assert f"`{name}" in README


def test_a_fresh_project_shows_what_a_form_sends_on_the_next_page(tmp_path: Path):
    fresh = PACKAGE / "tests/fresh"
    for command in (["startproject", "mysite", "."], ["startapp", "shop"]):
        subprocess.run([sys.executable, "-m", "django", *command], cwd=tmp_path, check=True)
    shutil.copytree(fresh, tmp_path, dirs_exist_ok=True)

    # The steps. Settings and URLs are added to what is there, as is the script to the template.
    for name in ("settings", "urls"):
        file = tmp_path / f"mysite/{name}.py"
        own = (fresh / f"{name}.txt").read_text()
        file.write_text(file.read_text() + own + FILES[f"mysite/{name}.py"])
    base = tmp_path / "templates/base.html"
    base.write_text(base.read_text() + FILES["templates/base.html"])
    (tmp_path / "shop/models.py").write_text(FILES["shop/models.py"])

    bridge, admin, server = free_ports()
    project = Project(tmp_path, "fresh", {"DEV_PORT": str(bridge)})
    browser = None
    try:
        project.manage("makemigrations", "shop")
        migration = "shop/migrations/0002_send_rows.py"
        (tmp_path / migration).write_text(FILES[migration])

        project.start_bridge(server, admin)
        project.manage("migrate")
        assert "no issues" in project.manage("check", "--database", "default")
        project.manage(
            "shell",
            "-c",
            "from django.contrib.auth.models import User; "
            "User.objects.create_user('alice', password='alice')",
        )
        origin = project.start_server(server)

        browser = Browser()
        browser.open(origin)
        browser.fill_in(username="alice", password="alice")
        for text in ("one", "two", "three"):
            browser.fill_in(text=text)
            browser.until_shown("#notification", text)
    finally:
        if browser:
            browser.stop()
        project.stop()

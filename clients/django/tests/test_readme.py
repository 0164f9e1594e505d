"""The README's steps, as written, in a project that Django's own commands have just made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from textwrap import dedent
from zipfile import ZipFile

from tests import postgres
from tests.website import Browser, Project, create_database

PACKAGE = Path(__file__).parents[1]
FRESH = PACKAGE / "tests/fresh"
RECIPE = postgres.CHECKOUT / "docs/recipes/django.md"
STEP = re.compile(r"^\d\. .*?(?=^\S)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^   ```(\w+)(?: (\S+))?\n(.*?)^   ```$", re.MULTILINE | re.DOTALL)

README = (PACKAGE / "README.md").read_text()


def steps_of(text: str) -> list[str]:
    section = re.search(r"^## .*? to the first notification\n(.*?)^## ", text, re.M | re.S)
    return STEP.findall(section[1])


def blocks_of(step: str) -> list[tuple[str, str, str]]:
    """Languages, names of files, and texts."""
    return [(language, file, dedent(text)) for language, file, text in BLOCK.findall(step)]


STEPS = steps_of(README)
BLOCKS = [block for step in STEPS for block in blocks_of(step)]
FILES = {file: text for _, file, text in BLOCKS if file}
COMMANDS = [text.splitlines() for language, _, text in BLOCKS if language == "sh"]


def test_there_are_at_most_six_steps_and_the_recipe_has_the_same():
    assert 0 < len(STEPS) <= 6
    recipe = steps_of(RECIPE.read_text())
    assert [blocks_of(step) for step in recipe] == [blocks_of(step) for step in STEPS]


def test_every_setting_is_documented():
    from tidings_django import conf

    documented = re.findall(r"^\| `(TIDINGS_\w+)` \|", README, re.MULTILINE)
    assert set(documented) == conf.NAMES


def test_every_function_is_documented():
    import tidings_django

    for name in tidings_django.__all__:
        assert f"`{name}" in README


def test_a_fresh_project_shows_what_a_form_sends_on_the_next_page(tmp_path: Path):
    venv, wheels, folder = (tmp_path / name for name in ("venv", "wheels", "project"))
    build_wheels(wheels)
    folder.mkdir()
    project = Project(folder, create_database("fresh") | create_environment(venv, wheels))
    [[install], [dev], [migrate, runserver]] = COMMANDS

    # What the developer has before.
    project.run("python -m django startproject mysite .")
    project.run("python -m django startapp inbox")
    shutil.copytree(FRESH, folder, dirs_exist_ok=True)
    for name in ("settings", "urls"):
        append_to(folder / f"mysite/{name}.py", (FRESH / f"{name}.txt").read_text())
    (folder / "inbox/models.py").write_text(FILES["inbox/models.py"])
    project.run("python manage.py makemigrations inbox")

    # Step 1.
    project.run(install)
    # Steps 2 to 4. What isn't a file of its own is added to the developer's.
    for file, text in FILES.items():
        if file != "inbox/models.py":
            append_to(folder / file, text)
    # Step 5, with free ports instead of the usual ones.
    browser = None
    try:
        project.start_bridge(dev)
        project.run(migrate)
        assert "no issues" in project.run("python manage.py check --database default")
        create = "User.objects.create_user('alice', password='alice')"
        project.shell(f"from django.contrib.auth.models import User; {create}")
        project.start_server(runserver)

        browser = Browser()
        browser.open(project.origin)
        browser.fill_in(username="alice", password="alice")
        for text in ("one", "two", "three"):
            browser.fill_in(text=text)
            browser.until_shown("#notification", text)
    finally:
        if browser:
            browser.stop()
        project.stop()


def append_to(file: Path, text: str) -> None:
    file.write_text((file.read_text() if file.exists() else "") + text)


def create_environment(folder: Path, wheels: Path) -> dict[str, str]:
    """A virtual environment with Django and a driver. Returns its variables."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([python, "-c", code], text=True).strip()
    Path(packages, "tests.pth").write_text(sysconfig.get_path("purelib"))
    pip = folder / "bin/pip"
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip --python {python} "$@"\n')
    pip.chmod(0o755)
    return {
        "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": "",
        "TIDINGS_BINARY": "",
        # From these files only, which also means that nothing is compiled.
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_ONLY_BINARY": ":all:",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def build_wheels(folder: Path) -> None:
    """
    The package, and the wheel TIDINGS_BRIDGE_WHEEL that `make dist` has built. Without it, a wheel
    with the program that the tests use.
    """
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(build, cwd=PACKAGE, check=True, capture_output=True)
    if built := os.environ.get("TIDINGS_BRIDGE_WHEEL"):
        shutil.copy(built, folder)
        return
    name = "tidings_bridge-0.2.0"
    files = {
        "METADATA": "Metadata-Version: 2.1\nName: tidings-bridge\nVersion: 0.2.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.write(postgres.tidings(), f"{name}.data/scripts/tidings")
        for file, text in files.items():
            wheel.writestr(f"{name}.dist-info/{file}", text)

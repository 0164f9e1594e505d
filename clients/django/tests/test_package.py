"""What is published."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

PACKAGE = Path(__file__).parents[1]


def test_the_wheel_has_every_file_and_depends_on_django_alone(tmp_path: Path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=PACKAGE, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name) for name in names if name.endswith("/METADATA"))
    published = {name for name in names if name.startswith("tidings_django/")}
    sources = (PACKAGE / "src").rglob("*")
    assert published == {
        path.relative_to(PACKAGE / "src").as_posix()
        for path in sources
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"tidings_django/py.typed", "tidings_django/static/tidings_django/page.js"} <= published
    lines = metadata.decode().splitlines()
    assert [line for line in lines if line.startswith("Requires-Dist")] == [
        "Requires-Dist: django>=4.2"
    ]

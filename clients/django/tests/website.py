"""A project that runs as its developer runs it, with `manage.py` and Chromium."""

from __future__ import annotations

import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests import postgres
from tests.conftest import PATIENCE

PACKAGE = Path(__file__).parents[1]


BRIDGE = 80
"""How far the bridge's port is from runserver's, as by default; the next one is for operators."""


def free_port() -> int:
    """A port for runserver, with ports for the bridge."""
    while True:
        # Below those that the system gives to clients.
        port = random.randrange(10_000, 32_000)
        if all(map(is_free, (port, port + BRIDGE, port + BRIDGE + 1))):
            return port


def is_free(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


class Project:
    """A folder with a manage.py, and ports of its own."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.port = free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self.admin = f"http://127.0.0.1:{self.port + BRIDGE + 1}"
        self.variables = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{PACKAGE}:{PACKAGE / 'src'}",
            "TIDINGS_BINARY": postgres.tidings(),
            "BRIDGE_PORT": str(self.port + BRIDGE),
            **variables,
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def try_to_run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            shlex.split(command),
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def run(self, command: str) -> str:
        done = self.try_to_run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def shell(self, code: str) -> str:
        return self.run(f"python manage.py shell -c {shlex.quote(code)}")

    def start(self, command: str) -> subprocess.Popen[bytes]:
        command = shlex.split(command)
        process = subprocess.Popen(command, cwd=self.folder, env=self.variables)
        self.processes.append(process)
        return process

    def start_bridge(self, command: str = "python manage.py tidings dev"):
        process = self.start(f"{command} {self.port}")
        until_answers(f"{self.admin}/health/ready")
        return process

    def start_server(self, command: str = "python manage.py runserver") -> None:
        self.start(f"{command} {self.port}")
        until_answers(f"{self.origin}/login/")

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(PATIENCE)


def create_database(name: str) -> dict[str, str]:
    """Returns the variables with which Django and libpq find it."""
    postgres.server.sql("postgres", f"create database {name} owner app")
    return {"PGHOST": str(postgres.server.folder), "PGUSER": "app", "PGDATABASE": name}


def until_answers(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not answers(url):
        assert time.monotonic() < deadline, f"{url} never answered"
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=PATIENCE).close()
    except OSError:
        return False
    return True


class Browser:
    """Chromium. Texts that the page shows are looked up by CSS."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = os.environ.get("CHROME") or shutil.which("chromium")
        options.add_argument("--headless=new")
        options.add_argument("--no-sandbox")
        options.add_argument("--disable-dev-shm-usage")
        options.add_argument("--hide-scrollbars")  # for the picture in docs
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))

    def open(self, url: str) -> None:
        self.driver.get(url)

    def tab(self) -> str:
        return self.driver.current_window_handle

    def new_tab(self) -> str:
        """Opens a tab and switches to it."""
        self.driver.switch_to.new_window("tab")
        return self.tab()

    def switch_to(self, tab: str) -> None:
        self.driver.switch_to.window(tab)

    def resize(self, width: int, height: int) -> None:
        """The page, with two pixels for each in both directions."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def click(self, css: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, css).click()

    def fill_in(self, **fields: str) -> None:
        """Fills in a form and sends it."""
        for name, value in fields.items():
            field = self.driver.find_element(By.CSS_SELECTOR, f"main [name={name}]")
            field.send_keys(value)
        self.click("main form button")

    def texts(self, css: str) -> list[str]:
        found = self.driver.find_elements(By.CSS_SELECTOR, css)
        return [element.get_property("textContent") for element in found]

    def until(self, condition, message: str) -> None:
        def explain() -> str:
            return f"{message}; log: {self.driver.get_log('browser')}; {self.driver.page_source}"

        try:
            # A page may be replaced while it is read.
            wait = WebDriverWait(
                self.driver, PATIENCE, ignored_exceptions=[StaleElementReferenceException]
            )
            wait.until(lambda _: condition())
        except TimeoutException as error:
            raise AssertionError(explain()) from error

    def until_shown(self, css: str, *texts: str) -> None:
        self.until(lambda: self.texts(css) == list(texts), f"{css} never showed {texts}")

    def cookies(self) -> dict[str, str]:
        """All cookies, whatever their path."""
        found = self.driver.execute_cdp_cmd("Network.getAllCookies", {})["cookies"]
        return {cookie["name"]: cookie["value"] for cookie in found}

    def delete_cookie(self, name: str, path: str) -> None:
        cookie = {"name": name, "domain": "127.0.0.1", "path": path}
        self.driver.execute_cdp_cmd("Network.deleteCookies", cookie)

    def watch_status(self) -> None:
        """Makes the page remember what `tidings:status` says from now on."""
        self.driver.execute_script(
            "document.addEventListener('tidings:status', "
            "({ detail }) => { document.body.dataset.status = detail })"
        )

    def status(self) -> str | None:
        return self.driver.execute_script("return document.body.dataset.status")

    def stop(self) -> None:
        self.driver.quit()

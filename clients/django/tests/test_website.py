"""The example in a real browser, run as its README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests import postgres
from tests.conftest import PATIENCE
from tests.website import Browser, Project, answers, until_answers

EXAMPLE = postgres.CHECKOUT / "examples/django"

NOTIFICATIONS = "#notifications li"


class Site(Project):
    """The example, started by its own script, with a Content-Security-Policy."""

    def __init__(self) -> None:
        settings = {"DJANGO_SETTINGS_MODULE": "tests.example_settings"}
        super().__init__(EXAMPLE, settings)
        self.process = subprocess.Popen(
            ["scripts/private-postgres", "examples/django/run", str(self.port)],
            cwd=postgres.CHECKOUT,
            env=os.environ | self.variables | {"PYTHON": sys.executable},
            stdout=subprocess.PIPE,
            text=True,
        )
        printed = iter(self.process.stdout.readline, "")
        command = next(line for line in printed if "psql" in line)
        _, _, self.database, _, user, name = command.split()
        self.variables |= {"PGHOST": self.database, "PGUSER": user, "PGDATABASE": name}
        until_answers(f"{self.admin}/health/ready")
        until_answers(f"{self.origin}/login/")

    def stop(self) -> None:
        """Nothing may remain."""
        self.process.terminate()
        self.process.communicate(timeout=PATIENCE)
        assert not answers(self.origin)
        assert not answers(self.admin)
        assert not Path(self.database).exists()

    def shell(self, code: str) -> str:
        setup = (
            "from django.contrib.auth.models import User; import tidings_django as tidings; "
            "from bell.models import Notification; alice = User.objects.get(username='alice'); "
        )
        return super().shell(setup + code)

    def is_sent(self, text: str) -> bool:
        return "sent: True" in self.shell(
            f"print('sent:', Notification.objects.get(text={text!r}).sent)"
        )

    def connections(self) -> int:
        metrics = urllib.request.urlopen(f"{self.admin}/metrics").read().decode()
        return int(re.search(r"^tidings_connections (\d+)$", metrics, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def site():
    site = Site()
    yield site
    site.stop()


@pytest.fixture
def browser(site: Site):
    browser = Browser()
    try:
        browser.open(site.origin)
        log_in(browser, "alice")
        yield browser
    finally:
        browser.stop()


def log_in(browser: Browser, user: str) -> None:
    browser.fill_in(username=user, password=user)
    browser.until(lambda: browser.texts("header span") == [user], f"{user} isn't logged in")


def test_what_a_form_sends_is_shown_on_the_next_page_and_in_other_tabs(
    site: Site, browser: Browser
):
    first = browser.tab()
    second = browser.new_tab()
    browser.open(site.origin)
    assert browser.texts(NOTIFICATIONS) == []
    browser.fill_in(text="Your lamp is on its way")
    browser.until_shown("#count", "1")
    assert browser.texts(NOTIFICATIONS) == ["Your lamp is on its way"]
    browser.switch_to(first)
    browser.until_shown(NOTIFICATIONS, "Your lamp is on its way")
    browser.until(lambda: site.connections() == 1, "each tab has a stream of its own")
    browser.until(lambda: site.is_sent("Your lamp is on its way"), "the row wasn't marked")

    # A new page begins with the rows of the application, and gets none of them a second time.
    browser.open(site.origin)
    browser.fill_in(text="Bob wrote to you")
    browser.until_shown("#count", "1")
    assert browser.texts(NOTIFICATIONS) == ["Bob wrote to you", "Your lamp is on its way"]
    browser.switch_to(second)
    browser.until_shown(NOTIFICATIONS, "Bob wrote to you", "Your lamp is on its way")
    assert browser.texts("#count") == ["2"]
    browser.until(lambda: site.is_sent("Bob wrote to you"), "the row wasn't marked")

    if picture := os.environ.get("TIDINGS_PICTURE"):
        take_picture(browser, [first, second], Path(picture))


def test_a_page_whose_cookie_has_expired_gets_a_new_one(site: Site, browser: Browser):
    browser.until(lambda: site.connections() == 1, "no stream")
    browser.delete_cookie("tidings_token", path="/stream")
    assert "tidings_token" not in browser.cookies()
    site.shell("tidings.disconnect_user(alice)")
    browser.until(lambda: "tidings_token" in browser.cookies(), "no new cookie")
    site.shell("tidings.send_notification(alice, 'after a refresh', ref='7')")
    browser.until(lambda: "after a refresh" in browser.texts(NOTIFICATIONS), "no notification")


def test_a_logout_ends_the_streams_of_all_tabs(site: Site, browser: Browser):
    leader = browser.tab()
    browser.until(lambda: site.connections() == 1, "no stream")
    browser.watch_status()
    follower = browser.new_tab()
    browser.open(site.origin)
    browser.click("header button")
    browser.until(lambda: browser.driver.title == "Log in", "still logged in")
    assert "tidings_token" not in browser.cookies()
    assert browser.texts("#tidings-options") == []
    browser.switch_to(leader)
    browser.until(lambda: browser.status() == "denied", "the other tab's stream goes on")

    # Its page remains Alice's.
    browser.switch_to(follower)
    log_in(browser, "bob")
    browser.fill_in(text="to Bob")
    browser.until_shown("#count", "1")
    browser.switch_to(leader)
    assert "to Bob" not in browser.texts(NOTIFICATIONS)


def take_picture(browser: Browser, tabs: list[str], path: Path) -> None:
    """Shows both tabs side by side, the first with its list open, as docs/images/bell.png."""
    panes = []
    for tab in tabs:
        browser.switch_to(tab)
        browser.resize(440, 355)
        if tab == tabs[0]:
            browser.click(".bell summary")
        image = browser.driver.get_screenshot_as_base64()
        panes.append(PANE.format(title=browser.driver.title, image=image))
    browser.open("about:blank")
    show = """
        document.body.innerHTML = arguments[0]
        document.body.style = arguments[1]
        return document.querySelector("figure").offsetHeight + 32"""
    browser.resize(936, browser.driver.execute_script(show, "".join(panes), PICTURE))
    path.write_bytes(browser.driver.get_screenshot_as_png())


PICTURE = (
    "margin: 0; padding: 16px; display: flex; gap: 24px; align-items: start; background: #d5dae1"
)
PANE = """
<figure style="margin: 0; border-radius: 8px; overflow: hidden; box-shadow: 0 2px 10px #0003">
  <figcaption style="font: 14px system-ui; padding: 10px 16px; background: #e9ecf0">
    {title}
  </figcaption>
  <img style="display: block" width="440" height="355" src="data:image/png;base64,{image}">
</figure>"""

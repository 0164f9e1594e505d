"""The example in a real browser, run as its README says."""

from __future__ import annotations

import pytest

from tests import postgres
from tests.website import Browser, Project, free_ports

NOTIFICATIONS = "#notifications li"


@pytest.fixture(scope="module")
def site():
    """The origin of the example, and its project."""
    bridge, admin, server = free_ports()
    settings = {
        "DJANGO_SETTINGS_MODULE": "tests.example_settings",
        "PYTHONPATH": f"{postgres.CHECKOUT / 'clients/django'}",
        "DEV_PORT": str(bridge),
    }
    project = Project(postgres.CHECKOUT / "examples/django", "bell", settings)
    try:
        project.start_bridge(server, admin)
        project.manage("migrate")
        yield project, project.start_server(server)
    finally:
        project.stop()


@pytest.fixture
def browser(site):
    browser = Browser()
    browser.open(site[1])
    browser.fill_in(username="alice", password="alice")
    yield browser
    browser.stop()


def sent(project: Project, text: str) -> bool:
    query = f"from bell.models import *; print(Notification.objects.get(text={text!r}).sent)"
    return project.manage("shell", "-c", query).split()[-1] == "True"


def test_what_a_form_sends_is_shown_on_the_next_page_and_once(site, browser: Browser):
    project, origin = site
    assert browser.texts(NOTIFICATIONS) == []
    browser.fill_in(text="Hello")
    browser.until_shown(NOTIFICATIONS, "Hello")
    assert browser.texts("#count") == ["1"]
    browser.until(lambda: sent(project, "Hello"), "the row wasn't marked")
    # Delivered before, so the page shows it and the stream doesn't.
    browser.open(origin)
    browser.until_shown(NOTIFICATIONS, "Hello")
    browser.fill_in(text="Again")
    browser.until_shown(NOTIFICATIONS, "Again", "Hello")


def test_a_page_whose_cookie_has_expired_gets_a_new_one(site, browser: Browser):
    project, _ = site
    before = browser.texts(NOTIFICATIONS)
    browser.driver.execute_cdp_cmd("Network.enable", {})
    browser.driver.execute_cdp_cmd(
        "Network.deleteCookies",
        {"name": "tidings_token", "domain": "127.0.0.1", "path": "/stream"},
    )
    assert "tidings_token" not in browser.cookies()
    project.manage(
        "shell",
        "-c",
        "from django.contrib.auth.models import User; import tidings_django as t; "
        "alice = User.objects.get(username='alice'); "
        "t.disconnect_user(alice); t.send_notification(alice, 'after a refresh')",
    )
    browser.until(
        lambda: "after a refresh" in browser.texts(NOTIFICATIONS), f"{before} and no more"
    )
    assert "tidings_token" in browser.cookies()


def test_logging_out_removes_the_cookie_and_ends_the_stream(site, browser: Browser):
    browser.until(lambda: "tidings_token" in browser.cookies(), "no cookie")
    browser.driver.find_element("css selector", "header button").click()
    browser.until(lambda: browser.driver.title == "Log in", "still logged in")
    assert "tidings_token" not in browser.cookies()
    assert browser.texts("#tidings-options") == []

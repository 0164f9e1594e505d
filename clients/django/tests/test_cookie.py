from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode
from datetime import timedelta
from urllib.error import HTTPError

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_out
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.template import Context, Template
from django.test import AsyncClient, Client, RequestFactory

from tests.conftest import Bridge, Event, Stream
from tidings_django import send_notification
from tidings_django.tokens import create_token, set_cookie

pytestmark = pytest.mark.django_db


@pytest.fixture
def client(alice: User) -> Client:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    return client


def options(page: HttpResponse) -> dict:
    content = page.content.decode()
    return json.loads(re.search(r'id="tidings-options"[^>]*>(.*?)</script>', content)[1])


def test_a_page_with_the_script_sets_the_cookie(client: Client, settings):
    page = client.get("/")
    cookie = page.cookies["tidings_token"]
    assert (cookie["path"], cookie["samesite"], cookie["max-age"]) == ("/stream", "Strict", 3600)
    assert cookie["httponly"]
    assert cookie["secure"]
    assert "private" in page["Cache-Control"]

    settings.DEBUG = True
    assert not client.get("/").cookies["tidings_token"]["secure"]


def test_other_pages_and_other_people_get_no_cookie(client: Client):
    assert "tidings_token" not in client.get("/plain/").cookies
    page = Client().get("/")
    assert "tidings_token" not in page.cookies
    assert page.content.strip() == b""


def test_an_asynchronous_site_sets_the_cookie(client: Client):
    browser = AsyncClient()
    browser.cookies = client.cookies

    async def get() -> HttpResponse:
        return await browser.get("/")

    assert async_to_sync(get)().cookies["tidings_token"]["path"] == "/stream"


def test_the_cookie_is_as_the_settings_say(client: Client, settings):
    settings.TIDINGS_COOKIE_NAME = "__Host-tidings"
    settings.TIDINGS_COOKIE_PATH = "/"
    settings.TIDINGS_TOKEN_LIFETIME = timedelta(minutes=7)
    cookie = client.get("/").cookies["__Host-tidings"]
    assert (cookie["path"], cookie["max-age"]) == ("/", 420)
    settings.TIDINGS_COOKIE_PATH = None
    settings.TIDINGS_STREAM_URL = "/live/stream"
    assert client.get("/").cookies["__Host-tidings"]["path"] == "/live/stream"


def test_the_cookie_is_refreshed_by_a_post_with_the_csrf_token(client: Client):
    given = options(client.get("/"))
    page = {"user": given["user"]}
    assert client.post(given["renew"], page).status_code == 403
    header = "HTTP_" + given["csrf"]["header"].replace("-", "_")
    refreshed = client.post(given["renew"], page, **{header: given["csrf"]["token"]})
    assert refreshed.status_code == 204
    assert refreshed.cookies["tidings_token"]["path"] == "/stream"
    assert client.get(given["renew"], **{header: given["csrf"]["token"]}).status_code == 405


@pytest.mark.parametrize(
    "setting", [{"CSRF_USE_SESSIONS": True}, {"CSRF_COOKIE_HTTPONLY": True}, {}]
)
def test_the_page_can_refresh_wherever_the_csrf_token_is_kept(client: Client, settings, setting):
    settings.CSRF_COOKIE_NAME = "own_name"
    settings.CSRF_HEADER_NAME = "HTTP_X_OWN_NAME"
    for name, value in setting.items():
        setattr(settings, name, value)
    given = options(client.get("/"))
    assert (given["csrf"]["cookie"], given["csrf"]["header"]) == ("own_name", "X-OWN-NAME")
    refreshed = client.post(
        given["renew"], {"user": given["user"]}, HTTP_X_OWN_NAME=given["csrf"]["token"]
    )
    assert refreshed.status_code == 204


@pytest.mark.parametrize("path", ["/tidings/cookie/", "/tidings/ticket/"])
def test_a_page_of_a_user_who_is_not_logged_in_gets_neither_cookie_nor_ticket(
    path: str, alice: User, bob: User
):
    client = Client()
    for _ in ("nobody is", "another user is"):
        for page in ({}, {"user": alice.pk}):
            response = client.post(path, page)
            assert response.status_code == 401
            assert "tidings_token" not in response.cookies
        client.force_login(bob)
    assert client.post(path, {"user": bob.pk}).status_code in (200, 204)


def test_djangos_own_logout_removes_the_cookie(alice: User):
    client = Client()
    client.force_login(alice)
    client.get("/")
    response = client.post("/logout/")
    assert response.status_code == 302
    cookie = response.cookies["tidings_token"]
    assert (cookie.value, cookie["path"], cookie["max-age"]) == ("", "/stream", 0)


def test_users_can_log_out_even_if_their_streams_can_not_be_ended(client: Client, settings, caplog):
    settings.TIDINGS_SCHEMA = "absent"
    browser = Client()
    browser.cookies = client.cookies
    assert browser.post("/logout/").cookies["tidings_token"].value == ""
    assert browser.get("/").content.strip() == b""
    assert "go on until the token expires" in caplog.text
    assert User.objects.exists()  # the transaction goes on, too


def test_a_logout_without_a_request_or_a_user_is_none_of_tidings_business(alice: User):
    user_logged_out.send(User, request=None, user=alice)
    user_logged_out.send(User, request=RequestFactory().get("/"), user=None)


def test_the_bridge_accepts_the_cookie_and_ends_the_stream_at_logout(
    bridge: Bridge, transactional_db, alice: User, bob: User
):
    client = Client()
    client.force_login(alice)
    token = client.get("/").cookies["tidings_token"].value
    stream = bridge.stream(token).until_live()
    others = bridge.stream(create_token(bob)).until_live()
    send_notification(alice, "Hello", event="greeting")
    assert next(iter(stream)) == Event("greeting", "Hello")
    client.post("/logout/")
    assert list(stream) == []
    send_notification(bob, "Bob is still there")
    assert next(iter(others)).data == "Bob is still there"


def test_a_token_ends_with_its_lifetime(bridge: Bridge, alice: User, settings):
    settings.TIDINGS_TOKEN_LIFETIME = timedelta(seconds=-60)
    with pytest.raises(HTTPError, match="401"):
        bridge.stream(create_token(alice))


def test_the_first_secret_signs_while_secrets_are_rotated(bridge: Bridge, alice: User, settings):
    settings.TIDINGS_JWT_SECRET = f" {settings.TIDINGS_JWT_SECRET} \n{'z' * 32}\n"
    bridge.stream(create_token(alice)).until_live()


def test_without_a_secret_there_is_no_token(alice: User, settings, monkeypatch):
    monkeypatch.delattr(mail, "outbox")
    for secret in ("", "x" * 31):
        settings.TIDINGS_JWT_SECRET = secret
        with pytest.raises(ImproperlyConfigured, match="32 bytes"):
            create_token(alice)
    settings.TIDINGS_JWT_SECRET = "ä" * 16
    create_token(alice)


def test_while_developing_a_secret_is_derived_from_djangos(alice: User, settings):
    settings.DEBUG = True
    settings.TIDINGS_JWT_SECRET = ""
    first = create_token(alice).split(".")[2]
    settings.SECRET_KEY = "another"
    assert create_token(alice).split(".")[2] != first


def claims(token: str) -> dict:
    content = token.split(".")[1]
    return json.loads(urlsafe_b64decode(content + "=" * (-len(content) % 4)))


def topics_of(user: User) -> list[str]:
    return [f"plan:{user.username}", "plan:all", "*"]


class TestTopics:
    def test_a_token_grants_what_the_setting_says(self, alice: User, client: Client, settings):
        assert "topics" not in claims(create_token(alice))
        settings.TIDINGS_TOPICS = "tests.test_cookie.topics_of"
        expected = ["plan:alice", "plan:all"]
        assert claims(create_token(alice))["topics"] == expected
        cookie = client.get("/").cookies["tidings_token"]
        assert claims(cookie.value)["topics"] == expected
        assert claims(create_token(alice, topics=["team:7"]))["topics"] == ["team:7"]
        assert "topics" not in claims(create_token(alice, topics=[]))

    def test_the_setting_needs_a_user(self, settings):
        settings.TIDINGS_TOPICS = topics_of
        with pytest.raises(TypeError, match="TIDINGS_TOPICS"):
            create_token("7")
        assert "topics" not in claims(create_token("7", topics=[]))

    @pytest.mark.parametrize(
        ("topics", "error", "message"),
        [
            ("team:7", TypeError, "not the string"),
            ([7], ValueError, "7"),
            ([""], ValueError, "1 to 255 bytes"),
            (["ä" * 128], ValueError, "1 to 255 bytes"),
            (["a\x85"], ValueError, "control characters"),
            ([f"team:{n}" for n in range(101)], ValueError, "at most 100 topics, not 101"),
        ],
    )
    def test_what_the_bridge_would_reject_is_an_error(self, alice: User, topics, error, message):
        with pytest.raises(error, match=message):
            create_token(alice, topics=topics)
        assert create_token(alice, topics=[f"a\u00a0{n}" for n in range(100)])

    def test_a_cookie_that_browsers_would_ignore_is_an_error(self, alice: User, settings):
        settings.TIDINGS_TOPICS = lambda _: [f"team:{n}:{'x' * 30}" for n in range(100)]
        with pytest.raises(ValueError, match="4096 bytes"):
            set_cookie(HttpResponse(), alice)
        assert create_token(alice)


class TestScript:
    @staticmethod
    def render(user: User, host: str = "testserver", **context) -> str:
        request = RequestFactory().get("/", HTTP_HOST=host)
        request.user = user
        return Template("{% load tidings %}{% tidings_script %}").render(
            Context({"request": request, **context})
        )

    def options(self, *arguments, **context) -> dict:
        return options(HttpResponse(self.render(*arguments, **context)))

    def test_the_stream_is_on_the_pages_origin(self, alice: User):
        given = self.options(alice)
        assert (given["stream"], given["user"], given["tickets"]) == (
            "/stream",
            str(alice.pk),
            False,
        )

    def test_beside_runserver_the_bridge_is_on_the_pages_host(self, alice: User, settings):
        settings.DEBUG = True
        settings.ALLOWED_HOSTS = ["*"]
        assert self.options(alice, "127.0.0.1:8000")["stream"] == "http://127.0.0.1:8080/stream"
        settings.TIDINGS_DEV_PORT = 9000
        given = self.options(alice, "[::1]:8000")
        assert (given["stream"], given["tickets"]) == ("http://[::1]:9000/stream", False)

    def test_a_stream_on_another_host_takes_tickets(self, alice: User, settings):
        settings.TIDINGS_STREAM_URL = "https://push.example.com/stream"
        given = self.options(alice)
        assert (given["tickets"], given["renew"]) == (True, "/tidings/ticket/")

    def test_a_nonce_is_on_every_script(self, alice: User):
        assert "nonce" not in self.render(alice)
        rendered = self.render(alice, csp_nonce="abc")
        assert rendered.count('<script defer src="') == 2
        assert rendered.count('.js" nonce="abc"></script>') == 2

    def test_a_nonce_of_django_csp_is_on_every_script(self, alice: User):
        class Nonce(str):
            __slots__ = ()

            def __bool__(self):
                return False

        request = RequestFactory().get("/")
        request.user, request.csp_nonce = alice, Nonce("abc")
        rendered = Template("{% load tidings %}{% tidings_script %}").render(
            Context({"request": request})
        )
        assert rendered.count('.js" nonce="abc"></script>') == 2

    def test_a_user_id_can_not_end_the_script(self, alice: User, settings):
        settings.TIDINGS_USER_ID = "first_name"
        alice.first_name = "</script><script>alert(1)//"
        assert "<script>alert" not in self.render(alice)
        assert self.options(alice)["user"] == alice.first_name

    @pytest.mark.parametrize(
        ("argument", "expected"),
        [
            ("", None),
            ("topics='team:7'", ["team:7"]),
            ("topics=given", ["team:7", "team:8"]),
        ],
    )
    def test_a_page_chooses_among_the_users_topics(self, alice: User, argument, expected):
        request = RequestFactory().get("/")
        request.user = alice
        page = Template(f"{{% load tidings %}}{{% tidings_script {argument} %}}").render(
            Context({"request": request, "given": ("team:7", "team:8")})
        )
        assert options(HttpResponse(page)).get("topics") == expected

    @pytest.mark.parametrize("argument", ["absent", "none", "unnamed"])
    def test_no_topics_at_all_are_a_mistake(self, alice: User, argument):
        request = RequestFactory().get("/")
        request.user = alice
        page = Template(f"{{% load tidings %}}{{% tidings_script topics={argument} %}}")
        with pytest.raises(ValueError, match="topics is empty"):
            page.render(Context({"request": request, "none": [], "unnamed": [""]}))

    def test_a_template_without_the_request_is_an_error(self):
        with pytest.raises(ImproperlyConfigured, match="needs the request"):
            Template("{% load tidings %}{% tidings_script %}").render(Context())


def test_a_ticket_opens_the_stream(bridge: Bridge, alice: User, settings):
    client = Client()
    client.force_login(alice)
    settings.TIDINGS_STREAM_URL = "https://push.example.com/stream"
    given = options(client.get("/"))
    ticket = client.post(given["renew"], {"user": given["user"]}).json()["ticket"]
    stream = Stream(f"{bridge.url}?ticket={ticket}").until_live()
    send_notification(alice, "Hello")
    assert next(iter(stream)).data == "Hello"

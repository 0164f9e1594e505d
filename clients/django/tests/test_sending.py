from __future__ import annotations

from datetime import datetime, timedelta, timezone
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.utils import ConnectionDoesNotExist
from django.utils.translation import gettext_lazy, override

import tidings_django
from tidings_django import (
    asend_to_everyone,
    asend_to_topic,
    asubscribe,
    aunsubscribe,
    create_stream_ticket,
    send_notification,
    send_notifications,
    send_to_everyone,
    send_to_topic,
    subscribe,
    unsubscribe,
)
from tidings_django.models import Notification
from tidings_django.test import captured_notifications

pytestmark = pytest.mark.django_db


def test_a_notification_has_what_was_passed(alice: User):
    tomorrow = datetime(2030, 1, 1, tzinfo=timezone.utc)
    id_ = send_notification(
        alice, "Your lamp is on its way", event="order", expires_at=tomorrow, ref="order:1"
    )
    row = Notification.objects.get()
    assert (row.id, row.user_id, row.text) == (id_, str(alice.pk), "Your lamp is on its way")
    assert (row.event, row.expires_at, row.ref) == ("order", tomorrow, "order:1")


@pytest.mark.parametrize("identify", [lambda user: user.pk, lambda user: str(user.pk)])
def test_a_user_may_be_given_by_id(alice: User, identify):
    send_notification(identify(alice), "Hello")
    assert Notification.objects.get().user_id == str(alice.pk)


def test_data_is_sent_as_json(alice: User):
    send_notification(alice, data={"when": datetime(2030, 1, 1), "what": "Ärger"})
    assert Notification.objects.get().text == '{"when": "2030-01-01T00:00:00", "what": "Ärger"}'


def test_a_translatable_text_is_sent_in_the_active_language(alice: User):
    with override("de"):
        send_notification(alice, gettext_lazy("Yes"))
    assert Notification.objects.get().text == "Ja"


def test_a_naive_time_is_in_the_current_time_zone(alice: User, settings):
    settings.TIME_ZONE = "Asia/Tokyo"
    send_notification(alice, "Hello", expires_at=datetime(2030, 1, 1, 9))
    assert Notification.objects.get().expires_at == datetime(2030, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, TypeError),
        ({"text": "Hello", "data": 1}, TypeError),
        ({"text": {"text": "Hello"}}, TypeError),
        ({"text": "Hello", "event": "error"}, IntegrityError),
    ],
)
def test_what_can_not_be_sent_is_an_error(alice: User, arguments, error):
    with pytest.raises(error):
        send_notification(alice, **arguments)


def test_a_user_without_an_id_is_an_error():
    with pytest.raises(ValueError, match="no id"):
        send_notification(User(username="unsaved"), "Hello")
    with pytest.raises(ValueError, match="no id"):
        send_notification("", "Hello")


def test_nothing_is_sent_by_a_transaction_that_is_rolled_back(alice: User):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        send_notification(alice, "Hello")
        1 / 0  # noqa: B018
    assert not Notification.objects.exists()


def test_a_queryset_of_users_is_notified_by_one_statement(
    alice: User, bob: User, django_assert_num_queries
):
    users = User.objects.filter(username__in=["alice", "bob"]).order_by("-username")
    with django_assert_num_queries(1) as queries:
        ids = send_notifications(users, "Closed 100%", event="news", ref="news:1")
    assert "insert into" in queries[0]["sql"]
    assert set(Notification.objects.values_list("event", flat=True)) == {"news"}
    rows = Notification.objects.order_by("id").values_list("id", "user_id", "text", "ref")
    assert list(rows) == [
        (ids[0], str(bob.pk), "Closed 100%", "news:1"),
        (ids[1], str(alice.pk), "Closed 100%", "news:1"),
    ]


@pytest.mark.parametrize(
    "users",
    [
        lambda: User.objects.order_by("username")[:1],
        lambda: User.objects.filter(username="alice").distinct().order_by("last_login"),
        lambda: User.objects.filter(username="alice").values_list("username"),
        lambda: User.objects.exclude(username="bob"),
        lambda: list(User.objects.filter(username="alice")),
        lambda: [User.objects.get(username="alice").pk],
    ],
)
def test_users_may_be_any_queryset_or_list(alice: User, bob: User, users):
    assert len(send_notifications(users(), "Hello")) == 1
    assert Notification.objects.get().user_id == str(alice.pk)


@pytest.mark.parametrize("users", [list, User.objects.none])
def test_nobody_is_notified_by_no_users(users):
    assert send_notifications(users(), "Hello") == []
    assert not Notification.objects.exists()


def by_name(user: User) -> str:
    return f"name:{user.username}"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("username", "alice"), ("tests.test_sending.by_name", "name:alice"), (by_name, "name:alice")],
)
def test_users_are_known_by_what_the_setting_says(alice: User, settings, setting, expected):
    settings.TIDINGS_USER_ID = setting
    send_notification(alice, "one")
    send_notifications(User.objects.all(), "many")
    send_notifications([alice], "a list")
    assert set(Notification.objects.values_list("user_id", flat=True)) == {expected}
    with pytest.raises(TypeError, match="TIDINGS_USER_ID"):
        send_notification(alice.pk, "a key that nobody is known by")


def test_uuids_are_the_same_in_python_and_in_the_database(alice: User):
    key = uuid4()
    send_notification(key, "Hello")
    assert Notification.objects.get().user_id == str(key)


@pytest.mark.django_db(transaction=True)
def test_an_async_view_can_send(alice: User):
    id_ = async_to_sync(tidings_django.asend_notification)(alice, "Hello")
    ids = async_to_sync(tidings_django.asend_notifications)([alice], "Hello")
    assert [id_, *ids] == list(Notification.objects.order_by("id").values_list("id", flat=True))[
        -2:
    ]


def test_a_role_that_may_only_send_can_send(alice: User):
    with connection.cursor() as cursor:
        cursor.execute("set local role plain_writer")
        send_notification("7", "one", event="order")
        send_notifications(["7", "8"], "many")
        Notification.objects.create(user_id="7", text="by the model")
        Notification.objects.bulk_create([Notification(user_id="7", text="in bulk")])
        send_to_topic("team:7", "to a topic")
        Notification.objects.create(topic="team:7", text="to a topic, by the model")
        cursor.execute("reset role")
    assert Notification.objects.count() == 7


def test_a_topic_gets_one_row_however_many_subscribe():
    later = datetime(2030, 1, 1, tzinfo=timezone.utc)
    id_ = send_to_topic("team:7", "Released", event="news", expires_at=later, ref="news:1")
    row = Notification.objects.get()
    assert (row.id, row.user_id, row.topic, row.text) == (id_, None, "team:7", "Released")
    assert (row.event, row.expires_at, row.ref) == ("news", later, "news:1")
    send_to_everyone(data={"closed": True}, event="news")
    row = Notification.objects.latest("id")
    assert (row.topic, row.text, row.event) == ("*", '{"closed": true}', "news")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((7, "Hello"), TypeError),
        (("", "Hello"), IntegrityError),
        (("x" * 256, "Hello"), IntegrityError),
        (("a\nb", "Hello"), IntegrityError),
        (("team:7",), TypeError),
    ],
)
def test_what_can_not_be_sent_to_a_topic_is_an_error(arguments, error):
    with pytest.raises(error):
        send_to_topic(*arguments)


def subscriptions() -> list[tuple[str, str]]:
    with connection.cursor() as cursor:
        cursor.execute("select user_id, topic from tidings.topic_subscriptions order by 1, 2")
        return cursor.fetchall()


def test_users_subscribe_and_unsubscribe(alice: User, bob: User):
    assert subscribe(alice, "team:7") is True
    assert subscribe(alice.pk, "team:7") is False
    assert subscribe(bob, "team:7") is True
    assert unsubscribe(alice, "team:7") is True
    assert unsubscribe(alice, "team:7") is False
    assert subscriptions() == [(str(bob.pk), "team:7")]
    with pytest.raises(DatabaseError, match="every user"):
        subscribe(alice, "*")


def test_nobody_is_subscribed_by_a_transaction_that_is_rolled_back(alice: User):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        subscribe(alice, "team:7")
        1 / 0  # noqa: B018
    assert subscriptions() == []


def test_a_subscriber_is_known_by_what_the_setting_says(alice: User, settings):
    settings.TIDINGS_USER_ID = "username"
    subscribe(alice, "team:7")
    assert subscriptions() == [("alice", "team:7")]


def test_topics_have_asynchronous_functions(alice: User):
    async_to_sync(asubscribe)(alice, "team:7")
    async_to_sync(asend_to_topic)("team:7", "Hello")
    async_to_sync(asend_to_everyone)("Hello")
    assert async_to_sync(aunsubscribe)(alice, "team:7") is True
    assert list(Notification.objects.order_by("id").values_list("topic", flat=True)) == [
        "team:7",
        "*",
    ]


def test_a_row_that_was_inserted_can_not_be_saved_again(alice: User):
    row = Notification.objects.create(user_id="7", text="Hello")
    with pytest.raises(TypeError, match="can't be changed"):
        row.save()


def test_captured_notifications_are_those_of_the_block_however_they_are_inserted(alice: User):
    send_notification(alice, "before")
    with captured_notifications() as captured:
        assert captured == []
        send_notification(alice, "one")
        Notification.objects.create(user_id="7", text="two")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            send_notification(alice, "rolled back")
            1 / 0  # noqa: B018
    send_notification(alice, "after")
    assert [notification.text for notification in captured] == ["one", "two"]


def test_a_ticket_lives_as_long_as_a_token(alice: User, settings):
    settings.TIDINGS_TOKEN_LIFETIME = timedelta(minutes=7)
    assert len(tidings_django.create_stream_ticket(alice)) == 64
    with connection.cursor() as cursor:
        cursor.execute("select user_id, expires_at - created_at from tidings.stream_tickets")
        assert cursor.fetchall() == [(str(alice.pk), timedelta(minutes=7))]


def test_a_ticket_grants_topics_to_a_user_or_to_whoever_has_it(alice: User, settings):
    settings.TIDINGS_TOPICS = lambda user: [f"plan:{user.username}"]
    for arguments in (
        {"user": alice},
        {"user": alice, "topics": ["team:7", "team:7"]},
        {"user": alice, "topics": []},
        {"user": None, "topics": ["scores:9"]},
    ):
        assert len(create_stream_ticket(**arguments)) == 64
    with connection.cursor() as cursor:
        cursor.execute("select user_id, topics from tidings.stream_tickets order by created_at")
        assert cursor.fetchall() == [
            (str(alice.pk), ["plan:alice"]),
            (str(alice.pk), ["team:7"]),
            (str(alice.pk), None),
            (None, ["scores:9"]),
        ]


def test_a_ticket_is_for_a_user_or_topics():
    for topics in (None, [], ["*"]):
        with pytest.raises(TypeError, match="a user or topics"):
            create_stream_ticket(None, topics=topics)


def test_the_model_is_in_the_database_of_the_setting(settings):
    settings.TIDINGS_DATABASE = "absent"
    with pytest.raises(ConnectionDoesNotExist, match="absent"):
        Notification.objects.create(user_id="7", text="Hello")
    with pytest.raises(ConnectionDoesNotExist, match="absent"):
        Notification(user_id="7", text="Hello").save()
    with pytest.raises(ConnectionDoesNotExist, match="absent"):
        send_notification("7", "Hello")
    Notification.objects.using("default").create(user_id="7", text="Hello")

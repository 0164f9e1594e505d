from __future__ import annotations

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, User
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection, transaction
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import MigrationWriter

from tests.conftest import Bridge, Event, Stream
from tests.shop.models import Seat, Team
from tidings_django import (
    create_stream_ticket,
    send_notification,
    send_to_everyone,
    send_to_topic,
    subscribe,
)
from tidings_django.operations import UnwatchMemberships, WatchMemberships
from tidings_django.tokens import create_token

pytestmark = pytest.mark.django_db

TEAMS = WatchMemberships("Team_members", topic="team", prefix="team:")
SEATS = WatchMemberships("shop.Seat", user="user", topic="room", prefix="100% 'room':")


def migrate(operation: Operation, *, forwards: bool = True) -> None:
    now = ProjectState.from_apps(apps)
    connection.check_constraints()  # while some are deferred, Postgres alters no table
    with connection.schema_editor() as editor:
        run = operation.database_forwards if forwards else operation.database_backwards
        run("shop", editor, now, now)


def query(sql: str) -> list[tuple[str, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def subscriptions() -> set[tuple[str, str]]:
    return set(query("select user_id, topic from tidings.topic_subscriptions"))


def triggers() -> list[tuple[str, ...]]:
    return query("select tgname from pg_trigger where tgname like 'tidings_watch%'")


def test_members_are_subscribed_to_what_their_rows_name(alice: User, bob: User):
    one, two = Team.objects.create(), Team.objects.create()
    one.members.add(alice)
    migrate(TEAMS)
    assert subscriptions() == {(str(alice.pk), f"team:{one.pk}")}
    two.members.set([alice, bob])
    one.members.remove(alice)
    assert subscriptions() == {(str(user.pk), f"team:{two.pk}") for user in (alice, bob)}
    two.members.clear()
    assert subscriptions() == set()


def test_the_groups_of_django_can_be_watched(alice: User):
    migrate(WatchMemberships("auth.User_groups", topic="group", prefix="group:"))
    group = Group.objects.create(name="staff")
    alice.groups.add(group)
    assert subscriptions() == {(str(alice.pk), f"group:{group.pk}")}
    group.delete()
    assert subscriptions() == set()


def test_a_membership_that_is_rolled_back_is_none(alice: User):
    migrate(TEAMS)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Team.objects.create().members.add(alice)
        1 / 0  # noqa: B018
    assert subscriptions() == set()


def test_names_are_quoted_and_rows_without_a_user_or_topic_are_no_memberships(alice: User):
    migrate(SEATS)
    Seat.objects.create(room="a 'b'", user=alice)
    Seat.objects.create(room="nobody's")
    Seat.objects.create(user=alice)
    assert subscriptions() == {(str(alice.pk), "100% 'room':a 'b'")}
    Seat.objects.filter(user=alice, room__isnull=False).update(room="c")
    assert subscriptions() == {(str(alice.pk), "100% 'room':c")}


def test_reversing_it_ends_these_subscriptions_and_no_others(alice: User):
    subscribe(alice, "news")
    Team.objects.create().members.add(alice)
    migrate(TEAMS)
    migrate(TEAMS)  # again
    assert len(triggers()) == 4
    migrate(TEAMS, forwards=False)
    assert triggers() == []
    assert subscriptions() == {(str(alice.pk), "news")}

    unwatch = UnwatchMemberships("Team_members", topic="team", prefix="team:")
    migrate(TEAMS)
    migrate(unwatch)
    assert triggers() == []
    assert subscriptions() == {(str(alice.pk), "news")}
    migrate(unwatch, forwards=False)
    assert len(subscriptions()) == 2


@pytest.mark.parametrize(
    ("operation", "error", "message"),
    [
        (
            WatchMemberships("Notification", topic="text", prefix="x:"),
            DatabaseError,
            "Notification can't be watched.*unique index on user_id and text",
        ),
        (
            WatchMemberships("Message", user="recipient", topic="sent_at", prefix="x:"),
            DatabaseError,
            "Message can't be watched.*sent_at",
        ),
        (
            WatchMemberships("Team_members", topic="team", prefix=""),
            DatabaseError,
            "can't be watched.*prefix",
        ),
        (WatchMemberships("Team_members", topic="absent", prefix="x:"), Exception, "absent"),
    ],
)
def test_a_mistake_fails_the_migration(operation, error, message):
    with pytest.raises(error, match=message), transaction.atomic():
        migrate(operation)
    assert triggers() == []


def test_a_user_who_is_known_by_another_attribute_can_not_be_found_in_the_table(settings):
    settings.TIDINGS_USER_ID = "username"
    with pytest.raises(ImproperlyConfigured, match=r"WatchMemberships.*'username'.*subscribe"):
        migrate(TEAMS)


def test_without_tidings_the_migration_says_what_to_do(settings):
    settings.TIDINGS_SCHEMA = "absent"
    with pytest.raises(ImproperlyConfigured, match="tidings migrate"):
        migrate(TEAMS)


def test_a_migration_with_it_can_be_written_and_its_sql_printed():
    text, imports = MigrationWriter.serialize(SEATS)
    assert "tidings_django.operations.WatchMemberships(" in text
    assert "import tidings_django.operations" in imports
    assert SEATS.migration_name_fragment == "watch_shop_seat"
    now = ProjectState.from_apps(apps)
    with connection.schema_editor(collect_sql=True) as editor:
        SEATS.database_forwards("shop", editor, now, now)
        SEATS.database_backwards("shop", editor, now, now)
    printed = "\n".join(editor.collected_sql)
    assert """tidings_watch('"public"."Shop''s Seats"', 'user_id', 'the Room', """ in printed
    assert "'100% ''room'':')" in printed
    assert "drop trigger if exists tidings_watch_insert on" in printed
    assert triggers() == []


class TestDelivery:
    @pytest.fixture(autouse=True)
    def cleanup(self, transactional_db):
        yield
        migrate(TEAMS, forwards=False)

    def test_the_members_of_a_team_receive_what_is_sent_to_it(
        self, bridge: Bridge, alice: User, bob: User
    ):
        migrate(TEAMS)
        team, other = Team.objects.create(), Team.objects.create()
        team.members.add(alice)
        other.members.add(bob)
        streams = [bridge.stream(create_token(user)).until_live() for user in (alice, bob)]
        send_to_topic(f"team:{team.pk}", "Hello, team", event="team")
        assert next(iter(streams[0])) == Event("team", "Hello, team")
        send_to_everyone("Hello, all", event="all")
        for stream in streams:
            assert next(iter(stream)) == Event("all", "Hello, all")
        with transaction.atomic():
            team.members.set([bob])
            send_to_topic(f"team:{team.pk}", "The members have changed")
            send_notification(alice, "You have left")
        assert next(iter(streams[0])).data == "You have left"
        assert next(iter(streams[1])).data == "The members have changed"

    def test_a_member_who_was_away_receives_what_was_sent_since_joining(
        self, bridge: Bridge, alice: User
    ):
        migrate(TEAMS)
        team = Team.objects.create()
        send_to_topic(f"team:{team.pk}", "before")
        team.members.add(alice)
        send_to_topic(f"team:{team.pk}", "after", event="team")
        stream = bridge.stream(create_token(alice))
        assert stream.next_of("team") == "after"

    def test_a_token_grants_topics(self, bridge: Bridge, alice: User, settings):
        settings.TIDINGS_TOPICS = lambda user: [f"plan:{user.username}"]
        stream = bridge.stream(create_token(alice)).until_live()
        send_to_topic("plan:bob", "not hers")
        send_to_topic("plan:alice", "hers")
        assert next(iter(stream)).data == "hers"

    def test_a_ticket_without_a_user_has_its_topics(self, bridge: Bridge):
        ticket = create_stream_ticket(None, topics=["scores:9"])
        stream = Stream(f"{bridge.url}?ticket={ticket}").until_live()
        send_to_topic("scores:8", "not asked for")
        send_to_topic("scores:9", "1:0")
        assert next(iter(stream)).data == "1:0"


def test_a_database_that_is_not_postgres_is_left_alone():
    other = DatabaseWrapper({**connection.settings_dict, "NAME": ":memory:"}, "default")
    now = ProjectState.from_apps(apps)
    with other.schema_editor(collect_sql=True) as editor:
        TEAMS.database_forwards("shop", editor, now, now)
        TEAMS.database_backwards("shop", editor, now, now)
    assert editor.collected_sql == []

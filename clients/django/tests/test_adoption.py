from __future__ import annotations

from uuid import uuid4

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.db import ProgrammingError, connection, transaction
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import ProjectState
from django.db.migrations.writer import MigrationWriter
from django.db.models import Func, Q, TextField, Value
from django.db.models.functions import Concat, JSONObject
from django.utils import timezone

from tests import postgres
from tests.conftest import Bridge
from tests.shop.models import Message, Notification
from tidings_django.models import Notification as Sent
from tidings_django.operations import AdoptModel, ReleaseModel
from tidings_django.tokens import create_token

pytestmark = pytest.mark.django_db


def state() -> ProjectState:
    return ProjectState.from_apps(apps)


def migrate(operation: Operation, *, forwards: bool = True) -> None:
    now = state()
    with connection.schema_editor() as editor:
        run = operation.database_forwards if forwards else operation.database_backwards
        run("shop", editor, now, now)


def sent() -> list[tuple[str, str]]:
    return list(Sent.objects.order_by("id").values_list("user_id", "text"))


def refs() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("select ref from tidings.notifications order by id")
        return [ref for (ref,) in cursor.fetchall()]


def leftovers() -> list[str]:
    """What adoptions have created and not removed."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select proname from pg_proc where pronamespace = 'public'::regnamespace "
            "union all select tgname from pg_trigger where tgname in ('tidings_copy') "
            "or tgname like 'tidings\\_mark\\_%'"
        )
        return [name for (name,) in cursor.fetchall()]


def test_rows_of_the_questions_model_are_sent_however_they_are_inserted(alice: User, bob: User):
    migrate(AdoptModel("Notification"))
    row = Notification.objects.create(user=alice, text="Hello")
    many = Notification.objects.bulk_create(
        [Notification(user=bob, text="one"), Notification(user=bob, text="two")]
    )
    assert sent() == [(str(alice.pk), "Hello"), (str(bob.pk), "one"), (str(bob.pk), "two")]
    assert refs() == [f"shop_notification:{r.pk}" for r in [row, *many]]


def test_a_row_that_is_rolled_back_is_not_sent(alice: User):
    migrate(AdoptModel("Notification"))
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Notification.objects.create(user=alice, text="Hello")
        1 / 0  # noqa: B018
    assert sent() == []


def test_rows_that_do_not_fulfil_the_condition_are_not_sent(alice: User):
    migrate(AdoptModel("Notification", where=Q(sent=False) & ~Q(text__startswith="50% 'off'")))
    for text, is_sent in [("new", False), ("old", True), ("50% 'off' today", False)]:
        Notification.objects.create(user=alice, text=text, sent=is_sent)
    assert [text for _, text in sent()] == ["new"]


def test_names_are_quoted_and_expressions_are_djangos(alice: User):
    migrate(
        AdoptModel(
            "shop.Message",
            user="recipient",
            text=Concat(
                "title", Value(" 100% of 'it'\n $body$ $_body$ "), "body", output_field=TextField()
            ),
            event=Value("message"),
        )
    )
    row = Message.objects.create(id=uuid4(), title="News", body="text", recipient=alice)
    assert sent() == [(str(alice.pk), "News 100% of 'it'\n $body$ $_body$ text")]
    assert refs() == [f"Shop's Messages:{row.pk}"]
    assert Sent.objects.get().event == "message"


def test_a_row_can_be_sent_as_json(alice: User):
    migrate(AdoptModel("Message", user="recipient", text=JSONObject(title="title", body="body")))
    Message.objects.create(id=uuid4(), title="News", recipient=alice)
    assert sent() == [(str(alice.pk), '{"body": null, "title": "News"}')]


def test_rows_without_user_or_text_are_inserted_and_not_sent(alice: User):
    migrate(AdoptModel("Message", user="recipient", text="body"))
    Message.objects.create(id=uuid4(), title="nobody's", body="text")
    Message.objects.create(id=uuid4(), title="empty", recipient=alice)
    Message.objects.create(id=uuid4(), title="both", body="text", recipient=alice)
    assert sent() == [(str(alice.pk), "text")]


def test_existing_rows_are_sent_if_asked_for(alice: User):
    for text, is_sent in [("old", True), ("new", False), ("newer", False)]:
        Notification.objects.create(user=alice, text=text, sent=is_sent)
    migrate(AdoptModel("Notification"))
    assert sent() == []
    migrate(AdoptModel("Notification", where=Q(sent=False), existing=~Q(text="new")))
    assert [text for _, text in sent()] == ["newer"]


def test_adopting_again_replaces_what_was_adopted(alice: User):
    migrate(AdoptModel("Notification"))
    migrate(AdoptModel("Notification", event=Value("second")))
    Notification.objects.create(user=alice, text="Hello")
    assert [row.event for row in Sent.objects.all()] == ["second"]


def test_an_adoption_can_be_reversed_and_released(alice: User):
    before = leftovers()
    operation = AdoptModel("Notification")
    migrate(operation)
    assert len(leftovers()) == len(before) + 2
    migrate(operation, forwards=False)
    assert leftovers() == before

    migrate(operation)
    release = ReleaseModel("Notification")
    migrate(release)
    assert leftovers() == before
    Notification.objects.create(user=alice, text="not sent")
    migrate(release, forwards=False)
    Notification.objects.create(user=alice, text="sent")
    assert [text for _, text in sent()] == ["sent"]


def test_every_role_that_may_insert_can_still_insert(alice: User):
    migrate(AdoptModel("Notification"))
    with connection.cursor() as cursor:
        cursor.execute("grant insert, select on shop_notification to plain_writer")
        cursor.execute("set local role plain_writer")
        cursor.execute(
            "insert into shop_notification (text, user_id, sent) values ('Hello', %s, false)",
            [alice.pk],
        )
        cursor.execute("reset role")
    assert sent() == [(str(alice.pk), "Hello")]


def test_no_role_can_call_the_function():
    migrate(AdoptModel("Notification"))
    with connection.cursor() as cursor:
        cursor.execute(
            "select has_function_privilege("
            "'plain_writer', 'tidings_copy_shop_notification()', 'execute')"
        )
        assert cursor.fetchone() == (False,)


@pytest.mark.parametrize(
    ("operation", "error", "message"),
    [
        (AdoptModel("Notification", text="absent"), Exception, "absent"),
        (AdoptModel("Notification", text="user__username"), Exception, "[Jj]oined"),
        (AdoptModel("Message", user="recipient", mark="body"), ImproperlyConfigured, "mark must"),
    ],
)
def test_a_mistake_fails_the_migration(operation, error, message):
    before = leftovers()
    with pytest.raises(error, match=message), transaction.atomic():
        migrate(operation)
    assert leftovers() == before


def test_an_expression_that_postgres_rejects_fails_the_migration_and_no_insert(alice: User):
    with (
        pytest.raises(ProgrammingError, match=r"Notification can't be adopted.*absent"),
        transaction.atomic(),
    ):
        migrate(AdoptModel("Notification", text=Func("text", function="absent")))
    Notification.objects.create(user=alice, text="Hello")


def test_without_tidings_the_migration_says_what_to_do(settings):
    settings.TIDINGS_SCHEMA = "absent"
    with pytest.raises(ImproperlyConfigured, match="tidings migrate"):
        migrate(AdoptModel("Notification"))


def test_a_user_who_is_known_by_another_attribute_needs_an_expression(alice: User, settings):
    settings.TIDINGS_USER_ID = "username"
    with pytest.raises(ImproperlyConfigured, match="TIDINGS_USER_ID is 'username'"):
        migrate(AdoptModel("Notification"))
    migrate(AdoptModel("Notification", user=Value("alice")))
    Notification.objects.create(user=alice, text="Hello")
    assert sent() == [("alice", "Hello")]


def test_a_migration_with_it_can_be_written_and_its_sql_printed():
    operation = AdoptModel("Notification", where=Q(sent=False), event=Value("x"))
    text, imports = MigrationWriter.serialize(operation)
    assert "tidings_django.operations.AdoptModel(" in text
    assert "import tidings_django.operations" in imports
    now = state()
    with connection.schema_editor(collect_sql=True) as editor:
        operation.database_forwards("shop", editor, now, now)
    printed = "\n".join(editor.collected_sql)
    assert "create trigger tidings_copy after insert" in printed
    assert leftovers() == []


def test_a_database_that_is_not_postgres_is_left_alone(alice: User):
    other = DatabaseWrapper({**connection.settings_dict, "NAME": ":memory:"}, "default")
    now = state()
    with other.schema_editor(collect_sql=True) as editor:
        AdoptModel("Notification").database_forwards("shop", editor, now, now)
    assert editor.collected_sql == []


class TestMarks:
    """They need a trigger on Tidings' table, for which its owner has to grant a privilege."""

    @pytest.fixture(autouse=True)
    def privilege(self, transactional_db):
        postgres.server.sql("shop", "grant trigger on tidings.notifications to app")
        yield
        for model in ("Notification", "Message"):
            migrate(ReleaseModel(model))
        postgres.server.sql("shop", "revoke trigger on tidings.notifications from app")

    def test_what_was_delivered_is_marked(self, bridge: Bridge, alice: User, eventually):
        migrate(AdoptModel("Notification", mark="sent"))
        row = Notification.objects.create(user=alice, text="Hello")
        Notification.objects.create(user=alice, text="sent already", sent=True)
        other = Notification.objects.create(user=User.objects.create_user("carol"), text="later")
        stream = bridge.stream(create_token(alice))
        assert stream.next_of("message") == "Hello"
        eventually(lambda: Notification.objects.get(pk=row.pk).sent)
        assert not Notification.objects.get(pk=other.pk).sent
        assert [row for row in sent() if row[0] == str(alice.pk)] == [(str(alice.pk), "Hello")]
        stream.close()

    def test_the_time_of_delivery_is_marked(self, bridge: Bridge, alice: User, eventually):
        migrate(AdoptModel("Message", user="recipient", text="title", mark="sent_at"))
        row = Message.objects.create(id=uuid4(), title="Hello", recipient=alice)
        begin = timezone.now()
        stream = bridge.stream(create_token(alice))
        assert stream.next_of("message") == "Hello"
        eventually(lambda: Message.objects.get(pk=row.pk).sent_at)
        assert Message.objects.get(pk=row.pk).sent_at >= begin
        stream.close()

    def test_a_row_that_is_locked_delays_no_mark(self, bridge: Bridge, alice: User, eventually):
        migrate(AdoptModel("Notification", mark="sent"))
        rows = [Notification.objects.create(user=alice, text=text) for text in ("one", "two")]
        stream = bridge.stream(create_token(alice))
        with transaction.atomic():
            Notification.objects.select_for_update().get(pk=rows[0].pk)
            assert stream.next_of("message") == "one"
            eventually(lambda: Notification.objects.get(pk=rows[1].pk).sent)
        stream.close()

    def test_an_error_loses_a_mark_and_no_delivery(self, bridge: Bridge, alice: User, eventually):
        migrate(AdoptModel("Notification", mark="sent"))
        Notification.objects.create(user=alice, text="Hello")
        with connection.cursor() as cursor:
            cursor.execute("alter table shop_notification rename to elsewhere")
        try:
            stream = bridge.stream(create_token(alice))
            assert stream.next_of("message") == "Hello"
            eventually(lambda: is_delivered(alice))
            stream.close()
        finally:
            with connection.cursor() as cursor:
                cursor.execute("alter table elsewhere rename to shop_notification")


def is_delivered(user: User) -> bool:
    """Whether Tidings' own mark is set."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select bool_and(sent) from tidings.notifications where user_id = %s", [str(user.pk)]
        )
        (is_sent,) = cursor.fetchone()
    return is_sent


def test_marking_without_the_privilege_fails_the_migration():
    with (
        pytest.raises(ProgrammingError, match="Notification can't be adopted"),
        transaction.atomic(),
    ):
        migrate(AdoptModel("Notification", mark="sent"))

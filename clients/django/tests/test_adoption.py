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
from tests.shop.models import Message, Notification
from tidings_django.models import Notification as Sent
from tidings_django.operations import AdoptModel, ReleaseModel, _fitting, _fnv

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
            "select proname::text from pg_proc where pronamespace = 'public'::regnamespace "
            "union all select tgname from pg_trigger where tgname = 'tidings_copy' "
            "union all select table_name from tidings.tidings_adopted order by 1"
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


def test_rows_without_a_user_are_inserted_and_not_sent(alice: User):
    migrate(AdoptModel("Message", user="recipient", text="title"))
    Message.objects.create(id=uuid4(), title="nobody's")
    Message.objects.create(id=uuid4(), title="hers", recipient=alice)
    assert sent() == [(str(alice.pk), "hers")]


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
    operation = AdoptModel("Notification")
    migrate(operation)
    assert leftovers() == ["shop_notification", "tidings_copy", "tidings_copy_shop_notification"]
    migrate(operation, forwards=False)
    assert leftovers() == []

    migrate(operation)
    release = ReleaseModel("Notification")
    migrate(release)
    assert leftovers() == []
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
        (
            AdoptModel("Message", user="recipient", text="title", mark="body"),
            ImproperlyConfigured,
            "mark must name",
        ),
    ],
)
def test_a_mistake_fails_the_migration(operation, error, message):
    with pytest.raises(error, match=message), transaction.atomic():
        migrate(operation)
    assert leftovers() == []


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


def test_names_that_are_too_long_are_those_of_tidings_adopt():
    assert _fitting("tidings_copy_", "orders") == "tidings_copy_orders"
    assert _fnv("a") == 0xAF63DC4C8601EC8C
    for table in ("x" * 63, "ü" * 31):
        name = _fitting("tidings_copy_", table)
        assert name.startswith(f"tidings_copy_{table[:15]}")
        assert name.endswith(f"_{_fnv(table):016x}")
        assert 62 <= len(name.encode()) <= 63


def test_marking_is_only_for_roles_that_can_act_as_the_owner_of_tidings():
    with (
        pytest.raises(ProgrammingError, match=r"Notification can't be adopted.*tidings_owner"),
        transaction.atomic(),
    ):
        migrate(AdoptModel("Notification", mark="sent"))
    assert leftovers() == []


class TestMarks:
    """The bridge calls the function of Tidings that these tests call."""

    @pytest.fixture(autouse=True)
    def role(self, transactional_db):
        postgres.server.sql("shop", "grant tidings_owner to app")
        yield
        for model in ("Notification", "Message"):
            migrate(ReleaseModel(model))
        postgres.server.sql("shop", "revoke tidings_owner from app")

    @staticmethod
    def deliver(table: str) -> None:
        postgres.server.sql(
            "shop",
            "update tidings.notifications set sent_at = now() where sent_at is null; "
            f"select tidings.tidings_mark_adopted('public', $${table}$$, "
            "array(select id from tidings.notifications), 500)",
        )

    def test_what_was_sent_is_marked(self, alice: User):
        migrate(AdoptModel("Notification", mark="sent"))
        one, two = (Notification.objects.create(user=alice, text=text) for text in ("one", "two"))
        self.deliver("shop_notification")
        later = Notification.objects.create(user=alice, text="later")
        marked = Notification.objects.filter(sent=True).values_list("pk", flat=True)
        assert set(marked) == {one.pk, two.pk}
        assert Notification.objects.filter(sent=False).get() == later

    def test_a_row_that_is_marked_already_is_not_sent(self, alice: User):
        migrate(AdoptModel("Notification", mark="sent"))
        Notification.objects.create(user=alice, text="old", sent=True)
        Notification.objects.create(user=alice, text="new")
        assert [text for user, text in sent() if user == str(alice.pk)] == ["new"]

    def test_the_time_is_marked(self, alice: User):
        migrate(AdoptModel("Message", user="recipient", text="title", mark="sent_at"))
        row = Message.objects.create(id=uuid4(), title="Hello", recipient=alice)
        begin = timezone.now()
        self.deliver("Shop's Messages")
        row.refresh_from_db()
        assert begin <= row.sent_at <= timezone.now()

    def test_a_row_that_is_locked_is_skipped(self, alice: User):
        migrate(AdoptModel("Notification", mark="sent"))
        one, two = (Notification.objects.create(user=alice, text=text) for text in ("one", "two"))
        with transaction.atomic():
            Notification.objects.select_for_update().get(pk=one.pk)
            self.deliver("shop_notification")
            assert Notification.objects.filter(sent=True).get() == two
        self.deliver("shop_notification")
        assert Notification.objects.filter(sent=True).count() == 2

"""Migration operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, ProgrammingError
from django.db.migrations.operations.base import Operation
from django.db.models import BooleanField, DateTimeField, F, Field, ForeignKey, Model, Q
from django.db.models.sql import Query

from . import adoption, conf, memberships
from .database import qualified, quote

if TYPE_CHECKING:
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.migrations.state import ProjectState
    from django.db.models.expressions import Combinable

NAME_BYTES = 63
"""Postgres cuts longer names off."""


class _ModelOperation(Operation):
    """Creates or removes triggers on the table of a model."""

    reversible = True
    model: str

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Triggers are no part of Django's state."""

    def _model(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState
    ) -> type[Model] | None:
        """The model, if its table is in this database."""
        app, _, name = self.model.rpartition(".")
        model: type[Model] = state.apps.get_model(app or app_label, name)
        connection = schema_editor.connection
        is_here = self.allow_migrate_model(connection.alias, model)
        return model if is_here and connection.vendor == "postgresql" else None


class AdoptModel(_ModelOperation):
    """Sends a notification for each row that is inserted into the table of a model.

    `user`, `text` and `event` are names of fields, or expressions such as `Value("order")` and
    `Concat("title", Value(": "), "body")`. Rows that don't fulfil `where` aren't sent, nor are rows
    whose user is null.

    `mark` names a boolean or date-time field that is set when a row was sent; rows in which it is
    already set aren't sent. The role must be able to act as the owner of Tidings' tables.

    Rows that are already in the table are sent if they fulfil `existing`.
    """

    def __init__(
        self,
        model: str,
        *,
        user: str | Combinable = "user",
        text: str | Combinable = "text",
        event: str | Combinable | None = None,
        where: Q | None = None,
        mark: str | None = None,
        existing: Q | None = None,
    ) -> None:
        self.model = model
        self.user = user
        self.text = text
        self.event = event
        self.where = where
        self.mark = mark
        self.existing = existing

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        names = ("user", "text", "event", "where", "mark", "existing")
        options = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in options.items() if value is not None}
        return type(self).__qualname__, [self.model], given

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._adopt(app_label, schema_editor, to_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._release(app_label, schema_editor, to_state)

    def describe(self) -> str:
        return f"Send a notification for each new {self.model}"

    @property
    def migration_name_fragment(self) -> str:
        return f"adopt_{self.model.lower().replace('.', '_')}"

    def _adopt(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState
    ) -> None:
        model = self._model(app_label, schema_editor, state)
        if model is None:
            return
        _check_user(model, self.user, "AdoptModel", "Pass an expression for the user.")
        sql = _Generator(model, schema_editor)
        tidings, table = sql.tidings(), sql.table()
        mark = None if self.mark is None else sql.mark(self.mark)
        user = sql.expression(self.user)
        conditions = [f"({user}) is not null"]
        if mark is not None:
            conditions.append(f"{mark.column} is {mark.unset}")
        if self.where:
            conditions.append(f"({sql.condition(self.where)})")
        copy = adoption.Copy(
            user=user,
            text=sql.expression(self.text),
            event="null" if self.event is None else f"({sql.expression(self.event)})::text",
            condition=" and ".join(conditions),
        )
        statements = adoption.adopt(tidings, table, copy, mark)
        if self.existing is not None:
            existing = sql.condition(self.existing)
            statements.append(adoption.copy_existing(tidings, table, copy, existing))
        try:
            for statement in statements:
                schema_editor.execute(statement, params=None)
        except ProgrammingError as error:
            raise ProgrammingError(f"{self.model} can't be adopted: {error}") from error

    def _release(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState
    ) -> None:
        model = self._model(app_label, schema_editor, state)
        if model is None:
            return
        sql = _Generator(model, schema_editor)
        for statement in adoption.release(sql.tidings(), sql.table()):
            schema_editor.execute(statement, params=None)


class ReleaseModel(AdoptModel):
    """Ends the effect of an `AdoptModel`. With the same arguments, it can be reversed."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._release(app_label, schema_editor, from_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._adopt(app_label, schema_editor, to_state)

    def describe(self) -> str:
        return f"Send no more notifications for each new {self.model}"

    @property
    def migration_name_fragment(self) -> str:
        return f"release_{self.model.lower().replace('.', '_')}"


class WatchMemberships(_ModelOperation):
    """Subscribes users to topics as the rows of a model say, and keeps it so.

    `WatchMemberships("auth.User_groups", topic="group", prefix="group:")` subscribes the users of
    the group with the key 7 to the topic `group:7`. `user` and `topic` are names of fields, which
    must be unique together. All topics that begin with the prefix are this model's.

    The role must be able to act as the owner of the table, and have been granted `tidings_issuer`.
    """

    def __init__(self, model: str, *, user: str = "user", topic: str, prefix: str) -> None:
        self.model = model
        self.user = user
        self.topic = topic
        self.prefix = prefix

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        given = {"user": self.user, "topic": self.topic, "prefix": self.prefix}
        return type(self).__qualname__, [self.model], given

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._watch(app_label, schema_editor, to_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._unwatch(app_label, schema_editor, to_state)

    def describe(self) -> str:
        return f"Subscribe users to {self.prefix}… as {self.model} says"

    @property
    def migration_name_fragment(self) -> str:
        return f"watch_{self.model.lower().replace('.', '_')}"

    def _watch(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState
    ) -> None:
        model = self._model(app_label, schema_editor, state)
        if model is None:
            return
        advice = "Call subscribe() and unsubscribe() where memberships change."
        _check_user(model, self.user, "WatchMemberships", advice)
        sql = _Generator(model, schema_editor)
        sql.owner_of("tidings_watch")
        statement = memberships.watch(sql.memberships(self.user, self.topic, self.prefix))
        try:
            schema_editor.execute(statement, params=None)
        except DatabaseError as error:
            raise type(error)(f"{self.model} can't be watched: {error}") from error

    def _unwatch(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState
    ) -> None:
        model = self._model(app_label, schema_editor, state)
        if model is None:
            return
        sql = _Generator(model, schema_editor)
        for statement in memberships.unwatch(sql.memberships(self.user, self.topic, self.prefix)):
            schema_editor.execute(statement, params=None)


class UnwatchMemberships(WatchMemberships):
    """Ends the effect of a `WatchMemberships` with the same arguments, and those subscriptions."""

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._unwatch(app_label, schema_editor, from_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        self._watch(app_label, schema_editor, to_state)

    def describe(self) -> str:
        return f"Unsubscribe users from {self.prefix}…, whatever {self.model} says"

    @property
    def migration_name_fragment(self) -> str:
        return f"unwatch_{self.model.lower().replace('.', '_')}"


class _Generator:
    """Turns a model and expressions over its fields into SQL, quoted by Django."""

    def __init__(self, model: type[Model], schema_editor: BaseDatabaseSchemaEditor) -> None:
        self.model = model
        self.schema_editor = schema_editor
        # Without aliases, as in constraints: the columns are those of the only table.
        self.query = Query(model, alias_cols=False)
        self.compiler = self.query.get_compiler(connection=schema_editor.connection)

    def expression(self, expression: str | Combinable) -> str:
        resolvable: Any = F(expression) if isinstance(expression, str) else expression
        return self._sql(resolvable.resolve_expression(self.query, allow_joins=False))

    def condition(self, condition: Q) -> str:
        return self._sql(self.query.build_where(condition))

    def mark(self, name: str) -> adoption.Mark:
        column = self.schema_editor.quote_name(self._field(name).column)
        match self._field(name):
            case _ if len(self._keys()) > 1:
                problem = "needs a primary key of one column"
            case BooleanField():
                return adoption.Mark(column, value="true", unset="not true")
            case DateTimeField():
                return adoption.Mark(column, value="now()", unset="null")
            case field:
                problem = f"must name a BooleanField or a DateTimeField, not {field}"
        raise ImproperlyConfigured(f"AdoptModel: mark {problem}.")

    def table(self) -> adoption.Table:
        schema, name, owner = self._find(self.model._meta.db_table)
        copy, mark = _fitting("tidings_copy_", name), _fitting("tidings_mark_", name)
        keys = self._keys()
        return adoption.Table(
            name=f"{quote(schema)}.{quote(name)}",
            literal=self._literal(f"{quote(schema)}.{quote(name)}"),
            schema_literal=self._literal(schema),
            name_literal=self._literal(name),
            owner=quote(owner),
            keys=tuple(self.schema_editor.quote_name(key.column) for key in keys),
            key_type=keys[0].rel_db_type(self.schema_editor.connection),
            prefix=self._literal(f"{name}:"),
            prefix_length=len(f"{name}:"),
            copy_function=f"{quote(schema)}.{quote(copy)}",
            mark_function=f"{quote(schema)}.{quote(mark)}",
            mark_function_literal=self._literal(mark),
        )

    def memberships(self, user: str, topic: str, prefix: str) -> memberships.Memberships:
        schema, name, _ = self._find(self.model._meta.db_table)
        table = f"{quote(schema)}.{quote(name)}"
        return memberships.Memberships(
            table=table,
            literal=self._literal(table),
            user=self._literal(self._field(user).column),
            topic=self._literal(self._field(topic).column),
            prefix=self._literal(prefix),
        )

    def tidings(self) -> adoption.Tidings:
        return adoption.Tidings(
            notifications=qualified("notifications"),
            adopt=qualified("tidings_adopt"),
            unadopt=qualified("tidings_unadopt"),
            owner=quote(self.owner_of("tidings_adopt")),
        )

    def owner_of(self, function: str) -> str:
        """The owner of Tidings, whose release must have this function."""
        with self.schema_editor.connection.cursor() as cursor:
            cursor.execute(
                "select pg_get_userbyid(p.proowner) from pg_proc as p "
                "join pg_namespace as n on n.oid = p.pronamespace "
                "where n.nspname = %s and p.proname = %s",
                [conf.schema(), function],
            )
            found = cursor.fetchone()
        if found is None:
            raise ImproperlyConfigured(
                f"The schema {conf.schema()!r} doesn't contain Tidings, or an earlier version: "
                "run `manage.py tidings migrate` first."
            )
        return str(found[0])

    def _field(self, name: str) -> Any:
        return self.model._meta.get_field(name)

    def _keys(self) -> list[Any]:
        """The fields of the primary key, which are several since Django 5.2."""
        meta: Any = self.model._meta
        return getattr(meta, "pk_fields", [meta.pk])

    def _find(self, table: str) -> tuple[str, str, str]:
        """The schema, name and owner of the table."""
        with self.schema_editor.connection.cursor() as cursor:
            cursor.execute(
                "select n.nspname, c.relname, pg_get_userbyid(c.relowner) "
                "from pg_class as c join pg_namespace as n on n.oid = c.relnamespace "
                "where c.oid = to_regclass(%s)",
                [self.schema_editor.quote_name(table)],
            )
            found = cursor.fetchone()
            if found is None:  # `sqlmigrate`, before the table exists
                cursor.execute("select current_schema(), %s, current_user", [table])
                found = cursor.fetchone()
        schema, name, owner = found
        return schema, name, owner

    def _sql(self, resolved: Any) -> str:
        sql, params = self.compiler.compile(resolved)
        return str(sql % tuple(map(self._literal, params)))

    def _literal(self, value: Any) -> str:
        literal: str = self.schema_editor.quote_value(value)
        # In strings, Django doubles percent signs, for a statement with parameters.
        return literal.replace("%%", "%") if isinstance(value, str) else literal


def _check_user(model: type[Model], user: str | Combinable, operation: str, advice: str) -> None:
    """A foreign key holds the user's primary key, which must be what Tidings knows users by."""
    field = model._meta.get_field(user) if isinstance(user, str) else None
    if not isinstance(field, ForeignKey):
        return
    target: Field[Any, Any] = field.target_field
    accepted = {target.name, "pk"} if target.primary_key else {target.name}
    attribute = conf.user_attribute()
    if attribute not in accepted:
        raise ImproperlyConfigured(
            f"{operation}: {field} holds {target}, but TIDINGS_USER_ID is {attribute!r}. {advice}"
        )


def _fitting(beginning: str, table: str) -> str:
    """A name that would be too long for Postgres ends with a hash, as in `tidings adopt`."""
    name = beginning + table
    if len(name.encode()) <= NAME_BYTES:
        return name
    end = f"_{_fnv(table):016x}"
    return name.encode()[: NAME_BYTES - len(end)].decode(errors="ignore") + end


def _fnv(text: str) -> int:
    hash_ = 0xCBF29CE484222325
    for byte in text.encode():
        hash_ = (hash_ ^ byte) * 0x100000001B3 % 2**64
    return hash_

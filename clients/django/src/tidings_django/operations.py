"""Migration operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.core.exceptions import ImproperlyConfigured
from django.db import ProgrammingError
from django.db.backends.utils import truncate_name
from django.db.migrations.operations.base import Operation
from django.db.models import BooleanField, DateTimeField, F, Field, ForeignKey, Model, Q
from django.db.models.functions import Now
from django.db.models.sql import Query

from . import adoption, conf
from .database import qualified, quote

if TYPE_CHECKING:
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.migrations.state import ProjectState
    from django.db.models.expressions import Combinable

NAME_LENGTH = 63
"""Postgres cuts longer names off."""


class AdoptModel(Operation):
    """Sends a notification for each row that is inserted into the table of a model.

    `user`, `text` and `event` are names of fields, or expressions such as `Value("order")` and
    `Concat("title", Value(": "), "body")`. Rows that don't fulfil `where` aren't sent, nor are rows
    whose user or text is null.

    `mark` names a boolean or date-time field that is set when a row was delivered; rows in which it
    is already set aren't sent. Delivery of many rows then takes about three times as long.

    Rows that are already in the table are sent if they fulfil `existing`.
    """

    reversible = True

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

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Triggers are no part of Django's state."""

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
        _check_user(model, self.user)
        sql = _Generator(model, schema_editor)
        table = sql.table()
        mark = None if self.mark is None else sql.mark(self.mark)
        copy = adoption.Copy(
            user=sql.expression(self.user),
            text=sql.expression(self.text),
            event=None if self.event is None else sql.expression(self.event),
            condition=self._condition(model, sql),
            has_ref=_has_ref(schema_editor, must=mark is not None),
        )
        statements = adoption.adopt(table, copy, mark)
        if self.existing is not None:
            existing = sql.condition(self.existing)
            statements.append(adoption.copy_existing(table, copy, existing))
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
        for statement in adoption.release(_Generator(model, schema_editor).table()):
            schema_editor.execute(statement, params=None)

    def _model(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState
    ) -> type[Model] | None:
        """The model, if its table is in this database."""
        app, _, name = self.model.rpartition(".")
        model: type[Model] = state.apps.get_model(app or app_label, name)
        connection = schema_editor.connection
        is_here = self.allow_migrate_model(connection.alias, model)
        return model if is_here and connection.vendor == "postgresql" else None

    def _condition(self, model: type[Model], sql: _Generator) -> str | None:
        condition = Q() if self.where is None else self.where
        if self.mark is not None:
            condition &= _is_unmarked(model, self.mark)
        for name in (self.user, self.text):
            # A null would fail the application's INSERT.
            if isinstance(name, str) and model._meta.get_field(name).null:
                condition &= Q((f"{name}__isnull", False))
        return sql.condition(condition) if condition else None


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
        field: Any = self.model._meta.get_field(name)
        is_date = isinstance(field, DateTimeField)
        value = self._sql(Now().resolve_expression(self.query)) if is_date else "true"
        return adoption.Mark(
            assignment=f"{self.schema_editor.quote_name(field.column)} = {value}",
            is_unmarked=self.condition(_is_unmarked(self.model, name)),
        )

    def table(self) -> adoption.Table:
        meta = self.model._meta
        schema, name, owner = self._find(meta.db_table)
        key: Any = meta.pk
        return adoption.Table(
            name=f"{quote(schema)}.{quote(name)}",
            label=self._literal(name),
            owner=quote(owner),
            key=self.schema_editor.quote_name(key.column),
            key_type=key.rel_db_type(self.schema_editor.connection),
            notifications=qualified("notifications"),
            copy_function=f"{quote(schema)}.{quote(_cut(f'tidings_copy_{name}'))}",
            mark_function=f"{quote(schema)}.{quote(_cut(f'tidings_mark_{name}'))}",
            mark_trigger=quote(_cut(f"tidings_mark_{name}")),
        )

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


def _is_unmarked(model: type[Model], name: str) -> Q:
    match model._meta.get_field(name):
        case BooleanField():
            return Q((name, False))
        case DateTimeField():
            return Q((f"{name}__isnull", True))
        case field:
            raise ImproperlyConfigured(
                f"AdoptModel: mark must name a BooleanField or a DateTimeField, not {field}."
            )


def _check_user(model: type[Model], user: str | Combinable) -> None:
    """A foreign key holds the user's primary key, which must be what Tidings knows users by."""
    field = model._meta.get_field(user) if isinstance(user, str) else None
    if not isinstance(field, ForeignKey):
        return
    target: Field[Any, Any] = field.target_field
    accepted = {target.name, "pk"} if target.primary_key else {target.name}
    attribute = conf.user_attribute()
    if attribute not in accepted:
        raise ImproperlyConfigured(
            f"AdoptModel: {field} holds {target}, but TIDINGS_USER_ID is {attribute!r}. "
            "Pass an expression for the user."
        )


def _has_ref(schema_editor: BaseDatabaseSchemaEditor, *, must: bool) -> bool:
    """Whether Tidings' table has the column `ref`, by which marks find the application's row."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(
            "select to_regclass(%s) is not null, exists (select from pg_attribute "
            "where attrelid = to_regclass(%s) and attname = 'ref')",
            [qualified("notifications")] * 2,
        )
        is_installed, has_ref = cursor.fetchone()
    if not is_installed:
        raise ImproperlyConfigured(
            f"Tidings is not installed in the schema {conf.schema()}: "
            "run `manage.py tidings migrate` first."
        )
    if must and not has_ref:
        raise ImproperlyConfigured("AdoptModel: mark needs a later version of Tidings.")
    return bool(has_ref)


def _cut(name: str) -> str:
    return truncate_name(name, NAME_LENGTH)

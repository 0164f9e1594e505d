"""A stand-in for Tidings in test databases, so that an application's tests need no installation.

It has what an application sees of Tidings: the table with its constraints, and the functions.
"""

from __future__ import annotations

from typing import Any

from django.db import connections

from . import conf
from .database import qualified, quote


def create_in_test_databases(using: str, **kwargs: Any) -> None:
    """Runs before migrations, whose triggers and rows need the table."""
    if using == conf.database() and conf.is_testing():
        create(using)


def create(using: str) -> None:
    connection = connections[using]
    if connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        cursor.execute("select to_regclass(%s)", [qualified("notifications")])
        if cursor.fetchone() == (None,):
            cursor.execute(SQL.replace('"schema"', quote(conf.schema())))


SQL = """
create schema if not exists "schema";

create table "schema".notifications (
  id bigint generated always as identity primary key,
  user_id text check (octet_length(user_id) between 1 and 255),
  topic text check (octet_length(topic) between 1 and 255 and topic !~ '[[:cntrl:]]'),
  text text not null check (octet_length(text) <= 1048576),
  event text check (
    octet_length(event) between 1 and 100 and event !~ '[[:cntrl:]]'
    and event not in ('open', 'error') and event not like 'tidings.%'
  ),
  ref text check (octet_length(ref) between 1 and 255),
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  sent_at timestamptz,
  sent boolean generated always as (sent_at is not null) stored,
  check (num_nonnulls(user_id, topic) = 1)
);

create table "schema".topic_subscriptions (
  user_id text not null check (octet_length(user_id) between 1 and 255),
  topic text not null check (
    octet_length(topic) between 1 and 255 and topic !~ '[[:cntrl:]]' and topic <> '*'
  ),
  primary key (user_id, topic)
);

create function "schema".send_notification(
  user_id text, text text, event text default null,
  expires_at timestamptz default null, ref text default null
) returns bigint language sql as $$
  insert into "schema".notifications (user_id, text, event, expires_at, ref)
  values ($1, $2, $3, $4, $5) returning id
$$;

create function "schema".send_to_topic(
  topic text, text text, event text default null,
  expires_at timestamptz default null, ref text default null
) returns bigint language sql as $$
  insert into "schema".notifications (topic, text, event, expires_at, ref)
  values ($1, $2, $3, $4, $5) returning id
$$;

create function "schema".send_to_everyone(
  text text, event text default null,
  expires_at timestamptz default null, ref text default null
) returns bigint language sql as $$
  select "schema".send_to_topic('*', $1, $2, $3, $4)
$$;

create function "schema".subscribe(user_id text, topic text) returns boolean language sql as $$
  with added as (
    insert into "schema".topic_subscriptions values ($1, $2) on conflict do nothing returning 1
  )
  select exists (select from added)
$$;

create function "schema".unsubscribe(user_id text, topic text) returns boolean language sql as $$
  with removed as (
    delete from "schema".topic_subscriptions as s
    where s.user_id = $1 and s.topic = $2 returning 1
  )
  select exists (select from removed)
$$;

create function "schema".tidings_watch(
  members regclass, user_column name, topic_column name, prefix text
) returns void language sql as '';

create function "schema".tidings_sync_memberships(prefix text, users text[], topics text[])
returns bigint language sql as 'select 0::bigint';

create function "schema".create_stream_ticket(user_id text, ttl interval default '1 hour')
returns text language sql as $$ select gen_random_uuid()::text $$;

create function "schema".create_stream_ticket(user_id text, ttl interval, topics text[])
returns text language sql as $$ select gen_random_uuid()::text $$;

create function "schema".disconnect_user(user_id text) returns void language sql as '';

create function "schema".tidings_adopt(adopted regclass, prefix text, marker name)
returns void language sql as '';

create function "schema".tidings_unadopt(adopted_schema name, adopted_table name)
returns void language sql as '';
"""

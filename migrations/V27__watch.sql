-- Memberships that an application keeps in a table of its own: triggers there copy them
-- into topic_subscriptions, or have bridges read them again.

-- Makes the memberships of the topics that begin with a prefix exactly these: removes
-- and adds what is different, and leaves the others as they are. A removal and a new
-- membership would not be the same: whoever is away would lose what was not fetched.
create function :"schema".tidings_sync_memberships(prefix text, users text[], topics text[])
returns bigint
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  added_users text[];
  added_topics text[];
  removed bigint;
begin
  if coalesce(prefix, '') = '' then
    raise exception 'the topics of a table need a prefix, such as ''project:'''
      using errcode = 'invalid_parameter_value';
  end if;
  if exists (select from unnest(topics) as t (topic) where not starts_with(t.topic, prefix)) then
    raise exception 'each topic must begin with the prefix %', prefix
      using errcode = 'invalid_parameter_value';
  end if;

  delete from :"schema".topic_subscriptions as s
  where
    starts_with(s.topic, prefix)
    and not exists (
      select
      from unnest(users, topics) as kept (user_id, topic)
      where kept.user_id = s.user_id and kept.topic = s.topic
    );
  get diagnostics removed = row_count;

  with added as (
    insert into :"schema".topic_subscriptions as s (user_id, topic)
    select distinct m.user_id, m.topic
    from unnest(users, topics) as m (user_id, topic)
    where m.user_id is not null and m.topic is not null
    order by 1, 2
    on conflict do nothing
    returning s.user_id, s.topic
  )
  select array_agg(a.user_id), array_agg(a.topic)
  into added_users, added_topics
  from added as a;
  -- As in subscribe(): only this snapshot is from after the INSERT's waits.
  update :"schema".topic_subscriptions as s
  set since = pg_current_snapshot()
  from unnest(added_users, added_topics) as a (user_id, topic)
  where s.user_id = a.user_id and s.topic = a.topic;
  return removed + coalesce(cardinality(added_users), 0);
end
$$;

-- Copies memberships that a statement has changed. Its arguments are those of
-- tidings_watch().
--
-- It runs as the owner of Tidings, and reads the columns of somebody else's table as
-- text. For a type of that role's, this would call a function of that role's, with the
-- owner's privileges. So only types of Postgres are read, which is checked each time,
-- because the table may have been altered. For the same reason, it reads nothing but
-- the rows that the statement has changed: their names are those of the transition
-- tables, which no schema can qualify.
create function :"schema".tidings_watched() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  user_column constant name := tg_argv[0];
  topic_column constant name := tg_argv[1];
  prefix constant text := tg_argv[2];
  -- The pairs of a transition table, as text.
  pairs constant text := case
    when topic_column is null
    then format('select %I::text as user_id, null::text as topic from ', user_column)
    else format(
      'select %I::text as user_id, %L || %I::text as topic from ', user_column, prefix, topic_column
    )
  end;
  before constant text := case when tg_op in ('UPDATE', 'DELETE') then pairs || 'gone' end;
  after constant text := case when tg_op in ('UPDATE', 'INSERT') then pairs || 'added' end;
  added_users text[];
  added_topics text[];
begin
  -- Otherwise a temporary view of that name would be read, with the functions it calls.
  if not exists (
    select
    from pg_trigger as t
    where
      t.tgrelid = tg_relid
      and t.tgname = tg_name
      and tg_level = 'STATEMENT'
      and tg_when = 'AFTER'
      and (before is null or t.tgoldtable = 'gone')
      and (after is null or t.tgnewtable = 'added')
  )
  then
    raise exception 'the trigger % on % was not created by tidings_watch()', tg_name, tg_relid::regclass
      using errcode = 'trigger_protocol_violated';
  end if;

  if exists (
    select
    from unnest(array[user_column, topic_column]) as c (name)
    left join pg_attribute as a
      on a.attrelid = tg_relid and a.attname = c.name and not a.attisdropped
    where
    c.name is not null
    and not coalesce(a.atttypid::regtype = any (:"schema".tidings_watchable_types()), false)
  )
  then
    raise exception 'the membership columns of % need a type such as text, bigint or uuid', tg_relid::regclass
      using errcode = 'datatype_mismatch', hint = 'Call tidings_watch() again.';
  end if;

  if topic_column is null then
    execute format(
      'insert into %I.tidings_membership_changes (user_id) select distinct c.user_id from (%s) as c %s',
      :'schema',
      case
        when tg_op = 'TRUNCATE' then 'select null::text as user_id'
        else concat_ws(' union all ', before, after)
      end,
      case when tg_op <> 'TRUNCATE' then 'where c.user_id is not null' end
    );
    return null;
  end if;

  if tg_op = 'TRUNCATE' then
    delete from :"schema".topic_subscriptions as s where starts_with(s.topic, prefix);
    return null;
  end if;
  if before is not null then
    execute format(
      'delete from %I.topic_subscriptions as s using (%s) as l '
      'where s.user_id = l.user_id and s.topic = l.topic',
      :'schema',
      concat_ws(' except ', before, after)
    );
  end if;
  if after is not null then
    execute format(
      'with added_here as ('
      'insert into %I.topic_subscriptions as s (user_id, topic) '
      'select j.user_id, j.topic from (%s) as j '
      'where j.user_id is not null and j.topic is not null order by 1, 2 '
      'on conflict do nothing returning s.user_id, s.topic) '
      'select array_agg(a.user_id), array_agg(a.topic) from added_here as a',
      :'schema',
      concat_ws(' except ', after, before)
    )
    into added_users, added_topics;
    -- As in subscribe().
    execute format(
      'update %I.topic_subscriptions as s set since = pg_current_snapshot() '
      'from unnest($1, $2) as a (user_id, topic) '
      'where s.user_id = a.user_id and s.topic = a.topic',
      :'schema'
    )
    using added_users, added_topics;
  end if;
  return null;
end
$$;

-- Types of Postgres whose values have one text, which no setting changes.
create function :"schema".tidings_watchable_types() returns regtype[]
language sql
immutable
security definer
set search_path = pg_catalog, pg_temp
as $$
  select '{text, varchar, bpchar, name, smallint, integer, bigint, oid, uuid}'::regtype[]
$$;

-- Watches a table of the application in which each row is a membership.
--
-- With topic_column, memberships are copied into topic_subscriptions, those that exist
-- and, by triggers, all changes, in the transactions that make them. The name of the
-- topic is the prefix, followed by the text of the column; all topics that begin with
-- the prefix are this table's. Call it again after the table was restored or altered.
--
-- Without topic_column, bridges only learn whose memberships they have to read again:
-- for relations that TIDINGS_MEMBERSHIPS names.
--
-- It runs as its caller, who must be able to act as the owner of the table.
create function :"schema".tidings_watch(
  members regclass,
  user_column name,
  topic_column name default null,
  prefix text default null
)
returns void
language plpgsql
volatile
set search_path = pg_catalog, pg_temp
set client_min_messages = warning
as $$
declare
  place record;
  unfit text;
  users text[];
  topics text[];
begin
  select c.relkind, c.relowner into place from pg_class as c where c.oid = members;
  if place.relkind is null or place.relkind not in ('r', 'p') then
    raise exception '% is not a table', members using errcode = 'wrong_object_type';
  end if;
  if not pg_has_role(current_user, place.relowner, 'usage') then
    raise exception '% can not act as the owner of the table %', current_user, members
      using errcode = 'insufficient_privilege';
  end if;
  if user_column is null
    or (topic_column is null) <> (prefix is null)
    or prefix = ''
  then
    raise exception using
      errcode = 'invalid_parameter_value',
      message = 'name the column of the users and, to copy memberships, the column of the topics and '
        'the prefix of their names',
      hint = 'Such as tidings_watch(''project_members'', ''user_id'', ''project_id'', ''project:'').';
  end if;
  -- What other transactions commit before the triggers exist must be visible to the
  -- statement that copies.
  if topic_column is not null and current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'tidings_watch needs a transaction with isolation level read committed'
      using errcode = 'active_sql_transaction';
  end if;

  select c.name
  into unfit
  from unnest(array[user_column, topic_column]) as c (name)
  left join pg_attribute as a
    on a.attrelid = members and a.attname = c.name and a.attnum > 0 and not a.attisdropped
  where
    c.name is not null
    and not coalesce(a.atttypid::regtype = any (:"schema".tidings_watchable_types()), false)
  limit 1;
  if found then
    raise exception 'the table % has no column %, or its type is none of %',
      members, unfit, array_to_string(:"schema".tidings_watchable_types(), ', ')
      using errcode = 'undefined_column';
  end if;
  -- Otherwise removing one of two rows would end the membership.
  if topic_column is not null
    and not exists (
      select
      from pg_index as i
      where
        i.indrelid = members
        and i.indisunique
        and i.indimmediate
        and i.indisvalid
        and i.indpred is null
        and i.indnkeyatts = 2
        and (
          select array_agg(a.attname order by a.attname)
          from pg_attribute as a
          where a.attrelid = members and a.attnum = any ((i.indkey::int2[])[0:1])
        ) = (select array_agg(c.name order by c.name) from unnest(array[user_column, topic_column]) as c (name))
    )
  then
    raise exception 'the table % needs a unique index on % and %', members, user_column, topic_column
      using
        errcode = 'object_not_in_prerequisite_state',
        hint = format('create unique index on %s (%I, %I);', members, user_column, topic_column);
  end if;

  execute format(
    'drop trigger if exists tidings_watch_insert on %1$s; '
    'drop trigger if exists tidings_watch_update on %1$s; '
    'drop trigger if exists tidings_watch_delete on %1$s; '
    'drop trigger if exists tidings_watch_truncate on %1$s; '
    'create trigger tidings_watch_insert after insert on %1$s '
    'referencing new table as added '
    'for each statement execute function %2$I.tidings_watched(%3$s); '
    'create trigger tidings_watch_update after update on %1$s '
    'referencing old table as gone new table as added '
    'for each statement execute function %2$I.tidings_watched(%3$s); '
    'create trigger tidings_watch_delete after delete on %1$s '
    'referencing old table as gone '
    'for each statement execute function %2$I.tidings_watched(%3$s); '
    'create trigger tidings_watch_truncate after truncate on %1$s '
    'for each statement execute function %2$I.tidings_watched(%3$s); '
    -- Bridges read what is restored or replicated like anything else.
    'alter table %1$s '
    'enable always trigger tidings_watch_insert, '
    'enable always trigger tidings_watch_update, '
    'enable always trigger tidings_watch_delete, '
    'enable always trigger tidings_watch_truncate',
    members,
    :'schema',
    concat_ws(', ', quote_literal(user_column), quote_literal(topic_column), quote_literal(prefix))
  );

  if topic_column is null then
    perform :"schema".tidings_memberships_changed(null);
  else
    execute format(
      'select array_agg(m.u), array_agg(m.t) '
      'from (select %I::text as u, %L || %I::text as t from %s) as m '
      'where m.u is not null and m.t is not null',
      user_column, prefix, topic_column, members
    )
    into users, topics;
    perform :"schema".tidings_sync_memberships(
      prefix, coalesce(users, '{}'), coalesce(topics, '{}')
    );
  end if;
end
$$;

revoke all on function :"schema".tidings_sync_memberships(text, text[], text[]) from public;
revoke all on function :"schema".tidings_watched() from public;
revoke all on function :"schema".tidings_watchable_types() from public;
revoke all on function :"schema".tidings_watch(regclass, name, name, text) from public;

comment on function :"schema".tidings_sync_memberships(text, text[], text[]) is
  'Makes the subscriptions to the topics with a prefix exactly these; tidings_watch calls it (Tidings).';
comment on function :"schema".tidings_watched() is
  'Copies memberships that changed in an application''s table (Tidings).';
comment on function :"schema".tidings_watchable_types() is
  'The types that columns of watched tables may have (Tidings).';
comment on function :"schema".tidings_watch(regclass, name, name, text) is
  'Has the memberships in an application''s table copied into topic_subscriptions (Tidings).';

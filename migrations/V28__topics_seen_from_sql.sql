-- The topics, for operators. The view runs with its owner's privileges and shows no text
-- of a notification.

-- Goes from one topic to the next in the index; the settings enforce this at any size of
-- the table and whatever its statistics are. For each topic it counts entries of the
-- index.
create function :"schema".tidings_count_topics()
returns table (topic text, subscribers bigint, notifications bigint, newest timestamptz)
language sql
stable
security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_indexscan = on
set enable_indexonlyscan = on
set jit = off
set max_parallel_workers_per_gather = 0
as $$
  with recursive
    named (topic) as (
      (
        select n.topic
        from :"schema".notifications as n
        where n.topic is not null
        order by n.topic
        limit 1
      )
      union all
      select (
        select n.topic
        from :"schema".notifications as n
        where n.topic is not null and n.topic > d.topic
        order by n.topic
        limit 1
      )
      from named as d
      where d.topic is not null
    ),
    joined (topic) as (
      (select s.topic from :"schema".topic_subscriptions as s order by s.topic limit 1)
      union all
      select (
        select s.topic
        from :"schema".topic_subscriptions as s
        where s.topic > d.topic
        order by s.topic
        limit 1
      )
      from joined as d
      where d.topic is not null
    )
  select t.topic, followed.subscribers, kept.notifications, last.created_at
  from (select d.topic from named as d union select d.topic from joined as d) as t
  cross join lateral (
    select count(*) as subscribers
    from :"schema".topic_subscriptions as s
    where s.topic = t.topic
  ) as followed
  cross join lateral (
    select count(*) as notifications
    from :"schema".notifications as n
    where n.topic = t.topic and n.topic is not null
  ) as kept
  left join lateral (
    select n.created_at
    from :"schema".notifications as n
    where n.topic = t.topic and n.topic is not null
    order by n.topic desc, n.xid desc, n.id desc
    limit 1
  ) as last on true
  where t.topic is not null
$$;

revoke all on function :"schema".tidings_count_topics() from public;

comment on function :"schema".tidings_count_topics() is
  'The topics, with their subscribers and notifications; tidings_topics reads it (Tidings).';

create view :"schema".tidings_topics as
select t.topic, t.subscribers, t.notifications, t.newest
from :"schema".tidings_count_topics() as t;

comment on view :"schema".tidings_topics is
  'The topics that have subscribers or notifications; one row for each (Tidings).';
comment on column :"schema".tidings_topics.topic is 'Its name; * means everyone.';
comment on column :"schema".tidings_topics.subscribers is
  'How many users topic_subscriptions has for it.';
comment on column :"schema".tidings_topics.notifications is 'How many are kept.';
comment on column :"schema".tidings_topics.newest is 'When the newest of them was created.';

-- As in V12__seen_from_sql.sql, and with topic_subscriptions.
create or replace view :"schema".tidings_size as
select
  c.relname::text as name,
  case c.relkind when 'r' then 'table' else 'index' end as kind,
  t.relname::text as "table",
  -- Negative: never analyzed.
  case when c.reltuples >= 0 then c.reltuples::bigint end as rows,
  case c.relkind when 'r' then pg_stat_get_live_tuples(c.oid) end as live,
  case c.relkind when 'r' then pg_stat_get_dead_tuples(c.oid) end as dead,
  size.bytes,
  pg_size_pretty(size.bytes) as size,
  case when c.reltuples > 0 then round(size.bytes / c.reltuples)::bigint end as bytes_per_row,
  case c.relkind
    when 'r'
    then greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid))
  end as last_vacuum,
  case c.relkind
    when 'r'
    then greatest(pg_stat_get_last_analyze_time(c.oid), pg_stat_get_last_autoanalyze_time(c.oid))
  end as last_analyze
from pg_class as ours
join pg_class as t
  on t.relnamespace = ours.relnamespace and t.relowner = ours.relowner and t.relkind = 'r'
cross join lateral (
  select t.oid
  union all
  select i.indexrelid from pg_index as i where i.indrelid = t.oid
) as part (oid)
join pg_class as c on c.oid = part.oid
cross join lateral (
  select case c.relkind when 'r' then pg_table_size(c.oid) else pg_relation_size(c.oid) end as bytes
) as size
where
  ours.oid = :'"schema".notifications'::regclass
  and (t.relname in ('notifications', 'stream_tickets', 'topic_subscriptions') or t.relname like 'tidings\_%')
order by t.relname, c.relkind = 'i', c.relname;

-- Objects of the application that take part when our rows are removed: foreign keys
-- that reference them, triggers on DELETE, and rules.
--
-- $1 schema. `kind` is index (a foreign key whose columns have no index), reference (a
-- foreign key that forbids deleting the rows it references), trigger or rule. `table`
-- is the table that the object belongs to, `target` the table that rows are removed
-- from.
with
  ours as (
    select
      c.oid,
      c.relowner,
      c.relnamespace,
      c.relname = 'notifications' as is_notifications,
      format('%I.%I', n.nspname, c.relname) as target
    from pg_catalog.pg_class as c
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    join pg_catalog.pg_class as history
      on history.relnamespace = c.relnamespace
      and history.relname = 'tidings_schema_history'
      and history.relowner = c.relowner
    where
      n.nspname = $1
      and c.relkind = 'r'
      and (c.relname in ('notifications', 'stream_tickets', 'topic_subscriptions') or c.relname like 'tidings\_%')
  ),
  keys as (
    select
      k.*,
      ours.is_notifications,
      ours.target,
      format('%I.%I', n.nspname, c.relname) as "table",
      c.relkind,
      (
        select string_agg(quote_ident(a.attname), ', ' order by u.turn)
        from unnest(k.conkey) with ordinality as u (attnum, turn)
        join pg_catalog.pg_attribute as a on a.attrelid = k.conrelid and a.attnum = u.attnum
      ) as columns,
      (
        select string_agg(quote_ident(a.attname), ', ' order by u.turn)
        from unnest(k.confkey) with ordinality as u (attnum, turn)
        join pg_catalog.pg_attribute as a on a.attrelid = k.confrelid and a.attnum = u.attnum
      ) as target_columns
    from ours
    join pg_catalog.pg_constraint as k on k.confrelid = ours.oid
    join pg_catalog.pg_class as c on c.oid = k.conrelid
    join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    -- Foreign keys of partitions are handled with that of their parent table.
    where k.contype = 'f' and k.conparentid = 0
  ),
  found (turn, kind, name, "table", target, is_notifications, "function", fix) as (
    -- One index serves all foreign keys on the same columns.
    select
      1, 'index', min(quote_ident(k.conname)), k."table", min(k.target),
      bool_or(k.is_notifications),
      null,
      format(
        'create index %son %s (%s);',
        -- Not supported for partitioned tables.
        case k.relkind when 'r' then 'concurrently ' else '' end,
        k."table",
        k.columns
      )
    from keys as k
    where
      not exists (
        select
        from pg_catalog.pg_index as i
        join pg_catalog.pg_class as x on x.oid = i.indexrelid
        join pg_catalog.pg_am as m on m.oid = x.relam
        where
          i.indrelid = k.conrelid
          and i.indisvalid
          and m.amname in ('btree', 'hash')
          and i.indnkeyatts >= cardinality(k.conkey)
          and (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey
          and (
            i.indpred is null
            -- Postgres infers that this predicate covers the lookup.
            or pg_get_expr(i.indpred, i.indrelid) = format('(%s IS NOT NULL)', k.columns)
          )
      )
    group by k."table", k.relkind, k.columns, k.confrelid
    union all
    select
      2, 'reference', quote_ident(k.conname), k."table", k.target, k.is_notifications, null,
      concat(
        format(
          'alter table %1$s drop constraint %2$I, '
          'add constraint %2$I foreign key (%3$s) references %4$s (%5$s)',
          k."table",
          k.conname,
          k.columns,
          k.target,
          k.target_columns
        ),
        case k.confmatchtype when 'f' then ' match full' end,
        case k.confupdtype
          when 'r' then ' on update restrict'
          when 'c' then ' on update cascade'
          when 'n' then ' on update set null'
          when 'd' then ' on update set default'
        end,
        ' on delete cascade',
        case when k.condeferrable then ' deferrable' end,
        case when k.condeferred then ' initially deferred' end,
        -- Validated by a separate statement, which doesn't block writers.
        case k.relkind
          when 'r' then format(' not valid; alter table %s validate constraint %I', k."table", k.conname)
        end,
        ';'
      )
    from keys as k
    where k.confdeltype in ('a', 'r')
    union all
    select
      3, 'trigger', quote_ident(t.tgname), ours.target, ours.target, ours.is_notifications,
      p.oid::regprocedure::text,
      format('alter table %s disable trigger %I;', ours.target, t.tgname)
    from ours
    join pg_catalog.pg_trigger as t on t.tgrelid = ours.oid
    join pg_catalog.pg_proc as p on p.oid = t.tgfoid
    where
      not t.tgisinternal
      and t.tgenabled in ('O', 'A')
      -- On DELETE.
      and t.tgtype & 8 <> 0
      and not (
        p.pronamespace = ours.relnamespace
        and p.proowner = ours.relowner
        and p.proname like 'tidings\_%'
      )
    union all
    select
      4, 'rule', quote_ident(r.rulename), ours.target, ours.target, ours.is_notifications, null,
      format('drop rule %I on %s;', r.rulename, ours.target)
    from ours
    join pg_catalog.pg_rewrite as r on r.ev_class = ours.oid
    -- On DELETE.
    where r.ev_type = '4' and r.ev_enabled in ('O', 'A')
  )
select kind, name, "table", target, is_notifications, "function", fix
from found
order by turn, "table", name

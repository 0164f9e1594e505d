-- What hides rows of our tables from roles that read them directly, or from our
-- functions, which run as the tables' owner.
--
-- $1 schema; $2 whether to check the roles of all bridges instead of only this
-- session's. `kind`:
--
--   row-security  row-level security applies to `affected`
--   relation      an object that isn't a table, `affected`, has a table's name
--   logged        tidings_incarnation survives crashes, so crashes go undetected
--   rule          the rule `affected` rewrites INSERTs or UPDATEs of notifications
--
-- With row_security = off, Postgres rejects a query to which row-level security
-- applies, whatever the policies say. So the catalogs are checked instead. `fix` is
-- null if only a person can decide.
with
  place as (select oid, nspname from pg_namespace where nspname = $1),
  tables as (
    select
      c.oid, c.relname, c.relkind, c.relowner, c.relpersistence, c.relrowsecurity,
      c.relforcerowsecurity, format('%I.%I', nspname, relname) as name
    from place
    join pg_class as c on c.relnamespace = place.oid
    where
      c.relname in (
        'notifications', 'stream_tickets', 'tidings_schema_history', 'tidings_pruned',
        'tidings_disconnections', 'tidings_drained', 'tidings_reopened', 'tidings_activity',
        'tidings_bridges_seen', 'tidings_incarnation', 'tidings_prune_failures', 'tidings_adopted',
        'topic_subscriptions', 'tidings_membership_changes', 'tidings_cursors', 'tidings_histories',
        'tidings_feed_keys'
      )
  ),
  readers as (
    select oid, rolname
    from pg_roles
    where
      not rolsuper
      and not rolbypassrls
      and (
        rolname = current_user
        or (
          $2
          and rolcanlogin
          and to_regrole('tidings_bridge') is not null
          and pg_has_role(oid, to_regrole('tidings_bridge')::oid, 'member')
        )
      )
  ),
  secured as (
    select
      t.relname,
      t.name,
      t.relforcerowsecurity,
      exists (
        select
        from readers as r
        where
          has_table_privilege(r.oid, t.oid, 'select')
          and (t.relforcerowsecurity or not pg_has_role(r.oid, t.relowner, 'usage'))
      ) as hides_from_readers,
      (
        select string_agg(quote_ident(rolname), ', ' order by rolname)
        from (
          select r.rolname
          from readers as r
          where
            has_table_privilege(r.oid, t.oid, 'select')
            and (t.relforcerowsecurity or not pg_has_role(r.oid, t.relowner, 'usage'))
          union
          select o.rolname
          from pg_roles as o
          where
            o.oid = t.relowner
            and t.relforcerowsecurity
            and not o.rolsuper
            and not o.rolbypassrls
        ) as roles
      ) as affected
    from tables as t
    where t.relrowsecurity
  ),
  -- The table whose column `id` uses the sequence of ids, whatever it is called now.
  made as (
    select format('%I.%I', place.nspname, c.relname) as name
    from place
    join pg_class as s on s.relnamespace = place.oid and s.relname = 'notifications_id_seq'
    join pg_depend as d
      on
        d.classid = 'pg_class'::regclass
        and d.objid = s.oid
        and d.refclassid = 'pg_class'::regclass
        and d.refobjsubid > 0
        and d.deptype in ('a', 'i')
    join pg_class as c on c.oid = d.refobjid and c.relnamespace = place.oid
    limit 1
  )
select
  'row-security' as kind,
  s.relname::text as relation,
  s.name as "table",
  s.affected,
  case
    when s.hides_from_readers then format('alter table %s disable row level security;', s.name)
    else format('alter table %s no force row level security;', s.name)
  end as fix
from secured as s
where s.affected is not null
union all
select
  'relation',
  t.relname,
  t.name,
  case t.relkind
    when 'v' then 'a view'
    when 'm' then 'a materialized view'
    when 'f' then 'a foreign table'
    else 'something else'
  end,
  case
    when t.relname = 'notifications' and t.relkind = 'v' and m.name is not null then format(
      'alter view %s rename to notifications_view; alter table %s rename to notifications;',
      t.name,
      m.name
    )
  end
from tables as t
left join made as m on true
where t.relkind in ('v', 'm', 'f')
union all
select
  'logged',
  t.relname,
  t.name,
  null,
  -- Emptied, because a crash may have gone undetected.
  format('alter table %s set unlogged; truncate %1$s;', t.name)
from tables as t
where t.relname = 'tidings_incarnation' and t.relkind = 'r' and t.relpersistence <> 'u'
union all
select 'rule', t.relname, t.name, quote_ident(w.rulename), format('drop rule %I on %s;', w.rulename, t.name)
from tables as t
join pg_rewrite as w on w.ev_class = t.oid
where
  t.relname = 'notifications'
  and t.relkind in ('r', 'p')
  and w.ev_enabled <> 'D'
  -- UPDATE, and rules that replace INSERT. Rules on DELETE are in prune_obstacles.sql.
  and (w.ev_type = '2' or (w.ev_type = '3' and w.is_instead))
order by 1, 2, 4

-- A crash of Postgres is detected with a table that it empties, INSERTs don't ring
-- while the notification queue is nearly full, and bridges report whether they are
-- ready.
--
-- Nothing here takes a lock on `notifications`.

-- When the server last recovered from a crash, as far as bridges need to know: the
-- table is UNLOGGED, so crash recovery, and nothing else, empties it. A clean restart
-- keeps the row, and so does a reset of the server's statistics, which earlier bridges
-- used to detect a crash. The first bridge that finds no row adds one.
--
-- See docs/decisions/0010-crash-recovery-empties-an-unlogged-table.md.
create unlogged table :"schema".tidings_incarnation (
  single boolean primary key default true check (single),
  since timestamptz not null
);

comment on table :"schema".tidings_incarnation is
  'One row, which a crash of Postgres removes, so that bridges notice it; must stay UNLOGGED (Tidings).';
comment on column :"schema".tidings_incarnation.single is 'True: there is one row.';
comment on column :"schema".tidings_incarnation.since is
  'When a bridge first found the table empty; different after each crash.';

-- The value that earlier bridges use for the current incarnation, so that event ids
-- mean the same to them and to new ones.
insert into :"schema".tidings_incarnation (since)
select coalesce(stats_reset, clock_timestamp()) from pg_catalog.pg_stat_bgwriter;

-- Whether each bridge is ready, and if not, why.
alter table :"schema".tidings_bridges_seen
  add column readiness text,
  add column reason text;

comment on column :"schema".tidings_bridges_seen.readiness is
  'The status of its /health/ready; null if it does not report it.';
comment on column :"schema".tidings_bridges_seen.reason is 'Why it is not ready.';

create function :"schema".tidings_report_readiness(bridge text, readiness text, reason text)
returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  update :"schema".tidings_bridges_seen as b
  set
    readiness = tidings_report_readiness.readiness,
    reason = left(tidings_report_readiness.reason, 1000)
  where b.bridge = tidings_report_readiness.bridge
$$;

revoke all on function :"schema".tidings_report_readiness(text, text, text) from public;

comment on function :"schema".tidings_report_readiness(text, text, text) is
  'Records whether a bridge is ready; the bridges call it after tidings_report (Tidings).';

-- Only adds columns, at the end.
create or replace view :"schema".tidings_bridges as
select
  b.bridge, b.version, b.role, b.address, b.client_address, b.started_at,
  b.state, b.since, b.connections, b.clock_offset, b.last_seen, b.readiness, b.reason
from :"schema".tidings_bridges_seen as b
join pg_catalog.pg_stat_activity as a on a.pid = b.pid
where
  a.datid = (select oid from pg_catalog.pg_database where datname = current_database())
  and (
    a.backend_start = b.backend_start
    or (
      (a.backend_start is null or b.backend_start is null)
      and b.last_seen > now() - interval '1 minute'
    )
  );

comment on column :"schema".tidings_bridges.readiness is
  'The status of its /health/ready, as of last_seen; null if it is too old to report it.';
comment on column :"schema".tidings_bridges.reason is 'Why it is not ready.';

-- Roles that were granted the functions of bridges by name, instead of through
-- tidings_bridge, get what bridges now need.
do $$
declare
  statement text;
begin
  for statement in
    select
      format(
        'grant execute on function %I.tidings_report_readiness(text, text, text) to %s; '
        'grant select, insert on table %1$I.tidings_incarnation to %2$s',
        :'schema',
        a.grantee::regrole
      )
    from pg_proc as p
    cross join aclexplode(p.proacl) as a
    where
      p.pronamespace = to_regnamespace(quote_ident(:'schema'))
      and p.proname = 'tidings_disconnections_page'
      and a.grantee not in (0, p.proowner)
      and a.privilege_type = 'EXECUTE'
  loop
    execute statement;
  end loop;
end
$$;

-- As in V8__leave_the_bell_unrung.sql, but it doesn't ring while the server's
-- notification queue is more than half full: at 100 %, each commit that has called
-- NOTIFY fails. Any role that can connect can fill the queue of the whole cluster.
-- Bridges poll once a second even without the doorbell.
--
-- The trigger's condition is evaluated first: while a bridge is awake, none of this
-- runs. Where the owner may not read the queue's usage, the trigger rings as before.
create or replace function :"schema".tidings_ring_doorbell() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  queue_usage double precision := 0;
begin
  if pg_catalog.current_setting('tidings.doorbell', true) operator(pg_catalog.=) 'off' then
    return null;
  end if;
  begin
    queue_usage := pg_catalog.pg_notification_queue_usage();
  exception
    when insufficient_privilege then null;
  end;
  if queue_usage operator(pg_catalog.<=) 0.5 then
    perform pg_catalog.pg_notify(pg_catalog.concat('tidings_', tg_relid), '');
  end if;
  return null;
end
$$;

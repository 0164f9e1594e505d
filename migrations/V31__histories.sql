-- Bridges can read what returning clients have missed from replicas. A replica must follow
-- the primary that the bridge listens to, not a former one or another branch of it. This
-- table tells: a row that a bridge writes on the primary arrives only at replicas that
-- follow it.
--
-- Nothing here takes a lock on `notifications`.
create table :"schema".tidings_histories (
  system_identifier bigint not null,
  timeline integer not null,
  since timestamptz not null,
  recorded_at timestamptz not null default now(),
  primary key (system_identifier, timeline, since)
);

comment on table :"schema".tidings_histories is
  'One row for each incarnation of the primary in which a bridge with replicas has run, by which a '
  'replica proves that it follows the primary (Tidings).';
comment on column :"schema".tidings_histories.system_identifier is
  'The cluster: a dump that is restored elsewhere takes its rows along.';
comment on column :"schema".tidings_histories.timeline is 'The timeline of the primary.';
comment on column :"schema".tidings_histories.since is
  'When a bridge first noticed this incarnation, as in tidings_incarnation.';

-- Roles that were granted the tables of bridges by name, instead of through
-- tidings_bridge, get what bridges now need.
do $$
declare
  statement text;
begin
  for statement in
    select
      format(
        'grant select, insert on table %I.tidings_histories to %s', :'schema', a.grantee::regrole
      )
    from pg_class as c
    cross join aclexplode(c.relacl) as a
    where
      c.oid = to_regclass(format('%I.tidings_incarnation', :'schema'))
      and a.grantee not in (0, c.relowner)
      and a.privilege_type = 'INSERT'
  loop
    execute statement;
  end loop;
end
$$;

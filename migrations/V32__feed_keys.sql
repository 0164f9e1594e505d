-- Bridges can send each other what they read from the table, through NATS. The messages
-- are sealed with a key that only the database's owner and the bridges can read, so that
-- whoever can reach the NATS servers can neither read notifications nor invent any.
--
-- Nothing here takes a lock on `notifications`.
create table :"schema".tidings_feed_keys (
  id integer generated always as identity primary key,
  -- 366 random bits; gen_random_uuid() has them from the operating system.
  key bytea not null default sha256(
    uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
  ),
  created_at timestamptz not null default now(),
  check (octet_length(key) = 32)
);

comment on table :"schema".tidings_feed_keys is
  'The keys that seal messages between bridges: the newest one, and the one before it, which still '
  'opens them (Tidings).';
comment on column :"schema".tidings_feed_keys.key is 'Of AES-256-GCM.';
comment on column :"schema".tidings_feed_keys.created_at is
  'By which `tidings check` tells how old it is.';

-- The same transaction creates the table, so no other role has read it.
insert into :"schema".tidings_feed_keys default values;

create function :"schema".rotate_feed_key()
returns void
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into :"schema".tidings_feed_keys default values;
  -- The one that was the newest until now stays.
  delete from :"schema".tidings_feed_keys
  where id not in (select id from :"schema".tidings_feed_keys order by id desc limit 2);
$$;

comment on function :"schema".rotate_feed_key() is
  'Seals messages between bridges with a new key. Bridges take it up within seconds, and until then '
  'poll. If the current key may be known to others, call it twice, a minute apart (Tidings).';

revoke execute on function :"schema".rotate_feed_key() from public;

comment on column :"schema".tidings_bridges_seen.state is
  'awake: it polls; asleep: it waits for the doorbell; feeding: it polls, and sends other bridges '
  'what it reads; following: it is sent that.';
comment on column :"schema".tidings_bridges.state is
  'awake: it polls, and writers need not ring; asleep: it waits for the doorbell; feeding: it polls, '
  'and sends other bridges what it reads; following: it is sent that.';

-- Roles that were granted the tables of bridges by name, instead of through
-- tidings_bridge, get what bridges now need.
do $$
declare
  statement text;
begin
  for statement in
    select
      format(
        'grant select on table %I.tidings_feed_keys to %s', :'schema', a.grantee::regrole
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

-- Advances cursors of users.
--
-- For each user: $1 the user, $2 the floor. For each open transaction of a cursor: $3 the
-- user's number (from 1), $4 the transaction, $5 the last id read of it. $6 the durable
-- floor, $7 the cluster's system identifier, $8 and $9 the server's incarnation
-- (incarnation.sql) in which all of this was read: in any other, nothing is written.
--
-- A cursor is replaced only by one that covers it: two streams of a user may have
-- received different rows, and a row that one of them has not received must stay new. One
-- from before a crash counts as fallen back. Users are locked in one order, so that
-- bridges don't deadlock.
--
-- The commit doesn't wait for the disk: losing a cursor causes duplicates.
insert into :"schema".tidings_cursors as c (
  user_id, floor, open, read_to, durable, timeline, since, system_identifier
)
select reached.user_id, reached.floor, reached.open, reached.read_to, $6, $8, $9, $7
from (
  select set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '1s', true)
) as hurried
cross join lateral (
  select
    u.user_id,
    u.floor,
    array(
      select o.xid
      from unnest($3::bigint[], $4::xid8[], $5::bigint[]) as o (number, xid, read)
      where o.number = u.number
      order by o.xid
    ) as open,
    array(
      select o.read
      from unnest($3::bigint[], $4::xid8[], $5::bigint[]) as o (number, xid, read)
      where o.number = u.number
      order by o.xid
    ) as read_to
  from unnest($1::text[], $2::xid8[]) with ordinality as u (user_id, floor, number)
  order by u.user_id
) as reached
where exists (select from (:incarnation) as here where here.timeline = $8 and here.since = $9)
on conflict (user_id) do update
set
  floor = excluded.floor,
  open = excluded.open,
  read_to = excluded.read_to,
  durable = excluded.durable,
  timeline = excluded.timeline,
  since = excluded.since,
  system_identifier = excluded.system_identifier,
  written_at = excluded.written_at
where
  c.system_identifier <> excluded.system_identifier
  or (
    (excluded.floor, excluded.open, excluded.read_to) is distinct from (c.floor, c.open, c.read_to)
    and not exists (
      select
      from (
        select
          case
            when c.timeline = excluded.timeline and c.since = excluded.since then c.floor
            else least(c.floor, c.durable)
          end as floor
      ) as stored
      where
        excluded.floor < stored.floor
        or exists (
          select
          from unnest(excluded.open, excluded.read_to) as o (xid, read)
          where
            o.xid < stored.floor
            and not exists (
              select
              from unnest(c.open, c.read_to) as k (xid, read)
              where k.xid = o.xid and k.read <= o.read
            )
        )
    )
  )

-- Advances cursors of users.
--
-- For each user: $1 the user, $2 the floor. For each open transaction of a cursor: $3 the
-- user's number (from 1), $4 the transaction. $5 the durable floor, $6 the cluster's system
-- identifier, $7 and $8 the server's incarnation (incarnation.sql) in which all of this was
-- read: in any other, nothing is written.
--
-- A cursor is replaced only by one that covers it: two streams of a user may have
-- received different rows, and a row that one of them has not received must stay new. One
-- from before a crash counts as fallen back. Users are locked in one order, so that
-- bridges don't deadlock.
--
-- Not `on conflict`, which logs a lock for each row before its update, and a confirmation
-- after its insertion: a third more. Of two bridges that insert the first cursor of a user
-- at the same time, one fails and tries again.
--
-- The commit doesn't wait for the disk: losing a cursor causes duplicates.
with
  reached as materialized (
    select u.user_id, u.floor, o.open
    from (
      select set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '1s', true)
    ) as hurried
    cross join unnest($1::text[], $2::xid8[]) with ordinality as u (user_id, floor, number)
    left join (
      select t.number, array_agg(t.xid order by t.xid) as open
      from unnest($3::bigint[], $4::xid8[]) as t (number, xid)
      group by t.number
    ) as o on o.number = u.number
    where exists (select from (:incarnation) as here where here.timeline = $7 and here.since = $8)
    order by u.user_id
  ),
  advanced as (
    update :"schema".tidings_cursors as c
    set
      floor = reached.floor,
      open = reached.open,
      durable = $5,
      timeline = $7,
      since = $8,
      system_identifier = $6,
      written_on = current_date
    from reached
    where
      c.user_id = reached.user_id
      and (
        c.system_identifier <> $6
        or (
          (reached.floor, reached.open) is distinct from (c.floor, c.open)
          and not exists (
            select
            from (
              select
                case
                  when c.timeline = $7 and c.since = $8 then c.floor
                  else least(c.floor, c.durable)
                end as floor
            ) as stored
            where
              reached.floor < stored.floor
              or exists (
                select
                from unnest(reached.open) as o (xid)
                where o.xid < stored.floor and not o.xid = any (coalesce(c.open, '{}'))
              )
          )
        )
      )
  )
insert into :"schema".tidings_cursors (
  user_id, floor, open, durable, timeline, since, system_identifier
)
select reached.user_id, reached.floor, reached.open, $5, $7, $8, $6
from reached
where not exists (
  select from :"schema".tidings_cursors as c where c.user_id = reached.user_id
)

-- The rows that the demo page lists: the newest notifications that a user was sent or
-- will be, and whether they were sent.
--
-- $1 user.
select
  f.id,
  f.topic,
  f.event,
  f.text,
  f.created_at,
  f.sent_at
from (
  (
    select *
    from :"schema".notifications
    where user_id = $1
    order by id desc
    limit 50
  )
  union all
  (
    select n.*
    from :"schema".topic_subscriptions as s
    join :"schema".notifications as n on n.topic = s.topic
    where
      s.user_id = $1
      and (n.xid = s.xid or not pg_visible_in_snapshot(n.xid, s.since))
    order by n.id desc
    limit 50
  )
  union all
  (
    select *
    from :"schema".notifications
    where topic = '*'
    order by id desc
    limit 50
  )
) as f
order by f.id desc
limit 50

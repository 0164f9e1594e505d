-- The rows that the demo page lists: a user's newest notifications, and whether they
-- were sent.
--
-- $1 user.
select
  id,
  event,
  text,
  created_at,
  sent_at
from :"schema".notifications
where user_id = $1
order by id desc
limit 50

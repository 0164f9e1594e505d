-- The rows that the demo page lists: a user's newest notifications, and whether they
-- were sent.
--
-- $1 user.
select
  id,
  event,
  text,
  to_char(created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at,
  to_char(sent_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as sent_at
from :"schema".notifications
where user_id = $1
order by id desc
limit 50

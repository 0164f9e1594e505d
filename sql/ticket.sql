-- Which user a ticket belongs to, and how many seconds it remains valid.
--
-- $1 its hash. Always returns one row; the user is null if there is no such ticket or
-- it has expired.
select
  here.timeline,
  here.since,
  t.user_id,
  t.seconds_left
from (:incarnation) as here
left join (
  select
    user_id,
    extract(epoch from expires_at - clock_timestamp())::float8 as seconds_left
  from :"schema".stream_tickets
  where hash = $1 and expires_at > clock_timestamp()
) as t on true

-- Which user a ticket belongs to, which topics it grants, and how many seconds it remains
-- valid.
--
-- $1 its hash. Always returns one row; `seconds_left` is null if there is no such ticket
-- or it has expired. The user is null for a ticket that is for topics alone.
select
  here.timeline,
  here.since,
  t.user_id,
  t.topics,
  t.seconds_left
from (:incarnation) as here
left join (
  select
    user_id,
    topics,
    extract(epoch from expires_at - clock_timestamp())::float8 as seconds_left
  from :"schema".stream_tickets
  where hash = $1 and expires_at > clock_timestamp()
) as t on true

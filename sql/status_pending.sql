-- What waits to be delivered.
select
  count(*) as pending,
  count(distinct user_id) as users,
  extract(epoch from clock_timestamp() - min(created_at))::float8 as age
from :"schema".notifications
where sent_at is null and (expires_at is null or expires_at > now())

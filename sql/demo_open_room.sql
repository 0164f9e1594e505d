-- Fills the room of the demo page, unless it has members already.
--
-- $1 topic, $2 users.
select :"schema".subscribe(u.name, $1)
from unnest($2::text[]) as u (name)
where not exists (select from :"schema".topic_subscriptions where topic = $1)

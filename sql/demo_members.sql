-- Who is in the room of the demo page.
--
-- $1 topic.
select user_id
from :"schema".topic_subscriptions
where topic = $1
order by user_id
limit 50

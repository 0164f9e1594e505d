-- The memberships of a user in the built-in table. Included by the variable
-- `memberships`.
--
-- $6 user, $12 maximum number of topics, $13 the topics that the client asked for, null
-- for all. Only reads the index.
select topic, since, xid
from :"schema".topic_subscriptions
where user_id = $6 and ($13::text[] is null or topic = any ($13))
order by user_id, topic
limit $12

-- Where a user who connects without a last event id continues in the topics, if that is
-- known (V26__memberships.sql).
--
-- $1 user, $2 the cluster's system identifier. In another incarnation than `timeline` and
-- `since`, it falls back to `durable`.
select floor, open, read_to, durable, timeline, since
from :"schema".tidings_cursors
where user_id = $1 and system_identifier = $2

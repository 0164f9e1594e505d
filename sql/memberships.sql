-- The memberships of a user in the built-in table. Included by the variable
-- `memberships`.
--
-- :member is the user, :most the maximum number of topics, :asked the topics that the
-- client asked for, null for all. Only reads the index.
--
-- What a dump brought from another cluster may lie in the future, where no row is new to
-- it. It counts as unknown: the membership begins at the reader's position.
select
  topic,
  case
    when pg_snapshot_xmax(since) <= pg_snapshot_xmax(pg_current_snapshot()) then since
  end as since,
  case when xid < pg_snapshot_xmax(pg_current_snapshot()) then xid end as xid
from :"schema".topic_subscriptions
where user_id = :member and (:asked is null or topic = any (:asked))
order by user_id, topic
limit :most

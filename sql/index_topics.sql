-- The index for the pages of topics. Writers don't wait while it is built, so it must run
-- in no transaction. It waits for transactions that were open before.
create index concurrently if not exists notifications_topic_xid_id
on :"schema".notifications (topic, xid, id) where topic is not null

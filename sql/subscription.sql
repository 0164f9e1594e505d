-- The subscription that fills a table by logical replication.
--
-- $1 the table's qualified name. The name is taken from a view: in PostgreSQL 13 only
-- superusers may join with pg_subscription itself.
select subname::text
from pg_subscription_rel
join pg_stat_subscription as s on s.subid = srsubid
where srrelid = to_regclass($1)
limit 1

-- The subscription that fills a table by logical replication.
--
-- $1 the table's qualified name.
select subname::text
from pg_subscription_rel
join pg_subscription as s on s.oid = srsubid
where srrelid = to_regclass($1)
limit 1

-- Which streams were to end since a snapshot.
--
-- $1 the snapshot of the reading before. Always a row, for the snapshot of this
-- one; without a user if there is none.
select pg_current_snapshot()::text as snapshot, d.user_id, d.ticket
from (select) as one
left join :"schema".tidings_disconnections_since($1::text::pg_snapshot) as d on true

-- Which rows could not be removed, and why (V16__prune_failures.sql): the reasons,
-- the most frequent one first.
--
-- $1 how many rows are read at most.
select
  f."constraint",
  f.sqlstate,
  min(f.reason) as reason,
  count(*) as rows
from (
  select g."constraint", g.sqlstate, g.reason
  from :"schema".tidings_prune_failures as g
  limit $1
) as f
group by f."constraint", f.sqlstate
order by count(*) desc, reason

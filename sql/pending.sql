-- Rows waiting to be delivered.
select
  pending,
  users,
  extract(epoch from age)::float8 as age
from :"schema".tidings_pending_total

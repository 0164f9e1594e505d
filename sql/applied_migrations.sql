-- The migrations that were applied to a schema, oldest first.
select version, name
from :"schema".tidings_schema_history
order by version

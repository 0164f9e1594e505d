-- Adopted tables whose rows are marked once they were sent.
select schema_name::text as schema, table_name::text as name
from :"schema".tidings_adopted
where mark_function is not null
order by schema_name, table_name

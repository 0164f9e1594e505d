-- Tables that were adopted, as `tidings adopt` has listed them.
select schema_name::text as schema, table_name::text as name, ref_prefix, mark_function::text as marker
from :"schema".tidings_adopted
order by schema_name, table_name

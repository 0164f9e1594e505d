-- Whether this role may tell what its bridge does (report.sql).
--
-- $1 schema.
select bool_or(has_function_privilege(oid, 'execute'))
from pg_proc
where
  pronamespace = to_regnamespace(quote_ident($1))
  and proname = 'tidings_report'

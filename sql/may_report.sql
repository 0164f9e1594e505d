-- Whether this role may report its bridge's activity (report.sql).
--
-- $1 schema.
select bool_and(has_function_privilege(oid, 'execute'))
from pg_proc
where
  pronamespace = to_regnamespace(quote_ident($1))
  and proname in ('tidings_report', 'tidings_report_readiness', 'tidings_report_topics')

-- The schemas of the session's search path that exist, without those that Postgres adds.
select pg_catalog.current_schemas(false)::pg_catalog.text[] as path

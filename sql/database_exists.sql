-- Whether this cluster has a database of this name.
--
-- $1 name.
select exists (select from pg_database where datname = $1) as does

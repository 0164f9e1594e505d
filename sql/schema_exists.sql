-- Whether there is a schema of this name, and the role of this session.
--
-- $1 name.
select
  exists (select from pg_namespace where nspname = $1) as does,
  current_user::text as role

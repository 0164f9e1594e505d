-- Whether the role of this session may create objects in a schema.
--
-- $1 schema.
select
  has_schema_privilege($1, 'create') as may,
  current_user::text as role

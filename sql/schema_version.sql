-- The version of the last migration that was applied to a schema.
select max(version) as version from :"schema".tidings_schema_history

-- Objects in a schema that have one of our names.
--
-- $1 schema, $2 names. A table's name is also the name of its row type, so types are
-- checked too; a type that belongs to a relation is reported as the relation.
select what
from (
  select
    format(
      '%s %s',
      case relkind
        when 'r' then 'a table'
        when 'p' then 'a partitioned table'
        when 'v' then 'a view'
        when 'm' then 'a materialized view'
        when 'S' then 'a sequence'
        when 'f' then 'a foreign table'
        when 'c' then 'a composite type'
        else 'an index'
      end,
      relname
    ) as what
  from pg_class
  where relnamespace = to_regnamespace(quote_ident($1)) and relname = any($2::text[])
  union all
  select format(
    'a %s %s(%s)',
    case prokind when 'p' then 'procedure' else 'function' end,
    proname,
    pg_get_function_identity_arguments(oid)
  )
  from pg_proc
  where pronamespace = to_regnamespace(quote_ident($1)) and proname = any($2::text[])
  union all
  select format('a type %s', typname)
  from pg_type
  where
    typnamespace = to_regnamespace(quote_ident($1))
    and typname = any($2::text[])
    and typrelid = 0
) as found
order by what desc
limit 1

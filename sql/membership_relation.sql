-- The relation of the application that TIDINGS_MEMBERSHIPS names, and its columns.
--
-- $1 the name as SQL writes it. No row if the name has no schema. `relation` and `may_read`
-- are null if it doesn't exist. The types are null for columns that don't exist; a domain counts as its
-- base type.
select
  case when c.oid is not null then format('%I.%I', n.nspname, c.relname) end as relation,
  current_user::text as role,
  case
    when c.oid is not null
    then has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
  end as may_read,
  case
    when c.oid is not null
    then
      format(
        'grant usage on schema %1$I to %2$I; grant select on %1$I.%3$I to %2$I;',
        n.nspname,
        current_user,
        c.relname
      )
  end as fix,
  (
    select coalesce(nullif(t.typbasetype, 0), t.oid)::regtype::text
    from pg_attribute as a
    join pg_type as t on t.oid = a.atttypid
    where a.attrelid = c.oid and a.attname = 'user_id' and a.attnum > 0 and not a.attisdropped
  ) as user_id,
  (
    select coalesce(nullif(t.typbasetype, 0), t.oid)::regtype::text
    from pg_attribute as a
    join pg_type as t on t.oid = a.atttypid
    where a.attrelid = c.oid and a.attname = 'topic' and a.attnum > 0 and not a.attisdropped
  ) as topic,
  (
    select a.atttypid::regtype::text
    from pg_attribute as a
    where a.attrelid = c.oid and a.attname = 'since' and a.attnum > 0 and not a.attisdropped
  ) as since
from (select parse_ident($1) as parts) as named
left join pg_namespace as n on n.nspname = parts[1]
left join pg_class as c
  on c.relnamespace = n.oid and c.relname = parts[2] and c.relkind in ('r', 'p', 'v', 'm', 'f')
where cardinality(parts) = 2

-- The functions called here are those of pg_catalog, too.
set search_path to pg_catalog;

-- The types that our statements use.
create table plants.types as
select t::regtype::oid as oid
from unnest(array[
  'text', 'varchar', 'name', 'bpchar', '"char"', 'int2', 'int4', 'int8', 'numeric', 'float4',
  'float8', 'oid', 'regclass', 'regrole', 'regnamespace', 'regprocedure', 'xid', 'xid8', 'bool',
  'bytea', 'timestamptz', 'timestamp', 'date', 'interval', 'inet', 'pg_lsn', 'pg_snapshot',
  'text[]', 'name[]', 'int8[]', 'int4[]', 'xid8[]', 'oid[]', 'bytea[]', 'aclitem[]'
]) as t;

create sequence plants.names;

create table plants.called_by (sequence regclass primary key, name text not null);

-- The concrete types that a declared argument accepts: the type itself, types with an implicit
-- cast to it, and for a polymorphic type all types of its kind.
create function plants.concrete(declared oid) returns setof oid
language sql stable
set search_path = pg_catalog
as $$
  select t.oid
  from plants.types as t
  join pg_type as p on p.oid = t.oid
  where
    t.oid = declared
    or exists (
      select from pg_cast where castsource = t.oid and casttarget = declared and castcontext = 'i'
    )
    or declared in (
      'anyelement'::regtype, 'anycompatible'::regtype, '"any"'::regtype
    )
    or declared in ('anynonarray'::regtype, 'anycompatiblenonarray'::regtype) and p.typelem = 0
    or declared in ('anyarray'::regtype, 'anycompatiblearray'::regtype)
    and p.typelem <> 0 and p.typlen = -1
$$;

-- Calls are counted by sequences, because a rollback doesn't undo those.
create function plants.body(what text) returns text
language plpgsql
set search_path = pg_catalog
as $$
declare
  counter text := 'plants.calls_' || nextval('plants.names');
begin
  execute 'create sequence ' || counter;
  execute 'grant all on sequence ' || counter || ' to public';
  insert into plants.called_by values (counter::regclass, what);
  return format(
    'begin perform pg_catalog.nextval(%L::pg_catalog.regclass); raise exception %L; end',
    counter, replace(what, '%', '%%') || ' was called'
  );
end
$$;

create function plants.called() returns table (name text)
language plpgsql
set search_path = pg_catalog
as $$
declare
  each record;
  is_called boolean;
begin
  for each in select * from plants.called_by loop
    execute 'select is_called from ' || each.sequence into is_called;
    if is_called then
      name := each.name;
      return next;
    end if;
  end loop;
end
$$;

-- One counter per name, so that there are hundreds of them instead of thousands.
create function plants.plant(place text, words text[]) returns bigint
language plpgsql
set search_path = pg_catalog
as $$
declare
  each record;
  body text;
  planted bigint := 0;
  operator_function text;
begin
  for each in
    select f.name, array_agg(f.arguments) as signatures
    from (
      select distinct p.proname as name, format_type(a.oid, null) as arguments
      from pg_proc as p
      cross join lateral plants.concrete(p.proargtypes[0]) as a (oid)
      where
        p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any (words)
        and (p.pronargs = 1 or p.pronargs > 1 and p.provariadic <> 0 and p.pronargs = 2)
      union
      select distinct
        p.proname, format_type(a.oid, null) || ', ' || format_type(b.oid, null)
      from pg_proc as p
      cross join lateral plants.concrete(p.proargtypes[0]) as a (oid)
      cross join lateral plants.concrete(
        case when p.provariadic <> 0 and p.proargtypes[1] = p.provariadic then p.provariadic
        else p.proargtypes[1] end
      ) as b (oid)
      where
        p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any (words)
        and p.pronargs = 2
      union
      select distinct
        p.proname,
        concat_ws(', ', format_type(a.oid, null), format_type(b.oid, null), format_type(c.oid, null))
      from pg_proc as p
      cross join lateral plants.concrete(p.proargtypes[0]) as a (oid)
      cross join lateral plants.concrete(p.proargtypes[1]) as b (oid)
      cross join lateral plants.concrete(p.proargtypes[2]) as c (oid)
      where
        p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any (words)
        and p.pronargs = 3
        and p.provariadic = 0
      union
      -- format() and concat() with up to four texts, numbers or names.
      select p.proname, array_to_string(array_fill(t, array[n]), ', ')
      from pg_proc as p
      cross join unnest(array['text', 'bigint', 'name', 'oid', 'regclass', 'regrole']) as t
      cross join generate_series(1, 4) as n
      where
        p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any (words)
        and p.provariadic <> 0
      union
      select p.proname, 'text, ' || array_to_string(array_fill(t, array[n]), ', ')
      from pg_proc as p
      cross join unnest(array['text', 'bigint', 'name', 'oid', 'regclass', 'regrole']) as t
      cross join generate_series(1, 3) as n
      where
        p.pronamespace = 'pg_catalog'::regnamespace and p.proname = any (words)
        and p.provariadic <> 0
    ) as f
    group by f.name
  loop
    body := plants.body(each.name);
    for i in 1 .. cardinality(each.signatures) loop
      execute format(
        'create or replace function %I.%I(%s) returns boolean language plpgsql as %L',
        place, each.name, each.signatures[i], body
      );
      planted := planted + 1;
    end loop;
  end loop;

  for each in
    select o.name, array_agg(array[o.l, o.r]) as pairs
    from (
      select distinct p.oprname as name, format_type(a.oid, null) as l, format_type(b.oid, null) as r
      from pg_operator as p
      cross join lateral plants.concrete(p.oprleft) as a (oid)
      cross join lateral plants.concrete(p.oprright) as b (oid)
      where
        p.oprnamespace = 'pg_catalog'::regnamespace and p.oprname = any (words)
        and p.oprkind = 'b'
    ) as o
    group by o.name
  loop
    body := plants.body('operator ' || each.name);
    operator_function := 'planted_' || nextval('plants.names');
    for i in 1 .. array_length(each.pairs, 1) loop
      execute format(
        'create function plants.%I(%s, %s) returns boolean language plpgsql as %L',
        operator_function, each.pairs[i][1], each.pairs[i][2], body
      );
      execute format(
        'create operator %I.%s (leftarg = %s, rightarg = %s, function = plants.%I)',
        place, each.name, each.pairs[i][1], each.pairs[i][2], operator_function
      );
      planted := planted + 1;
    end loop;
  end loop;
  grant usage on schema plants to public;
  return planted;
end
$$;

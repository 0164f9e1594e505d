-- send_notification takes the time at which a notification expires and the application's
-- own key for it. Calls with two or three arguments work as before.
--
-- The functions with three arguments are dropped: beside those with five, whose last
-- three have defaults, a call with two arguments would be ambiguous. A prepared statement
-- or a function that calls them resolves the name again.
create function :"schema".send_notification(
  user_id text,
  text text,
  event text default null,
  expires_at timestamptz default null,
  ref text default null
)
returns bigint
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into :"schema".notifications (user_id, text, event, expires_at, ref)
  values (
    send_notification.user_id,
    send_notification.text,
    send_notification.event,
    send_notification.expires_at,
    send_notification.ref
  )
  returning id
$$;

create function :"schema".send_notification(
  user_id bigint,
  text text,
  event text default null,
  expires_at timestamptz default null,
  ref text default null
)
returns bigint
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  insert into :"schema".notifications (user_id, text, event, expires_at, ref)
  values (
    send_notification.user_id::text,
    send_notification.text,
    send_notification.event,
    send_notification.expires_at,
    send_notification.ref
  )
  returning id
$$;

revoke all on function :"schema".send_notification(text, text, text, timestamptz, text) from public;
revoke all on function :"schema".send_notification(bigint, text, text, timestamptz, text) from public;

-- Their owner, comment and privileges are those of the functions that they replace. Of
-- the privileges, only who granted them differs: the owner now grants all of them.
do $migration$
declare
  replaced record;
  granted record;
  dependents text;
begin
  for replaced in
    select
      old.oid::regprocedure as former,
      new.oid::regprocedure as latter,
      old.proowner::regrole as owner,
      obj_description(old.oid, 'pg_proc') as comment,
      coalesce(old.proacl, acldefault('f', old.proowner)) as privileges,
      -- What default privileges have added.
      coalesce(new.proacl, acldefault('f', new.proowner)) as additions
    from unnest(array['text', 'bigint']) as of (kind)
    join pg_proc as old
      on old.oid = to_regprocedure(format('%I.send_notification(%s, text, text)', :'schema', kind))
    join pg_proc as new
      on
        new.oid = to_regprocedure(
          format('%I.send_notification(%s, text, text, timestamptz, text)', :'schema', kind)
        )
  loop
    execute format('comment on function %s is %L', replaced.latter, replaced.comment);
    for granted in
      select distinct case when a.grantee = 0 then 'public' else a.grantee::regrole::text end as grantee
      from aclexplode(replaced.additions) as a
    loop
      execute format('revoke all on function %s from %s', replaced.latter, granted.grantee);
    end loop;
    for granted in
      select
        case when a.grantee = 0 then 'public' else a.grantee::regrole::text end as grantee,
        case when a.is_grantable then ' with grant option' else '' end as options
      from aclexplode(replaced.privileges) as a
      order by a.is_grantable
    loop
      execute format(
        'grant execute on function %s to %s%s', replaced.latter, granted.grantee, granted.options
      );
    end loop;
    if replaced.owner <> to_regrole(quote_ident(current_user)) then
      execute format('alter function %s owner to %s', replaced.latter, replaced.owner);
    end if;
    begin
      execute format('drop function %s', replaced.former);
    exception
      when dependent_objects_still_exist then
        get stacked diagnostics dependents = pg_exception_detail;
        raise exception using
          errcode = 'dependent_objects_still_exist',
          message = format(
            'the function %s gets further arguments and has to be replaced, but objects that do not '
            'belong to Tidings depend on it: %s',
            replaced.former,
            replace(dependents, chr(10), '; ')
          ),
          hint = 'Drop them, run `tidings migrate`, and create them again as they were.';
    end;
  end loop;
end
$migration$;

-- A ticket may grant topics: to its user, besides those of the user's memberships, or
-- without any user, to its holder.
--
-- Only the catalog changes. Existing rows satisfy the new constraints, which therefore
-- need not be checked against them: they have a user and no topics.
--
-- Earlier bridges reject a ticket without a user, and read the removal of one as that of
-- all tickets: the clients whose streams they end return with theirs.

alter table :"schema".stream_tickets
  add column topics text[],
  alter column user_id drop not null,
  add constraint stream_tickets_for_somebody
    check (user_id is not null or topics is not null) not valid,
  -- The bridge accepts as many in a token.
  add constraint stream_tickets_topics_form check (
    cardinality(topics) between 1 and 100
    and array_ndims(topics) = 1
    and array_position(topics, null) is null
    and array_position(topics, '*') is null
  ) not valid;

comment on table :"schema".stream_tickets is
  'Who may open which streams with ?ticket=; removing a row ends the streams that it opened (Tidings).';
comment on column :"schema".stream_tickets.user_id is
  'Whose stream it opens; null if it is for topics alone.';
comment on column :"schema".stream_tickets.topics is
  'The topics that its streams have besides those of the user; null if there are none.';

-- A ticket without a user is all that its streams have in common.
alter table :"schema".tidings_disconnections
  drop constraint tidings_disconnections_whose,
  add constraint tidings_disconnections_whose check (
    user_id is not null or ticket is null or octet_length(ticket) in (0, 32)
  ) not valid;

comment on column :"schema".tidings_disconnections.user_id is
  'Whose streams end; null means everyone''s, or those of a ticket without a user.';

-- Creates a ticket and returns it; it can't be read again. A role that may call it can
-- read every user's stream and every topic.
--
-- 244 random bits from Postgres' own UUID generator, so that no extension is needed.
create function :"schema".create_stream_ticket(user_id text, ttl interval, topics text[])
returns text
language plpgsql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  ticket text := replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', '');
  -- Not the beginning of the transaction, which may have lasted.
  created timestamptz := clock_timestamp();
  seconds double precision;
  granted text[];
begin
  if coalesce(cardinality(create_stream_ticket.topics), 0) > 100 then
    raise exception 'a ticket grants at most 100 topics, not %', cardinality(create_stream_ticket.topics)
      using errcode = 'invalid_parameter_value',
        hint = 'For more, subscribe a user: select subscribe(''7'', ''project:7'').';
  end if;
  granted := nullif(
    array(
      select distinct t.topic collate "C"
      from unnest(create_stream_ticket.topics) as t (topic)
      order by 1
    ),
    '{}'
  );
  -- As in V24__topic.sql.
  if exists (
    select
    from unnest(granted) as t (topic)
    where
      (octet_length(t.topic) between 1 and 255 and t.topic !~ E'[[:cntrl:]\\u007f-\\u009f]') is not true
  )
  then
    raise exception 'a ticket grants topics of 1 to 255 bytes without control characters'
      using errcode = 'invalid_parameter_value';
  end if;
  if '*' = any (granted) then
    raise exception 'a ticket doesn''t grant the topic *, which every stream has'
      using errcode = 'invalid_parameter_value';
  end if;
  if (create_stream_ticket.user_id is null and granted is null)
    or octet_length(create_stream_ticket.user_id) not between 1 and 255
  then
    raise exception 'a ticket needs a user_id of 1 to 255 bytes'
      using errcode = 'invalid_parameter_value',
        hint = 'Only a ticket that grants topics may be without: '
          'create_stream_ticket(null, ''1 hour'', topics => ''{project:7}'').';
  end if;
  -- Compared as intervals first: an infinite one has no seconds.
  if ttl is null or ttl <= interval '0' or ttl > interval '24 hours' then
    raise exception 'a ticket lives for more than nothing and 24 hours at most'
      using errcode = 'invalid_parameter_value',
        hint = 'Pass an interval such as ''1 hour'' as ttl.';
  end if;
  -- In seconds, because a day has 25 hours when the clocks are put back.
  seconds := extract(epoch from ttl);

  insert into :"schema".stream_tickets (hash, user_id, topics, created_at, expires_at)
  values (
    sha256(convert_to(ticket, 'UTF8')),
    create_stream_ticket.user_id,
    granted,
    created,
    created + seconds * interval '1 second'
  );
  return ticket;
end
$$;

revoke all on function :"schema".create_stream_ticket(text, interval, text[]) from public;

comment on function :"schema".create_stream_ticket(text, interval, text[]) is
  'Returns a ticket that opens the stream of a user, or of none, with these topics (Tidings).';

create or replace function :"schema".create_stream_ticket(user_id text, ttl interval default '1 hour')
returns text
language sql
volatile
security definer
set search_path = pg_catalog, pg_temp
as $$
  select :"schema".create_stream_ticket(
    create_stream_ticket.user_id, create_stream_ticket.ttl, null::text[]
  )
$$;

-- Tickets open streams for clients that can send neither a cookie nor a header: pages
-- of another origin, and applications that use only SQL.
--
-- A ticket is the value that create_stream_ticket returns. It is not stored: reading
-- this table, or a dump of it, doesn't allow anyone to open a stream.
create table :"schema".stream_tickets (
  hash bytea primary key,
  user_id text not null,
  created_at timestamptz not null,
  expires_at timestamptz not null,

  constraint stream_tickets_hash_length check (octet_length(hash) = 32),
  constraint stream_tickets_user_id_length check (octet_length(user_id) between 1 and 255),
  -- A ticket is part of a URL, and URLs end up in logs and histories.
  constraint stream_tickets_short_lived check (
    expires_at > created_at and expires_at <= created_at + interval '24 hours'
  )
);

-- All tickets of a user, when the user is disconnected.
create index stream_tickets_user_id on :"schema".stream_tickets (user_id);

-- Expired tickets, which are removed when new ones are created.
create index stream_tickets_expires_at on :"schema".stream_tickets (expires_at);

comment on table :"schema".stream_tickets is
  'Who may open whose stream with ?ticket=; removing a row ends the streams that it opened (Tidings).';
comment on column :"schema".stream_tickets.hash is 'SHA-256 of the ticket, which is kept nowhere.';
comment on column :"schema".stream_tickets.user_id is 'Whose stream it opens.';
comment on column :"schema".stream_tickets.expires_at is
  'When it opens no more streams, and those that it opened end.';

-- Creates a ticket and returns it; it can't be read again.
--
-- It runs with its owner's privileges: a role that may call it needs no privilege on
-- the table. A role that may call it can read every user's stream.
--
-- 244 random bits from Postgres' own UUID generator, so that no extension is needed.
create function :"schema".create_stream_ticket(user_id text, ttl interval default '1 hour')
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
begin
  if create_stream_ticket.user_id is null
    or octet_length(create_stream_ticket.user_id) not between 1 and 255
  then
    raise exception 'a ticket needs a user_id of 1 to 255 bytes'
      using errcode = 'invalid_parameter_value';
  end if;
  -- Compared as intervals first: an infinite one has no seconds.
  if ttl is null or ttl <= interval '0' or ttl > interval '24 hours' then
    raise exception 'a ticket lives for more than nothing and 24 hours at most'
      using errcode = 'invalid_parameter_value',
        hint = 'Pass an interval such as ''1 hour'' as ttl.';
  end if;
  -- In seconds, because a day has 25 hours when the clocks are put back.
  seconds := extract(epoch from ttl);

  -- A few of those that have expired go for each that comes.
  delete from :"schema".stream_tickets
  where hash in (
    select t.hash
    from :"schema".stream_tickets as t
    where t.expires_at < created
    order by t.expires_at
    limit 10
    for update skip locked
  );

  insert into :"schema".stream_tickets (hash, user_id, created_at, expires_at)
  values (
    sha256(convert_to(ticket, 'UTF8')),
    create_stream_ticket.user_id,
    created,
    created + seconds * interval '1 second'
  );
  return ticket;
end
$$;

revoke all on function :"schema".create_stream_ticket(text, interval) from public;

comment on function :"schema".create_stream_ticket(text, interval) is
  'Returns a ticket that opens the user''s stream with ?ticket= until it expires (Tidings).';

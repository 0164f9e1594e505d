-- Creates a ticket, as an application does.
--
-- $1 user, $2 seconds.
select :"schema".create_stream_ticket($1, $2 * interval '1 second') as ticket

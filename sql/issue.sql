-- Creates a ticket, as an application does.
--
-- $1 user (null for none), $2 seconds, $3 topics.
select :"schema".create_stream_ticket($1, $2 * interval '1 second', $3) as ticket

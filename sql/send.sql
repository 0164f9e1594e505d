-- Sends a notification, as an application does.
--
-- $1 user, $2 text, $3 event, $4 seconds after which it expires, $5 ref.
select :"schema".send_notification($1, $2, $3, now() + $4 * interval '1 second', $5) as id

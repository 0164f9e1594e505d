-- Sends a notification, as an application does.
--
-- $1 user, $2 text, $3 event.
select :"schema".send_notification($1, $2, $3) as id

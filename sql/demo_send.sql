-- Sends a notification from the demo page.
--
-- $1 user, $2 text.
select public.send_notification($1, $2) as id

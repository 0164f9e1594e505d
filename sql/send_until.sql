-- Sends a notification that expires after a while.
--
-- $1 user, $2 text, $3 event, $4 seconds.
insert into :"schema".notifications (user_id, text, event, expires_at)
values ($1, $2, $3, now() + $4 * interval '1 second')
returning id

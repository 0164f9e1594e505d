-- Sends a notification from the demo page: to a user, or to the subscribers of a topic.
--
-- $1 user, $2 topic (one of them is null), $3 text.
insert into public.notifications (user_id, topic, text) values ($1, $2, $3) returning id

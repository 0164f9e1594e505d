-- Sends a notification to the subscribers of a topic, as an application does.
--
-- $1 topic, $2 text, $3 event, $4 seconds after which it expires, $5 ref.
select :"schema".send_to_topic($1, $2, $3, now() + $4 * interval '1 second', $5) as id

-- A user joins the room of the demo page, or leaves it.
--
-- $1 user, $2 topic, $3 whether the user joins.
select
  case
    when $3 then :"schema".subscribe($1, $2)
    else :"schema".unsubscribe($1, $2)
  end

-- All rows of the table, and those that are not marked as sent.
select
  count(*) as rows,
  count(*) filter (where sent_at is null) as unsent
from :"schema".notifications

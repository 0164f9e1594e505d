-- Begins a new incarnation of the server if a crash has ended the previous one: crash
-- recovery empties the table (V15__notice_crashes_and_full_queues.sql). If several
-- bridges run this, one adds the row, and the others read it with their next statement.
insert into :"schema".tidings_incarnation (since)
values (clock_timestamp())
on conflict do nothing

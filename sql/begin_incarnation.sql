-- Begins an incarnation of the server, if a crash has ended the one before: crash
-- recovery empties the table (V15__notice_crashes_and_full_queues.sql). Of several
-- bridges one adds the row, and the others read it with the next statement.
insert into :"schema".tidings_incarnation (since)
values (clock_timestamp())
on conflict do nothing

-- Reads the whole table, but writers don't wait for it. It has a file of its own because
-- V20 locks the table until its transaction ends.
alter table :"schema".notifications validate constraint notifications_ref_length;

-- Marks rows of an adopted table. `failure` says why some can't be marked.
--
-- $1 schema and $2 name of the table, $3 ids of notifications that were marked as sent, or
-- null to look for marks that were lost, $4 maximum number of rows.
select :"schema".tidings_mark_adopted($1, $2, $3, $4) as failure

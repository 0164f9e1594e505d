-- Whether this role may record up to where users are drained (drain.sql), and start
-- there (backlog_page.sql).
--
-- $1 and $2 the qualified names of tidings_drained and tidings_reopened.
select
  has_table_privilege(to_regclass($1), 'select')
  and has_table_privilege(to_regclass($1), 'insert')
  and has_table_privilege(to_regclass($1), 'update')
  and has_table_privilege(to_regclass($2), 'select')

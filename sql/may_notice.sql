-- Whether this role may use the table that detects crashes.
--
-- $1 the table's qualified name.
select
  has_table_privilege(to_regclass($1), 'select') and has_table_privilege(to_regclass($1), 'insert')
    as may_notice

-- Adopted tables, and when a bridge last looked for lost marks in each; null without
-- --mark, and if none has.
select
  format('%I.%I', schema_name, table_name) as "table",
  mark_function is not null as marks,
  extract(epoch from clock_timestamp() - nullif(swept_at, '-infinity'))::float8 as swept
from :"schema".tidings_adopted
order by schema_name, table_name

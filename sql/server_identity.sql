-- Which database of which server this session is connected to, and as which role.
select
  format('%s/%s/%s', system_identifier, current_database(), pg_is_in_recovery()) as place,
  current_user::text as role
from pg_control_system()

-- Properties of the server, for the checks at startup.
select
  pg_is_in_recovery() as standby,
  current_setting('server_version_num')::int as version_number,
  current_setting('server_version') as version,
  current_setting('server_encoding') as encoding

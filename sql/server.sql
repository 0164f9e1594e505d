-- What the server is, for the checks at start.
select
  pg_is_in_recovery() as standby,
  current_setting('server_version_num')::int as version_number,
  current_setting('server_version') as version,
  current_setting('server_encoding') as encoding

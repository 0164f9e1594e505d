-- The time on this server.
select clock_timestamp() as now

-- Reports this bridge's identity and activity, for the views (V11__activity.sql).
--
-- $1 its name, $2 its version, $3 the role it listens as, $4 the address it serves, $5
-- when it started, $6 the listening session, $7 awake or asleep, $8 since when, $9 open
-- streams, $10 microseconds by which the database's clock is ahead of its own. For
-- minute $11: $12 rows seen, $13 rows marked, and $14 the numbers of rows written by
-- delay. $15 the status of its readiness, and $16 why it is not ready. The second and
-- third functions update the row that the first has written; without the third, the row
-- would say that this bridge doesn't deliver topics, and rows of topics would be rejected.
--
-- The commit doesn't wait for the disk, because it doesn't matter whether the report
-- survives a crash.
select
  :"schema".tidings_report(
    bridge => $1,
    version => $2,
    role => $3,
    address => $4,
    client_address => a.client_addr,
    started_at => $5,
    pid => $6,
    backend_start => a.backend_start,
    state => $7,
    since => $8,
    connections => $9,
    clock_offset => $10 * interval '1 microsecond',
    minute => $11,
    seen => $12,
    sent => $13,
    delays => $14
  ),
  :"schema".tidings_report_readiness(bridge => $1, readiness => $15, reason => $16),
  :"schema".tidings_report_topics(bridge => $1)
from (
  select set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '1s', true)
) as hurried
left join pg_stat_activity as a on a.pid = $6

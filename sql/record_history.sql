-- Records that the primary is in this incarnation, so that replicas can prove that they
-- follow it (replica_gate.sql). $1 timeline, $2 since.
--
-- Does nothing on a server in another incarnation.
insert into :"schema".tidings_histories (timeline, since)
select here.timeline, here.since
from (:incarnation) as here
where here.timeline = $1 and here.since = $2
on conflict do nothing

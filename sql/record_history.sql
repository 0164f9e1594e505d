-- Records that the primary is in this incarnation, so that replicas can prove that they
-- follow it (replica_gate.sql). $1 timeline, $2 since.
--
-- Does nothing on a server in another incarnation.
insert into :"schema".tidings_histories (system_identifier, timeline, since)
select control.system_identifier, here.timeline, here.since
from (:incarnation) as here
cross join pg_control_system() as control
where here.timeline = $1 and here.since = $2
on conflict do nothing

-- Gives the lock of tidings_ring_doorbell() back, and rings, so that bridges
-- that rely on its being held look after themselves.
--
-- It goes as one message, so that a bridge that freezes has sent both or
-- neither. The lock goes first: whoever hears the bell then finds it free.
select pg_advisory_unlock(1953064041, :table::oid::int);
notify tidings_:table;

-- The key that seals messages between bridges, and the one before it, which still opens
-- them while bridges take up the new one (rotate_feed_key).
select id, key
from :"schema".tidings_feed_keys
order by id desc
limit 2

-- The first rows of one user and of the user's topics that are new since a position. Rows
-- of topics depend on the user's memberships, and memberships become visible like rows:
-- one position covers both.
--
-- $1 floor, $2 open transactions (ascending), $3 the last id read of each, $4 maximum
-- number of rows, $5 bytes of text after which texts are left out, $6 user (null for
-- none).
--
-- Memberships that were handled: $7 floor, $8 open transactions (ascending). A later
-- membership is new; *late rows* are rows that belong to it and that the position counts
-- as seen. They come first, alone in their page, and don't advance the position. While
-- they fill more than a page: $9 the snapshot of their first page, $10 and $11 the
-- transaction and id of the last late row that was read; otherwise null.
--
-- $12 maximum number of topics, $13 the topics that the client asked for (null for all),
-- $14 topics that a token or ticket adds, $15 what was visible when their stream was
-- opened without a last event id (null for any other).
--
-- In the first reading of a connection without a last event id, the bridge's own position
-- when it was opened: $16 floor, $17 open transactions, $18 the last id read of each. Of
-- the user's own rows, from transaction $19 on, only those count that are new to it or
-- unsent. $20 what was visible when the stream was opened, if it isn't known where the
-- user continues: rows of topics that the user hasn't joined begin there. $21 and $22 the
-- key from which rows are replayed, sent or not. All are null otherwise.
--
-- A row belongs to a membership if the same transaction wrote both, or if it was not
-- visible in `since`, or if there is no `since`.
--
-- Keys come first, through the index (topic, xid, id) alone, and then the rows of the page
-- by primary key. All topics begin at the oldest open transaction: a probe for each open
-- transaction and topic would read more. The condition `topic is not null` lets a plan
-- without values use the partial index. `beyond` and the omitted texts are as in
-- tail_page.sql, `pruned` as in user_page.sql.
--
-- `top` is the newest transaction of any row and of the user's memberships: together with
-- the snapshot it determines up to where everything counts as seen once this was the last
-- page. `topics`, `sinces` and `xids` are the user's memberships, which don't include $14
-- and everyone's topic. Only the first row has them: they take more than the row.
with
  mine as materialized (:memberships),
  m as materialized (
    select
      topic,
      -- Without either, rows begin at the present.
      coalesce(since, $20::pg_snapshot) as since,
      xid,
      (xid >= $7 or xid = any ($8::xid8[]))
        and coalesce(pg_visible_in_snapshot(xid, $9::pg_snapshot), true) as is_new,
      null::xid8 as replayed
    from mine
    union all
    -- These aren't joined, so what is replayed may precede `since`.
    select added.topic, added.since, null, false, $21::xid8
    from (
      select c.topic, $15::pg_snapshot as since
      from (select distinct unnest($14::text[]) as topic) as c
      where c.topic <> '*'
      union all
      select '*', $20::pg_snapshot
    ) as added
    where
      ($13::text[] is null or added.topic = any ($13))
      and added.topic not in (select topic from mine)
  ),
  late as materialized (
    select t.xid, t.id
    from m
    cross join lateral (
      select n.xid, n.id
      from :"schema".notifications as n
      where
        n.topic = m.topic
        and n.topic is not null
        and n.xid >= coalesce(greatest(pg_snapshot_xmin(m.since), $10::xid8), '0')
        and n.xid < $1
        and ($10 is null or (n.xid, n.id) > ($10, $11::bigint))
        and not exists (
          select
          from unnest($2::xid8[], $3::bigint[]) as o (xid, read)
          where o.xid = n.xid and n.id > o.read
        )
        and (n.xid = m.xid or not coalesce(pg_visible_in_snapshot(n.xid, m.since), false))
      order by n.topic, n.xid, n.id
      limit $4
    ) as t
    where m.is_new
    order by t.xid, t.id
    limit $4
  ),
  keys as materialized (
    select k.xid, k.id
    from (
      (
        select own.xid, own.id
        from unnest($2::xid8[], $3::bigint[]) as o (xid, read)
        cross join lateral (
          select n.xid, n.id
          from :"schema".notifications as n
          where
            n.user_id = $6
            and n.xid = o.xid
            and n.id > o.read
            and (
              $16::xid8 is null
              or n.sent_at is null and (n.expires_at is null or n.expires_at > now())
              or n.xid >= $16
              or (n.xid, n.id) >= ($21::xid8, $22::bigint)
              or exists (
                select
                from unnest($17::xid8[], $18::bigint[]) as p (xid, read)
                where p.xid = n.xid and n.id > p.read
              )
            )
          order by n.user_id, n.xid, n.id
          limit $4
        ) as own
        where not exists (select from late)
        limit $4
      )
      union all
      (
        select n.xid, n.id
        from :"schema".notifications as n
        where
          n.user_id = $6
          and n.xid >= greatest($1, $19::xid8)
          and n.xid < pg_snapshot_xmax(pg_current_snapshot())
          and (
            $16::xid8 is null
            or n.sent_at is null and (n.expires_at is null or n.expires_at > now())
            or n.xid >= $16
            or (n.xid, n.id) >= ($21::xid8, $22::bigint)
            or exists (
              select
              from unnest($17::xid8[], $18::bigint[]) as p (xid, read)
              where p.xid = n.xid and n.id > p.read
            )
          )
          and not exists (select from late)
        order by n.user_id, n.xid, n.id
        limit $4
      )
      union all
      (
        select t.xid, t.id
        from m
        cross join lateral (
          select n.xid, n.id
          from :"schema".notifications as n
          where
            n.topic = m.topic
            and n.topic is not null
            and n.xid >= greatest(
              least($1, ($2::xid8[])[1]),
              case when m.since is not null then least(pg_snapshot_xmin(m.since), m.replayed) end
            )
            and n.xid < pg_snapshot_xmax(pg_current_snapshot())
            and (
              n.xid >= $1
              or exists (
                select
                from unnest($2::xid8[], $3::bigint[]) as o (xid, read)
                where o.xid = n.xid and n.id > o.read
              )
            )
            and (
              n.xid = m.xid
              or not coalesce(pg_visible_in_snapshot(n.xid, m.since), false)
              or (n.xid, n.id) >= (m.replayed, $22)
            )
          order by n.topic, n.xid, n.id
          limit $4
        ) as t
        where not exists (select from late)
      )
    ) as k
    order by k.xid, k.id
    limit $4
  ),
  s as materialized (
    select
      pg_current_snapshot() as snapshot,
      here.timeline,
      here.since,
      (select :"schema".tidings_pruned_through()) as pruned,
      greatest(
        (
          select xid
          from :"schema".notifications
          where xid < pg_snapshot_xmax(pg_current_snapshot())
          order by xid desc
          limit 1
        ),
        (select xid from mine where xid is not null order by xid desc limit 1)
      ) as top,
      mine.topics,
      mine.sinces,
      mine.xids
    from (:incarnation) as here
    cross join (
      select
        coalesce(array_agg(topic), '{}') as topics,
        coalesce(array_agg(since), '{}') as sinces,
        coalesce(array_agg(xid), '{}') as xids
      from mine
    ) as mine
  )
select
  s.snapshot, s.timeline, s.since, s.pruned, s.top,
  case when n.is_later is distinct from true then s.topics end as topics,
  case when n.is_later is distinct from true then s.sinces end as sinces,
  case when n.is_later is distinct from true then s.xids end as xids,
  n.late, n.topic, n.xid, n.id, n.event, n.ref, n.created_at, n.seconds_left, null::xid8 as begun, n.beyond,
  case when not n.beyond and octet_length(n.text) <= 1048576 then n.text end as text
from s
left join lateral (
  select
    :columns,
    f.topic,
    f.late,
    count(*) over before > 0 as is_later,
    coalesce(sum(octet_length(f.text)) over before >= $5, false) as beyond
  from (
    select k.late, r.*
    from (select true as late, id from late union all select false, id from keys) as k
    cross join lateral (
      select * from :"schema".notifications where id = k.id limit 1
    ) as r
  ) as f
  window before as (order by f.xid, f.id rows between unbounded preceding and 1 preceding)
) as n on true
order by n.xid, n.id
limit $4

-- Up to where rows have been removed.
--
-- A browser that returns after weeks presents a position from which rows have been
-- removed since. It is informed, instead of silently missing them: whoever removes rows
-- records here, in the same transaction, the newest transaction of which rows were
-- removed.
create table :"schema".tidings_pruned (
  only_row boolean primary key default true,
  xid xid8 not null,

  constraint tidings_pruned_only_row check (only_row)
);

insert into :"schema".tidings_pruned (xid) values ('0');

comment on table :"schema".tidings_pruned is
  'How far notifications have been removed; who removes some moves it on (Tidings).';
comment on column :"schema".tidings_pruned.xid is
  'The youngest transaction of which notifications were removed.';

-- The parts of a name as SQL writes it: "My Schema".orders are two.
--
-- $1 the name.
select parse_ident($1) as parts

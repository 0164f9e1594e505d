-- Whether there is a relation of this name.
--
-- $1 qualified name.
select to_regclass($1) is not null as does

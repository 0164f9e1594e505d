-- How many bridges are connected.
select count(*) as bridges from :"schema".tidings_bridges

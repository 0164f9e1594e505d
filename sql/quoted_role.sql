-- The role of this session, as SQL names it.
select quote_ident(current_user) as role

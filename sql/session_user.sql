-- The role that this session logged in as.
select session_user::text as role

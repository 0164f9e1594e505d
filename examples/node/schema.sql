-- The application's own tables. Nothing here is about Tidings.

create extension if not exists pgcrypto; -- hashes the passwords

create table if not exists users (
  id bigint generated always as identity primary key,
  name text not null unique,
  password text not null
);

create table if not exists notification (
  id bigint generated always as identity primary key,
  user_id bigint not null references users,
  text text not null check (text <> ''),
  sent boolean not null default false
);

create index if not exists notification_user_id on notification (user_id, id);

-- Two people to try the example with. Their passwords are their names.
insert into users (name, password)
select name, crypt(name, gen_salt('bf')) from unnest(array['alice', 'bob']) as name
where not exists (select from users);

#!/bin/sh
# The PostgreSQL image runs this once, when it initializes its volume. It creates Tidings' group roles and a
# login role for each container, so that none of them connects as a superuser.
set -eu

psql --no-psqlrc --set=ON_ERROR_STOP=1 --set=schema=public \
    --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" --file=/tidings/roles.sql

# psql reads the passwords from the environment, so that they don't appear in the process list.
psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
\set owner_password `printenv OWNER_PASSWORD`
\set bridge_password `printenv BRIDGE_PASSWORD`
create role migrator login password :'owner_password' in role tidings_owner;
create role bridge login password :'bridge_password' in role tidings_bridge;
SQL

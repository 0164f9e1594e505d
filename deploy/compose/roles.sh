#!/bin/sh
# The image of PostgreSQL runs this once, when it makes its volume: the groups of Tidings, and a
# login for each part. Nothing but the server itself works as a superuser.
set -eu

psql --no-psqlrc --set=ON_ERROR_STOP=1 --set=schema=public \
    --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" --file=/tidings/roles.sql

# The passwords are read in psql, so that no list of processes shows them.
psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
\set owner_password `printenv OWNER_PASSWORD`
\set bridge_password `printenv BRIDGE_PASSWORD`
create role migrator login password :'owner_password' in role tidings_owner;
create role bridge login password :'bridge_password' in role tidings_bridge;
SQL

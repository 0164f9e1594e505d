-- The variable `member` as a UUID, as in user_as_bigint.sql.
case
  when :member ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' then :member::uuid
end

-- The variable `member` as a number, for a column of numbers, so that its index is used.
-- Null, which equals nothing, unless the user is written as Postgres writes the number: 07 and 7
-- are different users. Included by the variable `own_user`.
case
  when :member ~ '^(0|-?[1-9][0-9]{0,18})$'
    then case
      when :member::numeric between -9223372036854775808 and 9223372036854775807 then :member::bigint
    end
end

# Runs the command that follows $1 until it ends, or until the other end of standard input is gone.
# In the second case the folder $1, unless that is empty, is removed once the command has ended.
#
# Standard input takes orders: each line is the name of a signal for the command. Standard output
# is the file `running`, which is locked for as long as any process has it open.

# The orders are for the watcher alone: the command must neither read them nor hold the pipe.
exec 3<&0 </dev/null
folder=$1
shift

# The command and all that it starts inherit `running` as their descriptor 3, which no program of
# PostgreSQL closes or redirects. What they print goes to the log.
"$@" 3<&1 >&2 &
command=$!

{
    while read -r signal; do kill -s "$signal" "$command"; done
    # The end of the pipe was seen. From here on the watcher succeeds, also when it is ended.
    trap 'exit 0' TERM
    # A shell starts background commands with SIGINT ignored, so one that hasn't set its handlers
    # yet would miss it; SIGTERM ends such a command. To a running server the two are a "smart"
    # shutdown that becomes a "fast" one at once.
    kill -s TERM "$command"
    kill -s INT "$command"
    exit 0
} <&3 2>/dev/null &
watcher=$!
exec 3<&-

wait "$command"
status=$?
kill -s TERM "$watcher" 2>/dev/null
if wait "$watcher" 2>/dev/null && [ -n "$folder" ]; then rm -rf "$folder"; fi
exit "$status"

# Runs the command in $2 and following until it ends, or until standard input is closed. In the
# second case, the folder $1, if not empty, is removed once the command has ended.
#
# Each line of standard input is the name of a signal to send to the command. Standard output is
# the file `running`, which is locked for as long as any process has it open.

# Only the watcher reads standard input: the command must neither read from the pipe nor hold it.
exec 3<&0 </dev/null
folder=$1
shift

# The command and its children inherit `running` as descriptor 3, which no PostgreSQL program
# closes or redirects. Their output goes to the log.
"$@" 3<&1 >&2 &
command=$!

{
    while read -r signal; do kill -s "$signal" "$command"; done
    # The pipe was closed. From here on the watcher exits with 0, even if it is terminated.
    trap 'exit 0' TERM
    # A shell starts background commands with SIGINT ignored, so a command that hasn't installed
    # its handlers yet would miss it; SIGTERM ends such a command. A running server starts a "smart"
    # shutdown and immediately turns it into a "fast" one.
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

#!/bin/sh
# Starts one half of a member: `start.sh redis` or `start.sh sentinel`.
#
#   MEMBERS  the host names of all members, separated by spaces
#   ME       which of them this is
#   FOLDER   where it may write
#   BIND     addresses to listen at; all of them by default
#
# Who is master is for the Sentinels to say. Only where none of them knows, when the first member starts for the first
# time, it is that one. Nothing is saved: tallies are worth a window.
set -eu

NAME=ratelimiter
QUORUM=2
DOWN_AFTER_MS=3000
first=${MEMBERS%% *}

# What another member's Sentinel takes for the master; nothing if none can be asked. Our own, as young as we are, may only
# know what it was told at its start.
master() {
    for member in $MEMBERS; do
        [ "$member" != "$ME" ] || continue
        said=$(timeout 2 redis-cli -h "$member" -p 26379 sentinel get-master-addr-by-name $NAME 2>/dev/null | head -n 1) || true
        case $said in
            "" | *ERR* | *rror* | *"not resolve"*) ;;
            *) echo "$said"; return ;;
        esac
    done
}

# A master that comes back has forgotten everything. Were it taken for what it was, its replicas would forget it, too: so it
# waits until one of them has been made master. When there are none that can be, it is the master again. Its Sentinel
# waits as well: it knows of no replica, and if the others elected it to choose one, it would choose none.
master=$(master)
waited=0
while [ "$master" = "$ME" ] && [ $waited -lt 60 ]; do
    sleep 1
    waited=$((waited + 1))
    master=$(master)
done
[ -n "$master" ] || master=$first

case $1 in
redis)
    set -- --port 6379 --protected-mode no --replica-announce-ip "$ME" --dir "$FOLDER" \
        --save "" --appendonly no --maxmemory "${MAXMEMORY:-256mb}" --maxmemory-policy noeviction \
        --repl-diskless-sync yes --repl-diskless-sync-delay 0
    [ "$master" = "$ME" ] || set -- "$@" --replicaof "$master" 6379
    [ -z "${BIND:-}" ] || set -- "$@" --bind "$BIND"
    exec redis-server "$@"
    ;;
sentinel)
    # Sentinels write what they learn into their file.
    cat > "$FOLDER/sentinel.conf" <<END
port 26379
protected-mode no
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $ME
sentinel monitor $NAME $master 6379 $QUORUM
sentinel down-after-milliseconds $NAME $DOWN_AFTER_MS
sentinel failover-timeout $NAME 5000
sentinel parallel-syncs $NAME 2
END
    [ -z "${BIND:-}" ] || echo "bind $BIND" >> "$FOLDER/sentinel.conf"
    exec redis-server "$FOLDER/sentinel.conf" --sentinel
    ;;
*)
    echo "start.sh: '$1' is neither redis nor sentinel" >&2
    exit 2
    ;;
esac

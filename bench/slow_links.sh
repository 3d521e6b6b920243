#!/bin/bash
# Run a command on emulated hosts whose links have a given rate.
#
#   bench/slow_links.sh HOSTS RATE COMMAND...      (Linux, as root, with iproute2 and MPICH)
#   bench/slow_links.sh 2 1gbit python bench/schemes.py
#
# Every host is a network namespace with one interface, e0, on a common bridge. What a host sends
# and what it receives passes a token bucket of RATE (as tc writes it; "none" for no limit). Each
# rank has a hostname, a /dev/shm, IPC and processes of its own, so that no shared memory reaches
# from one to the next. Everything made here is gone when the script ends, however it ends.
set -eu

if [ $# -lt 3 ] || [ "$(id -u)" != 0 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
hosts=$1 rate=$2
shift 2

prefix=links$$
switch=$prefix-switch
scratch=$(mktemp -d)
launcher=

name() { echo "$prefix-$1"; }

tidy() {
    trap - EXIT
    [ -z "$launcher" ] || kill "$launcher" 2>/dev/null || true
    for i in $(seq "$hosts"); do
        ip netns pids "$(name "$i")" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
        ip netns del "$(name "$i")" 2>/dev/null || true
        rm -rf "/etc/netns/$(name "$i")"
    done
    ip netns del "$switch" 2>/dev/null || true
    rmdir /etc/netns 2>/dev/null || true
    rm -rf "$scratch"
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

limit() { # NAMESPACE INTERFACE: what leaves by the interface keeps to the rate
    [ "$rate" = none ] || ip netns exec "$1" \
        tc qdisc add dev "$2" root tbf rate "$rate" burst 64kb latency 50ms
}

ip netns add "$switch"
ip -n "$switch" link add bridge type bridge
ip -n "$switch" link set bridge up
list=
for i in $(seq "$hosts"); do
    host=$(name "$i")
    list=$list${list:+,}$host
    ip netns add "$host"
    ip link add e0 netns "$host" type veth peer name "port$i" netns "$switch"
    ip -n "$host" link set lo up
    ip -n "$host" addr add "10.99.0.$i/24" dev e0
    ip -n "$host" link set e0 up
    ip -n "$switch" link set "port$i" master bridge up
    limit "$host" e0
    limit "$switch" "port$i"
    echo "10.99.0.$i $host" >> "$scratch/hosts"
done
echo "127.0.0.1 localhost" >> "$scratch/hosts"
for i in $(seq "$hosts"); do
    mkdir -p "/etc/netns/$(name "$i")"
    cp "$scratch/hosts" "/etc/netns/$(name "$i")/hosts" # ip netns exec puts it in place of /etc/hosts
done

# Called by mpirun as if it were ssh: [options] HOST COMMAND...
cat > "$scratch/enter" <<'END'
#!/bin/bash
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
exec ip netns exec "$host" unshare --uts --ipc --pid --fork --kill-child --mount-proc \
    sh -c 'hostname "$0"; mount -t tmpfs tmpfs /dev/shm; exec sh -c "$*"' "$host" "$@"
END
chmod +x "$scratch/enter"

export GLOO_SOCKET_IFNAME=e0
"$scratch/enter" "$(name 1)" mpirun -launcher ssh -launcher-exec "$scratch/enter" -iface e0 \
    -hosts "$list" -n "$hosts" -ppn 1 "$(printf '%q ' "$@")" &
launcher=$!
wait "$launcher"

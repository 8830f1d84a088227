# shellcheck shell=bash
# What the scripts beside this one share: they source it. It finds the Compose cluster, looks at /debug/views of its nodes
# a few times a second, prints a line for each node, and the second at which each thing happened. A script says how its
# fault is made (`inject`) and how it is undone (`undo`), and calls `break_a_node` or `break_etcd`.
#
# Exit codes: 0 the views agree again, 1 not in time, 2 no cluster to do it to, 64 wrong usage, 130 Ctrl-C. However it
# ends, what was done is undone, unless it was told --keep. Needs bash 5, docker and curl.

limit_s=60      # Longest wait for the views to agree, with the fault and again after it.
look_max_s=1    # Longest wait for a page: a node that stands still gives none.
etcd_away_s=10  # How long etcd is away at least.
project="${COMPOSE_PROJECT_NAME:-deploy}"

nodes=()  # Ids: the first twelve digits of the containers'.
declare -A name url                                                  # Of each node.
declare -A gossip etcd routable in_ring ring owners authority epoch  # What each node showed last; absent: no answer.
declare -A told shown                                                # What has been printed.
victim="" wanted="" keep="" broken="" lines_up=0
pages="$(mktemp -d)"

say() { printf '%s\n' "$*" >&2; }
fail() { say "$(basename "$0"): $2"; exit "$1"; }

# --- the cluster ---------------------------------------------------------------------------------------------

understand() {  # The arguments. $1: what may be named besides the options, or nothing.
    local operand="$1"
    while shift && [ $# -gt 0 ]; do
        case "$1" in
            -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit 0 ;;
            --keep) keep=yes ;;
            --limit)
                [[ "${2:-}" =~ ^[1-9][0-9]{0,3}$ ]] || fail 64 "--limit takes a number of seconds from 1 to 9999, not '${2:-}'"
                limit_s="$2"
                shift
                ;;
            *)
                if [[ "$1" = -* || -z "$1" || -z "$operand" || -n "$wanted" ]]; then
                    fail 64 "unknown argument '$1'; usage: $0 [--keep] [--limit SECONDS]${operand:+ [$operand]}"
                fi
                wanted="$1"
                ;;
        esac
    done
}

running() {  # The containers of a service, as "number id name", in Compose's order.
    docker ps --filter "label=com.docker.compose.project=$project" --filter "label=com.docker.compose.service=$1" \
        --format '{{.Label "com.docker.compose.container-number"}} {{.ID}} {{.Names}}' | sort -n
}

find_cluster() {
    local number id called
    for called in docker curl; do command -v "$called" >/dev/null || fail 2 "$called is not installed"; done
    docker info >/dev/null 2>&1 || fail 2 "no Docker engine answers"
    while read -r number id called; do
        nodes+=("$id")
        name[$id]="$called"
        case "$wanted" in "$number" | "$id" | "$called") victim="$id" ;; esac
    done < <(running node)
    [ "${#nodes[@]}" -ge 3 ] || fail 2 "the Compose project $project has ${#nodes[@]} running nodes; it takes three"
    [ -z "$wanted" ] || [ -n "$victim" ] || fail 64 "no running node is called '$wanted'; there are ${name[*]}"
    # shellcheck disable=SC2034  # for the scripts
    read -r _ etcd_container _ < <(running etcd) || fail 2 "the Compose project $project has no running etcd"
    find_ports
    began_us="${EPOCHREALTIME/[.,]/}"
    until look "${nodes[@]}"; is_whole "${nodes[@]}"; do
        [ "$(passed_us)" -lt "$((limit_s * 1000000))" ] || fail 2 "the views of the project $project do not agree to begin with"
        sleep 0.1
    done
}

find_ports() {  # Again after each start: a container has another one then.
    local id
    for id in "${nodes[@]}"; do url[$id]="http://127.0.0.1:$(docker port "$id" 8080/tcp | sed 's/.*://;q')"; done
}

# --- what nodes show -----------------------------------------------------------------------------------------

look() {  # At these nodes, all at once.
    local id page row
    gossip=() etcd=() routable=() in_ring=() ring=() owners=() authority=() epoch=()
    for id in "$@"; do
        curl --silent --fail --max-time "$look_max_s" --output "$pages/$id" "${url[$id]}/debug/views" &
    done
    wait
    for id in "$@"; do
        [ -s "$pages/$id" ] || continue
        page="$(<"$pages/$id")"
        rm "$pages/$id"
        # One line of JSON, its names in a fixed order: the node itself, then a row for each member, its id first.
        between "authority[$id]" '"authority": "' '"' "$page"
        between "etcd[$id]" '"etcd": {"state": "' '"' "$page"
        between "epoch[$id]" '"epoch": "' '-' "$page"
        between "ring[$id]" '"digest": "' '"' "$page"
        between "owners[$id]" '"owners": [' ']' "$page"
        [ -n "$victim" ] || continue
        row="${page#*"{\"id\": \"$victim\", "}"
        # shellcheck disable=SC2034  # read by their names, in `all`
        gossip[$id]=forgotten etcd[$id]=absent routable[$id]=false in_ring[$id]=false
        [ "$row" != "$page" ] || continue
        between "gossip[$id]" '"gossip": {"state": "' '"' "$row"
        between "etcd[$id]" '"etcd": {"state": "' '"' "$row"
        between "routable[$id]" '"routable": ' ',' "$row"
        between "in_ring[$id]" '"in_ring": ' ',' "$row"
    done
}

between() {  # Keep in $1 what stands after the first $2 and before the next $3 of text $4.
    local rest="${4#*"$2"}"
    printf -v "$1" '%s' "${rest%%"$3"*}"
}

all() {  # Whether each of the nodes from $3 on shows, in table $1, one of the words $2.
    local -n table="$1"
    local words="$2" id
    shift 2
    for id in "$@"; do [[ "${table[$id]:-nothing}" =~ ^($words)$ ]] || return 1; done
}

is_one_ring() { all ring "${ring[$1]:-none}" "$@"; }

is_whole() {  # Whether all are in one ring, with etcd and gossip, and ready.
    local id
    all authority both "$@" && all etcd 'connected|registered' "$@" && is_one_ring "$@" || return 1
    for id in "$@"; do
        [ "$(wc -w <<<"${owners[$id]}")" = "${#nodes[@]}" ] && [ "${epoch[$id]}" != "${lost_epoch:-}" ] || return 1
        curl --silent --fail --max-time "$look_max_s" --output /dev/null "${url[$id]}/readyz" || return 1
    done
}

is_back() { is_whole "$@" && tell "back in every ring, and all ready"; }

is_gone() {  # Whether no survivor counts with the victim any more.
    local id done=yes
    for id in "$@"; do [[ ! "${gossip[$id]:-}" =~ ^(dead|left)$ ]] || tell "first to know" "${name[$id]}"; done
    if all gossip 'dead|left|forgotten' "$@"; then tell "all know"; else done=""; fi
    if all routable false "$@"; then tell "unroutable everywhere"; else done=""; fi
    if all in_ring false "$@"; then tell "out of the ring everywhere"; else done=""; fi
    if all in_ring false "$@" && is_one_ring "$@"; then tell "digests equal"; else done=""; fi
    [ -n "$done" ]
}

is_known() {  # Whether all have seen that etcd is away, and it has been for long enough.
    local id
    for id in "$@"; do all etcd connected "$id" || tell "first to know" "${name[$id]}"; done
    all etcd 'unreachable|relayed' "$@" && tell "all know"
    all authority gossip "$@" && tell "gossip leads everywhere"
    [ -n "${told[all know]:-}" ] && [ "$(passed_us)" -ge "$((etcd_away_s * 1000000))" ]
}

# --- what is printed -----------------------------------------------------------------------------------------

begin() { began_us="${EPOCHREALTIME/[.,]/}"; told=(); columns="$(tput cols 2>/dev/null || echo 80)"; tell "$1"; }

passed_us() { echo "$((${EPOCHREALTIME/[.,]/} - began_us))"; }

stamp() { local us; us="$(passed_us)"; printf '%3d.%02d s' "$((us / 1000000))" "$((us % 1000000 / 10000))"; }

tell() {  # Once, that something happened, and where.
    [ -z "${told[$1]:-}" ] || return 0
    told[$1]=yes
    rub_out
    printf '%s  %s%s\n' "$(stamp)" "$1" "${2:+: $2}"
}

rub_out() { [ "$lines_up" = 0 ] || printf '\e[%dA\e[J' "$lines_up"; lines_up=0; }

draw() {  # A line for each of these nodes: on a terminal in its place, else when it has changed.
    local id line
    rub_out
    for id in "$@"; do
        line="no answer"
        if [ -n "${ring[$id]:-}" ]; then
            line="${victim:+gossip ${gossip[$id]}, }etcd ${etcd[$id]}, ring ${ring[$id]:0:8} of $(wc -w <<<"${owners[$id]}")"
            line+=", authority ${authority[$id]}"
        fi
        if [ -t 1 ]; then
            printf '%.*s\n' "$((columns - 1))" "              ${name[$id]}: $line"
            lines_up="$((lines_up + 1))"
        elif [ "${shown[$id]:-}" != "$line" ]; then
            shown[$id]="$line"
            printf '%s      %s: %s\n' "$(stamp)" "${name[$id]}" "$line"
        fi
    done
}

watch_until() {  # Look at the nodes from $2 on until $1 says that it is over, or the time is.
    local is_over="$1"
    shift
    until look "$@"; "$is_over" "$@"; do
        draw "$@"
        [ "$(passed_us)" -lt "$((limit_s * 1000000))" ] || fail 1 "the views do not agree after $limit_s s"
        sleep 0.1
    done
    draw "$@"
    lines_up=0
}

# --- the whole of it -----------------------------------------------------------------------------------------

break_a_node() {  # $1: what is done, in a word; then the arguments.
    local what="$1" survivors=() id
    shift
    understand NODE "$@"
    find_cluster
    [ -n "$victim" ] || victim="${nodes[RANDOM % ${#nodes[@]}]}"
    for id in "${nodes[@]}"; do [ "$id" = "$victim" ] || survivors+=("$id"); done
    begin "$what ${name[$victim]}"
    broken=yes
    inject >/dev/null
    watch_until is_gone "${survivors[@]}"
    mend "${name[$victim]}"
}

break_etcd() {  # $1: what is done; $2: what it is over with, if anything is to be awaited; then the arguments.
    local what="$1" is_over="$2"
    shift 2
    understand "" "$@"
    find_cluster
    begin "$what"
    broken=yes
    inject >/dev/null
    [ -z "$is_over" ] || watch_until "$is_over" "${nodes[@]}"
    mend etcd
}

mend() {
    [ -z "$keep" ] || { say "$1 is left as it is"; exit 0; }
    begin "undoing it: $1"
    undo >/dev/null
    broken=""
    find_ports
    watch_until is_back "${nodes[@]}"
    # The same in the product's own words, where it is installed.
    ! command -v zephyr >/dev/null || zephyr views --url "${url[${nodes[0]}]}" || true
}

clean_up() {
    local code=$?
    trap '' INT TERM HUP  # It is to be done, however impatient somebody is.
    rm -rf "$pages"
    [ -z "$broken" ] || [ -n "$keep" ] || { say "undoing it"; undo >/dev/null; }
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT TERM HUP

#!/usr/bin/env bash
# Breaks one rule after the other and expects the tests to notice.
#
# The barriers are those that raid/src/sabotage.rs explains: each place in the
# code that keeps a rule, and each sync. One build has them all; an environment
# variable chooses which is left out. First all programs run with nothing left
# out, and must pass: what they take then, several times over, is the time they
# are given later. Then, for each barrier, programs run until one fails; one that
# does not end in time has noticed a wait without end. The table on stdout says which test noticed; a barrier that none noticed
# is a failure of the tests, and of this script.
#
#   scripts/sabotage.sh [BARRIER...]     all of them unless named; a trailing
#                                        * stands for anything
set -uo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh build
. scripts/env.sh

# Seeds of each level in the random runs.
export TESSERA_SEEDS=${TESSERA_SEEDS:-8}

packages=(tessera-raid tessera-dedup tessera-engine)
say "Building the tests with barriers"
built=$(cargo test --release --locked --features tessera-raid/sabotage \
    "${packages[@]/#/--package=}" --no-run --message-format=json) || die "the build failed"
mapfile -t programs < <(sed -n 's/.*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1 \2/p' <<<"$built")
(( ${#programs[@]} )) || die "the build made no test programs"

# Rules of raid are noticed soonest by its own tests, the others by the engine's.
order_raid=(rules@raid crash@raid opening@raid tessera_raid data@raid real@raid syscalls@raid
    verify@raid members@raid member_crash@raid)
order_engine=(rules@engine orders@engine reclaim_races@engine tessera_dedup tessera_engine epochs@engine
    members@engine scrub@engine space@engine post@engine crash_points@engine faults@engine model@engine
    overwrite@engine)
program() {
    local wanted=$1 name path crate=
    [[ $wanted == *@* ]] && crate=${wanted#*@} && wanted=${wanted%@*}
    while read -r name path; do
        [[ $name == "$wanted" ]] || continue
        # Two crates may have a test of one name: its strings tell them apart.
        if [[ -z $crate ]] || grep -qaF "$crate/tests/$wanted.rs" "$path"; then
            echo "$path"
            return
        fi
    done < <(printf '%s\n' "${programs[@]}")
}

if (( $# )); then
    asked=("$@")
else
    asked=('*')
fi
mapfile -t all < <(grep -rhoE 'broken\("[A-Za-z0-9_.]+"\)' raid/src dedup/src engine/src nbd-server/src |
    sed 's/broken("//; s/")//' | sort -uV)
barriers=()
for barrier in "${all[@]}"; do
    for pattern in "${asked[@]}"; do
        # shellcheck disable=SC2053 # a pattern is meant
        [[ $barrier == $pattern ]] && barriers+=("$barrier") && break
    done
done
(( ${#barriers[@]} )) || die "there is no such barrier"

# Linked, so that building something else meanwhile does not exchange them.
scratch=$(mktemp -d "$CARGO_TARGET_DIR/sabotage.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
output=$scratch/output
declare -A linked limit
for wanted in "${order_raid[@]}" "${order_engine[@]}"; do
    path=$(program "$wanted")
    [[ -n $path ]] || die "there is no test program $wanted"
    ln "$path" "$scratch/$wanted"
    linked[$wanted]=$scratch/$wanted
    limit[$wanted]=600
done

# attempt PROGRAM BARRIER [ARGUMENT...]: its status, with the output in $output.
attempt() {
    local crate=${1#*@}
    # Where cargo would run it.
    (cd "${crate#tessera_}" &&
        TESSERA_SABOTAGE=$2 timeout "${limit[$1]}" "${linked[$1]}" -q "${@:3}") >"$output" 2>&1
}

# examine PROGRAM BARRIER [ARGUMENT...]: whether it notices; $noticed says how.
examine() {
    attempt "$@"
    local status=$? test
    (( status )) || return 1
    if (( status == 124 )); then
        noticed="$1 did not end"
    else
        test=$(sed -n '/^failures:$/,$ { s/^    \([a-z][a-zA-Z0-9_:]*\)$/\1/p }' "$output" | head -1)
        noticed="$1 ${test:-aborted}"
    fi
}

declare -A table
while read -r barrier found; do
    table[$barrier]=$found
done < <(sed 's/#.*//' scripts/sabotage.table)

say "Running all programs with nothing left out"
for wanted in "${!linked[@]}"; do
    began=$SECONDS
    attempt "$wanted" '' || { cat "$output" >&2; die "$wanted fails with nothing left out"; }
    limit[$wanted]=$(( 60 + 4 * (SECONDS - began) ))
done

survivors=()
for barrier in "${barriers[@]}"; do
    noticed=
    read -r wanted test rest <<<"${table[$barrier]:-}"
    if [[ -n $wanted && -n ${linked[$wanted]:-} ]]; then
        # One that does not end has no name.
        if [[ -n $rest || $test == aborted ]]; then
            examine "$wanted" "$barrier"
        else
            examine "$wanted" "$barrier" --exact "$test"
        fi
    fi
    case $barrier in
        R[1-7].* | R16.* | sync.*) order=("${order_raid[@]}" "${order_engine[@]}") ;;
        *) order=("${order_engine[@]}" "${order_raid[@]}") ;;
    esac
    for wanted in "${order[@]}"; do
        [[ -z $noticed ]] || break
        examine "$wanted" "$barrier"
    done
    printf '%-24s %s\n' "$barrier" "${noticed:-NOT NOTICED}"
    [[ -n $noticed ]] || survivors+=("$barrier")
done
say "${#barriers[@]} barriers broken, ${#survivors[@]} not noticed"
(( ! ${#survivors[@]} )) || die "no test notices ${survivors[*]}"

#!/usr/bin/env bash
# Breaks one rule after the other and expects the tests to notice.
#
# The barriers are those that raid/src/sabotage.rs explains: each place in the
# code that keeps a rule, and each sync. One build has them all; an environment
# variable chooses which is left out. For each barrier the test that
# scripts/sabotage.table names runs, and if it passes all programs until one fails.
# Before it counts, each test or program must have passed with nothing left out:
# what a program takes then, several times over, is the time it is given. A test
# that does not end in time has noticed a wait without end. The table on stdout
# says which test noticed, in the form of scripts/sabotage.table. A barrier that
# none noticed, or another than the table says, is a failure of this script.
#
#   scripts/sabotage.sh [--resume] [BARRIER...]
#                  all barriers unless named; a trailing * stands for anything.
#                  --resume goes on where an earlier run of the same programs
#                  was stopped.
#
# What each test said when it failed is in sabotage/log in the build directory.
set -uo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh build
. scripts/env.sh

resume=
if [[ ${1:-} == --resume ]]; then
    resume=1
    shift
fi
asked=("$@")
(( $# )) || asked=('*')

# Seeds of each level in the random runs.
export TESSERA_SEEDS=${TESSERA_SEEDS:-8}
# A single test takes a few seconds when nothing is left out.
single_limit=${TESSERA_TEST_LIMIT:-90}

packages=(tessera-raid tessera-dedup tessera-engine)
say "Building the tests with barriers"
built=$(cargo test --release --locked --features tessera-raid/sabotage \
    "${packages[@]/#/--package=}" --no-run --message-format=json) || die "the build failed"
mapfile -t programs < <(sed -n 's/.*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1 \2/p' <<<"$built")
(( ${#programs[@]} )) || die "the build made no test programs"

# Rules of raid are noticed soonest by its own tests, the others by the engine's.
order_raid=(rules@raid crash@raid opening@raid tessera_raid data@raid real@raid syscalls@raid
    verify@raid members@raid member_crash@raid)
order_engine=(rules@engine orders@engine snapshots@engine moving@engine reclaim_races@engine
    post@engine
    tessera_dedup tessera_engine epochs@engine members@engine scrub@engine space@engine
    crash_points@engine faults@engine model@engine overwrite@engine)
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
results=$CARGO_TARGET_DIR/sabotage
mkdir -p "$results"
scratch=$(mktemp -d "$results/run.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
output=$scratch/output log=$results/log done_before=$results/done
declare -A linked limit
for wanted in "${order_raid[@]}" "${order_engine[@]}"; do
    path=$(program "$wanted")
    [[ -n $path ]] || die "there is no test program $wanted"
    ln "$path" "$scratch/$wanted"
    linked[$wanted]=$scratch/$wanted
done
# Results of other programs are worth nothing.
identity=$(cd "$scratch" && sha256sum -- * | sha256sum)
if [[ -z $resume || $(head -1 "$done_before" 2>/dev/null) != "$identity" ]]; then
    echo "$identity" >"$done_before"
    : >"$log"
fi

# attempt LIMIT PROGRAM BARRIER [ARGUMENT...]: its status, with the output in
# $output.
attempt() {
    local crate=${2#*@}
    # Where cargo would run it.
    local status
    (cd "${crate#tessera_}" &&
        TESSERA_SABOTAGE=$3 timeout "$1" "${linked[$2]}" "${@:4}") >"$output" 2>&1
    status=$?
    # Else a full disk, say, would count as noticed.
    grep -q '^running [0-9]' "$output" || die "$2 did not start: is there space in $results?"
    return $status
}

# sound PROGRAM [TEST]: that it passes with nothing left out; false if there is no
# such test.
sound() {
    local began=$SECONDS took
    took=$(awk -v p="$1" -v t="${2:-}" '$1 == "sound" && $2 == p && $4 == t { print $3 }' "$done_before")
    if [[ -z $took ]]; then
        if (( $# == 1 )); then
            attempt 1200 "$1" ''
        else
            attempt "$single_limit" "$1" '' --exact "$2"
        fi || { cat "$output" >&2; die "$* fails with nothing left out"; }
        grep -q '^running 0 ' "$output" && return 1
        took=$(( SECONDS - began ))
        echo "sound $1 $took ${2:-}" >>"$done_before"
    fi
    (( $# == 2 )) || limit[$1]=$(( 60 + 4 * took ))
}

# examine PROGRAM BARRIER: whether some test of it notices; $noticed says which.
examine() {
    sound "$1"
    attempt "${limit[$1]}" "$1" "$2"
    local status=$? test
    (( status )) || return 1
    if (( status == 124 )); then
        noticed="$1 $(endless "$1" "$2") did not end"
        return
    fi
    test=$(sed -n '/^failures:$/,$ { s/^    \([a-z][a-zA-Z0-9_:]*\)$/\1/p }' "$output" | head -1)
    noticed="$1 ${test:-aborted}"
}

# endless PROGRAM BARRIER: the test that did not end in the run in $output.
endless() {
    local test ended
    ended=$(sed -n 's/^test \(.*\) \.\.\. .*/\1/p' "$output")
    "${linked[$1]}" --list 2>/dev/null | sed -n 's/: test$//p' >"$scratch/list"
    while read -r test; do
        grep -qxF "$test" <<<"$ended" && continue
        attempt "$single_limit" "$1" "$2" --exact "$test" </dev/null
        (( $? == 124 )) && echo "$test" && return
    done <"$scratch/list"
    echo "some_test"
}

# confirm BARRIER PROGRAM TEST [did not end]: whether what the table says holds.
confirm() {
    local status
    sound "$2" "$3" || return 1
    attempt "$single_limit" "$2" "$1" --exact "$3"
    status=$?
    if [[ ${*:4} == "did not end" ]]; then
        (( status == 124 ))
    else
        (( status && status != 124 ))
    fi || return 1
    noticed="${*:2}"
}

declare -A table
while read -r barrier found; do
    table[$barrier]=$found
done < <(grep -v '^#' scripts/sabotage.table)

survivors=() elsewhere=()
for barrier in "${barriers[@]}"; do
    noticed=$(awk -v b="$barrier" '$1 == b { $1 = ""; sub(/^ /, ""); print }' "$done_before")
    expected=${table[$barrier]:-}
    read -r wanted test rest <<<"$expected"
    if [[ -z $noticed ]]; then
        if [[ -n ${wanted:-} && -n ${linked[$wanted]:-} ]]; then
            # shellcheck disable=SC2086 # three words or none
            confirm "$barrier" "$wanted" "$test" $rest
        fi
        case $barrier in
            R[1-7].* | R16.* | sync.*) order=("${order_raid[@]}" "${order_engine[@]}") ;;
            *) order=("${order_engine[@]}" "${order_raid[@]}") ;;
        esac
        for wanted in "${order[@]}"; do
            [[ -z $noticed ]] || break
            examine "$wanted" "$barrier"
        done
        if [[ -n $noticed ]]; then
            echo "$barrier $noticed" >>"$done_before"
            {
                echo "=== $barrier: $noticed"
                grep -A 3 -m 1 'panicked at' "$output" | cut -c 1-400
            } >>"$log"
        fi
    fi
    printf '%-24s %s\n' "$barrier" "${noticed:-NOT NOTICED}"
    if [[ -z $noticed ]]; then
        survivors+=("$barrier")
    elif [[ $noticed != "$expected" ]]; then
        elsewhere+=("$barrier")
    fi
done
say "${#barriers[@]} barriers broken in $SECONDS s, ${#survivors[@]} not noticed, $(( ${#barriers[@]} - ${#survivors[@]} - ${#elsewhere[@]} )) noticed by the test that the table names"
for barrier in "${elsewhere[@]}"; do
    say "the table is not right about $barrier: ${table[$barrier]:-nothing}"
done
(( ! ${#survivors[@]} )) || die "no test notices ${survivors[*]}"
(( ! ${#elsewhere[@]} )) || die "scripts/sabotage.table needs the lines above"

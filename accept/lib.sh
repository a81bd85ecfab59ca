# Sourced by the acceptance scripts: verdict lines, and running things as the two plain
# users (root only sets up). Each script prints `PASS|FAIL|SKIP point evidence`.
set -uo pipefail
export GOTOOLCHAIN=local
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 1
export LAUNCHER_TEST_BINARY=$ROOT/.build/launcher
pass() { printf 'PASS %s %s\n' "$1" "$(tr '\n' ' ' <<<"${2:-}" | cut -c1-300)"; }
fail() { printf 'FAIL %s %s\n' "$1" "$(tr '\n' ' ' <<<"${2:-}" | cut -c1-600)"; }
skip() { printf 'SKIP %s %s\n' "$1" "${2:-}"; }
# check POINT EVIDENCE CONDITION...: PASS when the condition command succeeds.
check() { local p=$1 e=$2; shift 2; if "$@"; then pass "$p" "$e"; else fail "$p" "$e"; fi; }
now_ms() { date +%s%3N; }
is_root() { [ "$(id -u)" = 0 ]; }
# rooted POINT: whether we are root; if not, that point stands for all that need it.
rooted() { is_root || { skip "$1" "needs root"; return 1; }; }
t1() { "$ROOT/scripts/as-user" env LAUNCHER_HOME="$LAUNCHER_HOME" PATH="$ROOT/.build:$PATH" "$@"; }
t2() { AS_USER=launcher-t2 "$ROOT/scripts/as-user" env LAUNCHER_HOME="$LAUNCHER_HOME" PATH="$ROOT/.build:$PATH" "$@"; }
# eventually SECONDS COMMAND...: polls until it succeeds.
eventually() { local end=$((SECONDS + $1)); shift; until "$@"; do ((SECONDS < end)) || return 1; read -rt 0.05 <> <(:) || true; done; }
# wants NAME: whether a part is to run: all do, or those whose names begin with a word of ONLY.
wants() { [ -z "${ONLY:-}" ] || for w in $ONLY; do case $1 in "$w"*) return 0 ;; esac; done; [ -z "${ONLY:-}" ]; }
# beside COMMAND...: a point beside others, as many at a time as BESIDE says (one, if it does
# not); `wait` waits for them.
beside() {
	if ((${BESIDE:-1} == 1)); then "$@"; return; fi
	while (($(jobs -rp | wc -l) >= BESIDE)); do wait -n; done
	"$@" &
}
# kept POINT FILE: what a failed point printed is in .build/failed/POINT.log.
kept() { mkdir -p "$ROOT/.build/failed" && cp "$2" "$ROOT/.build/failed/$1.log"; }
# testbin PACKAGE: its test binary, built once per script.
testbin() {
	local bin=$WORK/bin/${1//[^a-z]/-}
	(flock 9 && { [ -x "$bin" ] || go test -c -o "$bin" "$1" >&2; }) 9>>"$WORK/bin/lock" && echo "$bin"
}
# tests OUT PACKAGES REGEXP COMMAND...: runs Go tests by a command, those that BUT names not,
# for LIMIT at most; what they print goes to OUT.
tests() {
	local out=$1 re=$3 p bin rc=0
	for p in $2; do
		bin=$(testbin "$p" 2>>"$out") || return 1
		[ -x "$bin" ] || continue # it has no tests
		(cd "$p" && "${@:4}" "$bin" -test.v -test.timeout "${LIMIT:-300s}" -test.skip "${BUT:-^$}" -test.run "$re") >>"$out" 2>&1 </dev/null || rc=1
	done
	return $rc
}
# gotest POINT PACKAGES REGEXP: a point that Go tests show; they must run, and as the plain user.
gotest() { beside gopoint "$@"; }
gopoint() {
	local out=$WORK/$1.out n t
	t=$(now_ms)
	tests "$out" "$2" "$3" "$ROOT/scripts/as-user"
	local rc=$?
	n=$(grep -cE '^--- PASS' "$out")
	if [ $rc = 0 ] && [ "$n" -gt 0 ] && ! grep -E '^\s*--- SKIP' "$out" | grep -qv TestRoot; then
		pass "$1" "$n tests of $2 ($3), $(($(now_ms) - t)) ms"
	else
		kept "$1" "$out"
		fail "$1" "$2 $3: $(grep -E -- '--- (FAIL|SKIP)|^FAIL|panic|no test' "$out" | head -5)"
	fi
}
# rootgotest: the same, of tests that need root.
rootgotest() { beside rootpoint "$@"; }
rootpoint() {
	rooted "$1" || return
	local out=$WORK/$1.out
	if tests "$out" "$2" "$3" env && ! grep -qE '^--- SKIP' "$out" && grep -qE '^--- PASS' "$out"; then
		pass "$1" "$2 ($3), $(grep -cE -- '--- PASS' "$out") passed$(grep -E '^\s*--- SKIP' "$out" | sed 's/.*: /, without /; s/ (.*//' | tr -d '\n')"
	elif grep -qE '^--- SKIP' "$out"; then
		skip "$1" "$(grep -E 'SKIP' "$out" | head -2)"
	else
		kept "$1" "$out"
		fail "$1" "$2 $3: $(grep -E -- '--- FAIL|^FAIL|panic|no test' "$out" | head -5)"
	fi
}
# nettest POINT TEST: a test of ./launcher on pretend hosts, with what it measured.
nettest() { beside netpoint "$@"; }
netpoint() {
	local out=$WORK/$1.out
	LIMIT=280s tests "$out" ./launcher "^$2\$" timeout 290 # it says where it hangs before it is ended
	if grep -qE '^--- PASS' "$out"; then
		pass "$1" "$2 ($(sed -nE 's/^--- PASS: [^ ]+ \((.*)\)/\1/p' "$out")) $(sed -nE 's/^ +e2e_[a-z_]+\.go:[0-9]+: //p' "$out")"
	elif grep -qE '^--- SKIP' "$out"; then
		skip "$1" "$(grep SKIP: "$out" | head -1)"
	else
		kept "$1" "$out"
		fail "$1" "$2: $(grep -aE '^ +e2e_|^panic' "$out" | head -5)"
	fi
}
WORK=$(mktemp -d /tmp/accept.XXXXXX)
chmod 755 "$WORK"
mkdir "$WORK/bin"
export LAUNCHER_HOME=$WORK/home
if is_root; then chown launcher-t1 "$WORK"; fi
unset LAUNCHER_CLUSTER LAUNCHER_SOCKET
# markers of processes of this run: everything launcher starts carries LAUNCHER_HOME or lies below it
ours() { { grep -lzs -F "$WORK" /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null || true; } | cut -d/ -f3 | sort -un | while read -r p; do
	exe=$(readlink "/proc/$p/exe" 2>/dev/null) || continue
	case $exe in *launcher*) echo "$p" ;; *) tr '\0' '\n' <"/proc/$p/environ" 2>/dev/null | grep -q '^LAUNCHER_TASK_ID=' && echo "$p" ;; esac; done; }
cleanup() {
	t1 launcher down --all >/dev/null 2>&1 || true
	for p in $(ours); do kill -9 "$p" 2>/dev/null; done
	rm -rf "$WORK"
}
trap cleanup EXIT

#!/usr/bin/env bash
# Actors in Python and Go: a point per promise; see accept/lib.sh for the form. ONLY="WORD..."
# runs the parts whose names begin so.
source "$(dirname "$0")/lib.sh"

PY=$ROOT/.venv/bin/python
OWN=(LAUNCHER="$ROOT/.build/launcher" PYTHONPATH="$ROOT/python" PYTHONDONTWRITEBYTECODE=1)
mkdir -p "$WORK/tmp"
if is_root; then chown -R launcher-t1 "$WORK"; fi
L() { t1 launcher "$@"; }
spec() {
	printf 'version = 1\nname = "%s"\n[[pool]]\nname = "local"\nbackend = "local"\nnodes = %s\nresources = { cpu = %s }\npython = "%s"\n' "$1" "$2" "$3" "$PY" >"$WORK/$1.toml"
	chmod 644 "$WORK/$1.toml"
}

if wants actors; then
	spec stage 2 3
	L up "$WORK/stage.toml" >/dev/null 2>&1
	out=$(t1 env LAUNCHER_CLUSTER=stage "${OWN[@]}" TMPDIR="$WORK/tmp" timeout 400 "$PY" accept/actors/actors.py 2>"$WORK/err"); rc=$?
	grep -E '^(PASS|FAIL) ' <<<"$out" | cut -c1-600
	[ $rc = 0 ] && grep -qE '^PASS ' <<<"$out" || fail actors.ended "exit $rc: $(tail -3 "$WORK/err")"
	L down stage >/dev/null 2>&1
	left=$(ours)
	check actors.down "left after down: ${left:-nothing}" test -z "$left"
	gotest actors.reactor ./agent/tasks Actor
fi

if wants outlive; then
	spec outlive 2 3
	L up "$WORK/outlive.toml" >/dev/null 2>&1
	for step in make kill check; do
		out=$(t1 env LAUNCHER_CLUSTER=outlive "${OWN[@]}" timeout 200 "$PY" accept/actors/outlive.py $step "$WORK/tmp/outlive.json" 2>"$WORK/err"); rc=$?
		grep -E '^(PASS|FAIL) ' <<<"$out"
		[ $rc = 0 ] || fail "outlive.$step" "exit $rc: $(tail -3 "$WORK/err")"
	done
	L down outlive >/dev/null 2>&1
	spec mutual 3 2
	L up "$WORK/mutual.toml" >/dev/null 2>&1
	for step in make check; do
		out=$(t1 env LAUNCHER_CLUSTER=mutual "${OWN[@]}" timeout 100 "$PY" accept/actors/mutual.py $step 2>"$WORK/err"); rc=$?
		grep -E '^(PASS|FAIL) ' <<<"$out"
		[ $rc = 0 ] || fail "outlive.mutual-$step" "exit $rc: $(tail -3 "$WORK/err")"
	done
	L down mutual >/dev/null 2>&1
fi

if wants faults; then
	for kinds in actor agent actor,agent actor,supervise agent,supervise actor,agent,supervise; do
		spec deaths 2 2
		L up "$WORK/deaths.toml" >/dev/null 2>&1
		out=$(t1 env LAUNCHER_CLUSTER=deaths "${OWN[@]}" timeout 280 "$PY" accept/actors/soak.py 12000 "$WORK/tmp/ledger-$kinds" "$kinds" 2>"$WORK/err"); rc=$?
		check "faults.${kinds//,/-}" "$out $(tail -1 "$WORK/err")" test $rc = 0
		L down deaths >/dev/null 2>&1
	done
fi

#!/usr/bin/env bash
# Objects and tasks in Python and Go: a point per promise. The programs of accept/core
# print points of their own. See accept/lib.sh for the form; ONLY="WORD..." runs the parts
# whose names begin so.
source "$(dirname "$0")/lib.sh"

PY=$ROOT/.venv/bin/python
# What a program outside a run needs; not exported, for the Go tests must do without.
OWN=(LAUNCHER="$ROOT/.build/launcher" PYTHONPATH="$ROOT/python" PYTHONDONTWRITEBYTECODE=1)
mkdir -p "$WORK/tmp" "$WORK/spill"
if is_root; then chown -R launcher-t1 "$WORK"; fi
L() { t1 launcher "$@"; }
# program FILE [POINT...]: a program of accept/core as the plain user; it must print points and end well.
program() {
	local out rc
	out=$(t1 env ${cluster:+LAUNCHER_CLUSTER=$cluster} "${OWN[@]}" TMPDIR="$WORK/${dir:-tmp}" timeout 600 "$PY" "accept/core/$1" "${@:2}" 2>"$WORK/err")
	rc=$?
	grep -E '^(PASS|FAIL) ' <<<"$out" | cut -c1-600
	[ $rc = 0 ] && grep -qE '^(PASS|FAIL) ' <<<"$out" || fail "${1%.py}.ended" "exit $rc: $(tail -3 "$WORK/err")"
}
# spec NAME NODES CPUS: a cluster spec
spec() {
	printf 'version = 1\nname = "%s"\n[objects]\nspill = "%s"\n[[pool]]\nname = "local"\nbackend = "local"\nnodes = %s\nresources = { cpu = %s, slot = 2 }\nlabels = { zone = "a" }\npython = "%s"\n' \
		"$1" "$WORK/spill" "$2" "$3" "$PY" >"$WORK/$1.toml"
	chmod 644 "$WORK/$1.toml"
}
# leftovers: processes and sockets of this run, private clusters included
leftovers() { ours; find "$LAUNCHER_HOME" -type s 2>/dev/null; }

# ---------------------------------------------------------------- 1 object plane, 2 transfer
if wants objects; then
	dir=spill program objects.py
	gotest plane.memory ./shm/objects .
	gotest plane.store ./agent/store .
	gotest transfer ./agent/transfer .
fi

# ---------------------------------------------------------------- 3 tasks, 5 scheduling, 6 workers, 9 what it shows
if wants tasks; then
	spec lab 2 3
	L up "$WORK/lab.toml" >/dev/null 2>&1
	cluster=lab program tasks.py
	cluster=lab program bad.py
	L down lab >/dev/null 2>&1
	left=$(leftovers)
	check down.clean "left after down: ${left:-nothing}" test -z "$left"
	gotest tasks.reactor ./agent/tasks .
	gotest tasks.frames ./wire/sdk .
	gotest scheduling.leases ./head/core 'Lease|Hold|Demand'
	gotest scheduling.room ./agent/core .
	gotest scheduling.simulated ./internal/sim .
	gotest workers.pool ./agent/workers .
fi

# ---------------------------------------------------------------- whose turn it is
if wants fair; then
	spec turns 2 4
	L up "$WORK/turns.toml" >/dev/null 2>&1
	cluster=turns program fair.py "$WORK/tmp"
	cluster=turns program limits.py
	L down turns >/dev/null 2>&1
	gotest fair.reactors ./agent/tasks 'Turn|Priority'
	gotest fair.head ./head/core 'Limit|Claim'
fi

# ---------------------------------------------------------------- 4 faults
if wants faults; then
	spec deaths 2 2
	L up "$WORK/deaths.toml" >/dev/null 2>&1
	cluster=deaths program faults.py
	a=$SECONDS
	out=$(t1 env LAUNCHER_CLUSTER=deaths "${OWN[@]}" timeout 200 "$PY" accept/core/soak.py 20 "$WORK/tmp/ledger" 2>"$WORK/err"); rc=$?
	check faults.soak "$((SECONDS - a)) s: $out $(tail -1 "$WORK/err")" test $rc = 0
	L down deaths >/dev/null 2>&1
fi

# ---------------------------------------------------------------- nodes that leave
if wants drain; then
	spec leaving 4 2
	L up "$WORK/leaving.toml" >/dev/null 2>&1
	cluster=leaving program drain.py
	L down leaving >/dev/null 2>&1
	gotest drain.reactor ./agent/tasks 'Leaves|^TestHavenIsFull$'
	gotest drain.head ./head/core '^TestNeededValuesKeepANode$'
fi

# ---------------------------------------------------------------- 7 Python API, types, a cluster for the life of a program
if wants python; then
	missing=$(env "${OWN[@]}" "$PY" - <<-'PYTHON' 2>&1
		import launcher
		names = "init shutdown is_initialized remote get put wait cancel ObjectRef ObjectRefGenerator get_runtime_context nodes cluster_resources available_resources timeline exceptions create"
		print(*[n for n in names.split() if not hasattr(launcher, n)])
		errors = "RayError RayTaskError TaskCancelledError GetTimeoutError WorkerCrashedError NodeDiedError ObjectLostError OwnerDiedError ObjectReconstructionFailedError ObjectStoreFullError OutOfMemoryError RuntimeEnvSetupError TaskUnschedulableError"
		print(*["exceptions." + n for n in errors.split() if not hasattr(launcher.exceptions, n)])
		undocumented = [n for n in launcher.__all__ if callable(getattr(launcher, n)) and not (getattr(launcher, n).__doc__ or "").strip()]
		print(*["no docstring: " + n for n in undocumented])
	PYTHON
	)
	check python.names "missing: $(tr -s '\n ' ' ' <<<"$missing")" test -z "$(tr -d '\n ' <<<"$missing")"
	out=$(cd python && ../.venv/bin/python -m mypy --strict --python-version 3.9 --cache-dir "$WORK/mypy" -p launcher 2>&1); rc=$?
	check python.types "mypy --strict of the SDK: $(tail -1 <<<"$out")" test $rc = 0
	out=$(cd accept/core && MYPYPATH=$ROOT/python ../../.venv/bin/python -m mypy --strict --cache-dir "$WORK/mypy" typed.py 2>&1)
	out=$(grep -E '^typed.py:.*error:' <<<"$out"); wrong=$(grep -c . <<<"$out"); told=$(grep -c '# wrong' accept/core/typed.py)
	check python.typed-programs "$wrong errors in a program with $told mistakes: $(grep -o 'typed.py:[0-9]*' <<<"$out" | tr '\n' ' ')" test "$wrong" = "$told" -a "$(grep -n '# wrong' accept/core/typed.py | cut -d: -f1 | tr '\n' ' ')" = "$(grep -o 'typed.py:[0-9]*' <<<"$out" | cut -d: -f2 | tr '\n' ' ')"
	a=$(now_ms)
	out=$(t1 env "${OWN[@]}" "$PY" -c 'import launcher as ray; print(ray.get(ray.remote(lambda: 42).remote()))' 2>&1)
	b=$(now_ms)
	left=$(leftovers)
	check python.local-cluster "with nothing up: $out after $((b - a)) ms; left: ${left:-nothing}" test "$out" = 42 -a -z "$left"
	t1 env "${OWN[@]}" "$PY" -c 'import launcher as ray, os, time; ray.get(ray.remote(lambda: 42).remote()); print(os.getpid(), flush=True); time.sleep(60)' >"$WORK/out" 2>&1 & p=$!
	eventually 20 grep -qE '^[0-9]+$' "$WORK/out"; kill -9 "$(cat "$WORK/out")"; wait $p 2>/dev/null
	eventually 15 eval '[ -z "$(leftovers)" ]'; left=$(leftovers)
	check python.killed "a program killed -9; left of its cluster: ${left:-nothing}" test -z "$left"
	gotest python.sdk ./python .
fi

# ---------------------------------------------------------------- 8 Go SDK
if wants go; then
	gotest go.sdk . .
	gotest go.ships . TestProgramShipsItself
	gotest go.examples "$(go list ./examples/go/... | sed "s/^launcher/./")" .
fi

# ---------------------------------------------------------------- 9 commands, speed, examples
if wants commands; then
	gotest commands ./launcher 'OfPrograms|Counted|Objects|Timeline|PrivateCluster'
	out=$(t1 env VIRTUAL_ENV="$ROOT/.venv" launcher bench core --short --json --python "$PY" 2>"$WORK/err"); rc=$?
	rows=$(grep -c '"event":"row"' <<<"$out"); names=$(PYTHONPATH=python "$PY" -m launcher._bench --list | wc -l)
	check speed.python "exit $rc, $rows of $names rows $(head -c 200 "$WORK/err")" test $rc = 0 -a "$rows" = "$names"
	out=$(L bench core --go --short --json 2>"$WORK/err"); rc=$?
	rows=$(grep -c '"event":"row"' <<<"$out"); names=$(L bench core --go --list | wc -l)
	check speed.go "exit $rc, $rows of $names rows $(head -c 200 "$WORK/err")" test $rc = 0 -a "$rows" = "$names"
	check speed.bench-ray "the target is there, and lists its rows" eval 'grep -q "^bench-ray:" Makefile && [ -x scripts/bench-ray ]'
fi
if wants examples; then gotest examples ./examples/tasks .; fi

#!/usr/bin/env bash
# The main job on this machine: a point per promise. See accept/lib.sh for the form.
source "$(dirname "$0")/lib.sh"

# jsel EXPR: evaluates a Python expression over the JSON document on stdin, as d.
jsel() { /usr/bin/python3 -c 'import json,sys; d=json.loads(sys.stdin.read().splitlines()[-1]); print(eval(sys.argv[1], {"d": d}))' "$1" 2>/dev/null; }
L() { t1 launcher "$@"; }
PY=$ROOT/.venv/bin/python
SPEC=$WORK/lab.toml
cat >"$SPEC" <<EOF
version = 1
name = "lab"
[[pool]]
name = "local"
backend = "local"
nodes = 2
resources = { cpu = 3 }
python = "$PY"
EOF
if is_root; then chown -R launcher-t1 "$WORK"; fi
# procs SUBCOMMAND: pids of launcher processes of this run by hidden sub-command
procs() { for p in $(ours); do tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | grep -qE "launcher $1( |$)" && echo "$p"; done; }
none_left() { [ -z "$(ours)" ]; }

# ---------------------------------------------------------------- 1 repository
folders="wire shm collectives/plan collectives/reduce collectives/transport agent/core head/core broker backends/local backends/fake backends/backendtest backends/all jobs/run jobs/train jobs/sweep configs python examples accept internal/errs internal/logx internal/clock internal/testkit internal/lint launcher docs/architecture.md docs/protocol.md CONTRIBUTING.md README.md LICENSE"
missing=$(for f in $folders; do [ -e "$f" ] || echo "$f"; done)
check repo.folders "missing: ${missing:-none}" test -z "$missing"
gotest repo.rules ./internal/lint .
missing=$(for g in help setup build test race fuzz bench lint demo check long release; do grep -qE "^$g:" Makefile || echo "$g"; done)
check repo.make "targets missing: ${missing:-none}" test -z "$missing"
check repo.ci ".ci/run is make test" grep -q 'make test' .ci/run
if out=$(make -s release 2>&1) && (cd dist && sha256sum -c --quiet SHA256SUMS); then
	static=$(for f in dist/launcher-linux-*; do readelf -l "$f" | grep -q INTERP && echo "$f is dynamic"; done)
	check repo.release "$(ls dist | tr '\n' ' ') ${static:-static}" test -z "$static" -a -f dist/launcher-darwin-arm64
else fail repo.release "$out"; fi

# ---------------------------------------------------------------- 2 specs
printf 'version = 1\nnmae = "x"\n[head]\nreplicas = "two"\n[[pool]]\nname = "a"\nbackend = "local"\nnodes = -1\n' >"$WORK/bad.toml"
out=$(L up "$WORK/bad.toml" 2>&1); rc=$?
check spec.faults "exit $rc, faults with lines: $(grep -c 'bad.toml:[0-9]*:' <<<"$out")" test $rc = 125 -a "$(grep -c 'bad.toml:[0-9]*:' <<<"$out")" -ge 3
check spec.nothing-started "no process after a bad spec" none_left
gotest spec.unbuilt ./configs Unbuilt
gotest spec.samples ./configs Sample

# ---------------------------------------------------------------- 3, 4 cores, simulator, journal
gotest core.sim ./internal/sim .
gotest core.head ./head/core .
gotest core.agent ./agent/core .
gotest journal.torn ./head/journal .
gotest journal.durable ./head Replay

# ---------------------------------------------------------------- 5 supervisor and agent, 6 backends, 7 security
gotest supervisor.kills ./agent/supervisor .
gotest agent.spool ./agent/spool .
gotest agent.detect ./agent/detect .
gotest backends.local ./backends/local .
gotest backends.fake ./backends/fake .
gotest security.join ./wire/secure .
gotest security.session ./wire/session .
gotest security.renewed ./agent Renewal
gotest security.renewed-session ./wire/session Renew
gotest link ./broker .
gotest sdk.go . 'Report|Params|Checkpoint'
if is_root; then
	out=$(make -s root 2>&1); rc=$?
	check root.tests "exit $rc: $(grep -cE '^ok' <<<"$out") packages: cgroup v1, disk full in journal, head, logs, second user $(grep -E '^(---|FAIL)' <<<"$out" | head -3)" test $rc = 0
else skip root.tests "not root"; fi

# ---------------------------------------------------------------- up, run
a=$(now_ms); out=$(L up "$SPEC" 2>&1); rc=$?; b=$(now_ms)
nodes=$(L nodes --json | jsel 'sum(n["state"]=="up" for n in d["nodes"])')
check up.local "exit $rc in $((b - a)) ms, $nodes nodes up" test $rc = 0 -a "$nodes" = 2
out=$(L run -- sh -c 'echo $LAUNCHER_TASK_ID' 2>&1); rc=$?
check run.task-id "exit $rc: $out" grep -qE '^[0-9]+\.0$' <<<"$out"
L run -- sh -c 'exit 7' >/dev/null 2>&1; rc=$?; check run.exit-code "the command's 7 comes as $rc" test $rc = 7
L run -- /nonexistent-cmd >/dev/null 2>"$WORK/err"; rc=$?; check run.not-found "exit $rc: $(cat "$WORK/err")" test $rc = 127
L run -- /etc/hostname >/dev/null 2>&1; rc=$?; check run.not-executable "exit $rc" test $rc = 126
L run -- sh -c 'kill -9 $$' >/dev/null 2>&1; rc=$?; check run.killed "exit $rc" test $rc = 137
L run --time 1s --grace 1s -- sleep 60 >/dev/null 2>&1; rc=$?; check run.time-limit "exit $rc" test $rc = 124
out=$(L run -- sh -c 'echo out; echo err >&2' 2>/dev/null); check run.streams "stdout only: $out" test "$out" = out
a=$(now_ms); out=$(L run --array 0-999 -- true 2>&1); rc=$?; b=$(now_ms)
check run.array "exit $rc, 1,000 tasks in $((b - a)) ms" test $rc = 0
printf 'a b\nc\n' >"$WORK/lines"; out=$(L run --each-line "$WORK/lines" -- sh -c 'echo "[$LAUNCHER_LINE]"' 2>/dev/null | sort | tr '\n' ' ')
check run.each-line "$out" test "$out" = "[a b] [c] "
L run --nodes 2 --ranks-per-node 2 -- sh -c 'echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT"' >"$WORK/ranks" 2>&1; rc=$?
check run.gang "exit $rc: $(sort "$WORK/ranks" | tr '\n' ';')" test "$(grep -cE '[0-3]/4 [01]/2 .+:[0-9]+' "$WORK/ranks")" = 4

# ---------------------------------------------------------------- 8, 12 collectives, training
cat >"$WORK/rank.py" <<'EOF'
"""rank.py MODE MARK [N]: all-reduces with the others while rank 1 does as MODE says."""
import os, sys, time
import numpy as np
from launcher import collective
mode, mark, n = sys.argv[1], sys.argv[2], float((sys.argv[3:] or [0])[0])
g = collective.init(timeout=2 if mode == "never" else None)
mine = g.rank == 1
a = np.ones(1000, "float32")
try:
    g.barrier()
    if mode == "memory":
        g.empty(int(n), "uint8")
        print("got it", flush=True)
    if mine:
        with open(mark + ".tmp", "w") as f:
            f.write(str(os.getpid()))
        os.rename(mark + ".tmp", mark)
        if mode == "early":
            sys.exit(0)
        end = time.monotonic() + n
        while mode == "compute" and time.monotonic() < end:
            np.random.rand(100, 100) @ np.random.rand(100, 100)
        if mode in ("never", "wait"):
            time.sleep(120)
    g.all_reduce(a)
    print("sum", a[0], flush=True)
except collective.Error as e:
    print("ERR", time.time(), type(e).__name__, e, flush=True)
    sys.exit(3)
EOF
chmod 644 "$WORK/rank.py"
# a rank that computes for 60 s while the others wait is not touched; looked at near the end
L train -n 3 --cpus 0.1 --max-restarts 0 "$WORK/rank.py" compute "$WORK/m.compute" 60 >"$WORK/compute.out" 2>&1 & compute=$!
# rank_dies POINT SIGNAL MS: all other ranks, on both nodes, get an error naming rank 1 in time
rank_dies() {
	local at late out=$WORK/out.$1
	L train -n 4 --cpus 0.5 --per-node 2 --max-restarts 0 "$WORK/rank.py" wait "$WORK/m.$1" >"$out" 2>&1 & local tp=$!
	eventually 30 test -s "$WORK/m.$1"; sleep 0.5; at=$(now_ms); kill -"$2" "$(cat "$WORK/m.$1")"; wait $tp
	late=$(grep -oE 'ERR [0-9.]+ PeerLost rank 1 ' "$out" | awk -v a="$at" '{d = $2 * 1000 - a; if (d > m) m = d} END {printf "%d", m}')
	check "$1" "$(grep -c 'PeerLost rank 1 ' "$out") of 3 ranks told, the last after $late ms" test "$(grep -cE '^\[[023]\] ERR .*PeerLost rank 1 ' "$out")" = 3 -a "$late" -lt "$3"
}
rank_dies collectives.killed KILL 1000
rank_dies collectives.stopped STOP 3000
out=$(L train -n 3 --cpus 0.5 --max-restarts 0 "$WORK/rank.py" early "$WORK/m.early" 2>&1); check collectives.exits-early "$(grep -o 'rank 1 is lost[^;]*' <<<"$out" | head -1)" test "$(grep -c 'PeerLost rank 1 ' <<<"$out")" = 2
out=$(L train -n 3 --cpus 0.5 --max-restarts 0 "$WORK/rank.py" never "$WORK/m.never" 2>&1); check collectives.never-calls "$(grep -o 'rank 1 [^;]*' <<<"$out" | head -1)" test "$(grep -cE '^\[[02]\] ERR .*Timeout rank 1 ' <<<"$out")" = 2
out=$(L train -n 2 --cpus 0.5 --max-restarts 0 "$WORK/rank.py" memory "$WORK/m.quota" 1e14 2>&1); check bad.memory-quota "$(grep -o 'ERR.*' <<<"$out" | head -1)" test "$(grep -c 'ERR .*the limit of a rank' <<<"$out")" = 2
gotest collectives ./collectives .
for n in 1 2 4; do
	out=$(L train -n $n examples/digits/train.py 2>&1); rc=$?
	obj=$(grep -oE '0\.2618[0-9]+' <<<"$out" | tail -1)
	check "train.optimum-$n" "exit $rc, objective $obj (0.26186455)" test $rc = 0 -a "$(/usr/bin/python3 -c "print(abs(${obj:-9}-0.26186455)<1e-6)")" = True
done
gotest train.same-weights ./examples/digits .
# kill -9 of a rank in the middle: same optimum, from the checkpoint
L train -n 4 examples/digits/train.py --pause 0.3 >"$WORK/train.out" 2>&1 & tp=$!
kill_rank() { for p in $(ours); do tr '\0' '\n' <"/proc/$p/environ" 2>/dev/null | grep -qx 'RANK=2' && tr '\0' ' ' <"/proc/$p/cmdline" | grep -q train.py && kill -9 "$p" && return 0; done; return 1; }
eventually 20 kill_rank; killed=$?; wait $tp; rc=$?
obj=$(grep -oE '0\.2618[0-9]+' "$WORK/train.out" | tail -1)
check train.kill-rank "killed=$killed exit $rc objective $obj" test $killed = 0 -a $rc = 0 -a "$(/usr/bin/python3 -c "print(abs(${obj:-9}-0.26186455)<1e-6)")" = True
# the Go program, 2 ranks
if CGO_ENABLED=0 go build -o "$WORK/digits" ./examples/digits/go 2>"$WORK/err"; then
	out=$(L run --nodes 2 --ranks-per-node 1 -- "$WORK/digits" 2>&1); rc=$?
	check train.go "exit $rc $(grep -oE '0\.2618[0-9]+' <<<"$out" | tail -1)" grep -q '0\.261864' <<<"$out"
else fail train.go "$(cat "$WORK/err")"; fi

# ---------------------------------------------------------------- sweep
out=$(L sweep examples/digits/sweep.toml 2>&1); rc=$?
job=$(L jobs --all --json | jsel '[j["id"] for j in d["jobs"] if j["kind"]=="sweep"][-1]')
pruned=$(L sweep show "$job" --json | jsel 'sum(t["pruned"] for t in d["trials"])'); total=$(L sweep show "$job" --json | jsel 'len(d["trials"])')
check sweep.asha "exit $rc, $pruned of $total trials stopped early" test $rc = 0 -a "${pruned:-0}" -gt 0
check sweep.table "$(L sweep show "$job" | tail -2)" test "$(L sweep show "$job" | wc -l)" -gt 3

# ---------------------------------------------------------------- kills in an array with a ledger
ledger() { # ledger WHOM: 1,000 tasks write start and end lines; WHOM is killed in the middle, three times
	local f=$WORK/ledger.$1 n=0 rc p
	: >"$f"; is_root && chown launcher-t1 "$f"
	L run --array 0-999 -- sh -c 'echo "s $LAUNCHER_TASK_INDEX" >>'"$f"'; sleep 0.02; echo "e $LAUNCHER_TASK_INDEX" >>'"$f" >"$WORK/out.$1" 2>&1 & local rp=$!
	for at in 100 300 600; do
		eventually 60 eval "[ \$(wc -l <$f) -gt $at ]" || break
		p=; for k in ${1//+/ }; do p="$p $(procs "$k" | head -1)"; done
		kill -9 $p && n=$((n + 1))
	done
	wait $rp; rc=$?
	local starts ends
	starts=$(grep '^s' "$f" | sort | uniq -c | awk '$1==1' | wc -l); ends=$(grep '^e' "$f" | sort | uniq -c | awk '$1==1' | wc -l)
	check "kill.$1" "exit $rc, killed $n times, $(wc -l <"$f") lines, indices with exactly one start $starts, one end $ends" test $rc = 0 -a $n = 3 -a "$starts" = 1000 -a "$ends" = 1000 -a "$(wc -l <"$f")" = 2000
}
ledger head
ledger agent
ledger head+agent
# four shapes of child under kill -9 of the agent: same pids, no output lost, exit codes right
cat >"$WORK/shape.py" <<'EOF'
import subprocess, sys
sys.exit(subprocess.run(["sh", "-c", sys.argv[1]]).returncode)
EOF
chmod 644 "$WORK/shape.py"
count='echo pid $$; i=0; while [ $i -lt 30 ]; do echo n $i; i=$((i+1)); sleep 0.1; done; echo pid $$; exit 9'
L run -- sh -c "$count" >"$WORK/s.plain" 2>&1 & s1=$!
L run -- sh -c "sh -c '$count' & wait \$!" >"$WORK/s.background" 2>&1 & s2=$!
L run -- setsid -w sh -c "$count" >"$WORK/s.setsid" 2>&1 & s3=$!
L run -- /usr/bin/python3 "$WORK/shape.py" "$count" >"$WORK/s.python" 2>&1 & s4=$!
for s in plain background setsid python; do eventually 20 grep -q 'n 3' "$WORK/s.$s"; done
for p in $(procs agent); do kill -9 "$p"; done
bad=; i=0
for s in plain background setsid python; do
	i=$((i + 1)); eval "wait \$s$i"; rc=$?
	[ $rc = 9 ] && [ "$(grep -c '^n ' "$WORK/s.$s")" = 30 ] && [ "$(grep '^pid' "$WORK/s.$s" | sort -u | wc -l)" = 1 ] && [ "$(grep -c '^pid' "$WORK/s.$s")" = 2 ] || bad="$bad $s (exit $rc, $(grep -c '^n ' "$WORK/s.$s") of 30 lines)"
done
check kill.agent-children "wrong under kill -9 of both agents: ${bad:-none of four shapes}" test -z "$bad"
# a supervisor: its node goes and comes back, the job ends well
L run --array 0-199 -- sleep 0.05 >"$WORK/out" 2>&1 & rp=$!
eventually 20 eval 'L tasks --json 2>/dev/null | grep -q running || true; [ -n "$(procs supervise)" ]'; kill -9 "$(procs supervise | head -1)"; wait $rp; rc=$?
check kill.supervisor "exit $rc: $(tail -1 "$WORK/out")" test $rc = 0
eventually 20 eval '[ "$(L nodes --json | jsel "sum(n[\"state\"]==\"up\" for n in d[\"nodes\"])")" = 2 ]'; check kill.supervisor-back "two nodes up again" test "$(L nodes --json | jsel 'sum(n["state"]=="up" for n in d["nodes"])')" = 2

wait $compute; rc=$?
check collectives.computes "exit $rc, $(grep -c 'sum 3' "$WORK/compute.out") of 3 ranks well after 60 s" test $rc = 0 -a "$(grep -c 'sum 3' "$WORK/compute.out")" = 3

# ---------------------------------------------------------------- files
printf 'version = 1\nname = "filed"\nkind = "run"\ncommand = ["echo", "from a file"]\n' >"$WORK/job.toml"
job=$(L submit --json "$WORK/job.toml" | jsel 'd["job"]'); L wait "$job" >/dev/null 2>&1; rc=$?; out=$(L logs "$job")
check submit "job $job, exit $rc: $out" test $rc = 0 -a "$out" = "from a file"
printf 'method: grid\nmetric: {name: loss, goal: minimize}\nparameters:\n  lr: {values: [0.2, 0.1]}\ncommand: ["sh", "-c", "$LAUNCHER report loss=$($LAUNCHER param lr) step=1"]\n' >"$WORK/wandb.yaml"
out=$(L sweep "$WORK/wandb.yaml" 2>&1); rc=$?; check sweep.wandb "exit $rc: $(tail -1 <<<"$out")" grep -q 'best: .*loss=0.1 ' <<<"$out"
t1 mkdir "$WORK/a dir with spaces"; out=$(L run --workdir "$WORK/a dir with spaces" -- pwd 2>&1); check run.spaces "$out" test "$out" = "$WORK/a dir with spaces"

# ---------------------------------------------------------------- Ctrl-C
L run --grace 2s -- sh -c 'trap "echo got-term; exit 3" TERM; echo up; while :; do sleep 0.1; done' >"$WORK/cc" 2>&1 & rp=$!
eventually 10 grep -q up "$WORK/cc"; pkill -INT -P $rp -x launcher || kill -INT $rp; wait $rp; rc=$?
check ctrl-c "exit $rc, $(tr '\n' ' ' <"$WORK/cc")" test $rc = 130 -a -n "$(grep got-term "$WORK/cc")"

# ---------------------------------------------------------------- command
bad=; for c in status nodes pools "jobs --all" "tasks 1" "why 1" version doctor; do L $c --json 2>/dev/null | jsel 'd["version"]' | grep -q 1 || bad="$bad $c"; done
check cmd.json "no version in: ${bad:-none}" test -z "$bad"
out=$(L up --dry-run "$SPEC" 2>&1); check cmd.dry-run "$(head -3 <<<"$out")" grep -q 'node' <<<"$out"
out=$(L why 1 2>&1); check cmd.why "$out" test -n "$out"
out=$(L run --cpus 4096 -- true 2>&1); rc=$?; check cmd.impossible "exit $rc: $out" grep -q error <<<"$out"
out=$(L exec local-0 -- sh -c 'echo $LAUNCHER_NODE ok' 2>&1); check cmd.exec "$out" grep -q ok <<<"$out"
cp "$SPEC" "$WORK/other.toml"; out=$(L up "$WORK/other.toml" 2>&1); rc=$?
check bad.same-name "exit $rc: $out" test $rc = 125
port=$(/usr/bin/python3 -c 'import re,sys; print(re.search(r":(\d+)\"", open(sys.argv[1]).read()).group(1))' "$LAUNCHER_HOME/clusters/lab/cluster.json")
cat >"$WORK/garbage.py" <<'EOF'
"""garbage.py PORT SOCKET...: random bytes, a cut frame and a huge length to each door."""
import os, socket, struct, sys
doors = [(socket.AF_INET, ("127.0.0.1", int(sys.argv[1])))] + [(socket.AF_UNIX, p) for p in sys.argv[2:]]
sent = 0
for family, address in doors:
    for body in (os.urandom(100_000), b"LNCH" + os.urandom(2000), struct.pack("<IHH", 0xFFFFFFFF, 1, 0), b"GET /nonsense HTTP/1.1\r\n\r\n", b"POST /v1/report HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"):
        with socket.socket(family) as s:
            s.settimeout(5)
            s.connect(address)
            try:
                s.sendall(body)
                s.shutdown(socket.SHUT_WR)
                while s.recv(65536):
                    pass
            except OSError:
                pass  # closed on us, as it should be
        sent += 1
print(sent)
EOF
chmod 644 "$WORK/garbage.py"
heads=$(procs head | tr '\n' ' ')$(procs agent | tr '\n' ' ')
mapfile -t doors < <(find "$LAUNCHER_HOME/clusters/lab" -type s -name '*.sock')
sent=$(t1 timeout 60 "$PY" "$WORK/garbage.py" "$port" "${doors[@]}" 2>&1)
out=$(L run -- echo fine 2>&1); check bad.garbage "$sent pieces of garbage to port $port and ${#doors[@]} sockets, then: $out; same processes" test "$out" = fine -a "${#doors[@]}" -ge 3 -a "$heads" = "$(procs head | tr '\n' ' ')$(procs agent | tr '\n' ' ')" -a "$sent" = $(((${#doors[@]} + 1) * 5))
if is_root; then
	out=$(t2 launcher status 2>&1); rc=$?; check bad.second-user "exit $rc: $out" test $rc = 125
	check bad.state-mode "state directory $(stat -c %a "$LAUNCHER_HOME")" test "$(stat -c %a "$LAUNCHER_HOME")" = 700
else skip bad.second-user "not root"; skip bad.state-mode "not root"; fi

# ---------------------------------------------------------------- the difference of a changed spec
sed 's/nodes = 2/nodes = 1/' "$SPEC" >"$WORK/changed" && cp "$SPEC" "$WORK/whole" && cat "$WORK/changed" >"$SPEC"
out=$(L up "$SPEC" 2>&1 </dev/null); rc=$?; check up.asks "exit $rc: $out" test $rc = 125 -a -n "$(grep 'removes 1 node' <<<"$out")"
out=$(L up --yes "$SPEC" 2>&1); rc=$?; check up.applies "exit $rc" test $rc = 0 -a "$(L nodes --json | jsel 'sum(n["state"]=="up" for n in d["nodes"])')" = 1
cat "$WORK/whole" >"$SPEC"; L up "$SPEC" >/dev/null 2>&1; check up.grows "two nodes again" test "$(L nodes --json | jsel 'sum(n["state"]=="up" for n in d["nodes"])')" = 2

# ---------------------------------------------------------------- down, record, forget
out=$(L down lab 2>&1); rc=$?; check down "exit $rc: $out" test $rc = 0
check down.nothing-left "processes: $(ours | tr '\n' ' ') sockets: $(find "$WORK" -type s | tr '\n' ' ')" test -z "$(ours)$(find "$WORK" -type s)"
out=$(L jobs --all -c lab 2>&1); check down.record "$(wc -l <<<"$out") lines of jobs with nothing up" test "$(wc -l <<<"$out")" -gt 10
out=$(L logs 1 -c lab 2>&1); check down.logs "$out" grep -qE '^1\.0$' <<<"$out"
out=$(L run -- true 2>&1); rc=$?; check bad.nothing-up "exit $rc: $out" test $rc = 125 -a "$(grep -c hint: <<<"$out")" -ge 1
out=$(L run --on "$SPEC" -- echo one-shot 2>/dev/null); rc=$?; check run.on "exit $rc: $out" test $rc = 0 -a "$out" = one-shot
check run.on-down "nothing up after it" none_left
L forget lab >/dev/null 2>&1; check forget "the record is gone" test ! -e "$LAUNCHER_HOME/clusters/lab"
sed "s/nodes = 2/nodes = 4000/" "$SPEC" >"$WORK/many.toml"; out=$(L up "$WORK/many.toml" 2>&1); rc=$?; check bad.too-many-nodes "exit $rc: $out" test $rc = 125
out=$(LAUNCHER_HOME=/proc/launcher L up "$SPEC" 2>&1); rc=$?; check bad.home "exit $rc: $out" test $rc = 125
deep=$WORK/$(printf 'd%.0s' {1..60})/$(printf 'e%.0s' {1..60}); t1 mkdir -p "$deep"
out=$(LAUNCHER_HOME=$deep L run --on "$SPEC" -- echo deep 2>&1); check bad.deep-home "$(tail -1 <<<"$out")" grep -q deep <<<"$out"
BUT='^Test(Slurm|SSH|RootNet|Podman|HeadNodeLost)' gotest bad.more ./launcher . # those are accept/slurm.sh's and accept/ssh.sh's

# ---------------------------------------------------------------- memory under a cgroup v1 limit
cg=/sys/fs/cgroup/memory/accept-$$
if is_root && mkdir "$cg" 2>/dev/null && echo 700M >"$cg/memory.limit_in_bytes" 2>/dev/null; then
	sed 's/nodes = 2/nodes = 1/; s/cpu = 3/cpu = 4/' "$SPEC" | sed "s/name = .lab./name = \"small\"/" >"$WORK/small.toml"
	# four ranks at once, of which the last does not fit
	out=$(echo $BASHPID >"$cg/cgroup.procs"; L up "$WORK/small.toml" 2>&1; L train -n 4 --max-restarts 0 "$WORK/rank.py" memory "$WORK/m.cgroup" 2.2e8 2>&1; L down --all 2>&1)
	killed=$(awk '$1 == "oom_kill" {print $2}' "$cg/memory.oom_control")
	check bad.memory-cgroup "kills $killed; $(grep -o 'ERR.*memory are left' <<<"$out" | head -1)" test "${killed:-0}" = 0 -a -n "$(grep 'bytes of memory are left' <<<"$out")"
	eventually 5 rmdir "$cg" 2>/dev/null
else skip bad.memory-cgroup "needs root and a cgroup v1 memory controller"; fi

# ---------------------------------------------------------------- bench
L up "$SPEC" >/dev/null 2>&1
out=$(L bench 2>&1); rc=$?; check bench "exit $rc: $(grep -iE 'first output|true|reduce' <<<"$out" | head -4)" test $rc = 0
L down lab >/dev/null 2>&1
check end.nothing-left "processes: $(ours | tr '\n' ' ')" none_left

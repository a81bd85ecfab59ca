package slurm

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
)

// maxTime is a time limit in Slurm's own form: whole minutes, rounded up as Slurm does.
func maxTime(d time.Duration) string {
	m := int64((d + time.Minute - 1) / time.Minute)
	return fmt.Sprintf("%d:%02d:00", m/60, m%60)
}

// quote makes one word of a shell's.
func quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:,@%=[]", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// step is the command that starts n nodes' agents, one on each, in the foreground: Slurm
// takes everything that a step leaves behind for a failure of the machine. What the shell
// of the user exported passes; -c is not given, so that each node has what was granted there.
func step(n int, binary, nodes string) []string {
	k := strconv.Itoa(n)
	return []string{"srun", "--overlap", "-N", k, "-n", k, "--ntasks-per-node=1", "--cpu-bind=none", "--export=ALL",
		"--no-kill", "--kill-on-bad-exit=0", "-i", "none", binary, "slurm-node", "--from", nodes}
}

// script is the batch script of one job. Everything in it is for people to read too, and
// no secret is.
func (q request) script(j job) (string, error) {
	if strings.ContainsAny(j.log, "\n\"%\\") || strings.ContainsAny(j.binary, "\n") {
		return "", errs.New(errs.Invalid, "%q cannot be the name of a job's output file", j.log).Hint("set LAUNCHER_HOME to a directory with a plain name")
	}
	output := []string{"--output=\"" + j.log + "\""}
	if q.Apart { // nodes have no such directories
		output = []string{"--output=/dev/null", "--chdir=/"}
	}
	limit := q.Time
	if j.within > 0 && limit > 0 {
		limit = min(limit, max(j.within, time.Minute))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "#!/bin/bash\n# %s of pool %s, cluster %s\n", strings.Join(j.names(), " "), j.pool, j.cluster)
	q.ask(&b, j.Name, j.comment(), len(j.nodes), limit, j.after, output)
	words := step(len(j.nodes), j.binary, j.path(nodesExt))
	if q.Apart {
		words = waitStep(len(j.nodes), j.Name)
	}
	for i := range words {
		words[i] = quote(words[i])
	}
	fmt.Fprintf(&b, "exec %s\n", strings.Join(words, " "))
	return b.String(), nil
}

// ask writes what a job of the pool asks of sbatch.
func (q request) ask(b *strings.Builder, name, comment string, nodes int, limit time.Duration, after, output []string) {
	line := func(format string, args ...any) { fmt.Fprintf(b, "#SBATCH "+format+"\n", args...) }
	opt := func(key, value string) {
		if value != "" && value != "0" {
			line("--%s=%s", key, value)
		}
	}
	opt("job-name", name)
	opt("comment", comment)
	line("--nodes=%d", nodes)
	line("--ntasks=%d", nodes)
	line("--ntasks-per-node=1")
	opt("partition", q.Partition)
	opt("account", q.Account)
	opt("qos", q.QOS)
	opt("constraint", q.Constraint)
	opt("reservation", q.Reservation)
	if limit > 0 {
		line("--time=%s", maxTime(limit))
	}
	if q.TimeMin > 0 && q.TimeMin < limit {
		line("--time-min=%s", maxTime(q.TimeMin))
	}
	if len(after) > 0 {
		line("--dependency=afterany:%s", strings.Join(after, ":"))
	}
	opt("cpus-per-task", strconv.Itoa(q.CPUs))
	if q.Memory > 0 {
		line("--mem=%dM", (q.Memory+1<<20-1)>>20)
	}
	opt("gres", q.Gres)
	opt("gpus-per-node", strconv.Itoa(q.GPUs))
	if q.Exclusive {
		line("--exclusive")
	}
	line("--no-kill")
	line("--no-requeue")
	line("--open-mode=append")
	for _, o := range output {
		line("%s", o)
	}
	for _, a := range q.Args {
		line("%s", a)
	}
}

// Emit is a batch script for plain sbatch: a job of n nodes as the pool asks for them, in
// which a cluster of its own is made. dir, which nodes must see, has its spec, NAME.toml,
// and takes its state and log.
func Emit(o backends.Options, name string, n int, binary, dir string) (string, error) {
	q, faults := parse(o)
	switch {
	case len(faults) > 0:
		return "", errs.New(errs.Invalid, "%s: %s", faults[0].Key, faults[0].Msg)
	case q.PerJob > 0 && q.PerJob < n:
		return "", errs.New(errs.Invalid, "nodes_per_job = %d: the script is one job, of %d nodes", q.PerJob, n).Hint("leave nodes_per_job out, or give fewer as min")
	case strings.ContainsAny(dir, "\n\"%\\") || strings.ContainsAny(binary, "\n"):
		return "", errs.New(errs.Invalid, "%q cannot be where a job's output goes", dir).Hint("give a directory with a plain name")
	}
	var b strings.Builder
	fmt.Fprintf(&b, `#!/bin/bash
# Cluster %[1]s as one Slurm job with a head of its own; it ends with the job.
#
#   sbatch %[1]s.sh [FLAG... --] CMD [ARG...]   runs CMD as "launcher run" does; its exit code is the job's
#   sbatch %[1]s.sh                             keeps the cluster up until the job ends
#
`, name)
	output := []string{fmt.Sprintf("--output=\"%s/%s-%%j.log\"", dir, name)}
	if q.Apart { // nodes have no other directory of the user's
		output = append(output, fmt.Sprintf("--chdir=\"%s\"", dir))
	}
	q.ask(&b, name, "", n, q.Time, nil, output)
	fmt.Fprintf(&b, `
launcher=%s
dir=%s
export LAUNCHER_HOME="$dir/state/$SLURM_JOB_ID"
unset LAUNCHER_CLUSTER LAUNCHER_SOCKET
trap '"$launcher" down %[3]s' TERM # Slurm says so that the job ends
if [ $# -gt 0 ]; then
	"$launcher" run --on "$dir/%[3]s.toml" "$@" & wait $!
	exit
fi
"$launcher" up "$dir/%[3]s.toml" || exit
echo "use it with: LAUNCHER_HOME='$LAUNCHER_HOME' srun --jobid=$SLURM_JOB_ID --overlap -N1 -n1 -w $SLURMD_NODENAME '$launcher' --cluster %[3]s run CMD"
sleep infinity & wait $!
`, quote(binary), quote(dir), name)
	return b.String(), nil
}

package slurm

import (
	"fmt"
	"strconv"
	"strings"
	"time"

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
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, "#SBATCH "+format+"\n", args...) }
	opt := func(key, value string) {
		if value != "" && value != "0" {
			line("--%s=%s", key, value)
		}
	}
	fmt.Fprintf(&b, "#!/bin/bash\n# %s of pool %s, cluster %s\n", strings.Join(j.names(), " "), j.pool, j.cluster)
	line("--job-name=%s", j.Name)
	line("--comment=%s", j.comment())
	line("--nodes=%d", len(j.nodes))
	line("--ntasks=%d", len(j.nodes))
	line("--ntasks-per-node=1")
	opt("partition", q.Partition)
	opt("account", q.Account)
	opt("qos", q.QOS)
	opt("constraint", q.Constraint)
	opt("reservation", q.Reservation)
	limit := q.Time
	if j.within > 0 && limit > 0 {
		limit = min(limit, max(j.within, time.Minute))
	}
	if limit > 0 {
		line("--time=%s", maxTime(limit))
	}
	if q.TimeMin > 0 && q.TimeMin < limit {
		line("--time-min=%s", maxTime(q.TimeMin))
	}
	if len(j.after) > 0 {
		line("--dependency=afterany:%s", strings.Join(j.after, ":"))
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
	if q.Apart { // nodes have no such directories
		line("--output=/dev/null")
		line("--chdir=/")
	} else {
		line("--output=\"%s\"", j.log)
	}
	for _, a := range q.Args {
		line("%s", a)
	}
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

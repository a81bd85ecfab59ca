package slurm

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"launcher/backends"
	"launcher/internal/errs"
	"launcher/wire"
)

// Patient is a pool that doctor looks at.
type Patient struct {
	Pool    string
	Options backends.Options
	Max     int
	Binary  string
	Port    int // one that the head may use; 0 = any
	NoJob   bool
	Wait    time.Duration // of the job that looks at a node; 0 = visitWait
}

// examination collects what is found of one pool.
type examination struct {
	Patient
	q     request
	s     site
	p     *partition
	found []backends.Finding
	mends []mend // the most urgent first
}

func (x *examination) tell(level, fix, format string, args ...any) {
	x.found = append(x.found, backends.Finding{Level: level, What: x.Pool + ": " + fmt.Sprintf(format, args...), Fix: fix})
}

func (x *examination) fail(err error) {
	x.tell("error", strings.Join(errs.HintsOf(err), "; "), "%s", err.Error())
}

// Examine looks at Slurm, at what a pool asks of it and, by a job of one minute on one
// node, at a node. Nothing else is started, nothing is left.
func (b *Backend) Examine(ctx context.Context, who Patient) []backends.Finding {
	x := &examination{Patient: who}
	x.Wait = cmp.Or(x.Wait, visitWait)
	var faults []backends.Fault
	if x.q, faults = parse(who.Options); len(faults) > 0 {
		for _, f := range faults {
			x.tell("error", "", "%s: %s", f.Key, f.Msg)
		}
		return x.found
	}
	if a, ok := inside(x.q); ok {
		x.tell("ok", "", "the nodes of Slurm job %s, %s", a.Job, plural(a.Nodes, "node"))
		return x.found
	}
	x.ownDefaults()
	var err error
	if x.s, err = b.readSite(ctx); err != nil {
		x.fail(err)
		return x.found
	}
	if tooOld(x.s.version) {
		x.tell("error", "Slurm 20.11 or newer is needed", "Slurm is of version %s", x.s.version)
		return x.found
	}
	if x.p = x.s.partition(x.q.Partition); x.p == nil {
		if x.q.Partition == "" {
			x.tell("error", `name one: partition = "..."`, "no partition is the default; there are %s", x.s.names())
		} else {
			x.tell("error", "", "there is no partition %s; there are %s", x.q.Partition, x.s.names())
		}
		return x.found
	}
	x.tell("ok", "", "Slurm %s, partition %s: %s", x.s.version, x.p.name, x.describe())
	x.partition()
	x.account()
	x.memory()
	x.gres()
	x.tracking()
	x.endings()
	if b.testOnly(ctx, x) && !who.NoJob {
		b.visit(ctx, x)
	}
	return x.found
}

// ownDefaults are the user's, which hold where the pool says nothing.
func (x *examination) ownDefaults() {
	to := map[string]*string{"SBATCH_ACCOUNT": &x.q.Account, "SBATCH_PARTITION": &x.q.Partition, "SBATCH_QOS": &x.q.QOS, "SBATCH_RESERVATION": &x.q.Reservation}
	for _, kv := range environ() {
		if k, v, _ := strings.Cut(kv, "="); to[k] != nil && *to[k] == "" {
			*to[k] = v
		}
	}
}

// describe is a partition in a line.
func (x *examination) describe() string { return describe(x.p) }

func describe(p *partition) string {
	cpus, mem, gpus := p.least()
	s := fmt.Sprintf("%s with %s", plural(len(p.nodes), "node"), plural(cpus, "core"))
	if mem > 1 {
		s += ", " + wire.Bytes(mem<<20)
	}
	if kind, n := gpusOf(gpus); n > 0 {
		s += fmt.Sprintf(", %s", plural(n, strings.TrimSpace(kind+" GPU")))
	}
	if d := span(p.keys["MaxTime"]); d > 0 {
		s += ", jobs of at most " + maxTime(d)
	}
	return s
}

// least is what each node of the partition has.
func (p *partition) least() (cpus int, memory int64, gres string) {
	gpus := -1
	for i, n := range p.nodes {
		if i == 0 || n.cpus < cpus {
			cpus = n.cpus
		}
		if i == 0 || n.memory < memory {
			memory = n.memory
		}
		if _, k := gpusOf(n.gres); gpus < 0 || k < gpus {
			gpus, gres = k, n.gres
		}
	}
	return cpus, memory, gres
}

func (x *examination) partition() {
	if why := x.p.usable; why != "" {
		x.tell("error", "name another: "+x.s.names(), "partition %s cannot be used: %s", x.p.name, why)
	}
	most := span(x.p.keys["MaxTime"])
	def := span(x.p.keys["DefaultTime"])
	switch {
	case x.q.Time == 0 && def > 0:
		x.tell("note", `say how long: time = "4h"`, "no time is asked for: jobs get %s, the partition's default", maxTime(def))
	case x.q.Time == 0 && most > 0:
		x.tell("note", `say how long: time = "1h"; shorter jobs start sooner`, "no time is asked for: jobs get %s, the partition's most", maxTime(most))
	case most > 0 && x.q.Time > most && (x.q.TimeMin == 0 || x.q.TimeMin > most):
		x.tell("error", fmt.Sprintf("time = %q; the next job follows by itself", minutes(most)), "time asks for more than partition %s ever gives, %s", x.p.name, maxTime(most))
	}
	if n := number(x.p.keys["MaxNodes"]); n > 0 && x.Max > n && (x.q.PerJob == 0 || x.q.PerJob > n) {
		x.tell("warning", fmt.Sprintf("nodes_per_job = %d", n), "a job of partition %s has at most %s, and the pool may ask for %d at once", x.p.name, plural(n, "node"), x.Max)
	}
	if n := number(x.p.keys["MinNodes"]); n > 1 {
		x.tell("warning", "", "a job of partition %s has at least %d nodes: work on fewer waits", x.p.name, n)
	}
	if have := len(x.p.nodes); x.Max > have && have > 0 {
		x.tell("warning", fmt.Sprintf("max = %d", have), "max is %d, and partition %s has %s", x.Max, x.p.name, plural(have, "node"))
	}
	down := 0
	for _, n := range x.p.nodes {
		if n.away() {
			down++
		}
	}
	if down > 0 {
		x.tell("note", "", "%d of %s of partition %s are down or drained", down, plural(len(x.p.nodes), "node"), x.p.name)
	}
	x.preemption()
}

// preemption says by what jobs of the pool may have to leave, or stop where they are.
func (x *examination) preemption() {
	of, mode, grace := "partition "+x.p.name, x.p.keys["PreemptMode"], x.p.keys["GraceTime"]
	switch x.s.conf["PreemptType"] {
	case "", "preempt/none":
		return
	case "preempt/qos":
		name := x.q.QOS
		if l := x.mine(); l != nil && name == "" {
			name = l.ownQOS()
		}
		by, q := x.s.preempts(name), x.s.qos[name]
		if by == "" {
			return
		}
		of, mode, grace = "QOS "+name, q["PreemptMode"], q["GraceTime"]
		if mode == "" || strings.EqualFold(mode, "cluster") {
			mode = x.s.conf["PreemptMode"]
		}
		of += ", by those of QOS " + by
	}
	mode = strings.ToUpper(mode)
	switch {
	case mode == "" || mode == "OFF":
	case strings.Contains(mode, "SUSPEND"), strings.Contains(mode, "GANG"):
		x.tell("note", "", "jobs of %s may be suspended (%s): a node that is does not answer, its work runs again on another and it is given up", of, mode)
	default:
		x.tell("note", "", "jobs of %s may be preempted (%s, grace %s): work goes on elsewhere, nothing is counted against it", of, mode, seconds(grace))
	}
}

// seconds is a grace, which partitions have as a number and QOS as a time.
func seconds(s string) string {
	if d := span(s); strings.Contains(s, ":") {
		return strconv.Itoa(int(d/time.Second)) + " s"
	}
	return strconv.Itoa(number(s)) + " s"
}

// minutes is a time as specs have it.
func minutes(d time.Duration) string {
	if d%time.Hour == 0 {
		return strconv.Itoa(int(d/time.Hour)) + "h"
	}
	return strconv.Itoa(int(d/time.Minute)) + "m"
}

func (x *examination) memory() {
	_, have, _ := x.p.least()
	switch {
	case x.q.Memory > 0 && have <= 1:
		x.tell("error", "leave memory out", "the site does not tell Slurm how much memory its nodes have: jobs that ask for any are refused")
	case x.q.Memory > 0 && x.q.Memory > have<<20:
		x.tell("error", fmt.Sprintf(`memory = "%dMiB"`, have), "memory asks for more than nodes of partition %s have, %s", x.p.name, wire.Bytes(have<<20))
	case !x.s.consumes(x.p):
		x.tell("ok", "", "memory is not shared out among jobs (SelectTypeParameters=%s): it need not be asked for", x.s.conf["SelectTypeParameters"])
	case x.q.Memory == 0 && x.s.defMem(x.p) == "":
		x.tell("warning", fmt.Sprintf(`memory = "%dMiB" for all of a node, or less`, have), "memory is shared out among jobs, none is asked for, and there is no default: each job waits for a whole node's")
	case x.q.Memory == 0:
		x.tell("note", `memory = "16GiB", of each node`, "memory is shared out among jobs and none is asked for: jobs get %s", x.s.defMem(x.p))
	default:
		x.tell("ok", "", "memory is shared out among jobs, and %s is asked for", wire.Bytes(x.q.Memory))
	}
}

func (x *examination) gres() {
	_, _, gres := x.p.least()
	kind, have := gpusOf(gres)
	asked := x.q.GPUs
	if asked == 0 {
		_, asked = gpusOf(x.q.Gres)
	}
	switch {
	case x.q.GPUs > 0 && !x.s.tres():
		x.tell("error", fmt.Sprintf(`gres = "gpu:%d" in its place`, x.q.GPUs), "gpus_per_node needs select/cons_tres, and the site has %s", x.s.conf["SelectType"])
	case x.q.GPUs > 0 && x.q.Gres != "":
		x.tell("warning", "leave one of them out", "both gres and gpus_per_node are asked for")
	case asked > 0 && have == 0:
		x.tell("error", "name a partition with GPUs, or ask for none", "the nodes of partition %s have no GPUs (%s)", x.p.name, gres)
	case asked > have:
		x.tell("error", fmt.Sprintf("ask for at most %d", have), "%s are asked for on each node, and not all nodes of partition %s have more than %d", plural(asked, "GPU"), x.p.name, have)
	case asked == 0 && have > 0:
		x.tell("note", fmt.Sprintf("gres = %q", gresOf(kind, have)), "nodes of partition %s have %s, and the pool asks for none", x.p.name, plural(have, "GPU"))
	}
}

func gresOf(kind string, n int) string {
	if kind != "" {
		kind += ":"
	}
	return fmt.Sprintf("gpu:%s%d", kind, n)
}

// tracking is about how Slurm watches what runs.
func (x *examination) tracking() {
	if t := x.s.conf["ProctrackType"]; t == "proctrack/pgid" {
		x.tell("warning", "the site should use proctrack/cgroup", "Slurm follows processes by their group (%s): what leaves it is not ended with the job", t)
	}
	gather, params := x.s.conf["JobAcctGatherType"], x.s.conf["JobAcctGatherParams"]
	if gather == "jobacct_gather/linux" && !strings.Contains(params, "UsePss") && !strings.Contains(params, "NoShared") {
		level, kills := "note", ""
		if strings.Contains(params, "OverMemoryKill") {
			level, kills = "warning", ", and ends jobs by that"
		}
		x.tell(level, `a smaller [objects] memory, more memory in the pool, or ask the site for JobAcctGatherParams=UsePss`,
			"Slurm's accounting counts shared memory once for each process that maps it (%s, %s)%s", gather, params, kills)
	}
}

const (
	leaving     = notice + 10*time.Second // to stop what has not left, and to clear up
	leastKilled = time.Minute             // for the kernel to end what was killed; Slurm's own default
)

// endings is about how long Slurm lets a node leave, and how long it takes it for ended.
func (x *examination) endings() {
	if s, ok := secondsOf(x.s.conf["KillWait"]); ok && s < leaving {
		x.tell("warning", "ask the site for KillWait=30, as it is by default; until then have work save often",
			"a job that is cancelled or preempted without a grace is killed after %s (KillWait), and a node takes up to %s: %s for its work to save and leave, the rest to stop what has not and to tell of it", s, leaving, notice)
	}
	if s, ok := secondsOf(x.s.conf["UnkillableStepTimeout"]); ok && s < leastKilled {
		x.tell("note", "ask the site for UnkillableStepTimeout=120 or more",
			"Slurm drains a node where something of a job is left %s after SIGKILL (UnkillableStepTimeout): what holds much memory, or waits for a file server, may take longer", s)
	}
}

// secondsOf reads a setting such as 30 sec.
func secondsOf(s string) (time.Duration, bool) {
	v, _, _ := strings.Cut(s, " ")
	n, err := strconv.Atoi(v)
	return time.Duration(n) * time.Second, err == nil
}

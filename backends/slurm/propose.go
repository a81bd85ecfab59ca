package slurm

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"launcher/internal/errs"
)

// Propose writes a spec for the Slurm of this machine, of what its default partition or
// the one named gives, in whole nodes. What was thought over is said in its comments.
func (b *Backend) Propose(ctx context.Context, name string) (string, error) {
	s, err := b.readSite(ctx)
	if err != nil {
		return "", err
	}
	if tooOld(s.version) {
		return "", errs.New(errs.Version, "Slurm is of version %s", s.version).Hint("Slurm 20.11 or newer is needed")
	}
	p := s.partition(name)
	if name != "" && p == nil {
		return "", errs.New(errs.NotFound, "there is no partition %s", name).Hint("there are %s", s.names())
	}
	if name == "" && (p == nil || p.usable != "") {
		p = nil
		for i := range s.parts { // the one with most nodes
			if q := &s.parts[i]; q.usable == "" && (p == nil || len(q.nodes) > len(p.nodes)) {
				p = q
			}
		}
	}
	if p == nil || p.usable != "" {
		why := "none of " + s.names()
		if p != nil {
			why = p.name + ": " + p.usable
		}
		return "", errs.New(errs.Permission, "no partition can be used: %s", why).Hint("ask the site for an account")
	}
	var w strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&w, format+"\n", args...) }
	say("# Slurm %s. Partitions:", s.version)
	for i := range s.parts {
		q := &s.parts[i]
		note := describe(q)
		if q.usable != "" {
			note = "not for you: " + q.usable
		}
		say("#   %s: %s", q.name, note)
	}
	say("version = 1\n\n[[pool]]\nname = %q\nbackend = \"slurm\"\npartition = %q", poolName(p.name), p.name)
	cpus, mem, gres := p.least()
	if perNode := number(p.keys["MaxCPUsPerNode"]); perNode > 0 {
		cpus = min(cpus, perNode)
	}
	most, wall := span(p.keys["MaxTime"]), 8*time.Hour
	if most > 0 && most < wall {
		wall = most
	}
	x := &examination{s: s, p: p, Patient: Patient{Max: len(p.nodes)}, q: request{CPUs: cpus, Time: max(wall.Truncate(time.Minute), time.Minute)}}
	if s.consumes(p) && mem > 1 {
		x.q.Memory = mem << 20
	}
	if kind, n := gpusOf(gres); n > 0 {
		x.q.Gres = gresOf(kind, n)
	}
	if n := number(p.keys["MaxNodes"]); n > 0 && n < x.Max {
		x.q.PerJob = n
	}
	x.chooseAccount(say)
	for range 20 { // a limit that is kept to may leave others without effect
		x.found, x.mends = nil, nil
		if x.account(); len(x.mends) == 0 {
			break
		}
		say("# %s", x.mends[0].why)
		x.mends[0].do()
	}
	for _, f := range x.found {
		if f.Level == "error" {
			say("#%s", f.What[1:])
		}
	}
	q := x.q
	if q.Time > time.Hour {
		say("time = [\"1h\", %q]   # what can start soonest; the next job follows by itself", minutes(q.Time))
	} else {
		say("time = %q   # the next job follows by itself", minutes(q.Time))
	}
	if q.CPUs == cpus {
		say("cpus = %d   # what every node of it has; less to share nodes with others", q.CPUs)
	} else {
		say("cpus = %d", q.CPUs)
	}
	switch {
	case !s.consumes(p):
		say("# memory is not shared out among jobs here")
	case mem <= 1:
		say("# memory: the site does not tell Slurm how much there is")
	default:
		say("memory = \"%dMiB\"", q.Memory>>20)
	}
	if q.Gres != "" {
		say("gres = %q", q.Gres)
	}
	if p.whole() {
		say("# nodes of this partition are given whole")
	}
	if q.PerJob > 0 && q.PerJob < x.Max {
		say("nodes_per_job = %d   # the most that a job may have", q.PerJob)
	}
	if least := number(p.keys["MinNodes"]); least > 1 {
		say("# a job of it has at least %d nodes", least)
	}
	say("max = %d\nidle = \"2m\"       # nodes that have had nothing to do go back", x.Max)
	if r := s.srunPorts(); r != "" {
		say("\n[network]\nports = %q   # srun keeps to these here (SrunPortRange): a firewall will let them through", r)
	}
	return w.String(), nil
}

// chooseAccount names the account and the QOS by which jobs may run in the partition, where
// there is one, or where what a job has that names none may not.
func (x *examination) chooseAccount(say func(string, ...any)) {
	pick := func(key, own string, all []string) string {
		switch {
		case len(all) > 1 && slices.Contains(all, own):
			say("# %s = one of %s; without, %s, your default", key, strings.Join(all, ", "), own)
			return ""
		case len(all) > 1:
			say("%s = %q   # or one of %s", key, all[0], strings.Join(all[1:], ", "))
		default:
			say("%s = %q", key, all[0])
		}
		return all[0]
	}
	all := x.s.usable(x.p)
	if len(all) == 0 { // there is no accounting, or it does not say
		return
	}
	x.q.Account = pick("account", x.s.account, all)
	l := x.mine()
	x.q.QOS = pick("qos", l.ownQOS(), x.p.those("Qos", strings.Split(l["QOS"], ",")))
}

// poolName makes the name of a partition one for a pool.
func poolName(s string) string {
	out := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, s)
	if out = strings.Trim(out, "-"); out == "" {
		return "slurm"
	}
	return out
}

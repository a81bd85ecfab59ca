package slurm

import (
	"context"
	"fmt"
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
	account := ""
	for _, l := range s.limits {
		if l.account != "" && (l.partition == "" || l.partition == p.name) {
			if account == "" {
				account = l.account
			} else if !strings.Contains(","+account+",", ","+l.account+",") {
				account += "," + l.account
			}
		}
	}
	if strings.Contains(account, ",") {
		say("# account = one of %s; your default is used", account)
	}
	cpus, mem, gres := p.least()
	if perNode := number(p.keys["MaxCPUsPerNode"]); perNode > 0 {
		cpus = min(cpus, perNode)
	}
	most, wall := span(p.keys["MaxTime"]), 8*time.Hour
	if most > 0 && most < wall {
		wall = most
	}
	for _, l := range append(append([]limits{}, s.limits...), s.qos[p.keys["QoS"]]) {
		if d := span(l.wall); d > 0 && d < wall {
			wall = d
		}
	}
	wall = max(wall.Truncate(time.Minute), time.Minute)
	if wall > time.Hour {
		say("time = [\"1h\", %q]   # what can start soonest; the next job follows by itself", minutes(wall))
	} else {
		say("time = %q   # the next job follows by itself", minutes(wall))
	}
	say("cpus = %d   # what every node of it has; less to share nodes with others", cpus)
	switch {
	case !s.consumes(p):
		say("# memory is not shared out among jobs here")
	case mem <= 1:
		say("# memory: the site does not tell Slurm how much there is")
	default:
		say("memory = \"%dMiB\"", mem)
	}
	if kind, n := gpusOf(gres); n > 0 {
		say("gres = %q", gresOf(kind, n))
	}
	if p.whole() {
		say("# nodes of this partition are given whole")
	}
	nodes := len(p.nodes)
	if n := number(p.keys["MaxNodes"]); n > 0 && n < nodes {
		say("nodes_per_job = %d   # the partition's most", n)
	}
	if least := number(p.keys["MinNodes"]); least > 1 {
		say("# a job of it has at least %d nodes", least)
	}
	say("max = %d\nidle = \"2m\"       # nodes that have had nothing to do go back", nodes)
	if r := s.srunPorts(); r != "" {
		say("\n[network]\nports = %q   # srun keeps to these here (SrunPortRange): a firewall will let them through", r)
	}
	return w.String(), nil
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

package core

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"launcher/wire"
)

// What jobs have of the cluster: for the limits that they are to keep, for fair shares
// over several nodes, and to be shown. On a node its agent sees to whose turn it is
// (agent/core/fair.go); the head has a job that has less than others ask there.

const (
	// cutFor is how long the room of a lease that was cut counts for its job although
	// nobody has said that something runs there.
	cutFor = 2 * second
	// claimAfter is how long demand waits before room that others have is asked for, and
	// maxClaims how many slots of it at a time.
	claimAfter = 100 * millisecond
	maxClaims  = 16
	// claimEvery bounds how often room is asked for, maxClaiming for how many demands then.
	claimEvery  = 100 * millisecond
	maxClaiming = 16
)

// remnant is room of a lease that was cut while something may have run in it.
type remnant struct {
	job   string
	need  wire.Resources
	until int64
}

// uses is what a job has: the slots of its leases or what its tasks on a node really use,
// whichever is more; its groups; its processes. A single process is not counted with its
// tasks: it is the program that makes them, and waits.
func (c *Core) uses(owner string, j *job) (r wire.Resources) {
	for _, n := range c.order {
		leased := wire.Resources{}
		for _, l := range n.gives {
			if l.spec.Owner == owner {
				leased = leased.Add(l.room(l.slots), 1)
			}
		}
		for _, x := range n.remnants {
			if x.job == owner && c.now < x.until {
				leased = leased.Add(x.need, 1)
			}
		}
		used, lent := n.usesOf(owner)
		leased.CPU = max(0, leased.CPU-lent.CPU)
		r = r.Add(mostOf(leased, used), 1)
	}
	for _, g := range c.groups.all {
		if g.spec.Job != owner {
			continue
		}
		for i, b := range g.spec.Bundles {
			if g.at[i] != "" || g.round != 0 {
				r = r.Add(b, 1)
			}
		}
	}
	if j != nil && (j.gang || j.d.Spec.Array != nil || j.d.Spec.Sweep != nil) {
		r = r.Add(c.processes(j), 1)
	}
	return r
}

// processes is what a job's own processes have.
func (c *Core) processes(j *job) wire.Resources {
	r := wire.Resources{}.Add(j.need, int64(j.live))
	for _, g := range j.gangs {
		for _, p := range g.nodes {
			r = r.Add(j.need, int64(p.Count))
		}
	}
	return r
}

// usesOf is what tasks of a job use on a node, as of its last beat, and what of its leases
// there those that wait have lent.
func (n *node) usesOf(owner string) (used, lent wire.Resources) {
	for _, x := range n.beat.Jobs {
		if x.Job == owner {
			return x.Tasks, x.Lent
		}
	}
	return wire.Resources{}, wire.Resources{}
}

// mostOf is the larger of two of each amount.
func mostOf(a, b wire.Resources) wire.Resources {
	r := wire.Resources{CPU: max(a.CPU, b.CPU), GPU: max(a.GPU, b.GPU), Memory: max(a.Memory, b.Memory)}
	for _, m := range []map[string]int64{a.Custom, b.Custom} {
		for k, v := range m {
			if r.Custom == nil {
				r.Custom = map[string]int64{}
			}
			r.Custom[k] = max(r.Custom[k], v)
		}
	}
	return r
}

// jobOf is the job of a key; nil: a program's that no job started, or of one that is over.
func (c *Core) jobOf(owner string) *job {
	for _, j := range c.queue {
		if fmt.Sprint(j.id) == owner {
			return j
		}
	}
	return nil
}

// mayHave is for how many more of need a job's limits leave room.
func (c *Core) mayHave(owner string, limits wire.Limits, need wire.Resources, most int) int {
	if len(limits) == 0 {
		return most
	}
	return limits.Times(c.uses(owner, c.jobOf(owner)), need, most)
}

// atLimit says that a job has all that it may have; "" = it has not.
func (c *Core) atLimit(owner string, limits wire.Limits, need wire.Resources) string {
	if len(limits) == 0 {
		return ""
	}
	if at := limits.Reached(c.uses(owner, c.jobOf(owner)), need); at != "" {
		return fmt.Sprintf("%s is at its limit of %s", wire.JobName(owner), at)
	}
	return ""
}

// gangAtLimit is atLimit for all ranks of a job's next gang.
func (c *Core) gangAtLimit(j *job) string {
	if len(j.d.Spec.Limits) == 0 {
		return ""
	}
	return c.atLimit(fmt.Sprint(j.id), j.d.Spec.Limits, j.whole())
}

// groupAtLimit is atLimit for what of a group is nowhere yet.
func (c *Core) groupAtLimit(g *group) string {
	return c.atLimit(g.spec.Job, g.spec.Limits, g.left())
}

// left is what the bundles take that are nowhere yet.
func (g *group) left() (r wire.Resources) {
	for i, n := range g.at {
		if n == "" {
			r = r.Add(g.spec.Bundles[i], 1)
		}
	}
	return r
}

// whole is what one task of a job takes, with all its ranks.
func (j *job) whole() wire.Resources {
	return wire.Resources{}.Add(j.need, int64(max(1, j.d.Spec.Ranks)))
}

// overLimit says that one of need is more than a job's limits can ever leave.
func overLimit(limits wire.Limits, need wire.Resources) string {
	if at := limits.Reached(wire.Resources{}, need); at != "" {
		return fmt.Sprintf("it asks for %s; its job is limited to %s", need, at)
	}
	return ""
}

// remains notes that slots of a lease were cut under which something may run on.
func (c *Core) remains(l *lease, k int) {
	if len(l.spec.Limits) == 0 {
		return
	}
	l.on.remnants = slices.DeleteFunc(l.on.remnants, func(x remnant) bool { return c.now >= x.until })
	l.on.remnants = append(l.on.remnants, remnant{l.spec.Owner, l.room(k), c.now + cutFor})
}

// portions is what each job has of the cluster, as weight.
func (c *Core) portions() map[string]float64 {
	out := map[string]float64{}
	for _, n := range c.order {
		for _, x := range n.beat.Jobs {
			out[x.Job] += c.weight(x.Tasks) + c.weight(x.Own)
		}
	}
	return out
}

// held tells the node of a demand why it gets nothing.
func (c *Core) held(d *demand, why string) {
	if d.told != why {
		d.told = why
		c.send(d.n, wire.MsgInfeasible, wire.Infeasible{Shape: d.id, Why: why, Held: true})
	}
}

// allUses is what each job has of the cluster, the most first.
func (c *Core) allUses() []wire.JobUse {
	sum := map[string]wire.JobUse{}
	add := func(job string, tasks, own wire.Resources) {
		x := sum[job]
		x.Job, x.Tasks, x.Own = job, x.Tasks.Add(tasks, 1), x.Own.Add(own, 1)
		sum[job] = x
	}
	for _, n := range c.order {
		for _, x := range n.beat.Jobs {
			add(x.Job, x.Tasks, x.Own)
		}
	}
	for _, g := range c.groups.all {
		for i, at := range g.at {
			if at != "" {
				add(g.spec.Job, g.spec.Bundles[i], wire.Resources{})
			}
		}
	}
	return slices.SortedFunc(maps.Values(sum), func(a, b wire.JobUse) int {
		return cmp.Or(cmp.Compare(c.weight(b.Tasks.Add(b.Own, 1)), c.weight(a.Tasks.Add(a.Own, 1))), cmp.Compare(a.Job, b.Job))
	})
}

// jobUses is what a job has of the cluster, its own processes and what its programs run.
func (c *Core) jobUses(j *job) (r wire.Resources) {
	owner := fmt.Sprint(j.id)
	for _, n := range c.order {
		for i := range n.beat.Jobs {
			if x := &n.beat.Jobs[i]; x.Job == owner {
				r = r.Add(x.Own, 1).Add(x.Tasks, 1)
			}
		}
	}
	for _, g := range c.groups.all {
		for i, at := range g.at {
			if g.spec.Job == owner && at != "" {
				r = r.Add(g.spec.Bundles[i], 1)
			}
		}
	}
	return r
}

// claim has demands that found no room wait for some, where jobs are that have more.
func (c *Core) claim(ds []*demand) {
	if len(ds) == 0 || c.now-c.claimed < claimEvery {
		return
	}
	c.claimed = c.now
	var have map[string]float64
	slices.SortStableFunc(ds, func(a, b *demand) int {
		return cmp.Or(cmp.Compare(b.spec.Priority, a.spec.Priority), cmp.Compare(a.hungry, b.hungry))
	})
	for _, d := range ds[:min(len(ds), maxClaiming)] {
		if d.hungry == 0 {
			d.hungry = c.now
		}
		if c.now-d.hungry < claimAfter {
			c.wanting()
			continue
		}
		if have == nil {
			have = c.portions()
		}
		k := min(d.want(), maxClaims-c.claims(d))
		if k = c.mayHave(d.spec.Owner, d.spec.Limits, d.spec.Resources, k); k <= 0 {
			continue
		}
		for _, n := range c.order {
			if k > 0 && c.usable(n) && c.suits(n, d.n, &d.spec) && c.mayLease(n, &d.spec) && c.richer(n, d, have) {
				c.offer(d, n, 1, true)
				k--
			}
		}
	}
}

// claims counts the slots that a demand waits for already.
func (c *Core) claims(d *demand) (k int) {
	for _, l := range d.n.takes {
		if l.shape == d.id && l.wait {
			k++
		}
	}
	return k
}

// richer reports whether something on a node belongs to a job that comes after a demand's:
// it has a lower priority, or more of the cluster even with one slot less. A node is asked
// for as much as would make them equal, at most.
func (c *Core) richer(n *node, d *demand, have map[string]float64) bool {
	asked, w := 0.0, c.weight(d.spec.Resources)
	for _, l := range n.gives {
		if l.wait {
			asked += c.weight(l.spec.Resources)
		}
	}
	mine := have[d.spec.Owner] + w*float64(c.claims(d))
	for _, x := range n.beat.Jobs {
		there := c.weight(x.Tasks) + c.weight(x.Own)
		if x.Job == d.spec.Owner || there <= asked {
			continue
		}
		if d.spec.Priority > x.Priority || d.spec.Priority == x.Priority && have[x.Job]-w >= mine+w/2 {
			return true
		}
	}
	return false
}

package core

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"launcher/wire"
)

// Fair shares. Whoever wants room on this node that is not enough for all goes by
// priority first; within one priority room that comes free goes to the job that has
// least: of whatever it has most of, measured in parts of the node. That is dominant
// resource fairness (Ghodsi, Zaharia, Hindman, Konwinski, Shenker, Stoica: "Dominant
// Resource Fairness: Fair Allocation of Multiple Resource Types", NSDI 2011), node by node.
// Nothing that runs is ended for it, and room that nobody else wants is anybody's.
//
// Jobs that have the same go by what they had lately, so that they take turns where the
// room cannot be divided.

const (
	// meanOver is how long "lately" is.
	meanOver = 2 * second
	// holdAfter is how long a claim may wait before what it cannot use yet is left to it.
	holdAfter = second
	// vainFor is how long others go first after room did not do although there was enough
	// (parts of two GPUs are not a whole one).
	vainFor = 100 * millisecond
)

// Who wants room.
type Who struct {
	Job      string
	Priority int
}

// Claim is what the tasks of a job use and whether they wait for more.
type Claim struct {
	Job      string
	Priority int
	Use      wire.Resources // outside of placement groups
	Waits    bool
	Want     Want // the most urgent that waits
}

// Want is room that is waited for.
type Want struct {
	Priority int
	Need     wire.Resources
	Since    int64
}

// portion is what a job has of the node.
type portion struct {
	tasks    wire.Resources // used by its tasks
	tries    wire.Resources // and by its own processes
	priority int
	share    float64
	mean     float64 // of share, lately
	at       int64   // when it was last counted

	want  Want
	asked int64 // when want was last said; 0 = nothing is wanted
	vain  int64 // when it was last its turn, and the room did not do after all
}

// claimant is somebody who waits for room.
type claimant struct {
	Who
	need  wire.Resources
	since int64 // 0 = it has just come
	job   *job  // tries
	offer *offer
}

// waits is what the core itself serves; nil: it is for others to take the room.
func (x *claimant) waits() any {
	switch {
	case x.job != nil:
		return x.job
	case x.offer != nil:
		return x.offer.Lease
	}
	return nil
}

func (j *job) key() string { return strconv.FormatUint(uint64(j.spec.Job), 10) }
func (j *job) who() Who    { return Who{j.key(), j.spec.Spec.Priority} }

func (c *Core) portion(job string) *portion {
	p := c.portions[job]
	if p == nil {
		p = &portion{at: c.now}
		c.portions[job] = p
	}
	return p
}

// count brings a portion up to date after a change of what is used.
func (c *Core) count(p *portion) {
	if dt := c.now - p.at; dt > 0 {
		p.mean += (p.share - p.mean) * float64(dt) / float64(dt+meanOver)
		p.at = c.now
	}
	p.share = part(p.tasks.Add(p.tries, 1), c.pool.total)
}

// part is the largest part that r is of anything that there is.
func part(r, total wire.Resources) float64 {
	most := 0.0
	of := func(a, all int64) {
		if a > 0 && all > 0 {
			most = max(most, float64(a)/float64(all))
		}
	}
	of(r.CPU, total.CPU)
	of(r.GPU, total.GPU)
	of(r.Memory, total.Memory)
	for k, v := range r.Custom {
		of(v, total.Custom[k])
	}
	return most
}

// Claim says what all tasks on this node use and want; it replaces what was said before.
func (c *Core) Claim(now int64, all []Claim) {
	c.now = max(c.now, now)
	c.countTries()
	for _, p := range c.portions {
		p.tasks, p.asked = wire.Resources{}, 0
	}
	for _, x := range all {
		p := c.portion(x.Job)
		if p.tasks, p.priority = x.Use, x.Priority; x.Waits {
			p.want, p.asked = x.Want, c.now
		}
	}
	for k, p := range c.portions {
		if c.count(p); p.share == 0 && p.mean < 1e-3 && p.asked == 0 {
			delete(c.portions, k)
		}
	}
}

// countTries counts what the processes of jobs use.
func (c *Core) countTries() {
	for _, p := range c.portions {
		p.tries = wire.Resources{}
	}
	for _, t := range c.s.tries {
		p := c.portion(t.job.key())
		p.priority = t.job.spec.Spec.Priority
		for i := range t.Ranks {
			r := &t.Ranks[i]
			need := t.need()
			if r.lent {
				need.CPU = 0
			}
			if !r.Ended && !r.freed {
				p.tries = p.tries.Add(need, 1)
			}
		}
	}
	for _, p := range c.portions {
		c.count(p)
	}
}

// jobsUse is what the head is told of portions.
func (c *Core) jobsUse() (out []wire.JobUse) {
	c.countTries()
	lent := map[string]wire.Resources{}
	for _, g := range c.leases.gives {
		if g.lent > 0 && g.limited() {
			lent[g.shape.Owner] = lent[g.shape.Owner].Add(wire.Resources{CPU: g.shape.Resources.CPU}, int64(g.lent))
		}
	}
	for job, p := range c.portions {
		if !p.tasks.Nothing() || !p.tries.Nothing() || !lent[job].Nothing() {
			out = append(out, wire.JobUse{Job: job, Priority: p.priority, Tasks: p.tasks, Own: p.tries, Lent: lent[job]})
		}
	}
	slices.SortFunc(out, func(a, b wire.JobUse) int { return cmp.Compare(a.Job, b.Job) })
	return out
}

// Before orders jobs that want room; below 0: a first.
func (c *Core) Before(a, b Who) int {
	if a.Priority != b.Priority {
		return cmp.Compare(b.Priority, a.Priority)
	}
	var x, y portion
	if p := c.portions[a.Job]; p != nil {
		x = *p
	}
	if p := c.portions[b.Job]; p != nil {
		y = *p
	}
	if d := x.share - y.share; d > 1e-9 || d < -1e-9 {
		return cmp.Compare(x.share, y.share)
	}
	return cmp.Compare(x.mean, y.mean)
}

// asks notes that tasks of a job want room and did not get it.
func (c *Core) asks(w Who, need wire.Resources) {
	p := c.portion(w.Job)
	if p.asked == 0 || c.now-p.asked > starveAfter || p.want.Priority < w.Priority {
		p.want = Want{w.Priority, need, c.now}
	}
	p.asked = c.now
}

// wanting reports whether tasks of a portion's job wait for room.
func (c *Core) wanting(p *portion) bool { return p.asked != 0 && c.now-p.asked <= starveAfter }

// Contended reports whether anybody besides tasks waits for room.
func (c *Core) Contended() bool { return len(c.offers) > 0 || c.s.queued() > 0 }

// claimants visits all who wait for room, in no order.
func (c *Core) claimants(visit func(claimant) bool) {
	for _, j := range c.s.jobs {
		if j.queue.n > 0 && !visit(claimant{Who: j.who(), need: j.spec.Spec.Resources, since: j.blocked, job: j}) {
			return
		}
	}
	for i := range c.offers {
		o := &c.offers[i]
		if !visit(claimant{Who: offerWho(&o.LeaseOffer), need: o.Shape.Resources, since: o.at, offer: o}) {
			return
		}
	}
	for job, p := range c.portions {
		if c.wanting(p) && !visit(claimant{Who: Who{job, p.want.Priority}, need: p.want.Need, since: p.want.Since}) {
			return
		}
	}
}

// ahead gives who is to have room before w has need of it; nil = w may. That is who comes
// before it and could have the room now, or has waited so long that it is collected.
func (c *Core) ahead(w Who, need wire.Resources) *claimant {
	for x := range c.claimants {
		if x.Job == w.Job || !c.pool.could(x.need) || c.Before(x.Who, w) >= 0 {
			continue
		}
		if p := c.portions[x.Job]; p != nil && p.vain != 0 && c.now-p.vain < vainFor {
			continue
		}
		have := c.roomFor(x.Who)
		if x.job == nil {
			have = have.Add(c.keptFree(c.now, 0), -1)
		}
		if have.Fits(x.need) || x.since != 0 && c.now-x.since >= holdAfter && onlyLacks(have, x.need, need) {
			return &x
		}
	}
	return nil
}

// higher is who of a higher priority than w waits for room of the node.
func (c *Core) higher(w Who) *claimant {
	for x := range c.claimants {
		if x.Job != w.Job && x.Priority > w.Priority && c.pool.could(x.need) {
			return &x
		}
	}
	return nil
}

// WhyNot says why w does not get room now: whose turn it is, or who has the node. What is
// held for others KeptFor names.
func (c *Core) WhyNot(now int64, w Who, need wire.Resources) string {
	c.now = max(c.now, now)
	x := c.ahead(w, need)
	if x == nil && !c.roomFor(w).Fits(need) {
		// While the node is full nobody is before anybody; who has the next room is known.
		x = c.higher(w)
	}
	if x != nil {
		if x.Priority > w.Priority {
			return fmt.Sprintf("it is the turn of %s, of priority %d", wire.JobName(x.Job), x.Priority)
		}
		return fmt.Sprintf("it is the turn of %s, which has less of the node (%s)", wire.JobName(x.Job), c.shares())
	}
	if s := c.shares(); s != "" && !c.roomFor(w).Fits(need) {
		return "of the node " + s
	}
	return ""
}

// shares says who has how much of the node.
func (c *Core) shares() string {
	c.countTries()
	var s []string
	for _, x := range c.jobsUse() {
		s = append(s, fmt.Sprintf("%s has %d%%", wire.JobName(x.Job), int(100*c.portions[x.Job].share+0.5)))
	}
	if len(s) > 4 {
		s = append(s[:3], fmt.Sprintf("%d more the rest", len(s)-3))
	}
	return strings.Join(s, ", ")
}

// onlyLacks reports whether all that is missing for need is of kinds that other takes too:
// to leave it the rest helps nobody.
func onlyLacks(have, need, other wire.Resources) bool {
	lack := func(have, need, other int64) bool { return need > have && other == 0 }
	if lack(have.CPU, need.CPU, other.CPU) || lack(have.GPU, need.GPU, other.GPU) || lack(have.Memory, need.Memory, other.Memory) {
		return false
	}
	for k, v := range need.Custom {
		if lack(have.Custom[k], v, other.Custom[k]) {
			return false
		}
	}
	return true
}

// mayTake reports whether it is w's turn. If not, who comes first is told to take it.
func (c *Core) mayTake(w Who, need wire.Resources) bool {
	x := c.ahead(w, need)
	switch {
	case x == nil:
		return true
	case x.job != nil || x.offer != nil:
		c.admitting, c.owed = true, true
	case c.now-c.passed >= millisecond:
		c.passed, c.roomGiven = c.now, true
	}
	return false
}

// take takes room for one of need when it is w's turn.
func (c *Core) take(w Who, need wire.Resources) (Slot, bool) {
	slots, ok := c.takeFor(need, 1, func(g *given) bool { return c.yields(g, w) })
	if !ok {
		if c.roomFor(w).Fits(need) {
			c.portion(w.Job).vain = c.now
		}
		return Slot{}, false
	}
	return slots[0], true
}

// roomFor is what w may take: what is free, and what leases that come after it keep and
// do not use.
func (c *Core) roomFor(w Who) wire.Resources {
	r := c.pool.available()
	for _, g := range c.leases.gives {
		if n := g.unused(); n > 0 && !c.yields(g, w) {
			r = r.Add(g.shape.Resources, -int64(n))
		}
	}
	return r
}

// unused counts the slots that nothing runs in and that keep room of the node.
func (g *given) unused() int {
	if g.shape.Strategy.Kind == wire.StrategyGroup {
		return 0
	}
	return max(0, g.slots-g.used)
}

// yields reports whether a lease's unused slots are given up for w.
func (c *Core) yields(g *given, w Who) bool {
	return g.shape.Owner != w.Job && c.Before(w, Who{g.shape.Owner, g.shape.Priority}) < 0
}

// takeFor takes room for n of need, if need be out of slots of leases that yields allows:
// those are given back.
func (c *Core) takeFor(need wire.Resources, n int, yields func(*given) bool) ([]Slot, bool) {
	free := c.pool.available().Add(c.unusedLeases(), -1)
	if free.Times(need, n) >= n {
		return c.pool.take(need, n)
	}
	back := map[wire.LeaseID]int{}
	ids := make([]wire.LeaseID, 0, len(c.leases.gives))
	for id := range c.leases.gives {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range slices.Backward(ids) {
		g := c.leases.gives[id]
		for g.unused() > back[id] && yields(g) && free.Times(need, n) < n {
			back[id]++
			free = free.Add(g.shape.Resources, 1)
		}
	}
	if free.Times(need, n) < n {
		return nil, false
	}
	slots, ok := c.pool.take(need, n)
	for _, id := range ids {
		if ok && back[id] > 0 {
			c.givesBack = append(c.givesBack, wire.LeaseBack{Lease: id, Slots: uint32(back[id]), Given: true})
			c.lessGiven(id, back[id])
		}
	}
	return slots, ok
}

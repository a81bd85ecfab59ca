package core

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"math"
	"slices"

	"launcher/wire"
)

// maxRounds bounds the choices of one matching.
const maxRounds = 4096

// leaseRoom is what of a node can be leased now: free by its own word, and not given to
// jobs or offered since.
func (c *Core) leaseRoom(n *node) wire.Resources {
	r := c.unused(n)
	f := n.free
	r.CPU, r.GPU, r.Memory = min(r.CPU, f.CPU), min(r.GPU, f.GPU), min(r.Memory, f.Memory)
	if len(r.Custom) > 0 {
		r.Custom = maps.Clone(r.Custom)
		for k, v := range r.Custom {
			r.Custom[k] = min(v, f.Custom[k])
		}
	}
	return r.Add(n.offered, -1)
}

// unused is what of a node neither jobs nor tasks have.
func (c *Core) unused(n *node) wire.Resources {
	r := n.total.Add(n.tasks, -1)
	for _, p := range n.parts {
		r = r.Add(p.job.need, -p.count)
	}
	for _, s := range n.shares {
		r = r.Add(s.job.need, -int64(s.uses(n)))
	}
	return r
}

// suits reports whether a node may run tasks of a demand at all.
func (c *Core) suits(n *node, to *node, s *wire.Shape) bool {
	if !n.total.Fits(s.Resources) || s.Time > 0 && !n.lasts(c.now+s.Time) {
		return false
	}
	switch st := &s.Strategy; st.Kind {
	case wire.StrategyNode:
		x := c.nodes[st.Node]
		if st.Soft && (x == nil || !c.usable(x) || !x.total.Fits(s.Resources)) {
			return true
		}
		return n == x
	case wire.StrategyLabels:
		return wire.Matches(st.Hard, n.hello.Labels)
	case wire.StrategySpread:
		return true
	case wire.StrategyGroup:
		return false // matchGroups
	}
	return n != to || len(s.Limits) > 0 // else what fits there it runs without asking
}

// mayLease reports whether a hold leaves a node to a demand, as mayUse does for jobs.
func (c *Core) mayLease(n *node, s *wire.Shape) bool {
	h := n.held
	if h == nil || s.Priority > h.priority() {
		return true
	}
	return s.Time > 0 && n.until > 0 && c.now+s.Time <= n.until
}

// matching reports whether demand is to be matched with room now.
func (c *Core) matching() bool {
	return c.leasing != 0 && c.now >= c.leasing && !c.recovering && c.down == nil
}

// matchAll gives room to all demands, after jobs of their priority have had theirs.
func (c *Core) matchAll() {
	if c.matching() {
		c.placeGroups()
		c.matchGroups()
		more := c.match(math.MinInt)
		c.claim(c.demands(math.MinInt))
		c.leasing, c.matched = 0, c.now
		if more {
			c.wanting()
		}
	}
}

// demands are those that want room, of a priority above the given one.
func (c *Core) demands(above int) (ds []*demand) {
	for _, n := range c.order {
		if !c.usable(n) {
			continue
		}
		for _, id := range sortedKeys(n.demands) {
			if d := n.demands[id]; d.want() > 0 && d.spec.Priority > above && d.spec.Strategy.Kind != wire.StrategyGroup {
				ds = append(ds, d)
			}
		}
	}
	return ds
}

// match gives room to demands of a priority above the given one: by priority, then to
// the job that has least, then to who waits longest. more says that it stopped in the
// middle, so as not to keep the head too long.
func (c *Core) match(above int) (more bool) {
	ds := c.demands(above)
	if len(ds) == 0 {
		return false
	}
	// Most nodes have no room most of the time.
	room := map[*node]wire.Resources{}
	for _, n := range c.order {
		if !c.usable(n) {
			continue
		}
		if r := c.leaseRoom(n); slices.ContainsFunc(ds, func(d *demand) bool { return r.Fits(d.spec.Resources) }) {
			room[n] = r
		}
	}
	if len(room) == 0 {
		return false
	}
	share := c.leasedByJob()
	limited := map[string]wire.Resources{} // what jobs with limits have
	give := map[*demand]map[*node]int{}
	at := map[*demand]*sites{}
	for round := 0; len(ds) > 0; round++ {
		if round == maxRounds {
			more = true
			break
		}
		slices.SortStableFunc(ds, func(a, b *demand) int {
			return cmp.Or(cmp.Compare(b.spec.Priority, a.spec.Priority), cmp.Compare(share[a.spec.Owner], share[b.spec.Owner]), cmp.Compare(a.since, b.since))
		})
		d := ds[0]
		s := at[d]
		if s == nil {
			s = c.sitesFor(d, room)
			at[d] = s
		}
		n := s.best(room)
		if n == nil {
			ds = ds[1:]
			continue
		}
		// In lumps: all of the room when nobody competes for it, else a part.
		k := 1
		if !s.spread {
			k = max(1, min(d.want(), room[n].Times(d.spec.Resources, maxWindow)/len(ds)))
		}
		if len(d.spec.Limits) > 0 {
			used, ok := limited[d.spec.Owner]
			if !ok {
				used = c.uses(d.spec.Owner, c.jobOf(d.spec.Owner))
			}
			if k = d.spec.Limits.Times(used, d.spec.Resources, k); k == 0 {
				c.held(d, wire.JobName(d.spec.Owner)+" is at its limit of "+d.spec.Limits.Reached(used, d.spec.Resources))
				ds = ds[1:]
				continue
			}
			limited[d.spec.Owner] = used.Add(d.spec.Resources, int64(k))
			c.held(d, "")
		}
		room[n] = room[n].Add(d.spec.Resources, -int64(k))
		s.took(k, room)
		share[d.spec.Owner] += float64(k) * c.weight(d.spec.Resources)
		d.flying += k
		if give[d] == nil {
			give[d] = map[*node]int{}
		}
		give[d][n] += k
		if d.want() == 0 {
			ds = ds[1:]
		}
	}
	c.offerAll(give)
	return more
}

// offerAll sends what match decided, in an order that does not depend on maps.
func (c *Core) offerAll(give map[*demand]map[*node]int) {
	ds := slices.SortedFunc(maps.Keys(give), func(a, b *demand) int { return cmp.Or(byName(a.n, b.n), cmp.Compare(a.id, b.id)) })
	for _, d := range ds {
		for _, n := range slices.SortedFunc(maps.Keys(give[d]), byName) {
			c.offer(d, n, give[d][n], false)
		}
	}
}

// sites are the nodes that may run a demand's tasks, a heap with the best first: where
// labels that are wanted hold, then where most of what they need is, then with SPREAD where
// fewest of it are, else where most fit.
type sites struct {
	d      *demand
	spread bool
	list   []site
}

type site struct {
	n     *node
	i     int // in the order of nodes
	want  bool
	near  bool
	score int
}

func (p *sites) Len() int { return len(p.list) }
func (p *sites) Less(i, j int) bool {
	a, b := &p.list[i], &p.list[j]
	if a.want != b.want {
		return a.want
	}
	if a.near != b.near {
		return a.near
	}
	if a.score != b.score {
		return a.score > b.score
	}
	return a.i < b.i
}
func (p *sites) Swap(i, j int) { p.list[i], p.list[j] = p.list[j], p.list[i] }
func (p *sites) Push(x any)    { p.list = append(p.list, x.(site)) }
func (p *sites) Pop() any {
	x := p.list[len(p.list)-1]
	p.list = p.list[:len(p.list)-1]
	return x
}

func (c *Core) sitesFor(d *demand, room map[*node]wire.Resources) *sites {
	p := &sites{d: d, spread: d.spec.Strategy.Kind == wire.StrategySpread}
	for i, n := range c.order {
		r, ok := room[n]
		if !ok || !r.Fits(d.spec.Resources) || !c.suits(n, d.n, &d.spec) || !c.mayLease(n, &d.spec) {
			continue
		}
		x := site{n: n, i: i, want: wire.Matches(d.spec.Strategy.Want, n.hello.Labels), near: d.near != 0 && c.durable(n).Number == d.near, score: r.Times(d.spec.Resources, maxWindow)}
		if p.spread {
			x.score = 0
			for _, l := range n.gives {
				if l.to == d.n && l.shape == d.id {
					x.score -= l.slots
				}
			}
		}
		p.list = append(p.list, x)
	}
	heap.Init(p)
	return p
}

// best gives the first site that still has room for one: others may have had it.
func (p *sites) best(room map[*node]wire.Resources) *node {
	for len(p.list) > 0 {
		if n := p.list[0].n; room[n].Fits(p.d.spec.Resources) {
			return n
		}
		heap.Pop(p)
	}
	return nil
}

// took puts the first site where it belongs after k more of it were given away.
func (p *sites) took(k int, room map[*node]wire.Resources) {
	x := &p.list[0]
	if p.spread {
		x.score -= k
	} else {
		x.score = room[x.n].Times(p.d.spec.Resources, maxWindow)
	}
	heap.Fix(p, 0)
}

// leasedByJob is how much of the cluster each job's leases are, as weight.
func (c *Core) leasedByJob() map[string]float64 {
	out := map[string]float64{}
	for _, n := range c.order {
		for _, id := range sortedKeys(n.gives) {
			l := n.gives[id]
			out[l.spec.Owner] += float64(l.slots) * c.weight(l.spec.Resources)
		}
	}
	return out
}

// weight is a shape's dominant part of a node: of CPU, GPU, memory the one that it has
// most of, in a node of usual size.
func (c *Core) weight(r wire.Resources) float64 {
	return max(float64(r.CPU)/wire.Unit, 8*float64(r.GPU)/wire.Unit, float64(r.Memory)/(4<<30), 1e-6)
}

// leaseDemand is how many nodes of a pool the tasks that wait could use.
func (c *Core) leaseDemand(p *pool) int {
	need := c.groupDemandOf(p)
	for _, n := range c.order {
		for _, d := range n.demands {
			if d.want() == 0 || d.spec.Strategy.Kind == wire.StrategyGroup || d.spec.Strategy.Kind == wire.StrategyNode && !d.spec.Strategy.Soft ||
				d.spec.Strategy.Kind == wire.StrategyLabels && !wire.Matches(d.spec.Strategy.Hard, p.spec.Labels) {
				continue
			}
			if p.shape == nil {
				need = max(need, 1)
			} else if per := p.shape.Times(d.spec.Resources, maxWindow); per > 0 {
				need += (d.want() + per - 1) / per
			}
		}
	}
	return need
}

// neverLeased says why no node, as the cluster is or may grow, can run tasks of a shape;
// "" = one may.
func (c *Core) neverLeased(to *node, s *wire.Shape) string {
	if c.recovering {
		return ""
	}
	if why := overLimit(s.Limits, s.Resources); why != "" {
		return why
	}
	st := &s.Strategy
	if st.Kind == wire.StrategyNode && !st.Soft {
		x, d := c.nodes[st.Node], c.d.st.Nodes[st.Node]
		switch {
		case x == nil && (d == nil || d.State == nodeGone):
			return fmt.Sprintf("it asks for node %s, which is not there", st.Node)
		case x != nil && x.greeted && !x.hello.Total.Fits(s.Resources):
			return fmt.Sprintf("it asks for %s on node %s, which has %s", s.Resources, x.id, x.hello.Total)
		}
		return ""
	}
	var largest *node
	labelled := false
	for _, n := range c.order {
		if !n.greeted {
			return ""
		}
		if st.Kind == wire.StrategyLabels && !wire.Matches(st.Hard, n.hello.Labels) {
			continue
		}
		labelled = true
		if n.hello.Total.Fits(s.Resources) {
			return ""
		}
		if largest == nil || larger(n.hello.Total, largest.hello.Total, s.Resources) {
			largest = n
		}
	}
	for _, p := range c.sortedPools() {
		up := 0
		for _, n := range c.order {
			if n.pool == p.spec.Name {
				up++
			}
		}
		if p.spec.Max <= up {
			continue
		}
		// Nodes may yet come. Labels that only detection knows cannot be ruled out.
		if p.shape == nil || p.shape.Fits(s.Resources) || c.mixed(p) {
			return ""
		}
	}
	switch {
	case !labelled:
		return "it asks for labels that no node has"
	case largest == nil:
		return ""
	}
	return fmt.Sprintf("it asks for %s; the largest node, %s, has %s", s.Resources, largest.id, largest.hello.Total)
}

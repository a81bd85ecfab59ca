package core

import (
	"cmp"
	"fmt"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

const (
	// A submission that failed is tried again after 1 s, 2 s, ... 60 s.
	firstRetry = second
	lastRetry  = 60 * second
	// Allocations are queried so often while something is under way, and so often else.
	queryBusy = second
	queryIdle = 30 * second
	// evict is after how long a lost node is ended at the backend, so that its pool can
	// replace it: a lost node that comes back earlier is welcome.
	evict = 30 * second
	// leaveWithin is how long an agent has to go after Shutdown before its allocation is
	// cancelled.
	leaveWithin = 10 * second
	// joinWithin is how long a node that runs has to join before it is ended and asked
	// for again.
	joinWithin = 120 * second
)

// pool is the soft state of a pool.
type pool struct {
	spec     wire.Pool
	asking   int                      // submissions without an answer in this life
	failures int                      // in a row
	next     int64                    // no submission before
	query    int64                    // when to query next; 0 = not before something happens
	flying   bool                     // a query is under way
	flyingAt int64                    // since when
	why      string                   // of the newest failure
	final    bool                     // trying again without a change helps nothing, as far as one knows
	troubles map[wire.NodeID]*trouble // of pools that are lists of machines
	shape    *wire.Resources          // what a node of the pool has, as far as known
	wanted   int
	over     string           // why no more are asked for
	stale    map[string]bool  // tokens under way since before the newest Retry: how they fail is no news
	cancel   map[string]bool  // handles that were cancelled
	waits    map[string]int64 // allocations that wait for their turn, and since when nothing needs them; 0 = something does
	ends     map[string]int64 // when allocations that run end, as the backend says
	runs     map[string]int64 // when an allocation whose nodes have not joined was first seen to run
}

func newPool() *pool {
	return &pool{stale: map[string]bool{}, cancel: map[string]bool{}, runs: map[string]int64{}, ends: map[string]int64{}, waits: map[string]int64{}, troubles: map[wire.NodeID]*trouble{}}
}

// loadPools makes the pools that the journal names.
func (c *Core) loadPools() {
	old := c.pools
	c.pools = map[string]*pool{}
	for _, s := range c.d.st.Pools {
		p := old[s.Name]
		if p == nil {
			p = newPool()
		}
		p.spec = s
		if s.Resources != nil {
			shape := *s.Resources
			shape.GPU = max(shape.GPU, 0)
			p.shape = &shape
		}
		c.pools[s.Name] = p
	}
	for _, t := range sortedKeys(c.d.st.Subs) {
		// A pool that an Update took away stays until its last node is given back.
		if s := c.d.st.Subs[t]; c.pools[s.Pool] == nil {
			p := old[s.Pool]
			if p == nil {
				p = newPool()
			}
			p.spec.Name, p.spec.Min, p.spec.Max = s.Pool, 0, 0
			c.pools[s.Pool] = p
		}
	}
	for _, id := range sortedKeys(c.d.st.Nodes) {
		if d := c.d.st.Nodes[id]; c.pools[d.Pool] != nil && c.pools[d.Pool].shape == nil && d.Total.CPU > 0 {
			t := d.Total
			c.pools[d.Pool].shape = &t
		}
	}
}

func (c *Core) sortedPools() (out []*pool) {
	for _, name := range sortedKeys(c.pools) {
		out = append(out, c.pools[name])
	}
	return out
}

// standing counts a pool's nodes: up, asked for and not joined, and retired by the user.
func (c *Core) standing(p *pool) (up, pending, retired, busy int) {
	for _, d := range c.d.st.Nodes {
		if d.Pool != p.spec.Name {
			continue
		}
		switch {
		case d.State == nodeGone:
			if d.Drain != nil && !d.Drain.Keep {
				retired++
			} else if c.allocated(d) {
				pending++ // its place is not free yet
			}
		case d.State == nodeAsked:
			pending++
		case d.State == nodeUp && c.replaced(c.nodes[d.ID]):
			// Its time is nearly over: the one in its place is asked for beforehand.
		case d.State == nodeUp && d.Drain == nil:
			up++
			if n := c.nodes[d.ID]; n != nil && n.idle == 0 {
				busy++
			}
		default:
			pending++ // lost or leaving: its place is not free yet
		}
	}
	return up, pending, retired, busy
}

// keepPools asks for nodes that are missing, lets idle ones go and looks after
// allocations.
func (c *Core) keepPools() {
	for _, p := range c.sortedPools() {
		c.queryPool(p)
		if c.recovering || c.d.st.Down != nil {
			continue
		}
		up, pending, retired, busy := c.standing(p)
		p.wanted = c.want(p, up, busy)
		p.wanted = max(0, min(p.wanted, p.spec.Max-retired))
		if p.over = c.chainOver(p); p.over != "" {
			p.wanted = min(p.wanted, up+pending)
		}
		switch missing := p.wanted - up - pending; {
		case missing <= 0:
		case p.named():
			c.submitPlaces(p, missing)
		case p.asking == 0 && c.now >= p.next:
			c.extend(p, missing)
		}
		c.unask(p, up+pending-p.wanted)
		c.releaseIdle(p, up)
	}
}

// want is how many nodes a pool should have now.
func (c *Core) want(p *pool, up, busy int) int {
	floor := p.spec.Min
	if p.named() && p.spec.Idle == 0 {
		floor = max(floor, p.machines()) // min is only what makes the cluster complete
	}
	_, leaving := c.leavers(p)
	need := c.demand(p) + leaving
	if p.spec.Idle > 0 && !p.spec.Hold && need == 0 && up > 0 {
		// With an idle time, even the first nodes go when nothing is left to do; while
		// any is needed, or none has joined yet, min stands.
		if busy == 0 && c.idleFor(p) >= p.spec.Idle {
			return 0
		}
	}
	return max(floor, min(p.spec.Max, up+need))
}

// idleFor is the shortest time that any node of the pool has been idle.
func (c *Core) idleFor(p *pool) int64 {
	d := int64(1) << 62
	for _, n := range c.order {
		if n.pool == p.spec.Name {
			if n.idle == 0 {
				return 0
			}
			d = min(d, c.now-n.idle)
		}
	}
	return d
}

// demand is how many more nodes of the pool waiting work could use.
func (c *Core) demand(p *pool) int {
	if p.spec.Max <= p.spec.Min {
		return 0
	}
	need := c.leaseDemand(p)
	for _, j := range c.queue {
		s := &j.d.Spec
		if j.d.Cancel != nil || s.Pool != "" && s.Pool != p.spec.Name || s.Node != "" {
			continue
		}
		waiting := j.pending.len()
		if waiting == 0 || c.tooShort(p, j) {
			continue
		}
		if j.gang && s.Nodes > 0 { // its nodes are asked for at once, whatever they have
			need += int(s.Nodes)
			continue
		}
		if p.shape == nil {
			need = max(need, 1)
			continue
		}
		per := p.shape.Times(j.need, maxWindow)
		if per == 0 {
			continue
		}
		if j.gang {
			if s.RanksPerNode > 0 {
				per = min(per, int(s.RanksPerNode))
			}
			waiting = int(max(1, s.Ranks))
		}
		need += (waiting + per - 1) / per
		if need >= p.spec.Max {
			break
		}
	}
	return min(need, p.spec.Max)
}

// submit asks for k nodes that are not there.
func (c *Core) submit(p *pool, k int, after [][]byte) {
	if k = c.bounded(p, k); k == 0 {
		return
	}
	var ids []wire.NodeID
	var epochs []wire.Epoch
	for i := 0; len(ids) < k && i < 1<<20; i++ {
		id := wire.PlaceNode(p.spec.Name, i)
		d := c.d.st.Nodes[id]
		switch {
		case d == nil:
			ids, epochs = append(ids, id), append(epochs, 1)
		case d.State == nodeGone && (d.Drain == nil || d.Drain.Keep) && !c.allocated(d):
			ids, epochs = append(ids, id), append(epochs, d.Epoch+1)
		}
	}
	c.ask(p, SubmitNodes{Nodes: ids, Epochs: epochs, After: after, Within: c.within(p)})
}

// ask journals a submission and hands it to the broker.
func (c *Core) ask(p *pool, e SubmitNodes) {
	c.byTok++
	e.Pool, e.Token = p.spec.Name, fmt.Sprintf("%s-%d-%d", c.d.st.Head.Nonce, c.Epoch(), c.byTok)
	c.record(RecSubmission{Token: e.Token, Pool: e.Pool, At: c.now, Nodes: e.Nodes, Epochs: e.Epochs})
	p.asking++
	c.effect(e)
}

// allocated reports whether the backend may still have something of a node that is gone.
func (c *Core) allocated(d *nodeD) bool {
	s := c.d.st.Subs[d.Token]
	if s == nil {
		return false
	}
	for _, a := range s.Allocs {
		if slices.Contains(a.Nodes, d.ID) {
			return !a.Ended
		}
	}
	return !s.Known
}

func (c *Core) submitted(ev Submitted) {
	s := c.d.st.Subs[ev.Token]
	if s == nil {
		return
	}
	p := c.pools[s.Pool]
	if p != nil {
		p.asking = max(0, p.asking-1)
		p.query = c.now + queryBusy
	}
	if ev.Err != nil {
		// What it left behind, if anything, is found by its token.
		if p != nil && (!p.stale[ev.Token] || errs.Retryable(ev.Err)) { // no new try mends what passes by itself
			p.says(s.Nodes, errs.Line(ev.Err), !errs.Retryable(ev.Err))
			p.final = !p.named() && !errs.Retryable(ev.Err) && !errs.Is(ev.Err, errs.Exhausted)
		}
		c.effect(FindAllocs{Pool: s.Pool, Tokens: []string{ev.Token}})
		return
	}
	if !s.Known {
		c.granted(s.Pool, ev.Token, ev.Allocs)
	}
}

// granted writes down what a submission made. A cluster that has already given its other
// allocations back gives this one back, too.
func (c *Core) granted(pool, token string, allocs []Alloc) {
	c.record(RecAllocs{Token: token, Allocs: allocs})
	if p := c.pools[pool]; p != nil {
		p.final = false
		delete(p.stale, token)
	}
	if c.down == nil || c.down.phase < downAllocs {
		return
	}
	var hs [][]byte
	for _, a := range allocs {
		hs = append(hs, a.Handle)
	}
	c.effect(CancelAllocs{Pool: pool, Handles: hs})
	if p := c.pools[pool]; p != nil {
		p.query, p.flying = c.now, false
	}
}

func (c *Core) found(ev Found) {
	p := c.pools[ev.Pool]
	if ev.Err != nil {
		if p != nil {
			p.query = c.now + queryBusy
			for _, t := range ev.Tokens {
				if s := c.d.st.Subs[t]; s != nil && p.named() {
					c.blame(p, s.Nodes, ev.Err.Error(), false)
				}
			}
			if !p.named() {
				p.why = ev.Err.Error()
			}
		}
		return // asked again by queryPool
	}
	for _, t := range ev.Tokens {
		s := c.d.st.Subs[t]
		if s == nil || s.Known {
			continue
		}
		if a := ev.Allocs[t]; len(a) > 0 {
			c.granted(ev.Pool, t, a)
			if p != nil {
				p.query = c.now
			}
			continue
		}
		if p == nil || !p.stale[t] {
			c.blame(p, s.Nodes, "", false)
		}
		why := "it was never started"
		if p != nil && len(s.Nodes) > 0 {
			why = cmp.Or(p.whyNot(s.Nodes[0]), why)
		}
		for i, id := range s.Nodes {
			c.proof(id, s.Epochs[i], why)
		}
		c.record(RecUnsubmit{Token: t, Why: why, At: c.now})
		if p != nil {
			delete(p.stale, t)
		}
	}
}

// failed lets a pool wait before it asks again.
func (c *Core) failed(p *pool, why string) {
	if p == nil {
		return
	}
	if why != "" {
		p.why = why
	}
	p.next = c.now + min(firstRetry<<min(p.failures, 6), lastRetry)
	p.failures++
}

// proof: a node is known to be dead.
func (c *Core) proof(id wire.NodeID, epoch wire.Epoch, cause string) {
	d := c.d.st.Nodes[id]
	if d == nil || d.Epoch != epoch || d.State == nodeGone {
		return
	}
	if n := c.nodes[id]; n != nil {
		c.nodeGone(n, true, cause)
		return
	}
	c.record(RecNodeGone{Node: id, Epoch: epoch, Proof: true, Cause: cause, At: c.now})
	c.dead(id, epoch)
}

// queryPool asks for the state of a pool's allocations, when it is time, and ends those
// whose nodes are done with.
func (c *Core) queryPool(p *pool) {
	var handles, end [][]byte
	var unknown []string
	busy := false
	for _, t := range sortedKeys(c.d.st.Subs) {
		s := c.d.st.Subs[t]
		if s.Pool != p.spec.Name {
			continue
		}
		if !s.Known {
			unknown = append(unknown, t)
			busy = true
		}
		for _, a := range s.Allocs {
			if a.Ended {
				continue
			}
			handles = append(handles, a.Handle)
			over := true
			for _, id := range a.Nodes {
				d := c.d.st.Nodes[id]
				mine := d != nil && d.Token == t
				switch {
				case !mine || d.State == nodeGone:
				case d.State == nodeLost && c.now-d.Since >= evict:
				default:
					over = false
				}
				if mine && d.State != nodeUp || mine && c.nodes[id] != nil && !c.nodes[id].conn {
					busy = true
				}
			}
			if over && !p.cancel[string(a.Handle)] {
				p.cancel[string(a.Handle)] = true
				end = append(end, a.Handle)
			}
		}
	}
	if len(end) > 0 {
		c.effect(CancelAllocs{Pool: p.spec.Name, Handles: end})
		p.query, busy = c.now, true
	}
	if p.flying && c.now-p.flyingAt < 30*second {
		return
	}
	if p.query == 0 || busy && p.query > c.now+queryBusy {
		p.query = c.now + queryIdle
		if busy {
			p.query = c.now + queryBusy
		}
	}
	if c.now < p.query {
		return
	}
	p.query = 0
	if p.asking == 0 && len(unknown) > 0 {
		c.effect(FindAllocs{Pool: p.spec.Name, Tokens: unknown})
	}
	if len(handles) > 0 {
		p.flying, p.flyingAt = true, c.now
		c.effect(QueryAllocs{Pool: p.spec.Name, Handles: handles})
	}
}

func (c *Core) allocStatus(ev AllocStatus) {
	p := c.pools[ev.Pool]
	if p != nil {
		p.flying = false
		if ev.Err != nil {
			p.why = ev.Err.Error()
		} else if p.named() { // why one of its machines is not there stands beside that
			p.why = ""
		}
	}
	if c.down != nil && c.down.phase == downAllocs {
		c.down.hears(ev)
	}
	for _, it := range ev.Items {
		s, a := c.findAlloc(ev.Pool, it.Handle)
		if a == nil {
			continue
		}
		for k, id := range s.Nodes {
			if slices.Contains(it.DeadNodes, id) && slices.Contains(a.Nodes, id) {
				c.proof(id, s.Epochs[k], cmp.Or(it.Why, "the backend says that it died"))
			}
			if n := c.nodes[id]; n != nil && n.epoch == s.Epochs[k] && it.Deadline != 0 && slices.Contains(a.Nodes, id) {
				n.alloc = it.Deadline * second
				c.watchEnd(n)
			}
		}
		if it.State < AllocDone {
			if it.Why != "" && (it.State == AllocPending || c.awaited(s, a)) {
				p.says(a.Nodes, it.Why, false)
			}
			if it.State == AllocPending && p != nil {
				p.waits[string(it.Handle)] += 0
			}
			if it.State == AllocRunning && p != nil {
				if p.waits[string(it.Handle)] != 0 { // it began when it was to be taken back: it stays
					delete(p.cancel, string(it.Handle))
				}
				delete(p.waits, string(it.Handle))
				p.ends[string(it.Handle)] = it.Deadline * second
				c.watchJoin(p, s, a)
			}
			for k, id := range s.Nodes {
				if n := c.nodes[id]; n != nil && n.epoch == s.Epochs[k] && it.State == AllocRunning {
					n.said = it.Why
				}
			}
			continue
		}
		young, unneeded := false, p != nil && p.cancel[string(it.Handle)] && p.waits[string(it.Handle)] != 0
		if unneeded {
			it.Why = "nothing needed it any more before it had begun"
		}
		for k, id := range s.Nodes {
			if !slices.Contains(a.Nodes, id) {
				continue
			}
			if d := c.d.st.Nodes[id]; d != nil && d.Epoch == s.Epochs[k] && d.State == nodeAsked {
				young = true
			}
			c.proof(id, s.Epochs[k], cmp.Or(it.Why, "its allocation ended"))
		}
		c.record(RecAllocEnded{Token: s.Token, Handle: it.Handle, Why: it.Why, At: c.now, Unused: unneeded})
		if p != nil {
			delete(p.cancel, string(it.Handle))
			delete(p.runs, string(it.Handle))
			delete(p.ends, string(it.Handle))
			delete(p.waits, string(it.Handle))
		}
		if young && !unneeded || it.State == AllocFailed { // it never worked: wait before the next
			c.blame(p, a.Nodes, cmp.Or(it.Why, "a node ended before it joined"), false)
		}
	}
}

// awaited reports that a node of an allocation has not joined.
func (c *Core) awaited(s *subD, a *allocD) bool {
	for k, id := range s.Nodes {
		if d := c.d.st.Nodes[id]; d != nil && d.Epoch == s.Epochs[k] && d.State == nodeAsked && slices.Contains(a.Nodes, id) {
			return true
		}
	}
	return false
}

// begun reports that a node of an allocation has joined, whatever the backend has said of it
// last.
func (c *Core) begun(s *subD, a *allocD) bool {
	for k, id := range s.Nodes {
		if d := c.d.st.Nodes[id]; d != nil && d.Epoch == s.Epochs[k] && d.State != nodeAsked && slices.Contains(a.Nodes, id) {
			return true
		}
	}
	return false
}

// watchJoin ends an allocation that runs and whose nodes do not join.
func (c *Core) watchJoin(p *pool, s *subD, a *allocD) {
	h := string(a.Handle)
	for k, id := range s.Nodes {
		if d := c.d.st.Nodes[id]; !slices.Contains(a.Nodes, id) || d == nil || d.Epoch != s.Epochs[k] || d.State != nodeAsked {
			continue
		}
		switch first, ok := p.runs[h]; {
		case !ok:
			p.runs[h] = c.now
		case c.now-first >= joinWithin && !p.cancel[h]:
			p.cancel[h] = true
			c.blame(p, a.Nodes, fmt.Sprintf("%s was started %d s ago and has not joined; the log of the node says why", id, (c.now-first)/second), false)
			c.effect(CancelAllocs{Pool: p.spec.Name, Handles: [][]byte{a.Handle}})
		}
		return
	}
	delete(p.runs, h)
}

// findAlloc finds an allocation that has not ended.
func (c *Core) findAlloc(pool string, handle []byte) (*subD, *allocD) {
	for _, t := range sortedKeys(c.d.st.Subs) {
		s := c.d.st.Subs[t]
		if s.Pool != pool {
			continue
		}
		for _, a := range s.Allocs {
			if !a.Ended && string(a.Handle) == string(handle) {
				return s, a
			}
		}
	}
	return nil, nil
}

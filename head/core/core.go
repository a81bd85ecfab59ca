package core

import (
	"fmt"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
)

const (
	millisecond int64 = 1_000_000
	second            = 1000 * millisecond
)

// stall is a gap between two Steps that is longer than Wake ever allows.
const stall = 3 * second

// Core is the head's reactor. It is owned by one goroutine.
type Core struct {
	cfg Config
	d   *Durable
	now int64
	out Output

	started    bool
	recovering bool
	unclaimed  bool  // in recovery a node was lost: what nobody claims may run there
	leased     int64 // until when exclusive work may run on nodes that were lost before or in recovery

	nodes  map[wire.NodeID]*node
	order  []*node // by pool and number
	jobs   map[wire.JobID]*job
	queue  []*job // not over, by precedence
	pools  map[string]*pool
	byTok  uint64 // counts the tokens of this life
	down   *downState
	wait   map[uint64]*watcher
	dirty  map[*node]bool      // nodes whose room changed
	full   bool                // everything is to be looked at
	final  map[wire.JobID]last // what the newest reports of jobs that are over said
	hold   *hold               // the gang that room is held for
	ticked int64
	looked int64 // when a Tick last had everything looked at

	names map[actorKey]wire.ActorName // of actors; not in the journal

	groups groups

	living    map[string]int   // on how many nodes a job of programs lives
	jobsDue   bool             // that has changed
	goneSince map[string]int64 // since when programs are gone of which nodes hold something
	actorsDue bool             // owners of actors may be gone

	seat seat

	leaseID  uint64 // counts the leases of this life
	leasing  int64  // when demand is to be matched with room; 0 = nothing has changed
	matched  int64  // when it last was
	claimed  int64  // when room that others have was last asked for
	anyLease bool   // there may be demand or leases
}

// New makes the reactor of a head that has replayed its journal into d. The first event
// must be Start.
func New(cfg Config, d *Durable) *Core {
	def := func(p *int64, v int64) {
		if *p == 0 {
			*p = v
		}
	}
	def(&cfg.Suspect, 5*second)
	def(&cfg.Lost, 15*second)
	def(&cfg.Grace, 600*second)
	return &Core{cfg: cfg, d: d, names: map[actorKey]wire.ActorName{}, groups: newGroups(), living: map[string]int{}, nodes: map[wire.NodeID]*node{}, jobs: map[wire.JobID]*job{}, pools: map[string]*pool{},
		wait: map[uint64]*watcher{}, dirty: map[*node]bool{}, final: map[wire.JobID]last{}}
}

// Step takes one event. now is unix nanoseconds and never goes backwards.
func (c *Core) Step(now int64, ev Event) Output {
	if gap := now - c.now; c.started && gap > stall {
		// It was us who did not look (a suspended laptop, a disk that hung): nobody is
		// silent for that.
		for _, n := range c.order {
			n.seen += gap - second
		}
	}
	c.now = max(now, c.now)
	c.out = Output{}
	if _, ok := ev.(Start); ok != !c.started {
		panic(fmt.Sprintf("head/core: %T at the wrong time: Start is the first event, and only that", ev))
	}
	switch ev := ev.(type) {
	case Start:
		c.start()
	case Tick:
		c.tick()
	case AgentUp:
		c.agentUp(ev)
	case AgentMsg:
		c.agentMsg(ev)
	case AgentDown:
		c.agentDown(ev)
	case ClientReq:
		c.client(ev)
	case ClientGone:
		delete(c.wait, ev.ID)
	case Submitted:
		c.submitted(ev)
	case Retry:
		c.retry()
	case Found:
		c.found(ev)
	case AllocStatus:
		c.allocStatus(ev)
	case LogsDone:
		c.logsDone(ev.Job)
	case MoveFailed:
		c.moveFailed(ev)
	case SeatLeaves:
		c.seat.told = ev.Why
	}
	c.settle(c.concernsPools(ev))
	return c.out
}

// concernsPools reports whether pools are to be looked at after an event. Completions
// come by the thousand and change nothing for them; with many nodes, nor does each that
// joins: the next Tick will do.
func (c *Core) concernsPools(ev Event) bool {
	switch ev := ev.(type) {
	case AgentMsg:
		_, left := ev.Msg.(wire.Leaving)
		return left
	case AgentUp:
		return len(c.d.st.Nodes) < 256
	}
	return true
}

// settle draws the consequences of an event: who runs next, who is to be told.
func (c *Core) settle(pools bool) {
	c.endRecovery()
	if c.actorsDue && !c.recovering {
		c.actorsDue = false
		c.moveActors()
	}
	c.endPrograms()
	c.schedule()
	c.stepDown()
	if pools {
		c.keepPools()
		c.keepSeat()
	}
	c.tellWatchers()
}

// record makes a fact durable: it is applied here and journalled by the shell.
func (c *Core) record(r Record) {
	if err := c.d.apply(r, true); err != nil {
		// The core made a record that cannot follow what came before it. Going on would
		// write a journal that no later head can read.
		panic(fmt.Sprintf("head/core: %T: %v", r, err))
	}
	c.out.Records = append(c.out.Records, r)
}

func (c *Core) effect(e Effect) { c.out.Effects = append(c.out.Effects, e) }

// send gives a message to a node; one that is not connected gets it by way of its next
// Hello, or not at all.
func (c *Core) send(n *node, typ uint16, msg any) {
	if n.conn {
		c.effect(SendAgent{Node: n.id, Epoch: n.epoch, Typ: typ, Msg: msg})
	}
}

// movedGap is how many jobs and numbers of nodes the lost end of a journal may have given
// out.
const movedGap = 1000

// start takes the next head epoch and rebuilds the soft state as far as the journal
// knows it; the agents' Hellos give the rest.
func (c *Core) start() {
	c.started = true
	first := c.d.st.Created == 0
	epoch := c.d.st.Head.Epoch + 1
	moved := !first && epoch < wire.Epoch(c.cfg.Term<<wire.TermShift)
	if moved {
		epoch = wire.Epoch(c.cfg.Term<<wire.TermShift) + 1
	}
	c.record(RecHead{Epoch: epoch, Cluster: c.cfg.Cluster, Nonce: c.cfg.Nonce, Version: c.cfg.Version, At: c.now, Again: c.cfg.Again, Moved: moved, Seat: c.cfg.Seat, Why: c.cfg.Why})
	if moved {
		for _, x := range c.cfg.Gone {
			x.Gone, x.At = true, c.now
			c.record(x)
		}
	}
	if moved && c.d.st.SpecText != c.cfg.SpecText { // it may have been changed since that was written
		c.effect(ConfigChanged{Pools: c.d.st.Pools, SpecText: c.d.st.SpecText, SpecPath: c.d.st.SpecPath})
	} else if first || c.cfg.Again || c.d.st.SpecText != c.cfg.SpecText || len(c.d.st.Pools) == 0 {
		pools, moved := c.mergePools(c.cfg.Pools)
		for _, id := range sortedKeys(moved) {
			if d := c.d.st.Nodes[id]; d != nil && d.State == nodeUp && d.Drain == nil {
				c.record(RecDrain{Node: id, Epoch: d.Epoch, Deadline: c.now + defaultGrace, Keep: true})
			}
		}
		c.record(RecPools{Pools: pools, SpecText: c.cfg.SpecText, SpecPath: c.cfg.SpecPath})
	}
	for _, id := range sortedKeys(c.d.st.Nodes) {
		if d := c.d.st.Nodes[id]; d.State == nodeUp {
			n := c.newNode(d)
			n.seen = c.now
			if slices.Contains(c.cfg.Silent, n.id) {
				n.seen -= c.cfg.Lost
			} else if slices.Contains(c.cfg.Doubted, n.id) {
				n.seen -= c.cfg.Lost - c.cfg.Suspect
			}
			c.recovering = true
		} else if d.State == nodeLost {
			c.leased = max(c.leased, d.Since+exclusiveLease)
		}
	}
	// If only for a moment.
	c.recovering = c.recovering || c.leased > c.now || c.d.st.Unnamed
	for _, id := range sortedKeys(c.d.st.Jobs) {
		if d := c.d.st.Jobs[id]; d.State == 0 {
			c.revive(c.newJob(d))
		} else if !d.LogsDone {
			c.wantLogs(d)
		}
	}
	c.loadGroups()
	c.loadActors()
	c.loadPools()
	for _, p := range c.sortedPools() {
		var tokens []string
		for _, t := range sortedKeys(c.d.st.Subs) {
			if s := c.d.st.Subs[t]; s.Pool == p.spec.Name && !s.Known {
				tokens = append(tokens, t)
			}
		}
		if len(tokens) > 0 {
			c.effect(FindAllocs{Pool: p.spec.Name, Tokens: tokens})
		}
		p.query = c.now
	}
	if c.d.st.Down != nil {
		c.beginDown(0)
	}
	c.full = true
}

// revive rebuilds what the journal knows of a job's running gangs.
func (c *Core) revive(j *job) {
	for _, i := range sortedKeys(j.d.Gangs) {
		g := j.d.Gangs[i]
		if g.Over {
			continue
		}
		j.pending.dropOne(i)
		s := &gang{index: i, attempt: g.Attempt, phase: gangRunning, nodes: g.Nodes}
		j.gangs[i] = s
		for k, p := range g.Nodes {
			if n := c.nodes[p.Node]; n != nil && n.epoch == g.Epochs[k] {
				n.parts[wire.Task{Job: j.id, Index: i}] = &part{job: j, count: int64(p.Count)}
			}
		}
		if c.broken(g) {
			s.stopping = true
		}
	}
}

// endRecovery lets work be handed out again once every node that was up has said Hello
// or is lost.
func (c *Core) endRecovery() {
	if !c.recovering {
		return
	}
	for _, n := range c.nodes {
		if !n.greeted {
			return
		}
	}
	c.recovering, c.full, c.jobsDue = false, true, true
	c.actorsDue = true
	c.groupsRecovered()
	if c.d.st.Unnamed {
		// A node that did not come back may run anything that nobody claims; those
		// attempts are fenced, whether they were given out or not.
		for _, j := range slices.Clone(c.queue) {
			if !j.gang && j.pending.len() > 0 {
				c.record(RecLost{Job: j.id, Ranges: j.pending.list(), Free: true, Cause: "held by a node that was lost while the head was away", At: c.now})
				c.afterLoss(j)
			}
		}
		c.record(RecRecovered{})
	}
	for _, j := range c.queue {
		if j.d.Spec.Exclusive && c.leased > c.now && j.pending.len() > 0 {
			j.limbo = append(j.limbo, limbo{tries: j.pending, until: c.leased})
			j.pending = rangeSet{}
		}
	}
	for _, j := range slices.Clone(c.queue) {
		c.maybeEnd(j)
	}
}

// tick lets time pass: silence, deadlines, back-offs.
func (c *Core) tick() {
	c.ticked = c.now
	c.watchNodes()
	c.watchGangs()
	c.watchLeaves()
	c.watchLimbo()
	if c.anyBackoffOver() || c.now-c.looked >= 500*millisecond {
		c.full, c.looked = true, c.now
		c.watchLeases()
		c.watchGroups()
		c.endHeld()
	}
}

// Durable is what the records so far amount to; it must not be changed, and is only
// valid until the next Step (encode it for a snapshot).
func (c *Core) Durable() *Durable { return c.d }

// Wake is when the core wants its next Tick, in unix nanoseconds; 0 = no need of one.
func (c *Core) Wake() int64 {
	step := second
	if c.recovering || c.down != nil || c.hold != nil || c.groups.hold != nil {
		step = 50 * millisecond
	}
	for _, w := range c.wait {
		if w.due {
			step = min(step, 50*millisecond)
		}
	}
	for _, p := range c.pools {
		if p.next > c.ticked {
			step = min(step, max(50*millisecond, p.next-c.ticked))
		}
		for _, t := range p.troubles {
			if t.next > c.ticked {
				step = min(step, max(50*millisecond, t.next-c.ticked))
			}
		}
	}
	for _, j := range c.queue {
		if len(j.leaving) > 0 || len(j.gangs) > 0 && j.reserving() || j.backoff > c.ticked {
			step = min(step, 50*millisecond)
		}
		if j.d.Cancel != nil || j.pending.len() > 0 || j.live > 0 {
			step = min(step, 500*millisecond)
		}
	}
	if c.anyLease || len(c.groups.wait)+len(c.groups.orphan) > 0 {
		step = min(step, 500*millisecond)
	}
	if c.leasing != 0 {
		return min(c.ticked+step, max(c.leasing, c.ticked+millisecond))
	}
	return c.ticked + step
}

// Epoch is the head's, valid after Start.
func (c *Core) Epoch() wire.Epoch { return c.d.st.Head.Epoch }

// Members are the nodes that are up, in the order of their names.
func (c *Core) Members() []wire.NodeID {
	out := make([]wire.NodeID, len(c.order))
	for i, n := range c.order {
		out[i] = n.id
	}
	return out
}

// Recovering reports whether the head still waits for agents that it knows.
func (c *Core) Recovering() bool { return c.recovering }

// Admit says whether a node may join: its name, epoch and token are of a submission
// that has not ended.
func (c *Core) Admit(id wire.NodeID, epoch wire.Epoch, token string) error {
	switch d := c.d.st.Nodes[id]; {
	case d == nil:
		return errs.New(errs.NotFound, "node %s was never asked for in cluster %s", id, c.cfg.Cluster)
	case c.down != nil || c.d.st.Down != nil:
		return errs.New(errs.Fenced, "cluster %s is going down", c.cfg.Cluster)
	case d.Epoch != epoch || d.State == nodeGone:
		return errs.New(errs.Fenced, "node %s of epoch %d has been replaced", id, epoch)
	case d.Token != token:
		return errs.New(errs.Permission, "node %s does not belong to this submission", id)
	}
	return nil
}

// MayRenew reports whether a node may have its certificate renewed. One that is lost may
// come back; one that is gone has no business here for another day.
func (c *Core) MayRenew(id wire.NodeID, epoch wire.Epoch, token string) error {
	if d := c.d.st.Nodes[id]; d == nil || d.Epoch != epoch || d.Token != token || d.State == nodeGone {
		return errs.New(errs.Fenced, "node %s of epoch %d is not part of cluster %s any more", id, epoch, c.cfg.Cluster)
	}
	return nil
}

package core

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"launcher/internal/errs"
	"launcher/wire"
)

// node is the soft state of a node that is up: who it is, what it answers for.
type node struct {
	id       wire.NodeID
	epoch    wire.Epoch
	pool     string
	hello    wire.Hello
	beat     wire.Beat
	remnants []remnant
	total    wire.Resources // what may be handed out
	foreign  int            // GPUs that others use
	conn     bool
	greeted  bool // has said Hello in this life of the head
	seen     int64
	offset   int64 // its clock minus ours
	since    int64
	shares   map[wire.JobID]*share
	parts    map[wire.Task]*part
	known    map[wire.JobID]bool // jobs it was told of on this connection
	rounds   map[wire.Try]int    // Reserves it has not answered yet
	held     *hold               // what its room is kept for
	until    int64               // when that is expected to start; 0 = unknown
	suspect  bool
	said     string // by the backend, of its allocation that runs
	leaving  bool   // told to shut down
	asked    int64
	idle     int64 // since when it has nothing to do; 0 = it has
	moved    bool  // its work has been told to leave
	alloc    int64 // when its allocation ends; 0 = never, or nobody knows
	ends     int64 // when it leaves at the latest: with its allocation, or with its pool's chain
	endsWhy  string
	endsTold wire.NodeEnds // it was told

	free      wire.Resources // by its last Beat, less what it was told to give since
	tasks     wire.Resources // what SDK tasks have, likewise
	offered   wire.Resources // in offers that it has not answered
	demands   map[uint32]*demand
	gives     map[wire.LeaseID]*lease // its room, for others
	takes     map[wire.LeaseID]*lease // others' room, for it
	leasedSeq uint64                  // of the newest Leased
	leaseSeen uint64                  // of the newest that its demand counts in
	heldNeed  wire.Resources          // what that needs here
	heldTold  int64                   // when it was last told of that
	heldStart int64                   // and from when on
	watches   map[uint32]bool         // numbers whose lives it follows
	reaches   map[uint32]reach        // what it has told of reaching others
	probed    map[uint32]int64        // when it was asked that
	programs  wire.Programs
	tasked    int64 // when it last had tasks of programs, or may have had
}

// share is what a node has of a job with single-rank tasks: queued and running.
type share struct {
	job     *job
	tries   rangeSet
	running map[uint32]int64 // those known to run, with their start
	asked   bool             // a Withdraw is under way
}

// part is a node's part of a gang: reserved or running.
type part struct {
	job   *job
	count int64
	ok    bool // reserved
	addr  string
	port  uint16
}

func (c *Core) newNode(d *nodeD) *node {
	n := &node{id: d.ID, epoch: d.Epoch, pool: d.Pool, total: d.Total, since: d.Since, seen: c.now,
		shares: map[wire.JobID]*share{}, parts: map[wire.Task]*part{},
		demands: map[uint32]*demand{}, gives: map[wire.LeaseID]*lease{}, takes: map[wire.LeaseID]*lease{}, watches: map[uint32]bool{}, reaches: map[uint32]reach{}}
	c.nodes[d.ID] = n
	i, _ := slices.BinarySearchFunc(c.order, n, byName)
	c.order = slices.Insert(c.order, i, n)
	return n
}

// byName orders local-2 before local-10.
func byName(a, b *node) int { return compareIDs(a.id, b.id) }

func compareIDs(a, b wire.NodeID) int {
	pa, na := splitID(a)
	pb, nb := splitID(b)
	return cmp.Or(cmp.Compare(pa, pb), cmp.Compare(na, nb), cmp.Compare(a, b))
}

func splitID(id wire.NodeID) (string, int) {
	k := strings.LastIndexByte(string(id), '-')
	n, err := strconv.Atoi(string(id)[k+1:])
	if k < 0 || err != nil {
		return string(id), -1
	}
	return string(id)[:k], n
}

func (c *Core) durable(n *node) *nodeD { return c.d.st.Nodes[n.id] }

// usable reports whether a node may be given new work.
func (c *Core) usable(n *node) bool {
	return n.conn && n.greeted && !n.suspect && !n.leaving && c.durable(n).Drain == nil
}

func (c *Core) agentUp(ev AgentUp) {
	h := ev.Hello
	d := c.d.st.Nodes[ev.Node]
	if d == nil || d.Epoch != ev.Epoch || d.State == nodeGone {
		err := errs.New(errs.Fenced, "node %s of epoch %d is not part of cluster %s any more", ev.Node, ev.Epoch, c.cfg.Cluster)
		c.effect(DropAgent{Node: ev.Node, Epoch: ev.Epoch, Err: err})
		return
	}
	if h.HeadEpoch > c.Epoch() {
		err := errs.New(errs.Fenced, "node %s has spoken to a head of epoch %d; this one, of epoch %d, was replaced", ev.Node, h.HeadEpoch, c.Epoch())
		c.effect(DropAgent{Node: ev.Node, Epoch: ev.Epoch, Err: errs.Wrap(errs.Unavailable, err, "the head")})
		c.effect(Replaced{Err: err})
		return
	}
	if d.State != nodeUp || d.Number == 0 {
		number := d.Number
		if number == 0 {
			number = c.d.st.Numbers + 1
		}
		c.record(RecNodeUp{Node: ev.Node, Epoch: ev.Epoch, Pool: d.Pool, Token: d.Token, Host: h.Host, Total: h.Total, At: c.now, Number: number})
		if p := c.pools[d.Pool]; p != nil {
			p.failures, p.why, p.shape = 0, "", &h.Total
			delete(p.troubles, ev.Node)
		}
	}
	n := c.nodes[ev.Node]
	if n == nil {
		n = c.newNode(d)
	}
	n.hello, n.conn, n.greeted, n.seen, n.suspect = h, true, true, c.now, false
	if c.durable(n).Drain != nil {
		n.tasked = c.now // another head may know that it had
	}
	n.offset = h.Clock - c.now
	if h.Clock == 0 {
		n.offset = 0
	}
	if h.Deadline != 0 && n.alloc == 0 { // what the backend says of it is newer
		n.alloc = h.Deadline*second - n.offset
	}
	if a := c.allocOf(n); a != nil && n.alloc == 0 && c.pools[n.pool] != nil {
		n.alloc = c.pools[n.pool].ends[string(a.Handle)]
	}
	n.endsTold = wire.NodeEnds{}
	n.beat.GPUs, n.beat.Why, n.beat.Others = h.GPUs, h.Why, h.Others
	n.count()
	c.endLeases(n, "node "+string(n.id)+" has connected again")
	n.free, n.tasks, n.watches, n.heldTold = wire.Resources{}, wire.Resources{}, map[uint32]bool{}, 0
	n.known, n.rounds = map[wire.JobID]bool{}, map[wire.Try]int{}
	first := len(c.out.Effects)
	tell := c.reportsKept(n, h.Reports)
	c.done(n, h.Unacked, true)
	drop := c.claimTries(n, h.Tries)
	drop = append(drop, c.claimGangs(n, h.Gangs)...)
	// Welcome goes first, whatever else came of the claims.
	c.out.Effects = slices.Insert(c.out.Effects, first, Effect(SendAgent{Node: n.id, Epoch: n.epoch, Typ: wire.MsgWelcome,
		Msg: wire.Welcome{Cluster: c.cfg.Cluster, HeadEpoch: c.Epoch(), Grace: c.cfg.Grace, Acked: c.durable(n).Acked, Drop: drop, Number: d.Number}}))
	c.setEnd(n)
	c.tellEnd(n)
	c.afterWelcome(n)
	tell()
	c.tellPeers(d.Number)
	c.actorsDue = true
	for _, id := range sortedActors(c.d.st.Actors) {
		if a := c.d.st.Actors[id]; a.Owner == d.Number {
			c.giveActor(a)
		}
	}
	c.programs(n, h.Programs)
	c.bundlesKept(n, h.Bundles)
	c.full = true
}

// others says what of the node other people have.
func (n *node) others() string {
	var out []string
	if n.beat.Others > 0 {
		out = append(out, fmt.Sprintf("other users keep %g of its %g cores busy", float64(n.beat.Others)/wire.Unit, float64(n.hello.Total.CPU)/wire.Unit))
	}
	for _, g := range n.beat.GPUs {
		if g.Busy {
			out = append(out, fmt.Sprintf("gpu %d: held by %s", g.Index, cmp.Or(g.By, "others")))
		}
	}
	return strings.Join(out, "; ")
}

// count works out what the node may hand out: GPUs and cores that others use are not
// offered.
func (n *node) count() {
	n.total, n.foreign = n.hello.Total, 0
	n.total.CPU = max(0, n.total.CPU-n.beat.Others)
	gpus := n.hello.GPUs
	if n.beat.GPUs != nil {
		gpus = n.beat.GPUs
	}
	for _, g := range gpus {
		if g.Busy {
			n.foreign++
		}
	}
	if n.foreign > 0 { // a spec may offer fewer than there are
		n.total.GPU = min(n.total.GPU, int64(len(gpus)-n.foreign)*wire.Unit)
	}
}

// claimTries takes over what the node says it has of single-rank tasks. What the head
// thought it had and the node does not know never arrived there, and waits again under
// the same attempt. The answer lists what the node is to drop.
func (c *Core) claimTries(n *node, tries []wire.TryState) (drop []wire.Try) {
	old := n.shares
	n.shares = map[wire.JobID]*share{}
	for _, s := range old {
		s.job.live -= s.tries.len()
		s.job.running -= uint32(len(s.running))
		delete(s.job.nodes, n.id)
	}
	for _, t := range tries {
		j := c.jobs[t.Try.Job]
		i := t.Try.Index
		if j == nil || j.gang || j.d.Done.has(i) || j.d.standing(i).Attempt != t.Try.Attempt {
			drop = append(drop, t.Try)
			continue
		}
		was := old[j.id]
		switch {
		case was != nil && was.tries.has(i):
			was.tries.dropOne(i)
		case j.pending.has(i):
			j.pending.dropOne(i)
		case j.d.Cancel != nil && len(c.where(j, i)) == 0: // it is still to be stopped in its own time
		default: // another node has it
			drop = append(drop, t.Try)
			continue
		}
		s := c.share(n, j)
		s.tries.addOne(i)
		j.live++
		if t.Running {
			s.running[i] = t.Started - n.offset
			j.running++
		}
	}
	for _, s := range old {
		if s.tries.len() == 0 {
			continue
		}
		for r := range s.tries.all() {
			s.job.requeue(r)
		}
		s.job.touch()
		c.maybeEnd(s.job)
	}
	return drop
}

// share gives the node's share of a job, made if need be.
func (c *Core) share(n *node, j *job) *share {
	s := n.shares[j.id]
	if s == nil {
		s = &share{job: j, running: map[uint32]int64{}}
		n.shares[j.id] = s
		j.nodes[n.id] = n
	}
	n.idle = 0
	return s
}

// afterWelcome tells a node that is back what it may have missed.
func (c *Core) afterWelcome(n *node) {
	for _, id := range sortedKeys(n.shares) {
		j := n.shares[id].job
		if j.d.Cancel != nil {
			c.tellJob(n, j)
			c.send(n, wire.MsgStop, wire.Stop{Job: j.id, All: true, Reason: wire.ReasonCancelled, Grace: j.grace})
			continue
		}
		var tries []wire.Try
		for _, i := range sortedKeys(j.d.Unwanted) {
			if n.shares[id].tries.has(i) {
				tries = append(tries, j.try(i))
			}
		}
		if len(tries) > 0 {
			c.send(n, wire.MsgStop, wire.Stop{Job: j.id, Tries: tries, Reason: wire.ReasonCancelled, Grace: j.grace})
		}
		for _, i := range sortedKeys(j.leaving) {
			if l := j.leaving[i]; n.shares[id].tries.has(i) {
				c.send(n, wire.MsgAdvice, wire.Advice{Try: j.try(i), Leave: l.why, Deadline: l.deadline})
			}
		}
	}
	if c.durable(n).Drain != nil {
		n.leaving = false
		c.withdrawAll(n)
	}
}

func (c *Core) agentMsg(ev AgentMsg) {
	n := c.nodes[ev.Node]
	if n == nil || n.epoch != ev.Epoch || !n.conn {
		return // of a node that was lost meanwhile
	}
	n.seen = c.now
	if n.suspect {
		n.suspect = false
		c.touchNode(n)
	}
	switch m := ev.Msg.(type) {
	case wire.Done:
		c.done(n, m, false)
	case wire.Running:
		c.runningMsg(n, m)
	case wire.Returned:
		c.returned(n, m)
	case wire.Reserved:
		c.reserved(n, m)
	case wire.GangGone:
		c.gangGone(n, m)
	case wire.Report:
		c.report(n, m)
	case wire.Beat:
		old := n.total
		c.heldChanged(n, m.Held)
		c.beatRoom(n, &m)
		n.beat = m
		n.hello.Python = cmp.Or(m.Python, n.hello.Python)
		n.count()
		if n.total.GPU != old.GPU || n.total.CPU != old.CPU {
			c.touchNode(n)
			c.recall(n)
		}
	case wire.Demand:
		c.demanded(n, m)
	case wire.LeaseGrant:
		c.leaseGranted(n, m)
	case wire.LeaseBack:
		c.leaseBack(n, m)
	case wire.ActorTell:
		c.actorTold(n, m)
	case wire.Programs:
		c.programs(n, m)
	case wire.GroupTell:
		c.groupTold(n, m)
	case wire.BundleNews:
		c.bundleNews(n, m)
	case wire.PeerAsk:
		c.peerAsk(n, m)
	case wire.Reach:
		c.reach(n, m)
	case wire.Leaving:
		if m.Dead {
			c.nodeGone(n, true, cmp.Or(m.Why, "it left"))
		} else {
			c.noticed(n, m)
		}
	}
}

func (c *Core) agentDown(ev AgentDown) {
	d := c.d.st.Nodes[ev.Node]
	if d == nil || d.Epoch != ev.Epoch {
		return
	}
	n := c.nodes[ev.Node]
	if n == nil { // lost already, or never joined
		if ev.Proof && d.State != nodeGone {
			c.record(RecNodeGone{Node: ev.Node, Epoch: ev.Epoch, Proof: true, Cause: ev.Cause, At: c.now})
			c.actorsDue = true
			c.dead(ev.Node, ev.Epoch)
		}
		return
	}
	n.conn = false
	if ev.Proof {
		c.nodeGone(n, true, ev.Cause)
		return
	}
	if p := c.pools[n.pool]; p != nil {
		p.query = c.now // the backend may know more
	}
	c.dropReservations(n)
	c.endLeases(n, "node "+string(n.id)+" has lost its connection")
}

// nodeGone gives a node up: with proof its processes are dead; without, it is lost, and
// what it held is fenced.
func (c *Core) nodeGone(n *node, proof bool, cause string) {
	number := c.durable(n).Number
	for _, j := range c.queue {
		delete(j.avoid, n.id)
	}
	// First what it had, then that it is gone: a journal that ends in between has a node
	// that is expected back, and what nobody claims is fenced then.
	for _, id := range sortedKeys(n.shares) {
		s := n.shares[id]
		j := s.job
		j.live -= s.tries.len()
		j.running -= uint32(len(s.running))
		delete(j.nodes, n.id)
		delete(n.shares, id)
		if s.tries.len() == 0 {
			continue
		}
		until := int64(0)
		if !proof {
			until = n.seen + exclusiveLease
		}
		c.lose(j, n, s.tries.list(), fmt.Sprintf("node %s: %s", n.id, cause), until)
	}
	c.record(RecNodeGone{Node: n.id, Epoch: n.epoch, Proof: proof, Cause: cause, At: c.now, Unnamed: !n.greeted})
	delete(c.nodes, n.id)
	c.order = slices.DeleteFunc(c.order, func(x *node) bool { return x == n })
	delete(c.dirty, n)
	if !n.greeted && !proof {
		c.leased = max(c.leased, n.seen+exclusiveLease)
	}
	if n.conn {
		n.conn = false
		c.effect(DropAgent{Node: n.id, Epoch: n.epoch, Err: errs.New(errs.Lost, "node %s: %s", n.id, cause)})
	}
	for _, d := range c.ended() {
		c.logsLost(d, n.id, n.epoch)
	}
	if proof {
		c.dead(n.id, n.epoch)
	}
	c.dropReservations(n)
	c.endLeases(n, "node "+string(n.id)+" is gone: "+cause)
	c.programs(n, wire.Programs{})
	c.groupsGone(n, number)
	c.moveActors()
	c.tellPeers(number)
	for _, t := range sortedTasks(n.parts) {
		if j := c.jobs[t.Job]; j != nil {
			c.gangChanged(j, t.Index)
		}
	}
	c.dropHold(n.held)
	c.full = true
}

// lose fences tries of a job that a node had. Exclusive work waits until the node's
// lease has run out; other work is run again at once.
func (c *Core) lose(j *job, n *node, ranges []wire.Range, cause string, until int64) {
	c.record(RecLost{Job: j.id, Node: n.id, Ranges: ranges, Cause: cause, At: c.now})
	for _, r := range ranges {
		j.requeue(r)
	}
	if j.d.Spec.Exclusive && until > c.now && j.d.State == 0 {
		l := limbo{node: n.id, epoch: n.epoch, until: until}
		for _, r := range ranges {
			for g := range j.d.Done.gaps(r) {
				l.tries.add(g)
				j.pending.clear(g)
			}
		}
		j.limbo = append(j.limbo, l)
	}
	c.afterLoss(j)
}

// afterLoss looks whether a job ended by what it lost.
func (c *Core) afterLoss(j *job) {
	j.touch()
	j.dry = false
	if j.d.State != 0 {
		c.jobEnded(j)
		return
	}
	for _, r := range j.pending.list() {
		for in := range j.d.Done.within(r) {
			j.pending.clear(in)
		}
	}
	c.maybeEnd(j)
}

// dead frees what waited for proof that a node's processes are gone.
func (c *Core) dead(id wire.NodeID, epoch wire.Epoch) {
	for _, j := range slices.Clone(c.queue) {
		for k := 0; k < len(j.limbo); k++ {
			if l := &j.limbo[k]; l.node == id && l.epoch == epoch {
				l.until = c.now
			}
		}
	}
	c.watchLimbo()
}

// watchNodes looks for silence.
func (c *Core) watchNodes() {
	for _, n := range slices.Clone(c.order) {
		quiet := c.now - n.seen
		switch {
		case quiet >= c.cfg.Lost:
			cause := fmt.Sprintf("silent for %d s", quiet/second)
			if n.said != "" {
				cause += "; " + n.said
			}
			c.nodeGone(n, false, cause)
		case quiet >= c.cfg.Suspect && !n.suspect:
			n.suspect = true
			if p := c.pools[n.pool]; p != nil {
				p.query = c.now
			}
		}
		d := c.durable(n)
		if d == nil {
			continue
		}
		c.watchEnd(n)
		c.watchDrain(n, d)
	}
}

// touchNode has the node's room looked at in this Step.
func (c *Core) touchNode(n *node) { c.dirty[n] = true }

func sortedTasks(m map[wire.Task]*part) []wire.Task {
	out := make([]wire.Task, 0, len(m))
	for t := range m {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b wire.Task) int { return cmp.Or(cmp.Compare(a.Job, b.Job), cmp.Compare(a.Index, b.Index)) })
	return out
}

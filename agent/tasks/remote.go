package tasks

import (
	"cmp"
	"fmt"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// This node's tasks on other nodes. A task that runs under a lease stays this node's: what
// it needs, its outputs, its retries. The agent of the other node is told to run it as
// that of a program would be (peer.go), and reports how it ended; large outputs stay
// there until something here wants them.

// remote is another node that runs tasks of one key for this one.
type remote struct {
	cl     *client // what is to be written to its agent
	number uint32
	key    Key // without GPUs
	shapes map[*shape]uint32
	open   bool            // the connection is there
	kills  map[id]killSaid // of actors that it owns, said of late or still to be said
	idleAt int64           // since when it has neither tasks nor objects of ours; 0 = it has
}

type remoteKey struct {
	number uint32
	key    Key
}

// remoteIdle is after how long a connection that nothing uses is closed.
const remoteIdle = 10 * second

// maxRemote is how many short tasks are sent to a slot on another node at a time.
const maxRemote = 16

// Leased: the head has leased room on another node for tasks of a shape (Demand).
func (c *Core) Leased(now int64, m wire.Leased) {
	c.now = now
	c.leases.take(now, m)
	c.demandDue = true
}

// LeaseCut: slots of a lease are gone. What runs in them runs on.
func (c *Core) LeaseCut(now int64, m wire.LeaseCut) {
	c.now = now
	c.leases.less(m)
	c.demandDue = true
}

// LeasesEnd: all leases are, with the session of the head that they came by.
func (c *Core) LeasesEnd(now int64) {
	c.now = now
	c.leases.end()
	c.demandDue = true
}

// NoRoomEver: no node can run tasks of a shape. Those that wait fail at once, unless it is
// said only what they wait for.
func (c *Core) NoRoomEver(now int64, m wire.Infeasible) {
	c.now = now
	s := c.demanded[m.Shape]
	if s == nil {
		return
	}
	if m.Held {
		s.held = m.Why
		return
	}
	for t := s.queue.first(); t != nil; t = s.queue.first() {
		c.stats.failed++
		code, hints := m.Code, []string(nil)
		if code == "" {
			code, hints = "unschedulable", []string{"`launcher nodes` lists what each node has"}
		}
		if t.actor != nil {
			code = "actor_" + code
		}
		c.judges(t, c.errorOf(code, m.Why, t, hints...))
	}
}

// Demand gives what waits for room on other nodes, when it has changed.
func (c *Core) Demand() (shapes []wire.Demanded, seen uint64, changed bool) {
	var out []wire.Demanded
	for _, s := range c.ready {
		t := s.queue.first()
		if t == nil || t.lease != 0 || !c.mayLend(s) {
			continue
		}
		if n := s.queue.n - c.leases.free(c.numberOf(s)); n > 0 {
			near, _ := c.near(t)
			if near == 0 && c.limited(s) {
				near = c.cfg.Number
			}
			out = append(out, wire.Demanded{ID: s.number, Shape: wire.Shape{Resources: s.need, Strategy: s.place, Priority: s.prio, Job: jobID(s.job.key), Time: s.time, Owner: s.job.key, Limits: s.job.terms.Limits}, Waiting: uint32(n), Since: t.ready, Near: near})
		}
	}
	if len(out) > wire.MaxDemand {
		slices.SortStableFunc(out, func(a, b wire.Demanded) int {
			return cmp.Or(cmp.Compare(b.Shape.Priority, a.Shape.Priority), cmp.Compare(a.Since, b.Since))
		})
		out = out[:wire.MaxDemand]
	}
	same := len(out) == len(c.demand) && !c.demandDue
	for i := 0; same && i < len(out); i++ {
		same = out[i].ID == c.demand[i].ID && out[i].Waiting == c.demand[i].Waiting && out[i].Near == c.demand[i].Near
	}
	c.demand, c.demandDue = out, false
	return out, c.leases.seen, !same
}

// Alone says whether the head is away, who could lease room elsewhere.
func (c *Core) Alone(alone bool) { c.alone = alone }

// TermsOf gives what the tasks of a job are subject to.
func (c *Core) TermsOf(job string) wire.Terms {
	if j := c.jobs[job]; j != nil {
		return j.terms
	}
	return wire.Terms{}
}

// numberOf is what a shape is called in Demand.
func (c *Core) numberOf(s *shape) uint32 {
	if s.number == 0 {
		c.lastShape++
		s.number = c.lastShape
		c.demanded[s.number] = s
	}
	return s.number
}

// lend gives tasks that wait to slots of leases.
func (c *Core) lend(s *shape) {
	for t := s.queue.first(); t != nil && t.lease == 0; t = s.queue.first() {
		if x := c.leases.useHere(s.number); x != nil && c.under(x, s, t) {
			continue
		}
		near, _ := c.near(t)
		x := c.leases.use(s.number, near, c.goesNear(t), min(s.depth(), maxRemote))
		if x == nil {
			return
		}
		c.giveAway(c.remoteOf(x.Number, s.key), x, t)
	}
}

// under has a worker here run tasks of a shape in a slot of a lease on this very node.
func (c *Core) under(x *leased, s *shape, t *task) bool {
	t.lease = x.Lease
	ok := c.another(s, t)
	t.lease = 0
	if !ok {
		c.leases.done(c.now, x)
	}
	return ok
}

// remoteOf gives the client of a node's agent for a key, made if need be.
func (c *Core) remoteOf(number uint32, key Key) *remote {
	key.Env = "" // it is in the options of the tasks, and what is at the other end does not ask for it
	r := c.remotes[remoteKey{number, key}]
	if r == nil {
		r = &remote{number: number, key: key, shapes: map[*shape]uint32{}}
		r.cl = &client{Client: Client{ID: c.NextClient(), Kind: sdk.KindPeer, Job: key.Job}, known: map[funcID]bool{}, remote: r}
		r.cl.level0.client = r.cl
		c.remotes[remoteKey{number, key}] = r
		c.byClient[r.cl.ID] = r
		c.do(OpenPeer{ID: r.cl.ID, Number: number, Key: key, Terms: c.TermsOf(key.Job)})
	}
	r.idleAt = 0
	return r
}

// giveAway sends a task, the first of its queue, to another node.
func (c *Core) giveAway(r *remote, x *leased, t *task) {
	s := t.shape
	s.queue.pop()
	c.queued -= int64(len(t.body))
	l := &level{client: r.cl, shape: s, tasks: []*task{t}, lease: x, since: c.now}
	t.state, t.level, s.lacks = running, l, ""
	t.started = c.now
	c.runs(t, 1)
	if t.actor != nil {
		c.recordAway(t, r.number)
	}
	c.tellTask(r, t)
}

// tellTask writes what another node needs to run a task.
func (c *Core) tellTask(r *remote, t *task) {
	cl, s := r.cl, t.shape
	c.tellFunc(cl, sdk.MsgFunc, t)
	n, told := r.shapes[s]
	if !told {
		n = uint32(len(r.shapes) + 1)
		r.shapes[s] = n
		at := c.frame(cl, sdk.MsgShape, 0)
		cl.out = append(append32(cl.out, n), s.text...)
		cl.finish(at)
	}
	lease := t.lease
	if t.level.lease != nil {
		lease = t.level.lease.Lease
	}
	at := c.frame(cl, sdk.MsgPeerSubmit, 0)
	cl.out = sdk.AppendPeerSubmit(cl.out, uint64(lease), t.attempt, n, t.body)
	cl.finish(at)
}

// tellCancel has another node cancel a task that it runs.
func (c *Core) tellCancel(r *remote, t *task, flags uint32) {
	at := c.frame(r.cl, sdk.MsgCancel, 0)
	r.cl.out = append(append32(append32(r.cl.out, flags), 0), t.id[:]...)
	r.cl.finish(at)
}

// Remote takes a frame of the agent of another node that runs tasks for this one.
func (c *Core) Remote(now int64, from uint32, typ uint16, body []byte) error {
	c.now = now
	r := c.byClient[from]
	if r == nil {
		return nil // of a connection that was given up
	}
	switch typ {
	case sdk.MsgResult:
		return c.remoteResult(r.number, body)
	case sdk.MsgYield:
		return c.remoteYield(r.number, body)
	case sdk.MsgUp:
		return c.remoteUp(r.number, body)
	}
	return nil
}

// remoteResult takes the end of a task on another node.
func (c *Core) remoteResult(number uint32, b []byte) error {
	res, rest, err := sdk.ParseResult(b)
	if err != nil {
		return err
	}
	t := c.tasks[res.Task]
	if t == nil || !c.runsOn(t, number, res.Attempt) {
		c.refuse(number, res, rest)
		return nil // fenced, or told twice
	}
	lasting := t.isCall() || t.actor != nil
	if res.Status != sdk.ResultBounced || lasting {
		c.recordRemote(number, sdk.MsgResult, b)
	}
	r := c.remoteFor(t)
	if lasting {
		c.letGo(r, t.id) // it is accounted for
	}
	switch {
	case res.Status == sdk.ResultGone && lasting:
		c.interrupted(t, "", goneHow(res, rest))
		return nil
	case res.Status == sdk.ResultBounced && t.isCall():
		c.comesBack(t)
		return nil
	case t.actor != nil && res.Status != sdk.ResultBounced:
		data := c.actorDied(t, "it ended by its own will")
		if res.Values > 0 {
			if v, _, err := sdk.CutValue(rest); err == nil {
				data = slices.Clone(v.Bytes)
			}
		}
		c.dies(t, data)
		return nil
	case res.Status == sdk.ResultBounced:
		if l := t.level; l != nil && l.lease != nil && c.leases.by[l.lease.Lease] == l.lease {
			// The head's word is on its way.
			c.do(LeaseIdle{Lease: l.lease.Lease, Slots: uint32(l.lease.slots)})
			c.leases.shrink(l.lease, l.lease.slots)
		}
		c.requeue(t)
		return nil
	case res.Status == sdk.ResultGone || res.Status == sdk.ResultRetry:
		return c.handedOver(t, res, rest)
	case t.stream != nil:
		var data []byte
		if res.Status != sdk.ResultOK && res.Values > 0 {
			v, _, _, err := sdk.CutGiven(rest)
			if err != nil {
				return err
			}
			data = slices.Clone(v.Bytes)
		}
		c.endStream(t, data)
	case res.Status == sdk.ResultFailed && res.Values == 1: // once for all outputs
		v, _, _, err := sdk.CutGiven(rest)
		if err != nil {
			return err
		}
		c.endRemote(res)
		c.fails(t, slices.Clone(v.Bytes))
		return nil
	default:
		for i := range t.outputs() {
			v, nodes, more, err := sdk.CutGiven(rest)
			if err != nil {
				c.fails(t, c.errorOf("internal", "node "+string(c.cfg.Node)+" got a damaged value: "+err.Error(), t))
				return err
			}
			rest = more
			c.given(r, number, c.objects[t.id.With(i+1)], t.id.With(i+1), &v, nodes)
		}
	}
	c.endRemote(res)
	c.ended(t)
	return nil
}

// endRemote counts a task that ended on another node, which has it in its timeline.
func (c *Core) endRemote(res sdk.Result) {
	if res.Status == sdk.ResultOK {
		c.stats.done++
	} else {
		c.stats.failed++
	}
}

// handedOver takes a task back that failed on another node and may run once more.
func (c *Core) handedOver(t *task, res sdk.Result, rest []byte) error {
	v, _, err := sdk.CutValue(rest)
	if err != nil {
		return err
	}
	if res.Status == sdk.ResultRetry {
		c.mayRetry(t, slices.Clone(v.Bytes))
		return nil
	}
	var e sdk.Error
	if err := wire.Unmarshal(v.Bytes, &e); err != nil {
		return err
	}
	c.interrupted(t, e.Code, e.Message)
	return nil
}

// remoteYield takes an item of a stream that is made on another node.
func (c *Core) remoteYield(number uint32, b []byte) error {
	if len(b) < 24 {
		return errs.New(errs.Corrupt, "Yield is cut short")
	}
	t := c.tasks[id(b[:16])]
	attempt, i := u32(b[16:]), u32(b[20:])
	v, nodes, _, err := sdk.CutGiven(b[24:])
	if err != nil {
		return err
	}
	x := id(b[:16]).With(i + 1)
	if t == nil || t.stream == nil || i >= maxItems || !c.runsOn(t, number, attempt) || i < t.stream.made {
		if o := c.objects[x]; o == nil || o.where != number {
			c.letGoAt(number, x)
		}
		return nil
	}
	if i > t.stream.made {
		return nil // those before it were lost with a connection, and it comes again with them
	}
	c.recordRemote(number, sdk.MsgYield, b)
	r := c.remoteFor(t)
	c.given(r, number, c.made(t, i), x, &v, nodes)
	if v.Kind != sdk.Elsewhere && len(v.Refs) == 0 { // else it was said
		c.letGo(r, x)
	}
	return nil
}

// runsOn reports whether an attempt of a task runs on a node. When the log is read again
// after a restart, who got it is not known: what is in the log was true.
func (c *Core) runsOn(t *task, number, attempt uint32) bool {
	if !c.mute {
		return t.state == running && t.attempt == attempt && t.worker() != nil && t.worker().remote != nil && t.worker().remote.number == number
	}
	c.wasAway(t, attempt)
	return t.state == running
}

func (c *Core) remoteFor(t *task) *remote {
	if t.worker() == nil {
		return nil
	}
	return t.worker().remote
}

// given gives an object the value that another node has made.
func (c *Core) given(r *remote, number uint32, o *object, x id, v *sdk.Value, nodes []uint32) {
	if o == nil || o.state == here {
		if v.Kind == sdk.Elsewhere || len(v.Refs) > 0 {
			c.letGo(r, x)
		}
		return
	}
	o.kind, o.form, o.size, o.data = v.Kind, v.Form, v.Size, slices.Clone(v.Bytes)
	c.refer(o, idsOf(v.Refs))
	if v.Kind == sdk.Elsewhere {
		o.kind, o.where = sdk.Shared, number
		if len(nodes) > 0 {
			o.where = nodes[0]
		}
		if r != nil {
			o.at = r.cl.ID
		}
	} else if len(o.refs()) > 0 {
		c.letGo(r, x) // what is inside is held by now
	}
	c.arrive(o)
}

// letGo tells the node that made an object for this one that it is not needed there.
func (c *Core) letGo(r *remote, x id) {
	if r == nil || c.mute {
		return
	}
	c.tell(r.cl, sdk.MsgRelease, x)
}

// RemoteOpen: the connection to another node's agent is there, for the first time or
// again: it is told what this node has there, and what runs there once more.
func (c *Core) RemoteOpen(now int64, from uint32) {
	c.now = now
	r := c.byClient[from]
	if r == nil {
		return
	}
	cl := r.cl
	cl.away, r.open = 0, true
	cl.out = cl.out[:0]
	clear(cl.known)
	clear(r.shapes)
	var keep []byte
	var run []*task
	for _, t := range c.sortedTasks() {
		if t.state == running && t.worker() == cl {
			run = append(run, t)
			keep = append(keep, t.id[:]...)
		}
	}
	for _, o := range c.objects {
		if o.at == cl.ID {
			keep = append(keep, o.id[:]...)
		}
	}
	c.writes(cl)
	cl.out = sdk.AppendKeep(cl.out, keep)
	slices.SortStableFunc(run, func(a, b *task) int { return cmp.Compare(a.order(), b.order()) })
	for _, t := range run {
		c.tellTask(r, t)
		switch {
		case t.actor != nil && (t.actor.why != "" || t.actor.ends):
			c.stop(t, t.actor.kill || t.actor.ends)
		case t.cancel: // it may have been told in vain
			c.tellCancel(r, t, 0)
		}
	}
	c.killsAgain(r)
}

// RemoteClosed: it is broken, and is being opened again.
func (c *Core) RemoteClosed(now int64, from uint32) {
	if r := c.byClient[from]; r != nil {
		r.cl.away, r.open = now, false
		r.cl.out = r.cl.out[:0]
	}
}

// RemoteGone: the agent of another node cannot be reached (cut), or that life of the node is
// over. What it ran is run again; what only it had is lost.
func (c *Core) RemoteGone(now int64, from uint32, why string, cut bool) {
	c.now = now
	if r := c.byClient[from]; r != nil {
		c.silent, c.cut = true, cut
		c.dropRemote(r, why)
		c.silent, c.cut = false, false
	}
}

// closeRemote ends the conversation with another node's agent.
func (c *Core) closeRemote(r *remote) {
	delete(c.remotes, remoteKey{r.number, r.key})
	delete(c.byClient, r.cl.ID)
	c.do(ClosePeer{ID: r.cl.ID})
}

func (c *Core) dropRemote(r *remote, why string) {
	c.closeRemote(r)
	for _, x := range c.leases.onNode(r.number) {
		c.do(LeaseIdle{Lease: x.Lease, Slots: uint32(x.slots)})
	}
	ts := c.sortedTasks() // calls last, in their order: whether their actors live on is known then
	slices.SortStableFunc(ts, func(a, b *task) int { return cmp.Compare(a.order(), b.order()) })
	for _, t := range ts {
		if t.state != running || t.worker() != r.cl {
			continue
		}
		msg := fmt.Sprintf("the node that ran %s is gone: %s", t.shape.name, why)
		c.recordParted(t, msg)
		c.interrupted(t, "node_died", msg)
	}
	c.loseAt(func(o *object) bool { return o.at == r.cl.ID }, why)
}

// NodeGone: a life of a node is over. Whatever this node has to do with it ends.
func (c *Core) NodeGone(now int64, number uint32, why string) {
	c.now = now
	for _, r := range c.sortedRemotes() {
		if r.number == number {
			c.dropRemote(r, why)
		}
	}
	if !c.silent {
		c.letLive(number)
	}
	c.loseAt(func(o *object) bool { return o.where == number }, why)
	c.copiesGone(number)
	for _, cl := range c.sortedClients() {
		if cl.Kind == sdk.KindPeer && cl.Peer == number {
			c.gone(cl, "its node is gone: "+why)
		}
	}
	var died []*object
	for _, o := range c.objects {
		if _, on := c.moved[o.id.Task()]; o.fetched && !on && o.id.Node() == number {
			died = append(died, o)
		}
	}
	slices.SortFunc(died, byID)
	for _, o := range died {
		if c.inheritSpare(o) {
			continue
		}
		c.fail(o, c.errorOf("owner_died", fmt.Sprintf("object %s is lost with the node that owned it: %s", o.id, why), nil))
	}
}

func (c *Core) sortedRemotes() []*remote {
	out := make([]*remote, 0, len(c.byClient))
	for _, r := range c.byClient {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *remote) int { return cmp.Compare(a.cl.ID, b.cl.ID) })
	return out
}

// tickRemotes gives idle leases back and closes connections that nothing uses.
func (c *Core) tickRemotes() {
	for _, b := range c.leases.idle(c.now) {
		c.do(LeaseIdle{Lease: b.Lease, Slots: b.Slots})
		c.demandDue = true
	}
	if len(c.byClient) == 0 || c.now < c.lookAt {
		return
	}
	c.lookAt = c.now + second // it takes a look at all tasks and objects
	used := map[uint32]bool{}
	for _, t := range c.tasks {
		if t.state == running && t.worker() != nil && t.worker().remote != nil {
			used[t.worker().ID] = true
		}
	}
	for _, o := range c.objects {
		used[o.at] = true
	}
	for _, x := range c.leases.by {
		for _, r := range c.byClient {
			used[r.cl.ID] = used[r.cl.ID] || r.number == x.Number
		}
	}
	for _, r := range c.sortedRemotes() {
		r.forgetKills(c.now)
		switch {
		case used[r.cl.ID] || len(r.kills) > 0:
			r.idleAt = 0
		case r.idleAt == 0:
			r.idleAt = c.now
		case c.now-r.idleAt >= remoteIdle:
			c.closeRemote(r)
		}
	}
}

package tasks

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// Other nodes' tasks on this one, and their references to its objects: their agents are
// clients (sdk.KindPeer). What they submit runs under leases, is reported when it has
// ended, and its outputs stay while their owner wants them.

// FindPeer gives the client that an agent is for a key already; 0 = it is none.
func (c *Core) FindPeer(x Client) uint32 {
	for _, cl := range c.sortedClients() {
		y := cl.Client
		if y.Kind == sdk.KindPeer && y.Peer == x.Peer && y.key() == x.key() {
			return y.ID
		}
	}
	return 0
}

// peerFrame takes a frame that only agents send.
func (c *Core) peerFrame(cl *client, typ uint16, b []byte) error {
	if cl.Kind != sdk.KindPeer {
		return errs.New(errs.Corrupt, "a frame of type %#x", typ)
	}
	switch typ {
	case sdk.MsgPeerSubmit:
		p, body, err := sdk.ParsePeerSubmit(b)
		if err != nil {
			return err
		}
		return c.peerSubmit(cl, p, body)
	case sdk.MsgPeerKeeps:
		cl.keeps = append(cl.keeps, idsOf(b)...)
	case sdk.MsgPeerKeep:
		keep := append(cl.keeps, idsOf(b)...)
		cl.keeps = nil
		c.peerKeep(cl, keep)
	case sdk.MsgConsumed:
		if len(b) < 20 {
			return errs.New(errs.Corrupt, "Consumed is cut short")
		}
		if t := c.tasks[id(b[:16])]; t != nil && t.stream != nil && t.client == cl.ID {
			c.taken(t, u32(b[16:]))
		}
	case sdk.MsgPeerLost:
		if len(b) < 20 {
			return errs.New(errs.Corrupt, "PeerLost is cut short")
		}
		if o := c.objects[id(b[:16])]; o != nil && o.where != 0 && o.where == u32(b[16:]) && o.state == here && !c.store.Resident(o.id) {
			c.recordLost(o.id)
			c.lose(o, fmt.Sprintf("node number %d does not have it any more", o.where))
		}
	case sdk.MsgPeerCopy:
		return c.peerCopy(cl, b)
	case sdk.MsgPeerUncopy:
		return sdk.IDs(b, func(x id) {
			if s := c.spares[x]; s != nil && x.Node() == cl.Peer {
				c.dropSpare(s)
			}
		})
	case sdk.MsgPeerEnd:
		return sdk.IDs(b, func(x id) { c.peerEnd(cl, x) })
	case sdk.MsgPeerSync:
		if len(b) < 8 {
			return errs.New(errs.Corrupt, "PeerSync is cut short")
		}
		at := c.frame(cl, sdk.MsgPeerSynced, 0)
		cl.out = append(cl.out, b[:8]...)
		cl.finish(at)
	}
	return nil
}

// peerSubmit takes a task of another node, or one once more.
func (c *Core) peerSubmit(cl *client, p sdk.PeerSubmit, body []byte) error {
	s, err := sdk.ParseSubmit(body)
	if err != nil {
		return err
	}
	t := c.tasks[s.Task]
	again := t != nil && (t.fence != p.Attempt || t.bounced && uint64(t.lease) != p.Lease)
	if again && t.client == cl.ID && t.state == done && t.away() != nil {
		c.accounted(t) // the owner has it, or it would not try again
		t = nil
	}
	switch {
	case t != nil && t.actor != nil && t.actor.ends && t.state != done && t.fence != p.Attempt:
		// The process of the last attempt is about to end: this one waits elsewhere until then.
		c.report(cl, &task{id: s.Task, body: body, fence: p.Attempt, bounced: true})
		return nil
	case t != nil && c.clients[t.client] == nil && c.owns(cl, t.id) && t.state != done && !t.owned():
		// Its agent was away for too long. A call that still runs is its again; what else does
		// has been told to end.
		if !t.isCall() {
			c.report(cl, &task{id: s.Task, body: body, fence: p.Attempt, bounced: true})
			return nil
		}
		t.client, t.fence, t.lease = cl.ID, p.Attempt, wire.LeaseID(p.Lease)
		for i := range t.outputs() {
			if o := c.objects[t.id.With(i+1)]; o != nil {
				c.hold(o, cl.ID)
			}
		}
		return nil
	case t != nil && t.client != cl.ID:
		return errs.New(errs.Permission, "task %s is another client's", s.Task)
	case t == nil && s.Returns != sdk.Stream && s.Returns > 0 && c.objects[s.Task.With(1)].heldBy(cl.ID):
		// It has ended and is forgotten; its outputs are there.
		c.report(cl, &task{id: s.Task, body: body, fence: p.Attempt})
		return nil
	case t != nil:
		t.fence = p.Attempt
		if p.Lease != 0 {
			t.lease = wire.LeaseID(p.Lease)
		}
		if t.stream != nil {
			c.reportItems(cl, t)
		}
		if t.state == done {
			c.report(cl, t)
		} else if t.actor != nil && t.actor.up {
			c.reportUp(cl, t)
		}
		return nil
	}
	if p.Lease == 0 { // asked about after a restart of its owner, and it never came or was given back
		c.report(cl, &task{id: s.Task, body: body, fence: p.Attempt, bounced: true})
		return nil
	}
	return c.accept(cl, body, p)
}

// owns reports whether a client may submit a task or put an object of that id.
func (c *Core) owns(cl *client, x id) bool {
	if cl.Kind == sdk.KindPeer {
		return x.Node() == cl.Peer
	}
	return x.Node() == c.cfg.Number && x.Client() == cl.ID
}

// peerKeep drops what an agent does not say that it still wants: after a break, or a
// restart of it, it may have forgotten. A task that runs runs on: after a restart the agent
// does not know that it does, and submits it again. Of actors it knows.
func (c *Core) peerKeep(cl *client, ids []id) {
	cl.unheard, cl.alone = 0, false
	keep := make(map[id]bool, len(ids))
	for _, x := range ids {
		keep[x] = true
	}
	for _, t := range c.sortedTasks() {
		switch {
		case t.client != cl.ID || keep[t.id]:
		case t.state == waiting || t.state == queued:
			c.bounce(t)
		case t.state == running && t.actor != nil: // its owner's log would say so: it is elsewhere, or dead
			c.stop(t, true)
		}
	}
	var drop []id
	for _, o := range c.objects {
		if t := o.task; o.heldBy(cl.ID) && !keep[o.id] && !keep[o.id.Task()] && (t == nil || t.state == done) {
			drop = append(drop, o.id)
		}
	}
	for _, t := range c.sortedTasks() {
		if t.client == cl.ID && t.state == done && !keep[t.id] && c.stays(t) {
			c.accounted(t)
		}
	}
	sortIDs(drop)
	for _, x := range drop {
		c.release(cl, x)
	}
	if cl.Job == "" {
		c.unspare(func(s *spare) bool { return s.id.Node() == cl.Peer && !keep[s.id] })
	}
}

// report tells an agent how its task ended. What it can have inside the frame, it has
// then; the rest stays here for it.
func (c *Core) report(cl *client, t *task) {
	if cl.away != 0 || cl.unheard != 0 { // it asks again
		return // and what it has not said yet that it keeps may be gone before it hears of it
	}
	switch data := c.failure(t); {
	case t.call != nil && t.call.again != nil:
		c.reportFailure(cl, t, sdk.ResultRetry, t.call.again)
		return
	case t.how() != "":
		c.reportFailure(cl, t, sdk.ResultGone, c.errorOf("actor_died", t.how(), t))
		return
	case t.bounced:
		cl.finish(c.reportHead(cl, t, sdk.ResultBounced, 0))
		return
	case t.actor != nil:
		c.reportFailure(cl, t, sdk.ResultFailed, t.actor.dead)
		return
	case data != nil:
		c.reportFailure(cl, t, sdk.ResultFailed, data)
		return
	case t.stream != nil:
		cl.finish(c.reportHead(cl, t, sdk.ResultOK, 0))
		return
	}
	status := sdk.ResultOK
	if o := c.objects[t.id.With(1)]; t.returns() > 0 && (o == nil || o.kind == sdk.Failure) {
		status = sdk.ResultFailed
	}
	at := c.reportHead(cl, t, status, t.returns())
	var over []*object
	for i := range t.outputs() {
		o := c.objects[t.id.With(i+1)]
		if o == nil || o.state != here {
			data := c.lostError(t.id.With(i + 1))
			cl.out = sdk.AppendValue(cl.out, sdk.Failure, 1, nil, int64(len(data)), data)
			continue
		}
		cl.out = c.appendGiven(cl.out, o)
		if o.kind != sdk.Shared && len(o.refs()) == 0 && !c.stays(t) {
			over = append(over, o)
		}
	}
	if len(cl.out)-at > wire.MaxFrame { // of one run's results that cannot be
		cl.out = cl.out[:at]
		c.reportFailure(cl, t, sdk.ResultFailed, c.errorOf("internal", fmt.Sprintf("the results of task %s are too long for a message between nodes", t.id), nil))
		return
	}
	cl.finish(at)
	for _, o := range over {
		c.drop(o, cl.ID)
		c.unneeded(o)
	}
}

// reportHead begins a Result for another agent.
func (c *Core) reportHead(cl *client, t *task, status, values uint32) int {
	at := c.frame(cl, sdk.MsgResult, 0)
	b := append(cl.out, t.id[:]...)
	b = append32(append32(b, t.fence), status)
	b = binary.LittleEndian.AppendUint64(b, uint64(t.started))
	b = binary.LittleEndian.AppendUint64(b, uint64(c.now))
	cl.out = append32(b, values)
	return at
}

// reportFailure gives all outputs of a task one error.
func (c *Core) reportFailure(cl *client, t *task, status uint32, data []byte) {
	at := c.reportHead(cl, t, status, 1)
	cl.out = sdk.AppendValue(cl.out, sdk.Failure, 1, nil, int64(len(data)), data)
	cl.finish(at)
	if c.stays(t) {
		return
	}
	for i := range t.outputs() {
		if o := c.objects[t.id.With(i+1)]; o != nil {
			c.drop(o, cl.ID)
			c.unneeded(o)
		}
	}
}

// failure is the error that a task as a whole ended with; nil = it has values.
func (c *Core) failure(t *task) (data []byte) {
	if t.stream != nil {
		return t.stream.last
	}
	for i := range t.outputs() {
		o := c.objects[t.id.With(i+1)]
		if o == nil || o.kind != sdk.Failure || i > 0 && !bytes.Equal(o.data, data) {
			return nil
		}
		data = o.data
	}
	return data
}

// appendGiven adds an object's value to a frame for another agent.
func (c *Core) appendGiven(b []byte, o *object) []byte {
	if o.kind != sdk.Shared {
		return sdk.AppendValue(b, o.kind, o.form, o.refs(), o.size, o.data)
	}
	nodes := o.nodes()
	if len(nodes) == 0 {
		nodes = []uint32{c.cfg.Number}
	}
	return sdk.AppendElsewhere(b, o.form, bytesOfIDs(o.refs()), o.size, nodes)
}

// reportItem passes an item of a stream on to the agent whose stream it is. It stays here until
// that has it.
func (c *Core) reportItem(cl *client, t *task, o *object) {
	if o.state != here || cl.unheard != 0 {
		return
	}
	at := c.frame(cl, sdk.MsgYield, 0)
	b := append(cl.out, t.id[:]...)
	b = append32(append32(b, t.fence), o.id.Index()-1)
	cl.out = c.appendGiven(b, o)
	cl.finish(at)
}

// reportItems does so again with those that it may not have.
func (c *Core) reportItems(cl *client, t *task) {
	for i := range t.stream.made {
		if o := c.objects[t.id.With(i+1)]; o.heldBy(cl.ID) {
			c.reportItem(cl, t, o)
		}
	}
}

// bounce gives a task back to its agent, not begun. The log says so: nothing else in it does,
// and the next agent is not to have what its owner has elsewhere.
func (c *Core) bounce(t *task) {
	c.record(recBounced, 0, 0, t.id[:])
	t.bounced = true
	c.reportEnd(t)
	c.giveBack(t)
}

// peerCounts reports whether a task that failed here goes back to another agent, which says
// whether it runs again. One that never does fails here: an agent that is not reached would
// submit it once more.
func (c *Core) peerCounts(t *task) bool { return c.peerOf(t) != nil && t.shape.retries != 0 }

// handOver gives a task that failed here back to its agent, which counts how often it runs:
// it may run the next time anywhere, and nobody here is told of an end that may be none.
func (c *Core) handOver(t *task, status uint32, data []byte) {
	t.bounced = true
	if cl := c.peerOf(t); cl.away == 0 { // else it submits it again
		at := c.reportHead(cl, t, status, 1)
		cl.out = sdk.AppendValue(cl.out, sdk.Failure, 1, nil, int64(len(data)), data)
		cl.finish(at)
	}
	c.giveBack(t)
}

// giveBack forgets a task that its agent has again.
func (c *Core) giveBack(t *task) {
	for i := range t.outputs() {
		if o := c.objects[t.id.With(i+1)]; o != nil {
			c.drop(o, t.client)
			o.task = nil
			t.alive--
			if o.needed() && !o.fetched { // by others here: its owner is to know of them now
				o.fetched, o.lineage = true, 0
				c.do(Borrow{ID: o.id})
				if len(o.subs)+len(o.waiters()) > 0 {
					c.want(o)
				}
			} else if o.fetched {
				c.unneeded(o)
			} else {
				delete(c.objects, o.id)
			}
		}
	}
	c.settled(t)
	if t.stream != nil && !c.stays(t) {
		c.forget(t)
	}
}

// stays reports whether a task that has ended is kept: that of another node until that has
// accounted for it, an actor while somebody could call it.
func (c *Core) stays(t *task) bool {
	if t.actor != nil && t.alive > 0 {
		return true
	}
	p := c.clients[t.client]
	return p != nil && p.Kind == sdk.KindPeer && (t.isCall() || t.actor != nil)
}

// accounted: the agent whose call or actor it was knows how it ended.
func (c *Core) accounted(t *task) {
	if t.state != done {
		return
	}
	for i := range t.outputs() {
		if o := c.objects[t.id.With(i+1)]; o != nil && o.kind != sdk.Shared && len(o.refs()) == 0 {
			c.drop(o, t.client)
			c.unneeded(o)
		}
	}
	c.forget(t)
}

// takeRoom takes room for a task's shape: what the node has free, or, for a task under a
// lease, what that keeps for it.
func (c *Core) takeRoom(s *shape, t *task) (core.Slot, bool) {
	if t.lease != 0 {
		return c.room.TakeLeased(c.now, t.lease)
	}
	if s.place.Kind == wire.StrategyGroup {
		return c.room.TakeGroup(&s.place, s.need)
	}
	return c.room.Take(c.now, s.who(), s.need, s.time)
}

func (c *Core) giveRoom(lease wire.LeaseID, need wire.Resources, slot core.Slot) {
	if lease != 0 {
		c.room.GiveLeased(lease, need, slot)
	} else {
		c.room.Give(need, slot)
	}
}

// lendSlot lets go of the slot of a lease while the task in it waits: what it waits for may
// come under the same lease.
func (c *Core) lendSlot(l *level, lend bool) {
	if l.under != 0 && !c.mute {
		c.room.LendLeased(l.under, lend)
	}
}

// newAttempt counts a run of a task. Another node's task may be forgotten here and come
// once more, so no two of its runs have one number: a worker may repeat the Result of an
// old one, and what that says of memory is long untrue.
func (c *Core) newAttempt(t *task) {
	if t.id.Node() == c.cfg.Number {
		t.attempt++
		return
	}
	if c.attempts++; t.owned() { // nor one that its owner before gave it
		c.attempts = max(c.attempts, t.fence+1)
	}
	t.attempt = c.attempts
}

// stands reports whether the lease that another node's task is to run under does.
func (c *Core) stands(t *task) bool {
	cl := c.clients[t.client]
	return cl == nil || cl.Kind != sdk.KindPeer || c.room.Leased(t.lease, cl.Peer)
}

func sortIDs(ids []id) {
	slices.SortFunc(ids, func(a, b id) int { return slices.Compare(a[:], b[:]) })
}

// recordFetched writes down the value of another node's object: what waited for it goes
// on, and the next agent is to know why.
func (c *Core) recordFetched(o *object, refs []id) {
	if c.mute {
		return
	}
	b := append([]byte(nil), o.id[:]...)
	if o.kind == sdk.Shared {
		b = sdk.AppendElsewhere(b, o.form, bytesOfIDs(refs), o.size, []uint32{c.cfg.Number})
	} else {
		b = sdk.AppendValue(b, o.kind, o.form, refs, o.size, o.data)
	}
	c.record(recFetched, 0, 0, b)
}

func (c *Core) restoreFetched(b []byte) error {
	if len(b) < 16 {
		return errs.New(errs.Corrupt, "a record of tasks is damaged")
	}
	v, _, _, err := sdk.CutGiven(b[16:])
	if err != nil {
		return err
	}
	if v.Kind == sdk.Elsewhere {
		v.Kind = sdk.Shared
	}
	c.Fetched(c.now, id(b[:16]), v.Kind, v.Form, v.Size, slices.Clone(v.Bytes), idsOf(v.Refs))
	return nil
}

// findRemotes connects again, after a restart of this agent, to the nodes that have
// objects of its tasks, and to the owners of what is referred to here.
func (c *Core) findRemotes() {
	var objs, borrowed []*object
	for _, o := range c.objects {
		if o.where != 0 && o.where != c.cfg.Number {
			objs = append(objs, o)
		}
		if o.fetched {
			borrowed = append(borrowed, o)
		}
	}
	slices.SortFunc(objs, byID)
	slices.SortFunc(borrowed, byID)
	for _, o := range borrowed {
		c.do(Borrow{ID: o.id})
		if o.asked = false; len(o.waiters())+len(o.subs) > 0 {
			c.want(o)
		}
	}
	for _, o := range objs {
		if o.task != nil {
			o.at = c.remoteOf(o.where, o.task.shape.key).cl.ID
		}
	}
	for _, o := range objs { // whose task is forgotten; they are where others of the job are
		for _, r := range c.sortedRemotes() {
			if o.at == 0 && r.number == o.where {
				o.at = r.cl.ID
			}
		}
	}
}

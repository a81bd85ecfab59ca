package tasks

import (
	"fmt"
	"maps"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// submit takes a task.
func (c *Core) submit(cl *client, b []byte) error {
	s, err := sdk.ParseSubmit(b)
	if err != nil {
		return err
	}
	if cl.Kind == sdk.KindPeer || !cl.fresh(s.Task.N()) && c.owns(cl, s.Task) {
		return nil // sent again
	}
	return c.accept(cl, b, sdk.PeerSubmit{Attempt: 1})
}

// accept takes a task that is new.
func (c *Core) accept(cl *client, b []byte, from sdk.PeerSubmit) error {
	s, err := sdk.ParseSubmit(b)
	if err != nil {
		return err
	}
	if !c.owns(cl, s.Task) || s.Task.Index() != 0 {
		return errs.New(errs.Permission, "client %d submits task %s, which is not its to submit", cl.ID, s.Task)
	}
	sh := cl.shapes[s.Shape]
	if sh == nil {
		return errs.New(errs.Invalid, "task %s has options %d, which were never told", s.Task, s.Shape)
	}
	isCall := s.Flags&sdk.SubmitCall != 0
	switch { // an SDK has said so to the program
	case sh.actor != nil && !isCall && s.Returns != 0:
		return errs.New(errs.Invalid, "an actor of class %s is made with %d values; it has none", sh.name, s.Returns)
	case s.Returns > sdk.ManyMax && s.Returns != sdk.Stream:
		return errs.New(errs.Invalid, "task %s of %s gives %d values, allowed are %d", s.Task, sh.name, s.Returns, sdk.ManyMax)
	case len(s.Deps)/16 > sdk.ManyMax:
		return errs.New(errs.Invalid, "task %s of %s has %d arguments that are objects, allowed are %d", s.Task, sh.name, len(s.Deps)/16, sdk.ManyMax)
	case len(s.Payload) > sdk.PayloadMax || len(b) > sdk.BodyMax:
		return errs.New(errs.Invalid, "task %s of %s has %d bytes of arguments in its frame of %d, allowed are %d of %d", s.Task, sh.name, len(s.Payload), len(b), sdk.PayloadMax, sdk.BodyMax)
	}
	t := &task{
		id: s.Task, shape: sh, client: cl.ID, retries: sh.retries,
		fence: from.Attempt, lease: wire.LeaseID(from.Lease), body: slices.Clone(b), submitted: c.now,
	}
	c.newAttempt(t)
	if l := cl.top(); len(l.tasks) > 0 {
		t.parent = l.tasks[0].id
	}
	c.tasks[t.id] = t
	if s.Returns == sdk.Stream {
		c.startStream(t, &stream{})
	} else {
		objs := make([]object, s.Returns)
		for i := range objs {
			x := t.id.With(uint32(i) + 1)
			o := c.objects[x]
			if o == nil { // else another node's, which is referred to here
				o = &objs[i]
				o.id = x
				c.objects[x] = o
			}
			o.task = t
			c.hold(o, cl.ID)
		}
		t.alive = int32(len(objs))
	}
	if isCall {
		c.order++
		t.call = &call{order: c.order}
	}
	peer := cl.Kind == sdk.KindPeer
	switch {
	case t.isCall() && peer:
		if c.need(t); t.state != done && !c.mute {
			c.hostCall(t)
		}
	case t.isCall():
		c.call(t)
	case sh.actor != nil:
		c.create(cl, t)
		c.need(t)
	default:
		c.need(t)
	}
	if sh.job.over && t.state != done { // a worker said it before it heard
		t.cancel = true
		c.fails(t, c.cancelled(t))
	} else if p := c.tasks[t.parent]; p != nil && p.all {
		c.cancel(t.id, sdk.CancelRecursive)
	}
	return nil
}

func idsOf(b []byte) []id {
	if len(b) == 0 {
		return nil
	}
	out := make([]id, len(b)/16)
	for i := range out {
		copy(out[i][:], b[16*i:])
	}
	return out
}

// need lets a task wait for its arguments.
func (c *Core) need(t *task) {
	t.state, t.missing = waiting, 0
	c.isChild(t)
	c.queued += int64(len(t.body))
	var bad []byte
	for d := range t.deps().all() {
		o := c.lookup(d)
		if o == nil {
			if bad = c.lostError(d); t.kept {
				bad = c.errorOf("reconstruction", fmt.Sprintf("a result of %s is lost and cannot be made again: its argument %s, which was put, is gone", t.shape.name, d), t)
			}
			continue
		}
		o.uses++
		if o.state == freed {
			c.again(o)
		}
		c.want(o)
		if o.state != here {
			o.await(t)
		}
	}
	for d := range t.held().all() {
		if o := c.lookup(d); o != nil {
			o.uses++
		}
	}
	switch {
	case bad != nil:
		c.fails(t, bad)
		return
	case t.lease != 0 || t.isCall():
		c.prefetchAll(t) // while it waits for others
	}
	if t.missing == 0 {
		if c.enqueue(t); t.state == queued && t.lease == 0 && c.local(t.shape) && !c.goesNear(t) {
			c.prefetchAll(t)
		}
	}
}

// enqueue puts a task whose arguments are there in its queue.
func (c *Core) enqueue(t *task) {
	for d := range t.deps().all() {
		if o := c.objects[d]; o != nil && o.state == here && o.kind == sdk.Failure {
			c.fails(t, o.data) // an argument is an error: so is what would come of it
			return
		}
	}
	if t.cancel {
		c.fails(t, c.cancelled(t))
		return
	}
	if t.isCall() {
		c.callReady(t)
		return
	}
	if t.actor != nil {
		c.wills(t)
	}
	t.state, t.ready = queued, c.now
	t.shape.queue.push(t)
	c.wake(t.shape)
}

// requeue puts a task in front again: it was given out and comes back.
func (c *Core) requeue(t *task) {
	if t.isCall() {
		c.callAgain(t)
		return
	}
	c.leaves(t)
	c.queued += int64(len(t.body))
	if t.cancel {
		t.state = waiting // it is in no queue that it could be counted out of
		c.fails(t, c.cancelled(t))
		return
	}
	if a := t.actor; a != nil && a.why != "" {
		t.state = waiting
		c.dies(t, c.actorDied(t, a.why))
		return
	}
	t.state = queued
	t.shape.queue.pushFront(t)
	c.wake(t.shape)
}

// wake lists a shape whose tasks wait for room.
func (c *Core) wake(s *shape) {
	if !s.waiting {
		s.waiting = true
		c.ready = append(c.ready, s)
	}
}

// leaves takes a running task from its worker.
func (c *Core) leaves(t *task) {
	l := t.level
	if l == nil {
		return
	}
	t.level, t.twice = nil, false
	c.runs(t, -1)
	if a := t.away(); a != nil {
		a.sentTo = 0
		c.callLeft(t)
	}
	if l.client == nil || l.client.remote != nil {
		if l.lease != nil {
			c.leases.done(c.now, l.lease)
		}
		return
	}
	if len(l.tasks) > 0 && l.tasks[0] == t {
		l.tasks = l.tasks[1:]
		l.since = c.now
	} else if i := slices.Index(l.tasks, t); i >= 0 {
		l.tasks = slices.Delete(l.tasks, i, i+1)
	}
	c.touched = append(c.touched, l)
}

func (c *Core) cancelled(t *task) []byte {
	return c.errorOf("cancelled", fmt.Sprintf("task %s of %s was cancelled", t.id, t.shape.name), t)
}

// fails ends a task with one error for all of its outputs.
func (c *Core) fails(t *task, data []byte) {
	if t.state == done {
		return
	}
	switch {
	case t.actor != nil && !t.bounced && c.mine(t.id):
		c.dies(t, data)
		return
	case t.actor != nil:
		t.actor.dead = data
	case t.stream != nil:
		c.endStream(t, data)
	default:
		for i := range t.outputs() {
			if o := c.objects[t.id.With(i+1)]; o != nil {
				c.fail(o, data)
			}
		}
	}
	c.ended(t)
}

// judges ends a task with an error that nothing in the log leads to. Who depends on it may have
// been told: the next agent is not to find otherwise.
func (c *Core) judges(t *task, data []byte) {
	if t.state != done {
		c.record(recFails, 0, 0, slices.Concat(t.id[:], data))
		c.fails(t, data)
	}
}

// ended tells the agent whose task it was, and lets go of what it needed.
func (c *Core) ended(t *task) {
	c.reportEnd(t)
	c.settled(t)
}

func (c *Core) reportEnd(t *task) {
	if cl := c.peerOf(t); cl != nil {
		c.report(cl, t)
	}
}

// settled lets go of what a task needed. It stays, for its outputs to be made again, while
// one of them is in shared memory, which can be lost.
func (c *Core) settled(t *task) {
	if t.state == waiting || t.state == queued {
		c.queued -= int64(len(t.body))
	}
	if t.state == queued {
		t.shape.queue.n--
	}
	if t.state == waiting && t.missing > 0 {
		for d := range t.deps().all() {
			if o := c.objects[d]; o != nil && len(o.waiters()) > 0 {
				o.links.waiters = slices.DeleteFunc(o.links.waiters, func(w *task) bool { return w == t })
			}
		}
	}
	c.leaves(t)
	t.state = done
	c.noChild(t)
	if t.isCall() {
		c.callEnded(t)
	}
	if c.mayLose(t) && !t.kept {
		c.keep(t)
	}
	for d := range t.deps().all() {
		c.unuse(d)
	}
	for d := range t.held().all() {
		c.unuse(d)
	}
	if (!t.kept || t.alive == 0) && t.stream == nil && !c.stays(t) {
		c.forget(t)
	}
	for c.lineage > c.cfg.MaxLineage && len(c.kept) > 0 {
		c.forget(c.kept[0])
	}
}

// forget drops a task that has ended: what it made cannot be made again.
func (c *Core) forget(t *task) {
	delete(c.tasks, t.id)
	for i := range t.outputs() {
		if o := c.objects[t.id.With(i+1)]; o != nil {
			o.task = nil
			if o.state == freed {
				delete(c.objects, o.id)
			}
		}
	}
	if !t.kept {
		return
	}
	t.kept = false
	c.lineage -= t.cost
	if i := slices.Index(c.kept, t); i >= 0 {
		c.kept = slices.Delete(c.kept, i, i+1)
	}
	for d := range t.deps().all() {
		if o := c.objects[d]; o != nil && !o.fetched {
			o.lineage--
			c.unneeded(o)
		}
	}
}

// result takes the end of a task.
func (c *Core) result(cl *client, b []byte) error {
	r, rest, err := sdk.ParseResult(b)
	if err != nil {
		return err
	}
	t := c.tasks[r.Task]
	if t == nil || t.worker() != cl || t.attempt != r.Attempt || t.state != running {
		return nil // told twice, or fenced
	}
	sh := t.shape
	if took := float64(r.End - r.Start); r.Status == sdk.ResultOK && took >= 0 {
		if sh.mean == 0 {
			sh.mean = max(took, 1)
		} else {
			sh.mean += (took - sh.mean) / 8
		}
	}
	cl.ran++
	cl.handed = false
	cl.called(t)
	c.note(t, cl, r)
	switch {
	case t.actor != nil:
		c.actorResult(t, r, rest)
		return nil
	case r.Status == sdk.ResultRetry:
		v, _, err := sdk.CutValue(rest)
		if err != nil || v.Kind != sdk.Failure {
			c.fails(t, c.errorOf("internal", "the worker gave no error for a task that failed", t))
			return errs.New(errs.Corrupt, "a Result of a task that failed without its error")
		}
		c.mayRetry(t, slices.Clone(v.Bytes))
		return nil
	case t.stream != nil:
		var data []byte
		if r.Status != sdk.ResultOK && r.Values > 0 {
			v, _, err := sdk.CutValue(rest)
			if err != nil {
				return err
			}
			data = slices.Clone(v.Bytes)
		}
		c.endStream(t, data)
		c.ended(t)
		return nil
	case r.Status == sdk.ResultOK && r.Values != int(t.returns()):
		c.fails(t, c.errorOf("internal", fmt.Sprintf("the worker gave %d values for task %s, which has %d", r.Values, t.id, t.returns()), t))
		return errs.New(errs.Corrupt, "a Result of %d values for a task that has %d", r.Values, t.returns())
	case r.Status != sdk.ResultOK:
		v, _, err := sdk.CutValue(rest)
		if err != nil || v.Kind != sdk.Failure {
			c.fails(t, c.errorOf("internal", "the worker gave no error for a task that failed", t))
			return errs.New(errs.Corrupt, "a Result of a task that failed without its error")
		}
		c.stats.failed++
		c.fails(t, slices.Clone(v.Bytes)) // once for all outputs
		return nil
	}
	var v sdk.Value
	for i := range t.outputs() {
		if v, rest, err = sdk.CutValue(rest); err != nil {
			c.fails(t, c.errorOf("internal", "the worker gave a damaged value: "+err.Error(), t))
			return err
		}
		if o := c.objects[t.id.With(i+1)]; o != nil {
			c.fill(cl, o, &v)
		}
	}
	c.stats.done++
	c.ended(t)
	return nil
}

// mayRetry: a task failed with an error after which it is to run again.
func (c *Core) mayRetry(t *task, data []byte) {
	switch {
	case c.peerOf(t) != nil && t.isCall(): // as handOver, and it is asked for until it is accounted for
		t.call.again = data
		c.bounce(t)
	case c.peerCounts(t):
		c.handOver(t, sdk.ResultRetry, data)
	case t.retries != 0 && !t.cancel:
		c.retry(t)
	default:
		c.stats.failed++
		c.fails(t, data)
	}
}

// retry runs a task once more.
func (c *Core) retry(t *task) {
	if t.retries > 0 {
		t.retries--
	}
	c.newAttempt(t)
	c.requeue(t)
}

// interrupted runs a task again whose worker or node is gone, or says what became of it.
func (c *Core) interrupted(t *task, code, msg string) {
	switch {
	case t.actor != nil:
		c.actorLost(t, msg)
	case t.isCall():
		c.callLost(t, msg)
	case t.cancel:
		c.fails(t, c.cancelled(t))
	case c.peerCounts(t):
		c.handOver(t, sdk.ResultGone, c.errorOf(code, msg, t))
	case t.retries != 0:
		c.retry(t)
	default:
		c.stats.failed++
		var hints []string
		if t.shape.retries == 0 {
			hints = []string{"max_retries lets such a task run again"}
		} else {
			msg += fmt.Sprintf("; it was the last of its %d attempts", t.shape.retries+1)
		}
		c.fails(t, c.errorOf(code, msg, t, hints...))
	}
}

// handBack takes tasks back that a worker which is about to wait has not begun. It runs one
// then, the first that it has; numbers say nothing about that one when it was given again.
func (c *Core) handBack(cl *client, from uint32) {
	var back []*task
	runs := false
	for _, l := range cl.levels {
		for _, t := range l.tasks {
			if runs && t.seq >= from {
				back = append(back, t)
			}
			runs = true
		}
	}
	for _, t := range slices.Backward(back) {
		c.requeue(t)
	}
	cl.handed, cl.deaf = !cl.top().blocked, true
}

// Synced answers a client's Call that asks for nothing else, if it has a number. A worker that
// has handed back drops all that it is given before.
func (c *Core) Synced(client, request uint32) {
	cl := c.clients[client]
	if cl == nil {
		return
	}
	if request != 0 {
		at := c.frame(cl, sdk.MsgAnswer, 0)
		cl.out = append(append32(append32(cl.out, request), 0), wire.Marshal(nil)...)
		cl.finish(at)
	}
	cl.deaf = false
	c.hasRepeated(cl)
}

// cancel ends a task that was asked to end, and with CancelRecursive what it submitted, which
// hears of it later: it is not to take their end for their failure.
func (c *Core) cancel(x id, flags uint32) {
	t := c.tasks[x]
	if t == nil {
		return
	}
	var kids []*task
	if flags&sdk.CancelRecursive != 0 {
		t.all, kids = true, c.childrenOf(t)
	}
	switch t.state {
	case waiting, queued:
		// The log does not say of every task where it is: that this one was here does.
		if t.cancel = true; c.mute {
			break
		}
		c.stats.cancelled++
		c.record(recCancelled, 0, 0, t.id[:])
		c.fails(t, c.cancelled(t))
	case running:
		t.cancel = true
		c.interrupt(t, flags)
	}
	for _, k := range kids {
		c.cancel(k.id, flags)
	}
}

// interrupt has a task that runs end.
func (c *Core) interrupt(t *task, flags uint32) {
	w := t.worker()
	switch {
	case w == nil: // a log is read; who has it is told later
	case w.remote != nil:
		c.tellCancel(w.remote, t, flags)
	case t.isCall():
		c.tell(w, sdk.MsgCancelTask, t.id, t.attempt)
	case flags&sdk.CancelForce != 0:
		c.do(StopWorker{ID: w.ID, Force: true})
	default:
		c.tell(w, sdk.MsgCancelTask, t.id, t.attempt)
		c.do(Interrupt{ID: w.ID})
	}
}

// childrenOf are the tasks that a task submitted and that have not ended.
func (c *Core) childrenOf(t *task) []*task {
	out := slices.Collect(maps.Keys(c.children[t.id]))
	sortTasks(out)
	return out
}

// isChild enters a task that has not ended with the one that submitted it.
func (c *Core) isChild(t *task) {
	if t.parent == (id{}) {
		return
	}
	m := c.children[t.parent]
	if m == nil {
		m = map[*task]struct{}{}
		c.children[t.parent] = m
	}
	m[t] = struct{}{}
}

// noChild takes it out: it has ended.
func (c *Core) noChild(t *task) {
	if m := c.children[t.parent]; m != nil {
		if delete(m, t); len(m) == 0 {
			delete(c.children, t.parent)
		}
	}
}

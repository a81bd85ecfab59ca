package tasks

import (
	"cmp"
	"slices"

	"launcher/wire"
	"launcher/wire/sdk"
)

// Calls of actors, on the node of the caller. The agent finds out where an actor lives, sends
// calls there in their order, and decides what becomes of those whose actor went away.

// callee is an actor that programs of this node call.
type callee struct {
	id      id
	life    uint32 // the newest that is known
	node    uint32 // where that is; 0 = it is over, or none is known
	attempt uint32 // of its creation
	past    uint32 // lives of such attempts, and of those before, are over
	wants   *object
	open    bool // calls are sent as they come
	calls   map[id]*task
	old     int // calls that are still with lives before it
	dead    []byte
}

// call is what a call has beside its task.
type call struct {
	away
	callee *callee // of a program of this node
	at     callState
	why    string // it is in limbo
	again  []byte // of another node's program: it ended with this error, and asked for another run
	order  uint64 // among all calls
	host   *task  // the creation of the actor that has it, or is to have it
	lane   *lane  // that it waits in there
}

// away is what creations and calls have that other nodes may have to do with.
type away struct {
	gone   string // the process died: how
	sentTo uint32 // the node that has it, as far as the log knows
}

// away is nil of tasks that are neither.
func (t *task) away() *away {
	switch {
	case t.call != nil:
		return &t.call.away
	case t.actor != nil:
		return &t.actor.away
	}
	return nil
}

// how the process of an actor died, if that is what became of it.
func (t *task) how() string {
	if a := t.away(); a != nil {
		return a.gone
	}
	return ""
}

// order is 0 of all but calls.
func (t *task) order() uint64 {
	if t.call == nil {
		return 0
	}
	return t.call.order
}

// callState is where a call is, on the caller's node.
type callState uint8

const (
	callHere callState = iota // not sent, or back unbegun
	callSent
	callLimbo // it may have been begun by a life that is over
)

// attach enters a call of a program of this node.
func (c *Core) attach(t *task) *callee {
	x := id(t.fn())
	g := c.callees[x]
	if g == nil {
		g = &callee{id: x, calls: map[id]*task{}}
		c.callees[x] = g
	}
	if len(g.calls) == 0 {
		if h := c.lookup(handle(x)); h != nil {
			h.uses++
		} else if g.dead == nil {
			g.dead = c.errorOf("actor_died", "actor "+x.String()+" is over: nothing had a handle of it any more, or it never was", nil)
		}
	}
	t.call.callee = g
	g.calls[t.id] = t
	return g
}

// call takes a call of a program of this node.
func (c *Core) call(t *task) {
	g := c.attach(t)
	c.need(t)
	if t.state != done && !c.mute { // Resume sends what the log has
		c.route(g, t)
	}
}

func (c *Core) route(g *callee, t *task) {
	switch {
	case g.dead != nil:
		c.judges(t, g.dead)
	case g.open:
		c.deliver(g, t)
	default:
		c.seek(g)
	}
}

// seek asks for the life after the one that is over.
func (c *Core) seek(g *callee) {
	if g.node != 0 || g.wants != nil || g.dead != nil || c.mute || len(g.calls) == 0 {
		return
	}
	o := c.lookup(g.id.With(2 + g.life))
	if o == nil {
		c.calleeDead(g, c.errorOf("actor_died", "actor "+g.id.String()+" is over: nothing had a handle of it any more, or it never was", nil))
		return
	}
	o.uses++
	o.linked().callee, g.wants = g, o
	c.want(o)
	if o.state == here {
		c.found(g)
	}
}

// found: the life that was asked for is there, or the actor is dead.
func (c *Core) found(g *callee) {
	o := g.wants
	g.wants, o.linked().callee = nil, nil
	var life []uint32
	switch {
	case o.kind == sdk.Failure:
		c.calleeDead(g, o.data)
	case wire.Unmarshal(o.data, &life) != nil || len(life) != 3:
		c.calleeDead(g, c.errorOf("internal", "where actor "+g.id.String()+" is cannot be read", nil))
	default:
		g.node, g.life, g.attempt, g.old = life[0], life[1], life[2], 0
		if g.attempt <= g.past { // its owner does not know that yet
			g.node = 0
		}
		for _, t := range g.calls {
			if t.call.at == callSent && uint32(t.lease) != g.attempt {
				g.old++
			}
		}
		c.flush(g)
	}
	c.unuse(o.id)
	c.seek(g)
}

// standsForLife reports whether an object only says where an actor lives.
func (c *Core) standsForLife(o *object) bool {
	if o.links != nil && o.links.callee != nil {
		return true
	}
	t := c.tasks[o.id.Task()]
	return t != nil && t.actor != nil && o.id.Index() > 1
}

// flush sends what waits for a life of an actor, once all calls to the one before are
// accounted for.
func (c *Core) flush(g *callee) {
	if g.node == 0 || g.open || g.old > 0 {
		return
	}
	g.open = true
	for _, t := range g.sorted() {
		switch {
		case !g.open:
			return
		case t.state != waiting:
		case t.call.at == callLimbo && t.retries == 0:
			c.stats.failed++
			c.judges(t, c.errorOf("actor_unavailable", t.call.why+"; the call may have been running then", t, "max_task_retries lets such a call run again"))
		case t.call.at == callLimbo:
			if t.retries > 0 {
				t.retries--
			}
			c.newAttempt(t)
			c.deliver(g, t)
		case t.call.at == callHere:
			c.deliver(g, t)
		}
	}
}

func (g *callee) sorted() []*task {
	out := make([]*task, 0, len(g.calls))
	for _, t := range g.calls {
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b *task) int { return cmp.Compare(a.order(), b.order()) })
	return out
}

// deliver sends a call to where its actor lives.
func (c *Core) deliver(g *callee, t *task) {
	if g.node == c.cfg.Number {
		h := c.tasks[g.id]
		if h == nil || h.actor == nil || !h.actor.up || c.attemptHere(h) != g.attempt {
			c.over(g, g.attempt)
			return
		}
		t.call.at, t.lease = callSent, wire.LeaseID(g.attempt)
		c.enlane(h, t)
		return
	}
	t.call.at, t.lease = callSent, wire.LeaseID(g.attempt)
	r := c.remoteOf(g.node, t.shape.key)
	c.queued -= int64(len(t.body))
	t.state = running
	t.level = &level{client: r.cl, shape: t.shape, tasks: []*task{t}, since: c.now}
	t.started = c.now
	c.running++
	c.recordAway(t, r.number)
	c.tellTask(r, t)
}

// over: the life of an actor with that attempt of its creation is over.
func (c *Core) over(g *callee, attempt uint32) {
	g.past = max(g.past, attempt)
	if g.node != 0 && g.attempt <= g.past {
		g.node, g.open = 0, false
	}
	c.seek(g)
}

// outOfReach: that life cannot be reached from here. Its owner says whether it goes on.
func (c *Core) outOfReach(g *callee, attempt uint32) {
	if g.node != 0 && g.attempt == attempt {
		g.node, g.open = 0, false
		g.life--
	}
	c.seek(g)
}

// Unreached: the owner of an object cannot be reached, which does not mean that it is gone.
// false = the object does not only say where an actor lives. Calls that may not run again
// fail; others wait for it.
func (c *Core) Unreached(now int64, x id, why string) bool {
	c.now = now
	o := c.objects[x]
	if o == nil || o.links == nil || o.links.callee == nil {
		return false
	}
	g := o.links.callee
	g.wants, o.links.callee = nil, nil
	c.unuse(x)
	for _, t := range g.sorted() {
		if t.state == waiting && t.call.at != callSent && t.retries == 0 {
			c.stats.failed++
			c.judges(t, c.errorOf("actor_unavailable", "where actor "+g.id.String()+" is cannot be found out: "+why, t, "max_task_retries lets calls wait for it"))
		}
	}
	c.seek(g)
	return true
}

// leaves: a call is not with the life any more that it was sent to.
func (g *callee) leaves(t *task) {
	if t.call.at == callSent && uint32(t.lease) != g.attempt && g.old > 0 {
		g.old--
	}
}

// comesBack takes a call back that was not begun.
func (c *Core) comesBack(t *task) {
	if t.call.callee == nil { // of another node's program, which may be gone
		c.bounce(t)
		return
	}
	c.takeBack(t, callHere)
}

// callLost takes a call back that may have been begun.
func (c *Core) callLost(t *task, why string) {
	if t.call.callee == nil {
		t.away().gone = why
		c.bounce(t)
		return
	}
	t.call.why = why
	c.takeBack(t, callLimbo)
}

func (c *Core) takeBack(t *task, at callState) {
	g := t.call.callee
	if t.state == running {
		c.leaves(t)
		t.state = waiting
		c.queued += int64(len(t.body))
	}
	g.leaves(t)
	t.call.at = at
	switch {
	case t.cancel:
		c.fails(t, c.cancelled(t))
	case g.dead != nil:
		c.judges(t, g.dead)
	case c.cut:
		c.outOfReach(g, uint32(t.lease))
		c.flush(g)
	default:
		c.over(g, uint32(t.lease))
		c.flush(g)
	}
}

// callAgain has a call run once more that asked for it by its exception.
func (c *Core) callAgain(t *task) {
	h := t.call.host
	c.leaves(t)
	t.state = waiting
	c.queued += int64(len(t.body))
	switch {
	case t.cancel:
		c.fails(t, c.cancelled(t))
	case c.mute: // Resume sends it
		t.call.at = callHere
	case h == nil: // it ran elsewhere
		g := t.call.callee
		g.leaves(t)
		if t.call.at = callHere; g.open {
			c.deliver(g, t)
		} else {
			c.seek(g)
			c.flush(g)
		}
	case h.actor.lanes == nil: // the actor was killed meanwhile
		c.comesBack(t)
	default:
		c.enlane(h, t)
	}
}

// callEnded: a call has ended, well or not.
func (c *Core) callEnded(t *task) {
	if t.call.lane != nil {
		c.outOfLane(t)
	}
	g := t.call.callee
	if g == nil {
		return
	}
	t.call.callee = nil
	delete(g.calls, t.id)
	g.leaves(t)
	c.flush(g)
	if len(g.calls) == 0 {
		if c.unuse(handle(g.id)); c.objects[handle(g.id)] == nil {
			c.forgetCallee(g.id)
		}
	}
}

// calleeDead ends all calls of an actor that is dead.
func (c *Core) calleeDead(g *callee, data []byte) {
	g.dead, g.node, g.open = data, 0, false
	for _, t := range g.sorted() {
		if t.state == waiting && t.call.at != callSent {
			c.stats.failed++
			c.judges(t, data)
		}
	}
}

// forgetCallee: nothing of this node has a handle of an actor any more.
func (c *Core) forgetCallee(x id) {
	if g := c.callees[x]; g != nil && len(g.calls) == 0 {
		delete(c.callees, x)
		if o := g.wants; o != nil {
			o.linked().callee = nil
			c.unuse(o.id)
		}
	}
}

// resumeCalls sends, after a restart of the agent, what the log has of calls.
func (c *Core) resumeCalls() {
	var calls []*task
	for _, t := range c.tasks {
		if t.isCall() && t.state != done {
			calls = append(calls, t)
		}
		if t.actor != nil && t.actor.up && t.state == running {
			c.host(t)
		}
	}
	c.resumeAway()
	slices.SortFunc(calls, func(a, b *task) int { return cmp.Compare(a.order(), b.order()) })
	for _, t := range calls {
		if t.state != running {
			continue
		}
		if w := t.worker(); w != nil && w.actor != nil && w.actor.actor.up {
			t.call.host = w.actor
			g, _ := t.call.host.groupOf(t.shape.group)
			g.given++
		}
		if t.call.callee != nil {
			t.call.at = callSent
			if t.call.host != nil {
				t.lease = wire.LeaseID(c.attemptHere(t.call.host))
			}
		}
	}
	for _, t := range calls {
		switch {
		case t.state != waiting:
		case t.call.callee != nil:
			c.route(t.call.callee, t)
		default:
			c.hostCall(t)
		}
	}
}

// resumeAway finds the creations and calls again that other nodes have. Of other tasks that
// the log says were there it does not say where: they are given out once more.
func (c *Core) resumeAway() {
	for _, t := range c.sortedTasks() {
		if a := t.away(); a != nil && a.sentTo != 0 && t.state == running && t.worker() == nil {
			r := c.remoteOf(a.sentTo, t.shape.key)
			t.level = &level{client: r.cl, shape: t.shape, tasks: []*task{t}, since: c.now}
		} else if a == nil && t.state == running && t.worker() == nil {
			c.requeue(t)
		} else if a == nil && t.state == queued && t.cancel { // it was away when it was cancelled
			c.judges(t, c.cancelled(t))
		}
	}
}

// wasAway has a task run that the log says was on another node.
func (c *Core) wasAway(t *task, attempt uint32) {
	c.isLet(t)
	if t.state != queued && !(t.isCall() && t.state == waiting) {
		return
	}
	if t.state == queued {
		t.shape.queue.n--
	}
	c.queued -= int64(len(t.body))
	c.runs(t, 1)
	t.state, t.attempt, t.level = running, attempt, &level{tasks: []*task{t}}
}

// goneHow is what a Result says of the end of an actor's process.
func goneHow(res sdk.Result, rest []byte) string {
	var e sdk.Error
	if res.Values > 0 {
		if v, _, err := sdk.CutValue(rest); err == nil && wire.Unmarshal(v.Bytes, &e) == nil {
			return e.Message
		}
	}
	return "its process died"
}

// runs counts the tasks that are with workers; actors, which are there for ever, do not count.
func (c *Core) runs(t *task, n int) {
	if t.actor == nil {
		c.running += n
	}
}

package tasks

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"launcher/agent/core"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// Actors (docs/actors.md). An actor is a task that does not end, its creation: what holds
// for tasks holds for it. This file has what its owner and its host do, which may be one;
// calls.go what the agents of callers do.

// actorOptions are those of a shape of creations.
type actorOptions struct {
	Concurrency int            `codec:"concurrency"`
	Groups      map[string]int `codec:"groups"`
	Unordered   bool           `codec:"unordered"`
	Exclusive   bool           `codec:"exclusive"`
	Detached    bool           `codec:"detached"`
	Namespace   string         `codec:"namespace"`
	Name        string         `codec:"name"`
	Meta        []byte         `codec:"meta"`

	startCPU bool // a core is taken for its start only
}

// mostCalls bounds the calls that an actor may be asked to run at a time.
const mostCalls = 1 << 24

func (o *actorOptions) check(name string) error {
	for _, n := range append(slices.Collect(maps.Values(o.Groups)), max(o.Concurrency, -1)) {
		if n < 0 || n > mostCalls {
			return errs.New(errs.Invalid, "actors of class %s are to run %d calls at a time", name, n)
		}
	}
	return nil
}

// actor is what a creation has beside its task.
type actor struct {
	away
	// Of the owner:
	life  uint32    // lives that have begun
	node  uint32    // where it lives; 0 = nowhere at the moment
	asked []*object // lives that somebody waits for
	dead  []byte    // once it is: why, an error value
	why   string    // it is to end
	kill  bool      // at once
	until int64     // it is not to live again before
	left  uint32    // because it may still live on that node
	ends  bool      // this life of it is to end at once
	taken uint32    // the attempt that ran when this node became its owner; 0 = it always was, or is not
	// Of the host:
	up    bool
	lanes map[laneKey]*lane
	queue map[string]*group
}

// laneKey is who calls, into which concurrency group. Calls to an unordered actor have a
// lane each.
type laneKey struct {
	caller [8]byte
	group  string
	call   id
}

// lane is calls of which one is given after the other.
type lane struct {
	key   laneKey
	calls []*task
	turn  bool // it is in its group's list
}

// group is a concurrency group on the host.
type group struct {
	ready  []*lane // whose first call can be given
	given  int
	most   int
	beside int // of those so many run at a time
}

// aheadCalls is how many calls a worker has beside those that it can run.
const aheadCalls = 64

func (t *task) isCall() bool { return t.call != nil }

// handle is the object that stands for an actor.
func handle(actor id) id { return actor.With(1) }

// create enters an actor on the node that owns it.
func (c *Core) create(cl *client, t *task) {
	t.actor = &actor{}
	if cl.Kind == sdk.KindPeer {
		t.retries = 0 // its owner decides
		return
	}
	h := &object{id: handle(t.id), state: here, kind: sdk.Inline, form: 1, size: 1, data: []byte{0xc0}, task: t, made: c.now}
	c.objects[h.id] = h
	c.hold(h, cl.ID)
	t.alive = 1
	if t.shape.actor.Detached {
		h.uses++
		t.shape.job.drivers++
	}
}

// attemptHere is what the owner calls the attempt of a task that runs here.
func (c *Core) attemptHere(t *task) uint32 {
	if !c.mine(t.id) || t.actor != nil && t.actor.taken == t.attempt {
		return t.fence // as the owner before called it
	}
	return t.attempt
}

// isUp: the constructor of an actor is done.
func (c *Core) isUp(cl *client, b []byte) error {
	if len(b) < 20 {
		return errs.New(errs.Corrupt, "Up is cut short")
	}
	t := c.tasks[id(b[:16])]
	if t == nil || t.actor == nil || t.worker() != cl || t.attempt != u32(b[16:]) || t.state != running || t.actor.up {
		return nil
	}
	t.actor.up = true
	l := t.level
	c.rests(l)
	if rest := restOf(t.shape, l.need); l.has {
		switch {
		case rest.Nothing():
			c.leaveRoom(l)
			l.need, l.slot = wire.Resources{}, core.Slot{Bundle: l.slot.Bundle}
		case t.shape.actor.startCPU && l.under == 0:
			if !c.mute && !l.blocked {
				c.room.Give(wire.Resources{CPU: l.need.CPU}, core.Slot{CPUs: l.slot.CPUs, Bundle: l.slot.Bundle})
				c.nudge = true
			}
			l.need.CPU, l.slot.CPUs = 0, nil
		}
	}
	c.host(t)
	if p := c.peerOf(t); p != nil {
		c.reportUp(p, t)
	} else {
		c.lives(t, c.cfg.Number)
	}
	return nil
}

// restOf is what an actor needs once it is up.
func restOf(s *shape, need wire.Resources) wire.Resources {
	if s.actor.startCPU {
		need.CPU = 0
	}
	return need
}

func (c *Core) reportUp(p *client, t *task) {
	if p.away == 0 {
		c.tell(p, sdk.MsgUp, t.id, t.fence)
	}
}

// remoteUp: an actor of this node lives on another one.
func (c *Core) remoteUp(number uint32, b []byte) error {
	if len(b) < 20 {
		return errs.New(errs.Corrupt, "Up is cut short")
	}
	t := c.tasks[id(b[:16])]
	if t == nil || t.actor == nil || t.actor.node == number || !c.runsOn(t, number, u32(b[16:])) {
		return nil
	}
	c.recordRemote(number, sdk.MsgUp, b)
	t.actor.ends = false // it was said to this life before it began, if at all
	if l := t.level; l != nil && l.lease != nil && restOf(t.shape, t.shape.need).Nothing() {
		c.leases.done(c.now, l.lease)
		l.lease = nil
	}
	c.lives(t, number)
	return nil
}

// lives: a life of an actor has begun. Whoever waits for it is told.
func (c *Core) lives(t *task, number uint32) {
	a := t.actor
	a.life++
	a.node = number
	asked := a.asked
	a.asked = nil
	for _, o := range asked {
		t.setLife(o, c.attemptHere(t))
		c.arrive(o)
	}
	if a.why != "" {
		c.endActor(t, a.why, a.kill)
		return
	}
	c.wills(t)
}

// askLife gives the object that stands for a life of an actor of this node.
func (c *Core) askLife(t *task, x id) *object {
	o := &object{id: x, state: pending}
	c.objects[x] = o
	switch {
	case t.actor.dead != nil:
		o.state, o.kind, o.form, o.data, o.size = here, sdk.Failure, 1, t.actor.dead, int64(len(t.actor.dead))
	case t.actor.node != 0 && x.Index()-1 <= t.actor.life:
		t.setLife(o, c.attemptHere(t))
		o.state = here
	default:
		t.actor.asked = append(t.actor.asked, o)
	}
	return o
}

// setLife gives an object the value that a life has.
func (t *task) setLife(o *object, attempt uint32) {
	o.kind, o.form = sdk.Inline, 1
	o.data = wire.Marshal([]uint32{t.actor.node, t.actor.life, attempt})
	o.size = int64(len(o.data))
}

// actorLost: the process of an actor is gone. Its owner has it live again, or it is dead.
func (c *Core) actorLost(t *task, msg string) {
	a := t.actor
	silent := c.silentNode(t)
	c.unhost(t)
	a.node, a.ends = 0, false
	if c.peerOf(t) != nil {
		t.away().gone = msg
		c.ended(t)
		return
	}
	if t.cancel || t.retries == 0 || a.why != "" {
		if a.why != "" {
			msg = a.why
		}
		c.stats.failed++
		c.dies(t, c.actorDied(t, msg))
		return
	}
	if silent != 0 {
		c.holdBack(t, silent)
		return
	}
	c.retry(t)
}

func (c *Core) actorDied(t *task, msg string) []byte {
	return c.errorOf("actor_died", isDead(t)+msg, t)
}

// isDead is what calls of a dead actor are told before why it is.
func isDead(t *task) string { return fmt.Sprintf("actor %s of %s is dead: ", t.id, t.shape.name) }

// dies ends an actor for good.
func (c *Core) dies(t *task, data []byte) {
	a := t.actor
	if t.state == done {
		return
	}
	c.unhost(t)
	a.dead, a.node = data, 0
	c.ended(t)
	asked := a.asked
	a.asked = nil
	for _, o := range asked {
		c.fail(o, data)
	}
	c.do(ActorOver{ID: t.id})
	if t.shape.actor.Detached && c.mine(t.id) {
		if h := c.objects[handle(t.id)]; h != nil {
			h.uses--
			c.unneeded(h)
		}
		t.shape.job.drivers--
		c.jobLess(t.shape.job)
	}
}

// actorResult takes the end of a creation that its worker reports: the constructor raised,
// or the actor ended by its own will.
func (c *Core) actorResult(t *task, r sdk.Result, rest []byte) {
	data := c.actorDied(t, "it ended by its own will")
	if r.Status != sdk.ResultOK {
		data = c.actorDied(t, "its constructor failed")
		if r.Values > 0 {
			if v, _, err := sdk.CutValue(rest); err == nil {
				data = constructorFailed(v.Bytes)
			}
		}
	}
	if w := t.worker(); w != nil && w.pool != nil && !w.ending {
		c.endWorker(w)
	}
	if c.peerOf(t) != nil {
		c.unhost(t)
		t.actor.dead = data
		c.ended(t)
		return
	}
	c.dies(t, data)
}

// constructorFailed makes the error of a dead actor out of that of its constructor.
func constructorFailed(data []byte) []byte {
	var e sdk.Error
	if wire.Unmarshal(data, &e) != nil {
		return data
	}
	if s, ok := e.Cause.(string); ok {
		e.Cause = []byte(s)
	}
	e.Code, e.Message = "actor_died", "its constructor failed: "+e.Message
	return e.Encode()
}

// settleActor has a worker be an actor's, from its creation on.
func (c *Core) settleActor(w *client, t *task) {
	if t.actor != nil && w.actor == nil {
		w.actor = t
		c.workers-- // the bound is for workers that tasks share
	}
}

// peerOf is the agent whose task it is; nil = a program of this node's.
func (c *Core) peerOf(t *task) *client {
	if p := c.clients[t.client]; p != nil && p.Kind == sdk.KindPeer {
		return p
	}
	return nil
}

// host lets an actor that is up take calls.
func (c *Core) host(t *task) {
	a := t.actor
	a.up = true
	a.lanes, a.queue = map[laneKey]*lane{}, map[string]*group{}
}

// groupOf gives the concurrency group of calls; unknown ones are the default.
func (t *task) groupOf(name string) (*group, string) {
	o := t.shape.actor
	most, ok := o.Groups[name]
	if !ok {
		name, most = "", max(1, o.Concurrency)
	}
	g := t.actor.queue[name]
	if g == nil {
		g = &group{most: most + min(most+aheadCalls, 2*aheadCalls), beside: most}
		t.actor.queue[name] = g
	}
	return g, name
}

// enlane queues a call on the host. One that is there again is in front of those after it.
func (c *Core) enlane(host, t *task) {
	a := host.actor
	g, name := host.groupOf(t.shape.group)
	k := laneKey{group: name}
	copy(k.caller[:], t.id[:8])
	if host.shape.actor.Unordered {
		k.call = t.id
	}
	l := a.lanes[k]
	if l == nil {
		l = &lane{key: k}
		a.lanes[k] = l
	}
	i := len(l.calls)
	for i > 0 && l.calls[i-1] != nil && l.calls[i-1].id.N() > t.id.N() {
		i--
	}
	l.calls = slices.Insert(l.calls, i, t)
	t.call.lane, t.call.host = l, host
	c.turn(host, g, l)
}

// first gives the oldest call of a lane that is still to be given.
func (l *lane) first() *task {
	for len(l.calls) > 0 {
		if t := l.calls[0]; t.call.lane == l && t.state == waiting {
			return t
		}
		l.calls[0] = nil
		l.calls = l.calls[1:]
	}
	return nil
}

// turn lists a lane whose first call has its arguments.
func (c *Core) turn(host *task, g *group, l *lane) {
	if t := l.first(); t == nil {
		if host.actor.lanes[l.key] == l { // a later call may have begun another
			delete(host.actor.lanes, l.key)
		}
		return
	} else if l.turn || t.missing > 0 {
		return
	}
	l.turn = true
	g.ready = append(g.ready, l)
	c.hosts = append(c.hosts, host)
}

// callReady: the arguments of a call are there.
func (c *Core) callReady(t *task) {
	if t.call.lane != nil {
		g, _ := t.call.host.groupOf(t.shape.group)
		c.turn(t.call.host, g, t.call.lane)
	}
}

// pump gives calls to the workers of actors.
func (c *Core) pump() {
	for len(c.hosts) > 0 {
		hs := c.hosts
		c.hosts = nil
		for _, h := range hs {
			if h.state == running && h.actor.up && h.worker().pool != nil && h.worker().away == 0 && !h.worker().ending {
				for _, name := range sortedKeys(h.actor.queue) {
					c.pumpGroup(h, h.actor.queue[name])
				}
			}
		}
	}
}

func (c *Core) pumpGroup(host *task, g *group) {
	for g.given < g.most && len(g.ready) > 0 {
		l := g.ready[0]
		g.ready = g.ready[1:]
		l.turn = false
		if t := l.first(); t != nil && t.missing == 0 {
			l.calls[0] = nil
			l.calls = l.calls[1:]
			t.call.lane = nil
			g.given++
			c.giveCall(host, t)
		}
		c.turn(host, g, l)
	}
}

// giveCall sends a call to the worker of its actor.
func (c *Core) giveCall(host, t *task) {
	w := host.worker()
	l := w.levels[0]
	c.queued -= int64(len(t.body))
	t.state, t.level, t.call.host = running, l, host
	t.started = c.now
	l.tasks = append(l.tasks, t)
	c.running++
	w.seq++
	t.seq = w.seq
	c.recordGive(t, w, l)
	c.exec(w, t)
}

// callLeft: a call is not with the worker any more.
func (c *Core) callLeft(t *task) {
	if t.call == nil || t.call.host == nil {
		return
	}
	h := t.call.host
	t.call.host = nil
	if h.actor.queue != nil {
		g, _ := h.groupOf(t.shape.group)
		g.given--
		c.hosts = append(c.hosts, h)
	}
}

// outOfLane: a call that waited on the host has ended.
func (c *Core) outOfLane(t *task) {
	l, h := t.call.lane, t.call.host
	t.call.lane, t.call.host = nil, nil
	g, _ := h.groupOf(t.shape.group)
	c.turn(h, g, l)
}

// unhost gives the calls back that an actor which is gone was not given yet.
func (c *Core) unhost(t *task) {
	a := t.actor
	var back []*task
	for _, l := range a.lanes {
		for _, x := range l.calls {
			if x != nil && x.call.lane == l && x.state == waiting {
				back = append(back, x)
			}
		}
	}
	a.up, a.lanes, a.queue = false, nil, nil
	slices.SortFunc(back, func(a, b *task) int { return cmp.Compare(a.order(), b.order()) })
	for _, x := range back {
		x.call.lane, x.call.host = nil, nil
	}
	if g := c.callees[t.id]; g != nil && g.node == c.cfg.Number {
		c.over(g, c.attemptHere(t))
	}
	for _, x := range back {
		if x.state == waiting {
			c.comesBack(x)
		}
	}
}

// hostCall takes a call of another node's program.
func (c *Core) hostCall(t *task) {
	h := c.tasks[id(t.fn())]
	if h == nil || h.actor == nil || !h.actor.up || uint64(c.attemptHere(h)) != uint64(t.lease) {
		c.bounce(t)
		return
	}
	c.enlane(h, t)
}

// restoreActor is for a creation out of a snapshot.
func (c *Core) restoreActor(t *task, s *savedActor, st state) {
	t.actor = &actor{life: s.Life, node: s.Node, dead: s.Dead, why: s.Why, kill: s.Kill, up: s.Up, ends: s.Ends, taken: s.Taken, until: s.Until, left: s.Left}
	if h := c.objects[handle(t.id)]; h != nil && (t.id.Node() == c.cfg.Number || s.Taken != 0) {
		h.task, t.alive = t, 1
		if t.shape.actor.Detached && st != done {
			h.uses++
			t.shape.job.drivers++
		}
	}
}

// Lasting is what actors that are up have of the node's room, bundles aside: it does not come
// free by itself.
func (c *Core) Lasting() (r wire.Resources) {
	for _, w := range c.clients {
		if w.actor == nil || !w.actor.actor.up {
			continue
		}
		for _, l := range w.levels {
			if l.has && l.slot.Bundle == (wire.BundleID{}) {
				r = r.Add(l.need, 1)
			}
		}
	}
	return r
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// HasActor reports whether this node owns an actor that is not dead.
func (c *Core) HasActor(x wire.ObjectID) bool {
	t := c.tasks[x]
	return t != nil && t.actor != nil && t.state != done
}

// NamedActors are the actors of this node that have names and are not dead.
func (c *Core) NamedActors() (out []wire.ActorName) {
	for _, t := range c.sortedTasks() {
		if t.actor != nil && t.state != done && t.shape.actor.Name != "" && c.mine(t.id) {
			o := t.shape.actor
			out = append(out, wire.ActorName{Namespace: o.Namespace, Name: o.Name, Actor: t.id, Meta: o.Meta})
		}
	}
	return out
}

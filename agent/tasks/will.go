package tasks

import (
	"fmt"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// Detached actors outlive the node that owns them (wire/actors.go). What is here makes their
// wills, and an owner out of an agent that is given one.

// maxWill bounds the arguments and the code that a will has.
const maxWill = 1 << 20

// savedWill is the body of a will.
type savedWill struct {
	Job  savedJob
	Args []savedObject
	Task savedTask
}

// mine reports whether this node owns what has an id.
func (c *Core) mine(x id) bool {
	return x.Node() == c.cfg.Number || len(c.moved) > 0 && c.moved[x.Task()] == c.cfg.Number && c.tasks[x.Task()].owned()
}

func (t *task) owned() bool { return t != nil && t.actor != nil && t.actor.taken != 0 }

func (c *Core) isMoved(x id) bool {
	_, ok := c.moved[x]
	return ok
}

// OwnerOf is the number of the node that owns an object; 0 = nobody does at the moment.
func (c *Core) OwnerOf(x id) uint32 {
	if n, ok := c.moved[x.Task()]; ok {
		return n
	}
	return x.Node()
}

// wills leaves the head what a detached actor of this node is made of and how it is.
func (c *Core) wills(t *task) {
	if c.mute || !t.shape.actor.Detached || !c.mine(t.id) || t.state == done {
		return
	}
	if w, why := c.willOf(t); why != "" {
		c.do(NoWill{Job: t.shape.job.key, Why: fmt.Sprintf("actor %s of %s ends with this node, although it is detached: %s", t.id, t.shape.name, why)})
	} else {
		c.do(Will{w})
	}
}

func (c *Core) willOf(t *task) (w wire.ActorWill, why string) {
	s := savedWill{Job: savedJob{Key: t.shape.job.key, Shapes: []savedShape{t.shape.from}}, Task: t.saved()}
	size := len(t.body)
	if f := t.shape.job.funcs[t.fn()]; f != nil {
		s.Job.Funcs = [][]byte{f.frame}
		size += len(f.frame)
	}
	for d := range t.deps().all() {
		o := c.objects[d]
		if o == nil || o.state != here || o.kind != sdk.Inline {
			return w, "an argument is an object in the memory of nodes"
		}
		s.Args = append(s.Args, o.saved())
		size += len(o.data)
	}
	if size > maxWill {
		return w, fmt.Sprintf("its class and arguments have %s, kept are %s", wire.Bytes(int64(size)), wire.Bytes(maxWill))
	}
	o := t.shape.actor
	return wire.ActorWill{Actor: t.id, Job: t.shape.job.key, Host: t.actor.node, Name: wire.ActorName{Namespace: o.Namespace, Name: o.Name, Actor: t.id, Meta: o.Meta}, Body: wire.Marshal(s)}, ""
}

// Wills are those of all detached actors of this node.
func (c *Core) Wills() (out []wire.ActorWill) {
	for _, t := range c.sortedTasks() {
		if t.actor != nil && t.state != done && t.shape.actor.Detached && c.mine(t.id) {
			if w, why := c.willOf(t); why == "" {
				out = append(out, w)
			}
		}
	}
	return out
}

// Moved: actors whose first owner is gone have others. It comes before NodeGone.
func (c *Core) Moved(now int64, ms []wire.ActorMoved) {
	c.now = now
	for _, m := range ms {
		if was, ok := c.moved[m.Actor]; ok && was == m.Number {
			continue
		}
		c.record(recMoved, m.Number, 0, m.Actor[:])
		c.move(m.Actor, m.Number)
	}
}

func (c *Core) move(x id, number uint32) {
	c.moved[x] = number
	if number == 0 || number == c.cfg.Number {
		return // it will be said, or taken
	}
	for _, o := range c.ofActor(x) {
		if o.fetched {
			c.do(Borrow{ID: o.id})
			if o.state != here {
				o.asked = false
				c.want(o)
			}
		}
	}
}

// ofActor are the objects that stand for an actor and its lives.
func (c *Core) ofActor(x id) (out []*object) {
	for _, o := range c.objects {
		if o.id.Task() == x {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, byID)
	return out
}

// TakeActor makes this node the owner of a detached actor. One that lives here lives on.
func (c *Core) TakeActor(now int64, x id, body []byte) error {
	c.now = now
	if t := c.tasks[x]; t != nil && c.mine(x) {
		c.wills(t) // told twice
		return nil
	}
	c.record(recTake, 0, 0, body)
	return c.takeActor(body)
}

func (c *Core) takeActor(body []byte) error {
	var w savedWill
	if err := wire.Unmarshal(body, &w); err != nil {
		return err
	}
	p, err := sdk.ParseSubmit(w.Task.Body)
	if err != nil || w.Task.Actor == nil || len(w.Job.Shapes) != 1 {
		return errs.New(errs.Corrupt, "the will of an actor is damaged")
	}
	x := p.Task
	c.moved[x] = c.cfg.Number
	t := c.tasks[x]
	lives := t != nil && t.actor != nil && t.state != done
	if !lives {
		if t != nil {
			c.forget(t)
		}
		j := c.jobOf(w.Job.Key)
		for _, b := range w.Job.Funcs {
			if f, ok := functionOf(b, j.key); ok && j.funcs[f.id] == nil {
				j.funcs[f.id] = f
			}
		}
		sh := j.shapes[string(w.Job.Shapes[0].ID)]
		if sh == nil {
			if sh, err = c.newShape(w.Job.Shapes[0], j); err != nil {
				return err
			}
		}
		t = &task{id: x, shape: sh, body: w.Task.Body, attempt: w.Task.Attempt, fence: w.Task.Attempt, submitted: c.now, actor: &actor{}, state: waiting}
		c.tasks[x] = t
		for i := range w.Args {
			c.takeArg(&w.Args[i])
		}
	}
	a := t.actor
	if a.why != "" {
		a.why = "" // nobody to want that is there
	}
	t.client, t.lease, t.retries, t.alive = 0, 0, w.Task.Retries, 1
	a.life, a.node, a.taken = w.Task.Actor.Life, 0, max(1, t.attempt)
	if lives && a.up {
		if a.node = c.cfg.Number; w.Task.Actor.Node != a.node {
			a.life++
		}
	}
	c.takeHandle(t)
	switch {
	case lives:
	case t.retries == 0:
		c.dies(t, c.actorDied(t, "the node that it was on is gone"))
		return nil
	default:
		if t.retries > 0 {
			t.retries--
		}
		c.newAttempt(t)
		c.need(t)
	}
	c.wills(t)
	return nil
}

// takeArg has an argument that a will kept be there.
func (c *Core) takeArg(s *savedObject) {
	if len(s.ID) != 16 {
		return
	}
	o := c.objects[id(s.ID)]
	if o == nil {
		o = &object{id: id(s.ID), fetched: true, state: pending}
		c.objects[o.id] = o
	}
	if o.state == here && o.kind == sdk.Inline {
		return
	}
	o.state, o.kind, o.form, o.size, o.data, o.asked = pending, s.Kind, s.Form, s.Size, s.Data, true
	var refs []id
	for _, r := range s.Refs {
		if len(r) == 16 {
			refs = append(refs, id(r))
		}
	}
	c.refer(o, refs)
	o.state = here
}

// takeHandle makes objects of this node out of what stood for another one's actor.
func (c *Core) takeHandle(t *task) {
	h := c.objects[handle(t.id)]
	if h == nil {
		h = &object{id: handle(t.id)}
		c.objects[h.id] = h
	}
	h.uses++
	h.task, h.made = t, c.now
	t.shape.job.drivers++
	c.programsDue = true
	for _, o := range c.ofActor(t.id) {
		o.fetched = false
		switch a := t.actor; {
		case o == h:
			o.kind, o.form, o.size, o.data = sdk.Inline, 1, 1, []byte{0xc0}
			if o.state != here {
				c.arrive(o)
			}
		case o.state == here:
		case a.node != 0 && o.id.Index()-1 <= a.life:
			t.setLife(o, c.attemptHere(t))
			c.arrive(o)
		default:
			a.asked = append(a.asked, o)
		}
	}
}

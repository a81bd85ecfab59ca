package tasks

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"

	"launcher/wire"
	"launcher/wire/sdk"
)

// maxEvents is how many ends of tasks are kept for the timeline.
const maxEvents = 20_000

// ring is the newest ends of tasks.
type ring struct {
	events  []event
	next    int
	dropped int64
}

type event struct {
	id                    id
	name                  string
	job                   string
	attempt               uint32
	pid                   int
	status                uint32
	submitted, start, end int64
}

// note keeps the end of a task for the timeline.
func (c *Core) note(t *task, w *client, r sdk.Result) {
	if r.Status < uint32(len(c.tally)) {
		c.tally[r.Status]++
	}
	e := event{t.id, t.shape.name, t.shape.job.key, c.attemptHere(t), w.PID, r.Status, t.submitted, r.Start, r.End}
	if len(c.events.events) < maxEvents {
		c.events.events = append(c.events.events, e)
		return
	}
	c.events.events[c.events.next] = e
	c.events.next = (c.events.next + 1) % maxEvents
	c.events.dropped++
}

func jobID(key string) wire.JobID {
	n, _ := strconv.ParseUint(key, 10, 32) // programs that no job started have other keys
	return wire.JobID(n)
}

// Timeline gives the ends of tasks, oldest first.
func (c *Core) Timeline(q wire.TimelineQuery) wire.Timeline {
	out := wire.Timeline{Events: []wire.TaskEvent{}, Dropped: c.events.dropped}
	n := len(c.events.events)
	for i := range n {
		e := &c.events.events[(c.events.next+i)%n]
		if q.Job != 0 && jobID(e.job) != q.Job || e.end < q.Since {
			continue
		}
		state := wire.TaskFailed
		switch e.status {
		case sdk.ResultOK:
			state = wire.TaskDone
		case sdk.ResultCancelled:
			state = wire.TaskCancelled
		}
		out.Events = append(out.Events, wire.TaskEvent{ID: e.id.String(), Name: e.name, Job: jobID(e.job), Attempt: e.attempt, Worker: e.pid, State: state, Submitted: e.submitted, Start: e.start, End: e.end})
	}
	if q.Limit > 0 && len(out.Events) > q.Limit {
		out.Dropped += int64(len(out.Events) - q.Limit)
		out.Events = out.Events[len(out.Events)-q.Limit:]
	}
	return out
}

func (c *Core) stateOf(t *task) string {
	switch {
	case t.state == waiting:
		return wire.TaskWaiting
	case t.state == queued:
		return wire.TaskQueued
	case t.state == done:
		return wire.TaskDone
	case t.level != nil && (t.level.blocked || t.level.waits > 0) && t.level.inWork() == t:
		return wire.TaskBlocked
	}
	return wire.TaskRunning
}

// why says what a task waits for, in a line.
func (c *Core) why(t *task) string {
	switch t.state {
	case waiting:
		if t.actor != nil && t.actor.until != 0 {
			return c.whyHeldBack(t)
		}
		if t.isCall() && t.missing == 0 {
			return c.whyCall(t)
		}
		n, first := c.missingOf(t)
		if n > 1 {
			return fmt.Sprintf("waits for %d arguments, first %s", n, c.nameOf(first))
		}
		return "waits for its argument " + c.nameOf(first)
	case queued:
		ahead := 0
		for _, s := range c.ready {
			if s == t.shape || s.prio < t.shape.prio {
				continue
			}
			ahead += s.queue.n
		}
		lacks := c.lacking(t.shape)
		if f := t.shape.queue.first(); f != nil && f != t {
			s := fmt.Sprintf("waits for its turn among %d of %s", t.shape.queue.n, t.shape.name)
			if lacks != "" {
				s += ", the first of which waits for " + lacks
			}
			return s
		}
		if lacks != "" {
			return "waits for " + lacks
		}
		return fmt.Sprintf("waits for its turn: %d tasks of other shapes are queued", ahead)
	case running:
		return c.whyRuns(t)
	}
	if t.actor != nil && t.actor.dead != nil {
		return "is dead: " + whyDead(t)
	}
	return "has ended"
}

// whyRuns says where a task is that runs, or is about to.
func (c *Core) whyRuns(t *task) string {
	a := t.actor
	switch {
	case t.isAway() && a == nil:
		return "is with another node"
	case t.isAway() && a.node != 0:
		return "lives on another node"
	case t.isAway():
		return "starts on another node"
	case a != nil && a.up:
		return fmt.Sprintf("lives in pid %d", t.worker().PID)
	}
	if n := behind(t); n > 0 {
		return fmt.Sprintf("is with pid %d, behind %d others", t.worker().PID, n)
	}
	out := fmt.Sprintf("runs in pid %d", t.worker().PID)
	if a != nil {
		out = "starts: its constructor " + out
	}
	if c.stateOf(t) != wire.TaskBlocked {
		return out
	}
	switch n, first := c.missingOf(t); n {
	case 0:
		return out + ", and waits for what it runs meanwhile"
	case 1:
		return out + ", and waits for " + c.nameOf(first)
	default:
		return out + fmt.Sprintf(", and waits for %d objects, first %s", n, c.nameOf(first))
	}
}

// isAway reports whether a task was given to another node, which has more to say of it.
func (t *task) isAway() bool {
	return t.state == running && (t.worker() == nil || t.worker().remote != nil)
}

// missingOf counts the objects that a task waits for.
func (c *Core) missingOf(t *task) (n int, first id) {
	on := t.deps().all()
	if t.state == running {
		on = slices.Values(t.level.on)
	}
	for x := range on {
		if o := c.objects[x]; o == nil || o.state != here {
			if n++; n == 1 {
				first = x
			}
		}
	}
	return n, first
}

// nameOf names an object for people.
func (c *Core) nameOf(x id) string {
	if o := c.objects[x]; o != nil && o.task != nil {
		return "the result of " + o.task.shape.name + " (" + o.task.id.String() + ")"
	}
	return x.String()
}

// lacking says what the first task of a shape waits for, and who is in its way.
func (c *Core) lacking(s *shape) string {
	out := s.lacks
	if out == "" && s.held != "" {
		out = s.room
	}
	if out == "" {
		return ""
	}
	if s.prio != 0 {
		out += fmt.Sprintf(" at priority %d", s.prio)
	}
	if kept := c.room.KeptFor(c.now); kept != "" && s.lacks == s.room {
		out += " beside what is kept here for " + kept
	}
	if s.held != "" {
		return out + ": " + s.held
	}
	if s.place.Kind != wire.StrategyGroup {
		if why := c.room.Why(c.now, s.who(), s.need); why != "" {
			return out + ": " + why
		}
	}
	return out
}

func (c *Core) line(t *task) wire.SDKTask {
	x := wire.SDKTask{ID: t.id.String(), Name: t.shape.name, Job: jobID(t.shape.job.key), State: c.stateOf(t), Attempt: c.attemptHere(t), Node: c.cfg.Node, Submitted: t.submitted, Started: t.started, Why: c.why(t)}
	if x.Away = t.isAway(); x.Away {
		x.Node = ""
	} else if t.worker() != nil {
		x.Worker = t.worker().PID
	}
	switch {
	case t.isCall():
		x.Actor = id(t.fn()).String()
	case t.actor != nil:
		x.Actor = x.ID
	}
	if !t.parent.IsZero() {
		x.Parent = t.parent.String()
	}
	for d := range t.deps().all() {
		if o := c.objects[d]; t.state == waiting && (o == nil || o.state != here) && len(x.WaitsFor) < 8 {
			x.WaitsFor = append(x.WaitsFor, d.String())
		}
	}
	return x
}

// Tasks lists tasks that have not ended.
func (c *Core) Tasks(q wire.SDKTaskQuery) wire.SDKTasks {
	out := wire.SDKTasks{Tasks: []wire.SDKTask{}, Counts: []wire.SDKTaskCount{}}
	type nameState struct{ name, state string }
	counts := map[nameState]*wire.SDKTaskCount{}
	var list []*task
	for _, t := range c.tasks {
		if a := t.actor; a != nil && !q.Actors && (a.up || a.node != 0 || a.dead != nil) {
			continue // no task any more, but an actor
		}
		state := c.stateOf(t)
		if len(q.States) == 0 && state == wire.TaskDone || len(q.States) > 0 && !slices.Contains(q.States, state) {
			continue
		}
		if t.isAway() && len(q.States) > 0 {
			continue // who has it knows its state
		}
		if q.ID != "" && q.ID != t.id.String() && !c.makes(t, q.ID) || q.Job != 0 && jobID(t.shape.job.key) != q.Job || q.Name != "" && q.Name != t.shape.name {
			continue
		}
		list = append(list, t)
		if t.isAway() {
			continue
		}
		k := nameState{t.shape.name, state}
		if counts[k] == nil {
			counts[k] = &wire.SDKTaskCount{Name: k.name, State: state, Why: c.why(t)}
		}
		counts[k].Count++
	}
	rank := func(t *task) int {
		if t.state == running {
			return 0
		}
		return 1
	}
	slices.SortFunc(list, func(a, b *task) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.submitted, b.submitted), cmp.Compare(a.id.N(), b.id.N()))
	})
	for _, t := range list {
		if q.Limit > 0 && len(out.Tasks) >= q.Limit {
			break
		}
		out.Tasks = append(out.Tasks, c.line(t))
	}
	for _, n := range counts {
		out.Counts = append(out.Counts, *n)
	}
	slices.SortFunc(out.Counts, func(a, b wire.SDKTaskCount) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.State, b.State))
	})
	return out
}

// maxWhy is how many tasks of a chain are told of, each of which waits for the next.
const maxWhy = 20

// makes reports whether an object, by its id in hexadecimal, is one of a task's.
func (c *Core) makes(t *task, object string) bool {
	b, err := hex.DecodeString(object)
	return err == nil && len(b) == 16 && id(b).Task() == t.id
}

// Objects lists objects that this node owns or holds, the largest first.
func (c *Core) Objects(q wire.SDKObjectQuery) wire.SDKObjects {
	out := wire.SDKObjects{Objects: []wire.SDKObject{}}
	var list []*object
	for _, o := range c.objects {
		if q.ID != "" && q.ID != o.id.String() {
			continue
		}
		out.Count++
		if o.state == here && o.kind != sdk.Shared {
			out.Inline += o.size
		}
		list = append(list, o)
	}
	slices.SortFunc(list, func(a, b *object) int {
		return cmp.Or(cmp.Compare(b.size, a.size), slices.Compare(a.id[:], b.id[:]))
	})
	if q.Limit > 0 && len(list) > q.Limit {
		list = list[:q.Limit]
	}
	for _, o := range list {
		out.Objects = append(out.Objects, c.objectLine(o))
	}
	return out
}

func (c *Core) objectLine(o *object) wire.SDKObject {
	x := wire.SDKObject{ID: o.id.String(), Size: o.size, Copy: o.fetched, Made: "put", Holders: []wire.Holder{}}
	if o.task != nil {
		x.Made, x.Job = o.task.shape.name, jobID(o.task.shape.job.key)
	} else if !o.id.Put() {
		x.Made = "a task"
	}
	if o.made != 0 {
		x.Age = c.now - o.made
	}
	switch {
	case o.state == pending || o.state == missing:
		x.State = wire.ObjectPending
	case o.state == freed:
		x.State = wire.ObjectLost
	case o.kind == sdk.Failure:
		x.State = wire.ObjectError
	case o.kind == sdk.Shared:
		switch {
		case c.store.Resident(o.id):
			x.State = wire.ObjectResident
		case o.where != 0 || o.fetched: // a copy that was dropped is still with its owner
			x.State = wire.ObjectElsewhere
		default:
			x.State = wire.ObjectSpilled
		}
		x.At = o.nodes()
		if o.fetched {
			x.At = append(x.At, o.id.Node())
		}
	default:
		x.State = wire.ObjectInline
	}
	for _, h := range append([]uint32{o.holder}, o.holders()...) {
		if cl := c.clients[h]; cl != nil {
			what := "driver"
			if cl.pool != nil {
				what = "worker"
			}
			x.Holders = append(x.Holders, wire.Holder{What: what, Who: fmt.Sprintf("pid %d", cl.PID), Count: 1})
		}
	}
	if o.uses > 0 {
		x.Holders = append(x.Holders, wire.Holder{What: "task", Who: "arguments and values", Count: int64(o.uses)})
	}
	if o.lineage > 0 {
		x.Holders = append(x.Holders, wire.Holder{What: "lineage", Count: int64(o.lineage)})
	}
	return x
}

// Why says in lines what a task, or the task of an object, waits for.
func (c *Core) Why(q wire.SDKWhyQuery) wire.SDKWhy {
	b, err := hex.DecodeString(q.ID)
	if err != nil || len(b) != 16 {
		return wire.SDKWhy{Lines: []string{}}
	}
	t := c.tasks[id(b).Task()]
	if !c.mine(id(b)) && (t == nil || t.state == done) {
		return wire.SDKWhy{Lines: []string{}}
	}
	lines := []string{}
	away := t != nil && t.isAway()
	for seen := map[id]bool{}; t != nil && !seen[t.id]; t = c.waitsFor(t) {
		if len(lines) == maxWhy {
			lines = append(lines, "... and so on")
			break
		}
		seen[t.id] = true
		lines = append(lines, fmt.Sprintf("%s (%s) %s", t.shape.name, t.id, c.why(t)))
	}
	if o := c.objects[id(b)]; len(lines) == 0 && o != nil {
		lines = append(lines, fmt.Sprintf("object %s is %s", o.id, c.objectLine(o).State))
	}
	if len(lines) == 0 {
		lines = append(lines, fmt.Sprintf("node %s knows no task or object %s: it has ended and nothing refers to it", c.cfg.Node, q.ID))
	}
	return wire.SDKWhy{Lines: lines, Away: away}
}

// waitsFor is a task that another one waits for, if this node knows of it.
func (c *Core) waitsFor(t *task) *task {
	if s := c.stateOf(t); s != wire.TaskWaiting && s != wire.TaskBlocked {
		return nil
	}
	if n, x := c.missingOf(t); n > 0 && c.objects[x] != nil {
		return c.objects[x].task
	}
	return nil
}

package tasks

import (
	"cmp"
	"maps"
	"slices"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// saved is one thing of a snapshot; exactly one of its fields is set.
type saved struct {
	Job      *savedJob
	Client   *savedClient
	Task     *savedTask
	Object   *savedObject
	Plain    *savedPlain
	Next     uint32
	Attempts uint32
}

// savedPlain is results to come that only who submitted their tasks refers to: of a
// million that wait it is most of what there is.
type savedPlain struct {
	Client uint32
	IDs    []byte
}

// plain reports whether savedPlain says all of an object.
func (o *object) plain() bool {
	return o.state == pending && o.holder != 0 && o.kind == 0 && o.made == 0 && !o.fetched && o.where == 0 && len(o.refs()) == 0 && len(o.holders()) == 0 && (o.links == nil || o.links.callee == nil)
}

type savedJob struct {
	Key    string
	Funcs  [][]byte
	Home   bool
	Terms  wire.Terms
	Shapes []savedShape // of tasks that are there: those who told them may be gone
}

// savedShape is what a shape is made of.
type savedShape struct {
	ID   []byte
	Text []byte
	Key  Key // of who told it
	Peer bool
}

type savedClient struct {
	Client uint32
	Shapes map[uint32][]byte // as the frames told them
	Seen   uint64
	Gaps   []uint64
	Known  [][]byte
	Seq    uint32
	Calls  []savedCalls

	Away, Unheard int64
}

// savedCalls is how often a worker has run a function.
type savedCalls struct {
	Func  []byte
	Calls uint32
	Spent bool
}

type savedTask struct {
	Client  uint32
	Shape   []byte
	Job     string
	Body    []byte
	Parent  []byte
	Attempt uint32
	Retries int32
	State   uint8
	Cancel  bool
	All     bool
	Kept    bool
	Times   [2]int64
	Stream  bool
	Made    uint32
	Taken   uint32
	Over    bool
	Left    bool
	Ahead   []uint32
	Last    []byte
	Lease   wire.LeaseID
	Fence   uint32
	Order   uint64
	At      uint8
	Past    uint32 // of a call's actor: lives up to that attempt are over
	Gone    string
	Again   []byte
	Bounced bool
	Actor   *savedActor
}

type savedActor struct {
	Life  uint32
	Node  uint32
	Dead  []byte
	Why   string
	Kill  bool
	Up    bool
	Ends  bool
	Taken uint32
	// It is held back:
	Until int64
	Left  uint32
}

type savedObject struct {
	ID      []byte
	State   uint8
	Kind    uint8
	Form    uint8
	Size    int64
	Data    []byte
	Refs    [][]byte
	Holders []uint32
	Fetched bool
	Made    int64
	Lineage bool // its task is to be linked
	Where   uint32
}

// Snapshot gives the state as records that Restore takes, in pieces.
func (c *Core) Snapshot() [][]byte {
	var out [][]byte
	var cur []byte
	add := func(kind uint8, client uint32, typ uint16, body []byte) {
		cur = appendRecord(cur, kind, client, typ, c.now, body)
		if len(cur) > 4<<20 {
			out, cur = append(out, cur), nil
		}
	}
	state := func(s saved) { add(recState, 0, 0, wire.Marshal(s)) }
	state(saved{Next: c.nextID, Attempts: c.attempts})
	for _, x := range slices.SortedFunc(maps.Keys(c.moved), func(a, b id) int { return slices.Compare(a[:], b[:]) }) {
		add(recMoved, c.moved[x], 0, x[:])
	}
	jobs := maps.Clone(c.jobs)
	for _, cl := range c.sortedClients() {
		jobs[cl.job.key] = cl.job
	}
	used := map[*job]map[string]savedShape{}
	for _, t := range c.tasks {
		s := t.shape
		if used[s.job] == nil {
			used[s.job] = map[string]savedShape{}
		}
		used[s.job][s.id] = s.from
	}
	for _, key := range slices.Sorted(maps.Keys(jobs)) { // before the clients and workers, which have shapes of theirs
		s := savedJob{Key: key, Home: jobs[key].home, Terms: jobs[key].terms}
		for _, id := range sortedKeys(used[jobs[key]]) {
			s.Shapes = append(s.Shapes, used[jobs[key]][id])
		}
		for _, f := range jobs[key].funcs {
			s.Funcs = append(s.Funcs, f.frame)
		}
		slices.SortFunc(s.Funcs, slices.Compare[[]byte])
		state(saved{Job: &s})
	}
	clients := c.sortedClients()
	for _, cl := range clients { // before the workers, which have shapes of theirs
		if cl.pool == nil {
			add(recConnect, cl.ID, 0, wire.Marshal(cl.Client))
			state(saved{Client: cl.saved()})
		}
	}
	for _, cl := range clients {
		if cl.pool == nil {
			continue
		}
		l := cl.levels[0]
		n := newWorker{Key: cl.pool.key, Need: l.need, Slot: l.slot}
		if l.has {
			n.Shape = []byte(l.shape.id)
		}
		add(recWorker, cl.ID, 0, wire.Marshal(n))
		if cl.up {
			add(recConnect, cl.ID, 0, wire.Marshal(cl.Client))
		}
		if cl.ending {
			add(recEnding, cl.ID, 0, nil)
		}
		state(saved{Client: cl.saved()})
	}
	for _, cl := range clients {
		if len(cl.late) > 0 {
			add(recLate, cl.ID, 0, cl.lateIDs())
		}
	}
	var objs []*object
	plain := map[uint32][]byte{}
	for _, o := range c.objects {
		if c.standsForLife(o) {
			continue // whoever waits for it asks again
		}
		if o.plain() {
			plain[o.holder] = append(plain[o.holder], o.id[:]...)
		} else {
			objs = append(objs, o)
		}
	}
	for _, client := range slices.Sorted(maps.Keys(plain)) {
		for part := range slices.Chunk(plain[client], 1<<20) {
			state(saved{Plain: &savedPlain{client, part}})
		}
	}
	slices.SortFunc(objs, byID)
	for _, o := range objs {
		s := o.saved()
		state(saved{Object: &s})
	}
	c.copyRecords(add)
	// Tasks in the order of their queues, so that they wait in that order again.
	ts := slices.Collect(maps.Values(c.tasks))
	slices.SortFunc(ts, func(a, b *task) int {
		if a.ready != b.ready {
			return cmp.Compare(a.ready, b.ready)
		}
		return cmp.Or(cmp.Compare(a.id.N(), b.id.N()), slices.Compare(a.id[:], b.id[:]))
	})
	for _, t := range ts {
		s := t.saved()
		state(saved{Task: &s})
	}
	for _, t := range ts {
		if a := t.away(); a != nil && a.sentTo != 0 && t.state == running {
			add(recAway, a.sentTo, 0, t.awayRecord())
		}
	}
	for _, cl := range clients {
		for i, l := range cl.levels {
			for k, t := range l.tasks {
				if k == 0 {
					add(recGive, cl.ID, 0, wire.Marshal(given{t.id[:], t.attempt, t.seq, i, l.need, l.slot}))
				} else {
					add(recGive, cl.ID, 1, shortGive(t, i))
				}
			}
		}
	}
	return append(out, cur)
}

// saved is what is kept of a task.
func (t *task) saved() savedTask {
	s := savedTask{Client: t.client, Shape: []byte(t.shape.id), Job: t.shape.job.key, Body: t.body, Parent: t.parent[:], Attempt: t.attempt, Retries: t.retries, State: uint8(t.state), Cancel: t.cancel, All: t.all, Kept: t.kept, Times: [2]int64{t.submitted, t.ready}, Lease: t.lease, Fence: t.fence, Gone: t.how(), Bounced: t.bounced}
	if t.call != nil {
		if s.Order, s.At = t.call.order, uint8(t.call.at); t.call.callee != nil {
			s.Past = t.call.callee.past
		}
		s.Again = t.call.again
	}
	if a := t.actor; a != nil {
		s.Actor = &savedActor{a.life, a.node, a.dead, a.why, a.kill, a.up, a.ends, a.taken, a.until, a.left}
	}
	if st := t.stream; st != nil {
		s.Stream, s.Made, s.Taken, s.Over, s.Left, s.Last, s.Ahead = true, st.made, st.taken, st.over, st.left, st.last, slices.Sorted(maps.Keys(st.ahead))
	}
	return s
}

// saved is what is kept of an object.
func (o *object) saved() savedObject {
	s := savedObject{ID: o.id[:], State: uint8(o.state), Kind: o.kind, Form: o.form, Size: o.size, Data: o.data, Fetched: o.fetched, Made: o.made, Lineage: o.task != nil, Where: o.where}
	for _, r := range o.refs() {
		s.Refs = append(s.Refs, slices.Clone(r[:]))
	}
	if o.holder != 0 {
		s.Holders = append([]uint32{o.holder}, o.holders()...)
	}
	return s
}

// saved is what is kept of a client beside who it is.
func (cl *client) saved() *savedClient {
	s := &savedClient{Client: cl.ID, Shapes: map[uint32][]byte{}, Seen: cl.seen, Gaps: slices.Sorted(maps.Keys(cl.gaps)), Seq: cl.seq}
	if cl.Kind == sdk.KindPeer {
		s.Away, s.Unheard = cl.away, cl.unheard
	}
	for n, sh := range cl.shapes {
		s.Shapes[n] = sh.text
	}
	for f, n := range cl.calls {
		s.Calls = append(s.Calls, savedCalls{f[:], n, cl.spent})
	}
	slices.SortFunc(s.Calls, func(a, b savedCalls) int { return slices.Compare(a.Func, b.Func) })
	return s
}

func (c *Core) restoreState(b []byte) error {
	var s saved
	if err := wire.Unmarshal(b, &s); err != nil {
		return err
	}
	switch {
	case s.Job != nil:
		j := c.jobOf(s.Job.Key)
		j.terms = s.Job.Terms
		for _, f := range s.Job.Funcs {
			x, ok := functionOf(f, s.Job.Key)
			if !ok {
				return errs.New(errs.Corrupt, "a function in the log of tasks is damaged")
			}
			j.funcs[x.id] = x
		}
		j.home = s.Job.Home
		for _, sh := range s.Job.Shapes {
			if _, err := c.newShape(sh, j); err != nil {
				return err
			}
		}
	case s.Client != nil:
		return c.restoreClient(s.Client)
	case s.Task != nil:
		return c.restoreTask(s.Task)
	case s.Object != nil:
		return c.restoreObject(s.Object)
	case s.Plain != nil:
		for x := range ids(s.Plain.IDs[:len(s.Plain.IDs)&^15]).all() {
			c.hold(c.bare(x), s.Plain.Client)
		}
	default:
		c.nextID, c.attempts = max(c.nextID, s.Next), max(c.attempts, s.Attempts)
	}
	return nil
}

func (c *Core) restoreClient(s *savedClient) error {
	cl := c.clients[s.Client]
	if cl == nil {
		return nil
	}
	for n, text := range s.Shapes {
		if err := c.shape(cl, append(append32(nil, n), text...)); err != nil {
			return err
		}
	}
	cl.seen, cl.seq = s.Seen, s.Seq
	cl.away, cl.unheard = s.Away, s.Unheard
	for _, n := range s.Calls {
		if len(n.Func) != len(funcID{}) {
			return errs.New(errs.Corrupt, "a worker in the log of tasks is damaged")
		}
		cl.count(funcID(n.Func), n.Calls)
		cl.spent = n.Spent
	}
	for _, g := range s.Gaps {
		if cl.gaps == nil {
			cl.gaps = map[uint64]struct{}{}
		}
		cl.gaps[g] = struct{}{}
	}
	return nil
}

func (c *Core) restoreObject(s *savedObject) error {
	if len(s.ID) != 16 {
		return errs.New(errs.Corrupt, "an object in the log of tasks is damaged")
	}
	x := id(s.ID)
	o := c.objects[x]
	if o == nil {
		o = &object{id: x}
		c.objects[x] = o
	}
	o.state, o.kind, o.form, o.size, o.data, o.fetched, o.made = objState(s.State), s.Kind, s.Form, s.Size, s.Data, s.Fetched, s.Made
	o.where = s.Where
	for _, r := range s.Refs {
		if len(r) == 16 {
			o.linked().refs = append(o.refs(), id(r))
			c.bare(id(r)).uses++
		}
	}
	for _, h := range s.Holders {
		c.hold(o, h)
	}
	return nil
}

// bare finds an object whose own record may come later.
func (c *Core) bare(x id) *object {
	o := c.objects[x]
	if o == nil {
		o = &object{id: x, state: pending}
		c.objects[x] = o
	}
	return o
}

func (c *Core) restoreTask(s *savedTask) error {
	p, err := sdk.ParseSubmit(s.Body)
	if err != nil || len(s.Parent) != 16 {
		return errs.New(errs.Corrupt, "a task in the log of tasks is damaged")
	}
	sh := c.jobOf(s.Job).shapes[string(s.Shape)]
	if sh == nil {
		return nil // its clients are gone
	}
	t := &task{
		id: p.Task, shape: sh, client: s.Client, attempt: s.Attempt, retries: s.Retries, cancel: s.Cancel, all: s.All, state: state(s.State),
		body: s.Body, submitted: s.Times[0], ready: s.Times[1], parent: id(s.Parent),
		lease: s.Lease, fence: s.Fence, bounced: s.Bounced,
	}
	c.tasks[t.id] = t
	if t.flags()&sdk.SubmitCall != 0 {
		if t.call = (&call{order: s.Order}); callState(s.At) == callLimbo {
			t.call.at = callLimbo
		}
		t.call.gone, t.call.again = s.Gone, s.Again
		c.order = max(c.order, s.Order)
	}
	if a := s.Actor; a != nil {
		c.restoreActor(t, a, state(s.State))
		t.actor.gone = s.Gone
	}
	if s.Stream {
		c.startStream(t, &stream{made: s.Made, taken: s.Taken, over: s.Over, left: s.Left, last: s.Last})
		for _, i := range s.Ahead {
			t.stream.ahead[i] = true
		}
	} else {
		for i := range t.outputs() {
			if o := c.objects[t.id.With(i+1)]; o != nil && !t.bounced {
				o.task = t
				t.alive++
			}
		}
	}
	if s.Kept {
		c.keep(t)
	}
	if t.state == done {
		return nil
	}
	c.isChild(t)
	for d := range t.deps().all() {
		o := c.bare(d)
		o.uses++
		if t.state == waiting && o.state != here {
			o.await(t)
		}
	}
	for d := range t.held().all() {
		if o := c.objects[d]; o != nil {
			o.uses++
		}
	}
	c.queued += int64(len(t.body))
	if t.isCall() {
		if t.state = waiting; c.peerOf(t) == nil {
			g := c.attach(t)
			g.past = max(g.past, s.Past)
		}
		return nil
	}
	if t.actor != nil && t.actor.left != 0 {
		c.heldBack = append(c.heldBack, t)
		return nil
	}
	if t.state != waiting || t.actor != nil && t.missing == 0 { // those that run are given out by the records that follow
		t.state = queued
		sh.queue.push(t)
		c.wake(sh)
	}
	return nil
}

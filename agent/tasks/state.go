package tasks

import (
	"iter"
	"maps"
	"slices"

	"launcher/agent/core"
	"launcher/wire"
	"launcher/wire/sdk"
)

type (
	id     = wire.ObjectID
	funcID = sdk.FuncID
)

// function is code that tasks run.
type function struct {
	id    funcID
	job   string
	name  string
	frame []byte // body of the Func frame
}

// shape is the options that tasks have in common, and those tasks that wait for room.
type shape struct {
	id      string // its key in its job
	job     *job
	text    []byte // the options as they came, told to workers
	from    savedShape
	name    string
	need    wire.Resources
	key     Key // without GPUs
	retries int32
	prio    int
	time    int64 // declared
	place   wire.Strategy
	actor   *actorOptions // its tasks make actors
	group   string        // of calls
	window  uint32        // items that a stream may be ahead of its reader; 0 = no bound
	calls   uint32        // of its function that a worker runs before it ends; 0 = no bound

	number  uint32         // in Demand; 0 = it never was
	spread  map[uint32]int // with SPREAD: how many tasks each node was given
	queue   fifo
	mean    float64 // nanoseconds that such a task takes, 0 = unknown
	waiting bool    // listed in Core.ready
	room    string  // need, as a text
	lacks   string  // what its first task waits for
	held    string  // and why the head gives it nothing, if there is a reason
}

// fifo is a queue of tasks; those that left it are skipped.
type fifo struct {
	items []*task
	head  int
	n     int
}

func (f *fifo) push(t *task) { f.items = append(f.items, t); f.n++ }

func (f *fifo) pushFront(t *task) {
	if f.head > 0 {
		f.head--
		f.items[f.head] = t
	} else {
		f.items = slices.Insert(f.items, 0, t)
	}
	f.n++
}

// first gives the oldest task that still waits.
func (f *fifo) first() *task {
	for f.head < len(f.items) {
		if t := f.items[f.head]; t != nil && t.state == queued {
			return t
		}
		f.items[f.head] = nil
		f.head++
	}
	f.items, f.head = f.items[:0], 0
	return nil
}

// pop takes the first out; it must be there.
func (f *fifo) pop() {
	f.items[f.head] = nil
	f.head++
	f.n--
	if f.head > 1024 && 2*f.head > len(f.items) {
		n := copy(f.items, f.items[f.head:])
		clear(f.items[n:])
		f.items, f.head = f.items[:n], 0
	}
}

// advance puts a task that waits in front.
func (f *fifo) advance(t *task) {
	if i := slices.Index(f.items, t); i > f.head {
		copy(f.items[f.head+1:i+1], f.items[f.head:i])
		f.items[f.head] = t
	}
}

// job is what belongs together and ends together.
type job struct {
	key     string
	shapes  map[string]*shape
	drivers int  // and detached actors
	peers   int  // agents that are clients for it
	home    bool // its driver was started here by hand: there is none elsewhere
	funcs   map[funcID]*function
	over    bool
	terms   wire.Terms
}

type state uint8

// States of a task.
const (
	waiting state = iota // for deps
	queued
	running // sent to a worker
	done
)

// task is one submitted call. While an output of it is alive and might be lost it stays
// after its end (lineage).
//
// There may be millions that wait, so what its Submit says is read there.
type task struct {
	id      id
	parent  id
	body    []byte // of its Submit
	shape   *shape
	level   *level // that runs it
	stream  *stream
	lease   wire.LeaseID // another node's task: that it is to run under; of a call, the attempt of the creation that it is for
	cost    int64        // bytes that this takes, once it is kept
	client  uint32       // who submitted it; 0 = gone
	attempt uint32
	fence   uint32 // another node's task: what its owner calls this attempt
	seq     uint32
	retries int32
	missing int32 // deps that are not there
	alive   int32 // outputs that are referred to
	state   state
	cancel  bool   // asked for
	all     bool   // and of all that it submits
	kept    bool   // its deps are held for lineage only
	twice   bool   // given again to the worker that has it, which may have begun or even ended it
	bounced bool   // another node's task: it was not begun
	actor   *actor // it makes one
	call    *call  // it is a call of one

	submitted, ready, started int64
}

// What the body of a Submit, which has been parsed once, has where (docs/tasks.md, 3).
const (
	atFunc    = 16
	atReturns = 36
	atFlags   = 40
	atDeps    = 44
	atHeld    = 48
	atIDs     = 52
)

func (t *task) fn() funcID      { return funcID(t.body[atFunc:atReturns]) }
func (t *task) returns() uint32 { return u32(t.body[atReturns:]) }
func (t *task) flags() uint32   { return u32(t.body[atFlags:]) }
func (t *task) deps() ids       { return ids(t.body[atIDs:][:16*u32(t.body[atDeps:])]) }
func (t *task) held() ids       { return ids(t.body[atIDs+len(t.deps()):][:16*u32(t.body[atHeld:])]) }
func (t *task) payload() []byte { return t.body[atIDs+len(t.deps())+len(t.held()):] }

// outputs is how many objects a task has from its start: a stream's come as it makes them.
func (t *task) outputs() uint32 {
	if n := t.returns(); n != sdk.Stream {
		return n
	}
	return 0
}

// worker is who has a task that runs; nil = nobody, or nobody knows.
func (t *task) worker() *client {
	if t.level == nil {
		return nil
	}
	return t.level.client
}

// ids are object ids, one after the other.
type ids []byte

func (b ids) len() int { return len(b) / 16 }

func (b ids) all() iter.Seq[id] {
	return func(yield func(id) bool) {
		for i := 0; i < len(b); i += 16 {
			if !yield(id(b[i : i+16])) {
				return
			}
		}
	}
}

// stream is what a generator task has made so far.
type stream struct {
	made  uint32
	taken uint32
	over  bool
	left  bool            // the reader is gone
	last  []byte          // an error that ended it, as an error value
	ahead map[uint32]bool // items that were asked for and are not made
}

type objState uint8

// States of an object.
const (
	pending objState = iota
	here             // inline, shared or error: kind says
	freed            // its value is not needed, only how to make it
	missing          // its value is lost and is being made again
)

// object is one value, or the promise of one.
type object struct {
	id      id
	task    *task
	data    []byte
	size    int64
	made    int64
	subs    []sub
	links   *links // nil: none
	holder  uint32
	uses    int32  // by tasks and values
	lineage int32  // by finished tasks that may have to run again
	where   uint32 // the node that has a shared value; 0 = this one
	at      uint32 // and the remote that it was made by
	gets    int32  // readers that the store is bringing it back for
	state   objState
	kind    uint8 // sdk.Inline, Shared, Failure, End
	form    uint8
	fetched bool // another node's
	asked   bool // and its value has been asked for
}

// links is what few objects have.
type links struct {
	refs    []id     // inside the value
	holders []uint32 // beside the first
	waiters []*task
	callee  *callee // waits for it: a life of an actor
	spare   *spareAt
}

func (o *object) linked() *links {
	if o.links == nil {
		o.links = &links{}
	}
	return o.links
}

func (o *object) refs() []id {
	if o.links == nil {
		return nil
	}
	return o.links.refs
}

func (o *object) holders() []uint32 {
	if o.links == nil {
		return nil
	}
	return o.links.holders
}

func (o *object) waiters() []*task {
	if o.links == nil {
		return nil
	}
	return o.links.waiters
}

// await has a task wait for the value.
func (o *object) await(t *task) {
	l := o.linked()
	l.waiters = append(l.waiters, t)
	t.missing++
}

// sub is a client that asked for an object.
type sub struct {
	client uint32
	flags  uint32
	level  *level // that waits for it; nil = none
}

// waits has a level wait for an object.
func (s *sub) waits(l *level, x id) {
	s.level = l
	l.waits++
	l.on = append(l.on, x)
}

// hold notes that a client has a reference.
func (c *Core) hold(o *object, client uint32) {
	if cl := c.clients[client]; cl != nil {
		cl.has(o)
	}
	switch {
	case o.heldBy(client):
	case o.holder == 0:
		o.holder = client
	default:
		l := o.linked()
		l.holders = append(l.holders, client)
	}
}

// heldBy reports whether there is an object and a client has a reference to it.
func (o *object) heldBy(client uint32) bool {
	return o != nil && (o.holder == client || slices.Contains(o.holders(), client))
}

// has notes an object that a client has something to do with. Drivers keep no list: most
// objects are theirs, and their end looks at all tasks anyway.
func (cl *client) has(o *object) {
	if cl.Kind == sdk.KindDriver {
		return
	}
	if cl.things == nil {
		cl.things = map[*object]struct{}{}
	}
	cl.things[o] = struct{}{}
}

// let forgets it, if there is nothing any more.
func (c *Core) let(o *object, client uint32) {
	if cl := c.clients[client]; cl != nil && !o.heldBy(client) && !slices.ContainsFunc(o.subs, func(s sub) bool { return s.client == client }) {
		delete(cl.things, o)
	}
}

// thingsOf are the objects that a client may hold or have asked for.
func (c *Core) thingsOf(cl *client) iter.Seq[*object] {
	if cl.Kind == sdk.KindDriver {
		return maps.Values(c.objects)
	}
	return maps.Keys(cl.things)
}

// drop takes a client's reference away.
func (c *Core) drop(o *object, client uint32) {
	o.drop(client)
	c.let(o, client)
}

func (o *object) drop(client uint32) {
	if o.holder == client {
		o.holder = 0
		if n := len(o.holders()); n > 0 {
			o.holder, o.links.holders = o.links.holders[n-1], o.links.holders[:n-1]
		}
		return
	}
	if i := slices.Index(o.holders(), client); i >= 0 {
		o.links.holders = slices.Delete(o.links.holders, i, i+1)
	}
}

// needed reports whether anything wants the value.
func (o *object) needed() bool {
	return o.holder != 0 || o.uses > 0 || len(o.subs) > 0 || len(o.waiters()) > 0
}

// client is a driver or a worker.
type client struct {
	Client
	job     *job
	shapes  map[uint32]*shape
	out     []byte
	dirty   bool
	away    int64           // since when its connection is broken; 0 = it is there
	unheard int64           // of an agent: since when it has not said what it has here; 0 = it has
	alone   bool            // so long that exclusive actors of it were ended
	back    int64           // since when a program is there again that may repeat frames; 0 = it does not
	late    map[id]struct{} // what it has let go of meanwhile
	level0  level           // of a driver: what it waits for
	seen    uint64          // its count, as far as it is known
	gaps    map[uint64]struct{}
	things  map[*object]struct{} // that it holds or has asked for
	streams map[*task]struct{}   // that it reads

	// Of a worker:
	pool    *pool
	up      bool
	ending  bool
	levels  []*level // [0] is the pipeline; further ones are nested runs
	seq     uint32
	known   map[funcID]bool
	idleAt  int64
	drawn   uint32 // sequences below it that were withdrawn may still be in its socket
	asked   bool   // a Withdraw is under way
	handed  bool   // it is given nothing before it says what it waits for or ends its task
	deaf    bool   // it drops what it is given: it has handed back and waits for an answer
	ran     int
	actor   *task             // it is an actor's, with this creation
	calls   map[funcID]uint32 // of those that a worker may run only so often
	outOf   wire.BundleID     // the bundle that it was in, which is gone
	starved bool              // it was killed for want of memory
	spent   bool              // it ends when it has nothing to do
	taken   bool              // an agent that died was starting it

	remote *remote // another node's agent
	keeps  []id    // parts of a PeerKeep that came before it
}

// level is what a worker does at one depth of its stack.
type level struct {
	client  *client
	shape   *shape
	tasks   []*task // sent, in order; the first runs
	need    wire.Resources
	slot    core.Slot
	has     bool         // the room is taken
	under   wire.LeaseID // of a lease on this node
	lease   *leased      // the slot of a lease on another node, or on this one
	logged  bool         // and the log has it
	blocked bool         // and lent, as far as it is cores
	waits   int          // objects that it waits for
	on      []id         // they, and some that have come
	since   int64
}

// top is where a client's code is now.
func (c *client) top() *level {
	for i := len(c.levels) - 1; i > 0; i-- {
		if len(c.levels[i].tasks) > 0 {
			return c.levels[i]
		}
	}
	if len(c.levels) > 0 {
		return c.levels[0]
	}
	return &c.level0
}

// given are the tasks of a worker: first those that it may have on its stack.
func (c *client) given() (out []*task) {
	for _, l := range c.levels {
		out = append(out, l.tasks[:min(1, len(l.tasks))]...)
	}
	for _, l := range c.levels {
		out = append(out, l.tasks[min(1, len(l.tasks)):]...)
	}
	return out
}

// busy reports whether a worker has anything.
func (c *client) busy() bool {
	return slices.ContainsFunc(c.levels, func(l *level) bool { return len(l.tasks) > 0 })
}

// pool is the workers of a key.
type pool struct {
	key      Key
	idle     []*client
	starting int
	failed   int
	lastErr  string
}

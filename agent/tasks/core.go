package tasks

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

const (
	millisecond = int64(1e6)
	second      = int64(1e9)

	// returnBound is how long a program whose connection broke may take to come back.
	returnBound = 60 * second
	// idleBound is how long a worker beyond the number of cores is kept for nothing.
	idleBound = 5 * second
	// shortTask is what a task may take to be sent ahead of the worker; sendAhead is how
	// much of them is, in time, and maxAhead in number.
	shortTask = 2 * millisecond
	sendAhead = 5 * millisecond
	maxAhead  = 64
	// longTask is when what was sent behind a task is withdrawn from it.
	longTask = 10 * millisecond
	// maxFailures of workers to start, one after the other, fail what waits for them.
	maxFailures = 3
	// maxItems bounds a stream.
	maxItems = wire.ItemIndexMax
	// overtake is how much younger tasks may be that are served first because their
	// worker is there.
	overtake = 100 * millisecond
)

// Core is the reactor. It is not safe for concurrent use.
type Core struct {
	cfg   Config
	room  Room
	store Store
	now   int64

	clients  map[uint32]*client
	jobs     map[string]*job
	tasks    map[id]*task
	objects  map[id]*object
	children map[id]map[*task]struct{} // of tasks: those that they submitted and that have not ended
	pools    map[Key]*pool
	ready    []*shape // that have tasks waiting for room
	active   map[*shape][]*level

	workers  int   // processes, as long as there are
	leaving  int   // of them, those that are to end
	stuckAt  int64 // since when all wait, at the bound; 0 = they do not
	nextID   uint32
	attempts uint32 // of other nodes' tasks
	queued   int64  // bytes of tasks that wait
	lineage  int64  // bytes of ended tasks that are kept
	running  int
	kept     []*task // oldest first

	touched []*level // that may have run out of tasks
	dirty   []*client
	effects []Effect
	frees   []id
	records []byte
	sends   []Send
	nudge   bool
	mute    bool // records are being replayed
	events  ring
	tally   [4]uint64 // attempts of tasks that ended, by status
	stats   counts

	leases      leases
	demanded    map[uint32]*shape // by number
	lastShape   uint32
	demand      []wire.Demanded // as it was last told
	demandDue   bool
	alone       bool // the head is away
	demandAt    int64
	remotes     map[remoteKey]*remote
	byClient    map[uint32]*remote
	copied      map[id]*copied
	spares      map[id]*spare
	going       going
	callees     map[id]*callee
	moved       map[id]uint32 // who owns actors whose first owner is gone; 0 = nobody yet
	heldBack    []*task       // creations of exclusive actors that may still live elsewhere
	silent      bool          // what is given up may go on elsewhere
	cut         bool          // and only this node cannot reach it
	hosts       []*task       // actors that calls may be given to
	order       uint64
	jobsAt      int64 // when jobs that have nothing left are looked for next
	programsDue bool  // what Programs gives has changed
	lookAt      int64 // when connections that nothing uses are looked for next
}

type counts struct{ done, failed, cancelled int64 }

// New makes a reactor of a node that has done nothing yet.
func New(cfg Config, room Room, store Store) *Core {
	if cfg.MaxWorkers == 0 {
		cfg.MaxWorkers = cfg.Cores + 64
	}
	if cfg.MaxQueued == 0 {
		cfg.MaxQueued = 1 << 30
	}
	if cfg.MaxUnread == 0 {
		cfg.MaxUnread = 64 << 20
	}
	if cfg.MaxLineage == 0 {
		cfg.MaxLineage = 256 << 20
	}
	return &Core{
		cfg: cfg, room: room, store: store, clients: map[uint32]*client{}, jobs: map[string]*job{}, tasks: map[id]*task{},
		objects: map[id]*object{}, children: map[id]map[*task]struct{}{}, pools: map[Key]*pool{}, active: map[*shape][]*level{},
		leases: newLeases(cfg.Number), demanded: map[uint32]*shape{}, remotes: map[remoteKey]*remote{}, byClient: map[uint32]*remote{},
		callees: map[id]*callee{}, moved: map[id]uint32{}, copied: map[id]*copied{}, spares: map[id]*spare{},
	}
}

// SetNumber says which life of the node this is; before that there are no clients.
func (c *Core) SetNumber(n uint32) { c.cfg.Number, c.leases.own = n, n }

// NextClient gives a number that no client of this node has had.
func (c *Core) NextClient() uint32 {
	c.nextID++
	return c.nextID
}

// Has reports whether a client is known.
func (c *Core) Has(client uint32) bool { return c.clients[client] != nil }

// Full reports whether so much waits that drivers should not be read from for a while.
func (c *Core) Full() bool { return c.queued > c.cfg.MaxQueued }

// Waits reports whether a client waits for objects: it must be read from.
func (c *Core) Waits(id uint32) bool {
	cl := c.clients[id]
	return cl == nil || cl.Kind == sdk.KindWorker || cl.level0.waits > 0
}

// Stats counts.
func (c *Core) Stats() Stats {
	s := Stats{Running: c.running, Objects: len(c.objects), Workers: c.workers}
	for _, sh := range c.ready {
		s.Queued += sh.queue.n
	}
	return s
}

// Connect takes a driver, or a worker that was started.
func (c *Core) Connect(now int64, x Client) error {
	c.now = now
	c.recordConnect(x)
	if x.Kind == sdk.KindWorker {
		w := c.clients[x.ID]
		if w == nil || w.pool == nil || w.up {
			return errs.New(errs.Permission, "this node has started no worker %d", x.ID)
		}
		job := w.Client.Job
		w.Client = x
		w.Client.Job, w.up, w.away = job, true, 0
		w.pool.starting--
		w.pool.failed = 0
		c.touched = append(c.touched, w.levels[0])
		return nil
	}
	c.nextID = max(c.nextID, x.ID)
	j := c.jobOf(x.Job)
	if j.over = false; x.Kind == sdk.KindPeer {
		j.peers++
	} else {
		j.drivers++
		j.home = x.Proc == ""
	}
	c.programsDue = true
	j.terms = x.Terms
	c.clients[x.ID] = &client{Client: x, job: j, shapes: map[uint32]*shape{}}
	c.clients[x.ID].level0.client = c.clients[x.ID]
	return nil
}

func (c *Core) jobOf(key string) *job {
	j := c.jobs[key]
	if j == nil {
		j = &job{key: key, shapes: map[string]*shape{}, funcs: map[funcID]*function{}}
		c.jobs[key] = j
	}
	return j
}

// Frame takes one frame of a client. An error says what was wrong with it and ends that
// client; others are as before. The body is copied where it is kept.
func (c *Core) Frame(now int64, from uint32, typ uint16, body []byte) error {
	c.now = now
	cl := c.clients[from]
	if cl == nil {
		return errs.New(errs.NotFound, "client %d is gone", from)
	}
	if (cl.back != 0 || len(cl.late) > 0) && c.repeats(cl, typ, body) {
		return nil
	}
	if typ != sdk.MsgGet && typ != sdk.MsgAwake && typ != sdk.MsgPeerSync {
		c.recordFrame(from, typ, body)
	}
	switch typ {
	case sdk.MsgSubmit:
		return c.submit(cl, body)
	case sdk.MsgResult:
		return c.result(cl, body)
	case sdk.MsgGet:
		return c.get(cl, body)
	case sdk.MsgAwake:
		c.awake(cl.top())
	case sdk.MsgRelease:
		return sdk.IDs(body, func(x id) { c.release(cl, x) })
	case sdk.MsgHold:
		return sdk.IDs(body, func(x id) {
			if o := c.lookup(x); o != nil {
				c.hold(o, cl.ID)
				c.tellSpare(cl, o)
			}
		})
	case sdk.MsgPut:
		return c.put(cl, body)
	case sdk.MsgYield:
		return c.yield(cl, body)
	case sdk.MsgFunc:
		return c.function(cl, body)
	case sdk.MsgShape:
		return c.shape(cl, body)
	case sdk.MsgHandBack:
		if len(body) < 4 {
			return errs.New(errs.Corrupt, "HandBack is cut short")
		}
		c.handBack(cl, u32(body))
	case sdk.MsgCancel:
		if len(body) < 8 {
			return errs.New(errs.Corrupt, "Cancel is cut short")
		}
		flags := u32(body)
		return sdk.IDs(body[8:], func(x id) { c.cancel(x.Task(), flags) })
	case sdk.MsgUp:
		return c.isUp(cl, body)
	case sdk.MsgKill:
		return c.kill(cl, body)
	default:
		return c.peerFrame(cl, typ, body)
	}
	return nil
}

func (c *Core) function(cl *client, b []byte) error {
	f, ok := functionOf(slices.Clone(b), cl.job.key)
	if !ok {
		return errs.New(errs.Corrupt, "Func is cut short")
	}
	if cl.job.funcs[f.id] == nil {
		cl.job.funcs[f.id] = f
	}
	if cl.known != nil { // a worker that has it need not be told
		cl.known[f.id] = true
	}
	return nil
}

// functionOf reads the body of a Func frame, which it keeps.
func functionOf(b []byte, job string) (*function, bool) {
	if len(b) < 20 || int64(u32(b[16:])) > int64(len(b)-20) {
		return nil, false
	}
	return &function{id: funcID(b[:16]), job: job, name: string(b[20 : 20+u32(b[16:])]), frame: b}, true
}

// options are those of a Shape frame.
type options struct {
	Name       string            `codec:"name"`
	CPU        *int64            `codec:"cpu"`
	GPU        int64             `codec:"gpu"`
	Memory     int64             `codec:"memory"`
	Resources  map[string]int64  `codec:"resources"`
	Retries    *int32            `codec:"max_retries"`
	Priority   *int              `codec:"priority"`
	Strategy   []any             `codec:"strategy"`
	Env        map[string]string `codec:"env"`
	WorkingDir string            `codec:"working_dir"`
	Window     uint32            `codec:"backpressure"`
	Calls      uint32            `codec:"max_calls"`
	Language   string            `codec:"language"`
	Program    string            `codec:"program"`
	Time       int64             `codec:"time"`
	Actor      *actorOptions     `codec:"actor"`
	Method     string            `codec:"method"`
	Group      string            `codec:"group"`
}

func (c *Core) shape(cl *client, b []byte) error {
	if len(b) < 4 {
		return errs.New(errs.Corrupt, "Shape is cut short")
	}
	if len(b)-4 > sdk.OptionsMax {
		return errs.New(errs.Invalid, "the options of a task are %s long, allowed are %s", wire.Bytes(int64(len(b))), wire.Bytes(sdk.OptionsMax))
	}
	n, text := u32(b), b[4:]
	key := cl.key()
	keyed := strings.Join([]string{key.Language, key.Program, key.Dir, strconv.FormatUint(uint64(key.DirOf), 10), key.Env, key.Path, string(text)}, "\x00\x00")
	if cl.Kind == sdk.KindPeer { // what waits for a lease is not to be behind what waits for room
		keyed = "peer " + strconv.FormatUint(uint64(cl.Peer), 10) + "\x00" + keyed
	}
	s := cl.job.shapes[keyed]
	if s == nil {
		var err error
		if s, err = c.newShape(savedShape{ID: []byte(keyed), Text: text, Key: key, Peer: cl.Kind == sdk.KindPeer}, cl.job); err != nil {
			return err
		}
	}
	cl.shapes[n] = s
	return nil
}

// newShape reads the options of tasks of a job.
func (c *Core) newShape(from savedShape, j *job) (*shape, error) {
	text, key := from.Text, from.Key
	var o options
	if err := wire.Unmarshal(text, &o); err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "the options of a task")
	}
	s := &shape{id: string(from.ID), from: from, job: j, text: slices.Clone(text), name: o.Name, retries: 3, prio: j.terms.Priority, time: o.Time, window: o.Window, calls: o.Calls}
	s.need = wire.Resources{CPU: wire.Unit, GPU: o.GPU, Memory: o.Memory, Custom: o.Resources}
	if o.CPU != nil {
		s.need.CPU = *o.CPU
	}
	if o.Priority != nil {
		s.prio = *o.Priority
	}
	if s.need.Negative() || o.Window > 1<<30 {
		return nil, errs.New(errs.Invalid, "task %s asks for less than nothing", o.Name)
	}
	if s.group, s.actor = o.Group, o.Actor; s.actor != nil {
		if err := s.actor.check(o.Name); err != nil {
			return nil, err
		}
		s.actor.startCPU, s.retries = o.CPU == nil, 0
	}
	if o.Method != "" {
		s.retries = 0
	}
	if o.Retries != nil {
		s.retries = *o.Retries
	}
	var err error
	s.room = "room for " + s.need.String()
	if s.place, err = strategyOf(o.Strategy); err != nil {
		return nil, err
	}
	if s.place.Kind == wire.StrategyGroup {
		s.room += " in placement group " + s.place.Group.String()
	}
	if s.key = key; from.Peer { // it has said it all in its hello
		o.Language, o.Program, o.WorkingDir = "", "", ""
	}
	if o.Language != "" && o.Language != key.Language {
		s.key = Key{Job: key.Job, Language: o.Language, Dir: key.Dir, DirOf: key.DirOf, Env: key.Env}
	}
	if o.Program != "" {
		s.key.Program = o.Program
	}
	if o.WorkingDir != "" {
		s.key.Dir, s.key.DirOf = o.WorkingDir, c.cfg.Number
		// Its modules come before those of the program, as for a program started there.
		s.key.Path = strings.TrimSuffix(o.WorkingDir+"\x00"+s.key.Path, "\x00")
	}
	if len(o.Env) > 0 {
		s.key.Env = withEnv(key.Env, o.Env)
	}
	if s.key.Env != withEnv("", o.Env) { // other nodes know of it only by the options
		s.text = withEnvOption(text, envOf(s.key.Env))
	}
	s.from.Text = s.text
	j.shapes[s.id] = s
	return s, nil
}

// key is that of the workers for what a client submits, unless options say otherwise: a
// worker's tasks run in workers like itself.
func (cl *client) key() Key {
	if cl.pool != nil {
		k := cl.pool.key
		k.GPUs = ""
		return k
	}
	return cl.Client.key()
}

// strategyOf reads the strategy of a shape.
func strategyOf(v []any) (s wire.Strategy, err error) {
	bad := errs.New(errs.Invalid, "a scheduling strategy that is none: %v", v)
	if len(v) == 0 {
		return s, nil
	}
	switch text(v[0]) {
	case "default":
	case "spread":
		s.Kind = wire.StrategySpread
	case "node":
		if len(v) < 3 {
			return s, bad
		}
		s.Kind, s.Node = wire.StrategyNode, wire.NodeID(text(v[1]))
		s.Soft, _ = v[2].(bool)
	case "labels":
		if len(v) < 3 {
			return s, bad
		}
		s.Kind, s.Hard, s.Want = wire.StrategyLabels, tests(v[1]), tests(v[2])
	case "group": // and whether tasks that it submits are of it too, which is the SDK's
		if len(v) < 3 {
			return s, bad
		}
		index, ok := number(v[2])
		if copy(s.Group[:], text(v[1])) != len(s.Group) || !ok || index < -1 || index >= wire.MaxBundles {
			return s, bad
		}
		s.Kind, s.Bundle = wire.StrategyGroup, int32(index)
	default:
		return s, bad
	}
	return s, nil
}

func number(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case uint64:
		return int64(v), v < 1<<63
	}
	return 0, false
}

func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	}
	return ""
}

func tests(v any) map[string]wire.LabelTest {
	out := map[string]wire.LabelTest{}
	add := func(k, v any) {
		l, _ := v.([]any)
		if len(l) == 0 {
			return
		}
		t := wire.LabelTest{Op: text(l[0])}
		if len(l) > 1 {
			vs, _ := l[1].([]any)
			for _, x := range vs {
				t.Values = append(t.Values, text(x))
			}
		}
		out[text(k)] = t
	}
	switch m := v.(type) {
	case map[string]any:
		for k, v := range m {
			add(k, v)
		}
	case map[any]any:
		for k, v := range m {
			add(k, v)
		}
	}
	return out
}

// frame starts a frame in a client's buffer; the result is where it began.
func (c *Core) frame(cl *client, typ, flags uint16) int {
	c.writes(cl)
	b, at := sdk.Begin(cl.out, typ, flags)
	cl.out = b
	return at
}

// writes notes that there is something in a client's buffer.
func (c *Core) writes(cl *client) {
	if !cl.dirty {
		cl.dirty = true
		c.dirty = append(c.dirty, cl)
	}
}

func (cl *client) finish(at int) { cl.out = sdk.Finish(cl.out, at) }

func (c *Core) do(e Effect) { c.effects = append(c.effects, e) }

// Take gives what came of the calls since the last one, and settles who runs what. It is
// called once for a batch of frames.
func (c *Core) Take(now int64) Output {
	c.now = now
	c.settle()
	c.sends = c.sends[:0]
	for _, cl := range c.dirty {
		cl.dirty = false
		if cl.away == 0 && len(cl.out) > 0 && !c.mute {
			c.sends = append(c.sends, Send{cl.ID, cl.out})
		}
	}
	if len(c.frees) > 0 {
		c.do(Free{IDs: slices.Clone(c.frees)})
		c.frees = c.frees[:0]
	}
	out := Output{Records: c.records, Effects: c.effects, Sends: c.sends, Nudge: c.nudge}
	c.nudge = false
	return out
}

// Sent says that the Output has been dealt with; its memory is used again.
func (c *Core) Sent() {
	for _, cl := range c.dirty {
		if cap(cl.out) > 1<<20 {
			cl.out = nil
		} else {
			cl.out = cl.out[:0]
		}
	}
	c.dirty, c.records = c.dirty[:0], c.records[:0]
	if cap(c.records) > 8<<20 {
		c.records = nil
	}
	clear(c.effects)
	c.effects = c.effects[:0]
}

// sortedClients are all clients, in an order that does not depend on maps.
func (c *Core) sortedClients() []*client {
	out := make([]*client, 0, len(c.clients))
	for _, cl := range c.clients {
		out = append(out, cl)
	}
	slices.SortFunc(out, func(a, b *client) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// tell writes a frame that begins with an id and goes on with numbers.
func (c *Core) tell(cl *client, typ uint16, x id, words ...uint32) {
	at := c.frame(cl, typ, 0)
	cl.out = append(cl.out, x[:]...)
	for _, w := range words {
		cl.out = append32(cl.out, w)
	}
	cl.finish(at)
}

// tellFunc sends the code of a task to who does not have it.
func (c *Core) tellFunc(cl *client, typ uint16, t *task) {
	if cl.known[t.fn()] {
		return
	}
	cl.known[t.fn()] = true
	if f := t.shape.job.funcs[t.fn()]; f != nil {
		at := c.frame(cl, typ, 0)
		cl.out = append(cl.out, f.frame...)
		cl.finish(at)
	}
}

func u32(b []byte) uint32                { return binary.LittleEndian.Uint32(b) }
func append32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }

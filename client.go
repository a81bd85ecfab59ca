package launcher

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync"
	"sync/atomic"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/sdk"
)

// States of an object in this process. They only go up, but for an object in shared
// memory that is not there any more: it is pending again until the agent has fetched it.
const (
	statePending uint32 = iota
	stateReady          // it has ended; its value is not here
	stateInline         // its bytes are here
	stateShared         // the index says where
	stateFailed
)

// object is what this process knows of an object.
type object struct {
	c     *client
	id    objectID
	state atomic.Uint32
	// value and err are written before state says that they are there.
	value value
	err   error
	views atomic.Pointer[views] // nil: none ever
	// Guarded by c.mu:
	holders int    // handles
	asked   uint8  // what the agent was asked for
	at      uint64 // position in the stream of the frame that asked
	waiters []*waiter
}

// value is an encoded value.
type value struct {
	form uint8
	data []byte
	end  bool // of a stream
}

// waiter waits for some of its objects.
type waiter struct {
	need   int
	values bool // for their values, and the first that fails is enough
	done   chan struct{}
}

// client is this process's conversation with its node's agent.
type client struct {
	hello  sdk.Hello
	store  store
	worker *worker // in workers

	dial    func(context.Context) (*net.UnixConn, error)
	reading sync.WaitGroup
	stopped chan struct{} // closed by close
	lost    chan struct{} // closed when gone is set

	mu       sync.Mutex // guards what follows
	conn     *net.UnixConn
	out      outbox
	busy     bool          // somebody writes the outbox
	moved    chan struct{} // closed when more is proven; nil when nobody waits for that
	logs     []byte        // to be printed: standard output, then standard error
	errors   []byte
	welcomed sdk.Welcome
	n        uint64 // last id made
	objects  map[objectID]*object
	shapes   map[string]uint32
	funcs    map[sdk.FuncID]bool // the agent was told
	calls    map[uint32]chan answer
	call     uint32
	ends     map[uint32]uint64 // where in the stream the calls end
	waiting  int               // goroutines that wait for objects
	killed   []taskID          // actors, of late
	gone     error             // the agent is not coming back
	closing  bool
	ahead    readahead
}

// readahead asks for the results of tasks that were submitted one after the other, when
// they are got one after the other, without a round trip for each.
type readahead struct {
	next   uint64 // n of the task that would be asked for next
	window uint64
}

const maxWindow = 1024

// connected gives the client that a task came by, or the process's.
func connected(ctx context.Context) (*client, error) {
	if t, ok := ctx.Value(orderKey{}).(*order); ok {
		return t.in.c, nil
	}
	if c := theClient.Load(); c != nil {
		return c, nil
	}
	return nil, errs.New(errs.Unavailable, "this program is not connected to a cluster").
		Hint("call it in the function that launcher.Main runs")
}

var theClient atomic.Pointer[client]

var errNoRef = errs.New(errs.Invalid, "an empty Ref").Hint("a Ref comes from Submit or Put")

// newID makes the id of a task or a put object; mu must be held.
func (c *client) newID(index uint32) objectID {
	return wire.NewObjectID(c.welcomed.Number, c.welcomed.Client, c.n, index)
}

// add makes the object of an id that this client made, with one handle; mu must be held.
func (c *client) add(id objectID) *handle {
	o := &object{c: c, id: id, holders: 1}
	c.objects[id] = o
	return newHandle(o)
}

// hold gives a handle on an object whose reference was found in a value.
func (c *client) hold(id objectID) *handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.objects[id]
	if o == nil {
		o = &object{c: c, id: id}
		c.objects[id] = o
		c.out.ids(sdk.MsgHold, id)
		c.nudge()
	}
	o.holders++
	return newHandle(o)
}

// drop takes one handle back; with the last one the agent is told.
func (o *object) drop() {
	c := o.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if o.holders--; o.holders == 0 {
		o.views.Load().end()
		delete(c.objects, o.id)
		c.out.ids(sdk.MsgRelease, o.id)
		c.nudge()
	}
}

// submission is a task on its way out.
type submission struct {
	f       *function
	actor   *handle // whose method f is
	number  uint64  // of the task; 0 = the next
	shape   uint32
	returns uint32
	flags   uint32
	deps    []*handle
	held    []*handle
	n       int    // arguments
	args    []byte // their msgpack, one after the other
}

// check refuses what makes no frame.
func (s *submission) check(results int) error {
	switch size := 52 + 16*(len(s.deps)+len(s.held)) + len(s.args) + 5; {
	case results > sdk.ManyMax:
		return errs.New(errs.Invalid, "a task of %d results, allowed are %d", results, sdk.ManyMax)
	case len(s.deps) > sdk.ManyMax:
		return errs.New(errs.Invalid, "a task with %d arguments that are references, allowed are %d", len(s.deps), sdk.ManyMax).
			Hint("pass a slice of Refs as a value, and Get them in the function")
	case size > sdk.BodyMax:
		return errs.New(errs.Invalid, "a task with so many references in its arguments that they take %d bytes in one message; at most %d are allowed", size, sdk.BodyMax)
	}
	return nil
}

// submit writes a task; out becomes its results. It waits when the agent has too much to
// read.
func (c *client) submit(ctx context.Context, s submission, out []*handle) (taskID, error) {
	if err := s.check(len(out)); err != nil {
		return taskID{}, err
	}
	if err := c.room(ctx); err != nil {
		return taskID{}, err
	}
	c.mu.Lock()
	if c.gone != nil {
		defer c.mu.Unlock()
		return taskID{}, c.gone
	}
	if s.actor == nil && !c.funcs[s.f.id] {
		c.funcs[s.f.id] = true
		c.out.function(s.f)
	}
	if s.number == 0 {
		c.n++
		s.number = c.n
	}
	task := wire.NewObjectID(c.welcomed.Number, c.welcomed.Client, s.number, 0)
	c.out.submit(task, s)
	for i := range out {
		out[i] = c.add(task.With(uint32(i) + 1))
	}
	full := c.nudge()
	c.mu.Unlock()
	runtime.KeepAlive(s)
	if full {
		c.flush()
	}
	return task, nil
}

// shapeOf gives the number of a function's options.
func (c *client) shapeOf(f *function, opts []Option) (uint32, error) {
	if len(opts) == 0 {
		if s := f.plain.of(c); s != 0 {
			return s, f.defaults.err
		}
	}
	o := f.defaults
	for _, opt := range opts {
		opt(&o)
	}
	s, err := c.shapeOfOptions(f, &o)
	if err == nil && len(opts) == 0 {
		f.plain.set(c, s)
	}
	return s, err
}

// shapeOfOptions gives the number of options.
func (c *client) shapeOfOptions(f *function, o *options) (uint32, error) {
	if o.check(f); o.err != nil {
		return 0, o.err
	}
	text := o.encode()
	if len(text) > sdk.OptionsMax {
		return 0, errs.New(errs.Invalid, "the options of a task take %d bytes, allowed are %d", len(text), sdk.OptionsMax)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.shapes[string(text)]
	if s == 0 {
		s = uint32(len(c.shapes)) + 1
		c.shapes[string(text)] = s
		c.out.shape(s, text)
	}
	return s, nil
}

// shapeCache remembers the number of the shape of a function's defaults.
type shapeCache struct{ p atomic.Pointer[cachedShape] }

type cachedShape struct {
	c *client
	n uint32
}

func (s *shapeCache) of(c *client) uint32 {
	if p := s.p.Load(); p != nil && p.c == c {
		return p.n
	}
	return 0
}

func (s *shapeCache) set(c *client, n uint32) { s.p.Store(&cachedShape{c, n}) }

// put makes an object.
func put(ctx context.Context, v any, opts []PutOption) (*handle, error) {
	o := putOptions{copies: 1}
	for _, opt := range opts {
		opt(&o)
	}
	if o.copies < 1 {
		return nil, errs.New(errs.Invalid, "a value with %d copies; there is at least 1", o.copies)
	}
	c, err := connected(ctx)
	if err != nil {
		return nil, err
	}
	e, err := encodeValue(v, false)
	if err != nil {
		return nil, err
	}
	h, err := c.put(ctx, e)
	if err == nil && o.copies > 1 {
		id := h.o.id
		var none any
		err = c.ask(ctx, &none, "copies", id[:], o.copies)
		runtime.KeepAlive(h)
	}
	if err != nil {
		return nil, err
	}
	return h, nil
}

// output is an encoded value as frames have it.
type output struct {
	kind, form uint8
	refs       []objectID
	size       int
	data       []byte // of what is inline
	at         place  // of what is shared
}

// outputs makes the values of one frame ready: what is inline is bounded in sum too, the
// rest is copied into shared memory.
func (c *client) outputs(ctx context.Context, es ...encoded) ([]output, error) {
	room, refs := sdk.InlineSum, 0
	for _, e := range es {
		refs += len(e.refs)
	}
	if err := fits(len(es), refs); err != nil {
		return nil, err
	}
	out := make([]output, 0, len(es))
	for _, e := range es {
		o, err := c.output(ctx, e, room)
		if err != nil {
			c.undo(out)
			return nil, err
		}
		if o.kind == sdk.Inline {
			room -= o.size
		}
		out = append(out, o)
	}
	return out, nil
}

// fits refuses values with so many references inside that they make no frame.
func fits(values, refs int) error {
	if size := sdk.InlineSum + 32*values + 16*refs; size > sdk.BodyMax {
		return errs.New(errs.Invalid, "a value, or the results of a task, with %d references inside: they take %d bytes in one message, at most %d are allowed", refs, size, sdk.BodyMax)
	}
	return nil
}

// undo gives the room of values back that are not told of.
func (c *client) undo(os []output) {
	for _, o := range os {
		if o.kind == sdk.Shared {
			c.store.undo(o.at, o.size)
		}
	}
}

// output makes a value ready for a frame that has some room for it.
func (c *client) output(ctx context.Context, e encoded, room int) (output, error) {
	o := output{kind: sdk.Inline, form: e.form, size: len(e.data), data: e.data}
	if err := fits(1, len(e.refs)); err != nil {
		return o, err
	}
	for _, h := range e.refs {
		id, err := h.alive()
		if err != nil {
			return o, err
		}
		o.refs = append(o.refs, id)
	}
	if len(e.data) <= sdk.InlineMax && len(e.data) <= room {
		return o, nil
	}
	var err error
	o.kind, o.data = sdk.Shared, nil
	o.at, err = c.store.write(ctx, c, e.data)
	return o, err
}

func (c *client) put(ctx context.Context, e encoded) (*handle, error) {
	if err := c.room(ctx); err != nil {
		return nil, err
	}
	out, err := c.output(ctx, e, sdk.InlineMax)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.gone != nil {
		defer c.mu.Unlock()
		c.undo([]output{out})
		return nil, c.gone
	}
	c.n++
	h := c.add(c.newID(wire.PutIndex))
	c.out.put(h.o.id, out)
	if out.kind == sdk.Shared {
		h.o.state.Store(stateShared)
	} else {
		h.o.value = value{form: e.form, data: copyOf(e.data, false)}
		h.o.state.Store(stateInline)
	}
	full := c.nudge()
	c.mu.Unlock()
	runtime.KeepAlive(e.refs)
	if full {
		c.flush()
	}
	return h, nil
}

// fetch waits for an object and gives its bytes: its own copy, or where it lies in shared
// memory as long as the pin is held.
func fetch(ctx context.Context, h *handle) (form uint8, data []byte, p pin, err error) {
	for {
		o, err := ready(ctx, h)
		if err != nil {
			return 0, nil, pin{}, err
		}
		if o.state.Load() == stateInline {
			return o.value.form, o.value.data, pin{}, nil
		}
		if form, data, p, err = o.c.store.pin(ctx, o.c, o.id); p.held() || err != nil {
			return form, data, p, err
		}
		o.c.again(o)
	}
}

// get waits for an object and decodes it into p.
func get(ctx context.Context, h *handle, v any) error {
	form, data, p, err := fetch(ctx, h)
	if err != nil {
		return err
	}
	defer p.release()
	return decodeValue(h.o.c, form, data, v, false)
}

// ready waits until an object is there.
func ready(ctx context.Context, h *handle) (_ *object, err error) {
	if h == nil {
		return nil, errNoRef
	}
	defer func() {
		if errors.Is(err, ErrFull) { // there may be room the next time
			h.o.c.again(h.o)
		}
	}()
	if !h.o.ended(true) {
		if err := await(ctx, []*handle{h}, 1, true); err != nil {
			return nil, err
		}
	}
	if h.released.Load() {
		return nil, ErrReleased
	}
	if h.o.state.Load() == stateFailed {
		return nil, h.o.err
	}
	return h.o, nil
}

// goneFor is why the agent is not coming back.
func (c *client) goneFor() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

// again makes an object pending that was in shared memory and is not any more, or that
// there was no room for.
func (c *client) again(o *object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := o.state.Load(); s == stateShared || s == stateFailed {
		o.asked = askedNothing
		o.state.Store(statePending)
	}
}

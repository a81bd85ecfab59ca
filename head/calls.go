package head

import (
	"context"
	"slices"
	"sync"
	"time"

	"launcher/backends"
	"launcher/head/core"
	"launcher/internal/errs"
	"launcher/wire"
)

// Bounds of calls to the broker.
const (
	submitBound = 10 * time.Minute // a queueing system may be slow to take a job
	findBound   = 2 * time.Minute
	statusBound = time.Minute
	cancelBound = 5 * time.Minute
	maxCalls    = 32 // at once
	maxSubmits  = 64 // likewise; apart, since a question about nodes must not wait for slow hosts
	watchRest   = 100 * time.Millisecond

	cancelRest     = 2 * time.Second // doubled after each failure
	lastCancelRest = time.Minute
)

// nodeWatch keeps the broker watching the allocations there are, and at most one
// question about each pool on its way.
type nodeWatch struct {
	h     *head
	calls chan struct{} // a place in it is a call
	asks  chan struct{} // likewise, of submissions

	mu    sync.Mutex
	pools map[string]*poolWatch // guarded by mu
}

type poolWatch struct {
	handles map[string]bool // what is watched
	changed chan struct{}   // handles changed; the watcher starts anew
	asking  bool            // a Status call is under way
	next    map[string]bool // asked for meanwhile
}

func newNodeWatch(h *head) *nodeWatch {
	return &nodeWatch{h: h, calls: make(chan struct{}, maxCalls), asks: make(chan struct{}, maxSubmits), pools: map[string]*poolWatch{}}
}

// call makes a bounded call to the broker in a goroutine of its own, when there is a place.
func (h *head) call(places chan struct{}, bound time.Duration, fn func(ctx context.Context)) {
	h.wg.Go(func() {
		select {
		case places <- struct{}{}:
		case <-h.ctx.Done():
			return
		}
		defer func() { <-places }()
		ctx, cancel := context.WithTimeout(h.ctx, bound)
		defer cancel()
		fn(ctx)
	})
}

// submitNodes asks the broker for nodes. The submission is in the journal: a head that
// dies here asks what became of it.
func (h *head) submitNodes(e core.SubmitNodes) {
	h.call(h.nodes.asks, submitBound, func(ctx context.Context) {
		p, err := h.pool(e.Pool)
		var allocs []backends.Alloc
		if err == nil {
			c := h.nowConfig()
			h.log.Info("asking for nodes", "pool", e.Pool, "nodes", len(e.Nodes), "token", e.Token)
			allocs, err = h.o.Broker.Submit(ctx, p, backends.Request{
				Token:   e.Token,
				Cluster: c.Name,
				Pool:    e.Pool,
				Nodes:   e.Nodes,
				Epochs:  e.Epochs,
				Join:    backends.Join{Addrs: h.reached(), CA: h.ca.CA(), Key: h.joins.key(e.Token)},
				Home:    c.Home,
				Binary:  c.Binary,
				Grace:   c.Grace,
				Memory:  c.ObjectMemory,
				Spill:   c.Spill,
				Places:  e.Places,
				After:   e.After,
				Within:  e.Within,
				// Nodes on this machine are on its loopback address, whatever others need.
				Ports:     elsewhere(p, c.Ports),
				Interface: elsewhere(p, c.Interface),
			})
		}
		if h.ctx.Err() != nil {
			return // nobody knows; the next head finds out
		}
		if err != nil {
			h.log.Warn("no nodes", "pool", e.Pool, "err", err)
		}
		h.nodes.watch(e.Pool, handlesOf(allocs), nil)
		h.event(core.Submitted{Token: e.Token, Allocs: toCore(allocs), Err: err})
	})
}

// elsewhere is a value for nodes that are not on this machine.
func elsewhere(p wire.Pool, v string) string {
	if slices.Contains(nearby, p.Backend) {
		return ""
	}
	return v
}

// findAllocs asks about each token by itself: that one machine of many cannot be asked
// says nothing of the others.
func (h *head) findAllocs(e core.FindAllocs) {
	for _, t := range e.Tokens {
		h.findAlloc(core.FindAllocs{Pool: e.Pool, Tokens: []string{t}})
	}
}

func (h *head) findAlloc(e core.FindAllocs) {
	h.call(h.nodes.calls, findBound, func(ctx context.Context) {
		p, err := h.pool(e.Pool)
		var found map[string][]backends.Alloc
		if err == nil {
			found, err = h.o.Broker.Find(ctx, p, h.nowConfig().Name, e.Tokens)
		}
		allocs := map[string][]core.Alloc{}
		for token, as := range found {
			allocs[token] = toCore(as)
			h.nodes.watch(e.Pool, handlesOf(as), nil)
		}
		if h.ctx.Err() == nil {
			h.event(core.Found{Pool: e.Pool, Tokens: e.Tokens, Allocs: allocs, Err: err})
		}
	})
}

// cancelAllocs gives each allocation back by itself where they are of particular machines:
// one that cannot be reached keeps none of the others.
func (h *head) cancelAllocs(e core.CancelAllocs) {
	if p, err := h.pool(e.Pool); err != nil || len(p.Places) == 0 {
		h.cancel(e, 0)
		return
	}
	for _, b := range e.Handles {
		h.cancel(core.CancelAllocs{Pool: e.Pool, Handles: [][]byte{b}, Waiting: e.Waiting}, 0)
	}
}

func (h *head) cancel(e core.CancelAllocs, tries int) {
	h.call(h.nodes.calls, cancelBound, func(ctx context.Context) {
		p, err := h.pool(e.Pool)
		if err == nil {
			err = h.o.Broker.Cancel(ctx, p, e.Handles, e.Waiting)
		}
		if err != nil && h.ctx.Err() == nil {
			h.log.Warn("nodes are not given back yet", "pool", e.Pool, "err", err)
			h.wg.Go(func() { h.cancelLater(e, tries) })
		}
		h.queryAllocs(e.Pool, e.Handles)
	})
}

// cancelLater gives back what could not be given back, until it is or has ended.
func (h *head) cancelLater(e core.CancelAllocs, tries int) {
	select {
	case <-time.After(min(cancelRest<<min(tries, 10), lastCancelRest)):
	case <-h.ctx.Done():
		return
	}
	left := e.Handles[:0:0]
	h.nodes.mu.Lock()
	for _, b := range e.Handles {
		if h.nodes.pool(e.Pool).handles[string(b)] {
			left = append(left, b)
		}
	}
	h.nodes.mu.Unlock()
	if len(left) > 0 {
		h.cancel(core.CancelAllocs{Pool: e.Pool, Handles: left, Waiting: e.Waiting}, tries+1)
	}
}

// queryAllocs asks for the state of allocations. What is asked while an earlier question
// about the pool is under way is asked in one after it.
func (h *head) queryAllocs(pool string, handles [][]byte) {
	w := h.nodes
	w.watch(pool, handles, nil)
	w.mu.Lock()
	defer w.mu.Unlock()
	pw := w.pool(pool)
	if pw.asking {
		for _, b := range handles {
			pw.next[string(b)] = true
		}
		return
	}
	pw.asking = true
	h.status(pool, handles)
}

func (h *head) status(pool string, handles [][]byte) {
	h.call(h.nodes.calls, statusBound, func(ctx context.Context) {
		p, err := h.pool(pool)
		var states []backends.Status
		if err == nil {
			states, err = h.o.Broker.Status(ctx, p, handles)
		}
		if err == nil && len(states) != len(handles) {
			err = errs.New(errs.Internal, "pool %s: %d states of %d allocations", pool, len(states), len(handles))
		}
		ev := core.AllocStatus{Pool: pool, Err: err}
		var ended [][]byte
		if err == nil {
			for i, s := range states {
				ev.Items = append(ev.Items, core.AllocItem{Handle: handles[i], State: core.AllocState(s.State), Why: s.Why, DeadNodes: s.DeadNodes, Deadline: s.Deadline})
				if s.State.Ended() {
					ended = append(ended, handles[i])
				}
			}
		}
		w := h.nodes
		w.watch(pool, nil, ended)
		if h.ctx.Err() == nil {
			h.event(ev)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		pw := w.pool(pool)
		if len(pw.next) == 0 {
			pw.asking = false
			return
		}
		var next [][]byte
		for b := range pw.next {
			next = append(next, []byte(b))
		}
		clear(pw.next)
		h.status(pool, next)
	})
}

// pool gives the watch of a pool, started when it is new. mu must be held.
func (w *nodeWatch) pool(name string) *poolWatch {
	pw := w.pools[name]
	if pw == nil {
		pw = &poolWatch{handles: map[string]bool{}, next: map[string]bool{}, changed: make(chan struct{}, 1)}
		w.pools[name] = pw
		w.h.wg.Go(func() { w.run(name, pw) })
	}
	return pw
}

// watch adds allocations to those that are watched, and takes ended ones away.
func (w *nodeWatch) watch(pool string, add, remove [][]byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	pw := w.pool(pool)
	before := len(pw.handles)
	for _, b := range add {
		pw.handles[string(b)] = true
	}
	grown := len(pw.handles) > before
	for _, b := range remove {
		delete(pw.handles, string(b))
	}
	// One that has ended may go on being watched until there is another reason.
	if grown || len(pw.handles) == 0 && before > 0 {
		select {
		case pw.changed <- struct{}{}:
		default:
		}
	}
}

// run has the broker watch a pool's allocations until the head ends.
func (w *nodeWatch) run(pool string, pw *poolWatch) {
	for {
		w.mu.Lock()
		handles := make([][]byte, 0, len(pw.handles))
		for b := range pw.handles {
			handles = append(handles, []byte(b))
		}
		w.mu.Unlock()
		slices.SortFunc(handles, func(a, b []byte) int { return slices.Compare(a, b) })
		ctx, cancel := context.WithCancel(w.h.ctx)
		done := make(chan error, 1)
		changed := make(chan int)
		if len(handles) > 0 {
			w.h.wg.Go(func() {
				defer close(changed)
				p, err := w.h.pool(pool)
				if err == nil {
					err = w.h.o.Broker.Watch(ctx, p, handles, changed)
				}
				done <- err
			})
		}
		again := w.follow(ctx, pool, handles, changed, done, pw)
		cancel()
		if len(handles) > 0 {
			for range changed { // the watcher may be about to send
			}
		}
		if !again {
			return
		}
		// Several changes often come together.
		select {
		case <-time.After(watchRest):
		case <-w.h.ctx.Done():
			return
		}
	}
}

// follow asks about whatever the watcher points at, until there are other allocations to
// watch (true) or the head ends.
func (w *nodeWatch) follow(ctx context.Context, pool string, handles [][]byte, changed <-chan int, done <-chan error, pw *poolWatch) bool {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-pw.changed:
			return true
		case <-retry.C:
			return true
		case i, ok := <-changed:
			if !ok {
				changed = nil
			} else if i >= 0 && i < len(handles) {
				w.h.queryAllocs(pool, handles[i:i+1])
			}
		case err := <-done:
			if err != nil && ctx.Err() == nil {
				w.h.log.Warn("nodes are not watched, trying again", "pool", pool, "err", err)
			}
			retry.Reset(5 * time.Second)
		}
	}
}

func handlesOf(allocs []backends.Alloc) (hs [][]byte) {
	for _, a := range allocs {
		hs = append(hs, a.Handle)
	}
	return hs
}

func toCore(allocs []backends.Alloc) (cs []core.Alloc) {
	for _, a := range allocs {
		cs = append(cs, core.Alloc{Handle: a.Handle, Nodes: a.Nodes})
	}
	return cs
}

func (h *head) nowConfig() wire.HeadConfig {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.config
}

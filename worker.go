package launcher

import (
	"context"
	"encoding/binary"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"launcher/internal/errs"
	"launcher/wire/sdk"
)

// worker runs the tasks that the agent gives this process, one after the other, or the
// calls of the actor that it has made. Its fields are guarded by the client's mu.
type worker struct {
	c       *client
	queue   []*order
	come    *sync.Cond    // there is something in the queue
	stack   []*order      // in work: each but the last waits; of an actor all that was taken from the queue
	less    *sync.Cond    // a task is done
	nested  chan struct{} // there is something in the queue, for a task that waits
	begun   uint32        // sequence of the newest that was begun
	drop    uint64        // Execs are void until the agent has read up to here
	wary    bool          // what is given may be what it handed back before the agent's restart
	known   map[sdk.FuncID]*workerFunction
	ending  bool
	actor   *actor           // that it is
	resumed map[attempt]bool // since the agent was restarted: ended, but it may not know
}

// attempt names one run of a task.
type attempt struct {
	task taskID
	n    uint32
}

// has reports whether a task that the agent gives again was given before; mu must be held.
func (w *worker) has(t *order) bool {
	return w.resumed[attempt{t.task, t.attempt}] ||
		slices.ContainsFunc(w.stack, func(o *order) bool { return o.task == t.task && o.attempt == t.attempt })
}

// resume makes ready for an agent that gives all tasks again which it does not know to
// have ended; mu must be held.
func (w *worker) resume() {
	if w == nil {
		return
	}
	w.queue, w.drop, w.wary, w.resumed = nil, 0, w.actor == nil, map[attempt]bool{} // an actor hands nothing back
	b := &w.c.out
	for at := int(b.proven - b.base); at < len(b.buf); at += 4 + int(binary.LittleEndian.Uint32(b.buf[at:])) {
		if f := b.buf[at+8:]; binary.LittleEndian.Uint16(b.buf[at+4:]) == sdk.MsgResult {
			w.resumed[attempt{taskID(f), binary.LittleEndian.Uint32(f[16:])}] = true
		}
	}
}

// workerFunction is a function as the agent calls it.
type workerFunction struct {
	f     *function // nil: this program does not have it
	name  string
	plain plainNumbers // called from elsewhere: slices of numbers are arrays
}

// order is a task to run.
type order struct {
	task     taskID
	fn       sdk.FuncID
	attempt  uint32
	sequence uint32
	returns  uint32
	flags    uint32
	about    []byte
	in       arguments
	stop     context.CancelCauseFunc // of the running one
	gone     bool                    // cancelled
	with     *workerFunction         // what fn is
	pressure uint32                  // items of a stream that may wait to be taken; 0 = any
	taken    uint32                  // items of the stream that were consumed
	more     chan struct{}           // signalled when taken changes
}

// exec queues a task; mu must be held.
func (w *worker) exec(c *client, body []byte) error {
	t, err := parseExec(c, append([]byte(nil), body...)) // it outlives the buffer
	if err != nil {
		return err
	}
	if w == nil {
		return errs.New(errs.Corrupt, "the agent gave a driver a task")
	}
	if c.out.proven < w.drop {
		return nil // was on its way when they were handed back
	}
	if w.resumed != nil && w.has(t) {
		return nil
	}
	if w.wary && c.waiting > 0 {
		w.handBack(t.sequence)
		c.nudge()
		return nil
	}
	w.queue = append(w.queue, t)
	if c.waiting == 0 || w.actor != nil {
		w.come.Signal()
		return nil
	}
	select {
	case w.nested <- struct{}{}:
	default:
	}
	return nil
}

// function takes in a function's name; mu must be held.
func (w *worker) function(body []byte) error {
	if w == nil || len(body) < 20 || uint32(len(body)-20) < binary.LittleEndian.Uint32(body[16:]) {
		return short("Func")
	}
	id := sdk.FuncID(body)
	name := string(body[20 : 20+binary.LittleEndian.Uint32(body[16:])])
	functions.RLock()
	f := functions.byName[name]
	functions.RUnlock()
	w.known[id] = &workerFunction{f: f, name: name, plain: f != nil && f.id != id}
	return nil
}

// cancel ends a task, or keeps it from beginning; mu must be held.
func (w *worker) cancel(body []byte) error {
	if w == nil || len(body) < 20 {
		return short("CancelTask")
	}
	task, attempt := taskID(body), binary.LittleEndian.Uint32(body[16:])
	for _, t := range slices.Concat(w.stack, w.queue) {
		if t.task == task && t.attempt == attempt {
			if t.gone = true; t.stop != nil {
				t.stop(ErrCancelled)
			}
		}
	}
	return nil
}

// consumed takes in how far a stream's readers are; mu must be held.
func (w *worker) consumed(body []byte) error {
	if w == nil || len(body) < 20 {
		return short("Consumed")
	}
	for _, t := range w.stack {
		if t.task == taskID(body) {
			t.taken = max(t.taken, binary.LittleEndian.Uint32(body[16:]))
			select {
			case t.more <- struct{}{}:
			default:
			}
		}
	}
	return nil
}

// exit ends the process once the task in work is done; mu must be held.
func (w *worker) exit() error {
	if w == nil {
		return errs.New(errs.Corrupt, "the agent told a driver to end")
	}
	w.ending = true
	w.come.Signal()
	return nil
}

// depth is how many tasks are in work: each waits for the one after it. What an actor runs
// does not. mu must be held.
func (w *worker) depth() int {
	if w == nil || w.actor != nil {
		return 0
	}
	return len(w.stack)
}

// handBack gives back what was given from a sequence number on and has not begun, and takes
// nothing until the agent has read that.
// It comes after the frame that says that a task waits: from that one on the agent gives
// this worker nothing. mu must be held.
func (w *worker) handBack(from uint32) {
	w.queue, w.wary = nil, false
	w.c.out.begin(sdk.MsgHandBack)
	w.c.out.u32(from)
	w.c.out.close()
	w.c.prove()
	w.drop = w.c.out.end()
}

// onTop runs the tasks that have come while one waits, in its place. mu must not be held.
func (w *worker) onTop() {
	for {
		w.c.mu.Lock()
		t := w.take()
		w.c.mu.Unlock()
		if t == nil {
			w.c.flush()
			return
		}
		done := make(chan struct{})
		go func() { // a goroutine of its own, which it may end
			defer close(done)
			debug.SetPanicOnFault(true)
			w.run(t)
		}()
		<-done
	}
}

// settle waits until the tasks that were begun while one waited are done: the agent
// takes a worker's tasks for a stack. mu must be held.
func (w *worker) settle(depth int) {
	for depth > 0 && len(w.stack) > depth {
		w.less.Wait()
	}
}

// serve runs tasks until the agent says that it is enough.
func (w *worker) serve() {
	for {
		done := make(chan struct{})
		go func() {
			defer close(done) // also when a task ends its goroutine
			debug.SetPanicOnFault(true)
			for t := w.next(); t != nil; t = w.next() {
				switch {
				case w.actor != nil && !w.actor.blocks:
					w.start(t)
				case t.makesActor():
					w.become(t)
				default:
					w.run(t)
				}
			}
		}()
		<-done
		w.c.mu.Lock()
		ending := w.ending
		w.c.mu.Unlock()
		if ending {
			w.closeActor()
			w.c.flushAll()
			return
		}
	}
}

// next waits for the next task to run; nil means that there will be none.
func (w *worker) next() *order {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if t := w.take(); t != nil {
			return t
		}
		if w.ending || c.gone != nil {
			w.ending = true
			return nil
		}
		if c.out.end() > c.out.written {
			// Nothing more to do now: the results so far are due.
			c.mu.Unlock()
			c.flush()
			c.mu.Lock()
		}
		if len(w.queue) == 0 && !w.ending && c.gone == nil {
			w.come.Wait()
		}
	}
}

// take begins the next task of the queue, if there is one; mu must be held.
func (w *worker) take() *order {
	for len(w.queue) > 0 && !w.ending {
		t := w.queue[0]
		w.queue = w.queue[1:]
		if w.actor != nil {
			t.with, t.in.self = &w.actor.method(t).workerFunction, w.actor.instance
			w.stack = append(w.stack, t)
			return t
		}
		w.begun = t.sequence
		if ctl := w.c.store.control; ctl != nil {
			atomic.StoreUint32(&ctl[0], t.sequence)
			if to, from := atomic.LoadUint32(&ctl[17]), atomic.LoadUint32(&ctl[16]); from != 0 && t.sequence >= from && t.sequence < to {
				atomic.StoreUint32(&ctl[2], t.sequence)
				continue
			}
			atomic.StoreUint32(&ctl[1], t.sequence)
		}
		if t.with = w.known[t.fn]; t.with == nil {
			// One that this worker submits itself: the agent knows that it is known here.
			functions.RLock()
			if f := functions.byID[t.fn]; f != nil {
				t.with = &workerFunction{f: f, name: f.name}
			}
			functions.RUnlock()
		}
		w.stack = append(w.stack, t)
		return t
	}
	return nil
}

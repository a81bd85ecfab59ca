package launcher

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"launcher/internal/errs"
	"launcher/wire/sdk"
)

// worker runs the tasks that the agent gives this process, one after the other. Its
// fields are guarded by the client's mu.
type worker struct {
	c       *client
	queue   []*order
	come    *sync.Cond
	running *order
	begun   uint32 // sequence of the newest that was begun
	drop    uint64 // Execs are void until the agent has read up to here
	known   map[sdk.FuncID]*workerFunction
	ending  bool
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
	gone     bool                    // cancelled before it began
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
	w.queue = append(w.queue, t)
	w.come.Signal()
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
	if t := w.running; t != nil && t.task == task && t.attempt == attempt && t.stop != nil {
		t.stop(ErrCancelled)
	}
	for _, t := range w.queue {
		if t.task == task && t.attempt == attempt {
			t.gone = true
		}
	}
	return nil
}

// consumed takes in how far a stream's readers are; mu must be held.
func (w *worker) consumed(body []byte) error {
	if w == nil || len(body) < 20 {
		return short("Consumed")
	}
	if t := w.running; t != nil && t.task == taskID(body) {
		t.taken = max(t.taken, binary.LittleEndian.Uint32(body[16:]))
		select {
		case t.more <- struct{}{}:
		default:
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

// blocks gives back what has not begun while the running task waits for others; mu must
// be held. It also says so before the frame that asks.
func (w *worker) blocks() {
	if w == nil || w.c.waiting != 1 {
		return
	}
	w.queue = nil
	w.c.out.begin(sdk.MsgHandBack)
	w.c.out.u32(w.begun + 1)
	w.c.out.close()
	w.c.prove()
	w.drop = w.c.out.end()
}

// serve runs tasks until the agent says that it is enough.
func (w *worker) serve() {
	for {
		done := make(chan struct{})
		go func() {
			defer close(done) // also when a task ends its goroutine
			debug.SetPanicOnFault(true)
			for {
				t := w.next()
				if t == nil {
					return
				}
				w.run(t)
			}
		}()
		<-done
		w.c.mu.Lock()
		ending := w.ending
		w.c.mu.Unlock()
		if ending {
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
		for len(w.queue) > 0 && !w.ending {
			t := w.queue[0]
			w.queue = w.queue[1:]
			w.begun = t.sequence
			if ctl := c.store.control; ctl != nil {
				atomic.StoreUint32(&ctl[0], t.sequence)
				if s := atomic.LoadUint32(&ctl[16]); s != 0 && t.sequence >= s && t.sequence < atomic.LoadUint32(&ctl[17]) {
					continue
				}
			}
			w.running, t.with = t, w.known[t.fn]
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

// run runs a task and reports how it ended.
func (w *worker) run(t *order) {
	start := time.Now()
	ctx, stop := context.WithCancelCause(context.Background())
	w.c.mu.Lock()
	t.stop = stop
	if t.gone {
		stop(ErrCancelled)
	}
	w.c.mu.Unlock()
	r := result{t: t, start: start, trace: "the function ended its goroutine"}
	r.err = errors.New(r.trace)
	defer func() { // not skipped by runtime.Goexit
		if p := recover(); p != nil {
			r.err, r.trace = panicError(p), string(debug.Stack())
		}
		r.cancelled = errors.Is(context.Cause(ctx), ErrCancelled) && r.err != nil
		stop(nil)
		t.in.release()
		w.report(r)
	}()
	r.values, r.err = w.invoke(ctx, t)
	r.trace = ""
}

// invoke calls the function and encodes what it gives.
func (w *worker) invoke(ctx context.Context, t *order) ([]encoded, error) {
	fn := t.with
	if fn == nil || fn.f == nil || fn.f.call == nil {
		name := "unknown"
		if fn != nil {
			name = fn.name
		}
		return nil, errs.New(errs.NotFound, "this program has no function %s", name).
			Hint("register functions in package-level variables, before launcher.Main runs")
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := t.in.open(ctx); err != nil {
		return nil, err
	}
	items := uint32(0)
	out, err := fn.f.call(ctx, &t.in, func(v any) error {
		items++
		return w.yield(ctx, t, items-1, v, fn.plain)
	})
	if err != nil || t.returns == sdk.Stream {
		return nil, err
	}
	if t.returns == 1 {
		e, err := encodeValue(out, fn.plain)
		return []encoded{e}, err
	}
	return split(out, int(t.returns), fn.plain)
}

// split encodes the elements of a slice one by one.
func split(v any, n int, plain plainNumbers) ([]encoded, error) {
	s := reflect.ValueOf(v)
	if n == 0 {
		return nil, nil
	}
	if s.Kind() != reflect.Slice || s.Len() != n {
		have := "1 value"
		if s.Kind() == reflect.Slice {
			have = fmt.Sprintf("%d values", s.Len())
		}
		return nil, errs.New(errs.Invalid, "the function gave %s, %d were to come", have, n)
	}
	out := make([]encoded, n)
	for i := range out {
		var err error
		if out[i], err = encodeValue(s.Index(i).Interface(), plain); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// panicError says what a panic was.
func panicError(p any) error {
	if e, ok := p.(interface{ Addr() uintptr }); ok {
		return errs.New(errs.Invalid, "panic: a fault at address %#x", e.Addr()).
			Hint("arguments that come by reference are read-only memory, and void when the function has returned: copy (slices.Clone) what you change or keep")
	}
	if err, ok := p.(error); ok {
		return fmt.Errorf("panic: %w", err)
	}
	return fmt.Errorf("panic: %v", p)
}

// result is how a task ended.
type result struct {
	t         *order
	start     time.Time
	values    []encoded
	err       error
	trace     string
	cancelled bool
}

// report writes a Result.
func (w *worker) report(r result) {
	c := w.c
	var outs []output
	status := sdk.ResultOK
	if r.err == nil {
		for _, e := range r.values {
			o, err := c.output(context.Background(), e)
			if err != nil {
				r.err = err
				break
			}
			outs = append(outs, o)
		}
	}
	if r.err != nil {
		code := "task"
		switch _, again := errors.AsType[retry](r.err); {
		case r.cancelled:
			status, code = sdk.ResultCancelled, "cancelled"
		case again:
			status = sdk.ResultRetry
		case errors.Is(r.err, ErrFull):
			status, code = sdk.ResultFailed, "full"
		default:
			status = sdk.ResultFailed
		}
		name := "?"
		if fn := r.t.with; fn != nil {
			name = shortName(fn.name)
		}
		text := encodeFailure(r.err, code, r.trace, name, string(c.welcomed.Node), os.Getpid())
		outs = []output{{kind: sdk.Failure, form: formMsgpack, data: text, size: len(text)}}
	}
	c.mu.Lock()
	w.running = nil
	c.out.result(r.t, status, r.start, time.Now(), outs)
	full := c.nudge()
	c.mu.Unlock()
	runtime.KeepAlive(r.values)
	if full {
		c.flush()
	}
}

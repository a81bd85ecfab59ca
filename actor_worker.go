package launcher

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"launcher/internal/errs"
	"launcher/wire/sdk"
)

// actor is what a worker is from the creation of an actor on (docs/actors.md).
type actor struct {
	order    *order // its creation
	instance any
	of       reflect.Type
	stop     context.CancelCauseFunc // of the constructor's context
	blocks   bool                    // it does nothing else while a call of it waits
	groups   map[string]*callGroup   // "" is that of all other calls
	methods  map[string]*method      // by what describes their calls
}

// method is what calls with one description run.
type method struct {
	workerFunction
	group *callGroup
}

// callGroup is a concurrency group; it is guarded by the client's mu.
type callGroup struct {
	free    int
	waiting []*order
}

// makesActor reports whether a task is the creation of an actor.
func (t *order) makesActor() bool {
	return bytes.Contains(t.about, []byte("\xa5actor")) && t.describe().Actor != nil
}

// become runs a creation: this worker is nothing else from then on.
func (w *worker) become(t *order) {
	start, c := time.Now(), w.c
	ctx, stop := context.WithCancelCause(context.WithValue(context.Background(), orderKey{}, t))
	c.mu.Lock()
	if t.stop = stop; t.gone {
		stop(ErrCancelled)
	}
	c.mu.Unlock()
	o := t.describe().Actor
	a := &actor{order: t, stop: stop, blocks: o.Concurrency <= 1 && len(o.Groups) == 0, methods: map[string]*method{},
		groups: map[string]*callGroup{"": {free: max(1, o.Concurrency)}}}
	for name, n := range o.Groups {
		a.groups[name] = &callGroup{free: max(1, n)}
	}
	r := result{t: t, start: start, trace: "the constructor ended its goroutine"}
	r.err = errs.New(errs.Invalid, "%s", r.trace)
	defer func() { // not skipped by runtime.Goexit
		if p := recover(); p != nil {
			r.err, r.trace = panicError(p), string(debug.Stack())
		}
		if r.err != nil {
			stop(nil)
			t.in.release()
			w.report(r)
			return
		}
		// The arguments stay where they are: the instance may have kept them.
		c.mu.Lock()
		w.actor, w.wary = a, false
		c.out.begin(sdk.MsgUp)
		c.out.id(t.task)
		c.out.u32(t.attempt)
		c.out.close()
		c.mu.Unlock()
		c.flush()
	}()
	if r.err, r.trace = w.prepare(ctx, t), ""; r.err == nil {
		a.of = t.with.f.of
		a.instance, r.err = t.with.f.call(ctx, &t.in, nil)
	}
}

// method is what a call is of; the client's mu must be held.
func (a *actor) method(t *order) *method {
	m := a.methods[string(t.about)]
	if m == nil {
		about := t.describe()
		m = &method{workerFunction: workerFunction{name: about.Method, plain: plainNumbers(about.Plain)}, group: a.groups[about.Group]}
		if m.group == nil {
			m.group = a.groups[""]
		}
		methods.RLock()
		m.f = methods.of[a.of][about.Method]
		methods.RUnlock()
		if m.f == nil {
			m.f = builtin[about.Method]
		}
		a.methods[string(t.about)] = m
	}
	return m
}

// builtin are the methods that every actor has.
var builtin = map[string]*function{
	"__ray_ready__": {call: func(context.Context, *arguments, func(any) error) (any, error) { return true, nil }},
	"__ray_terminate__": {call: func(ctx context.Context, _ *arguments, _ func(any) error) (any, error) {
		ExitActor(ctx)
		return nil, nil
	}},
}

// start runs a call in a goroutine of its own, or has it wait for its turn.
func (w *worker) start(t *order) {
	w.c.mu.Lock()
	g := w.actor.method(t).group
	if g.free == 0 {
		g.waiting = append(g.waiting, t)
		w.c.mu.Unlock()
		return
	}
	g.free--
	w.c.mu.Unlock()
	go w.runIn(g, t)
}

// runIn runs a call that has a place in its group, and then passes the place on.
func (w *worker) runIn(g *callGroup, t *order) {
	defer func() { // also when the call ends its goroutine
		w.c.mu.Lock()
		idle := len(w.queue) == 0
		if len(g.waiting) > 0 {
			go w.runIn(g, g.waiting[0])
			g.waiting[0] = nil
			g.waiting = g.waiting[1:]
		} else {
			g.free++
		}
		w.c.mu.Unlock()
		if idle {
			runtime.Gosched() // the results of those that are about to end leave with this one
			w.c.flush()
		}
	}()
	debug.SetPanicOnFault(true)
	w.run(t)
}

// creation is that of the actor that a task belongs to; nil if it belongs to none.
func (w *worker) creation(t *order) *order {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if w.actor != nil {
		return w.actor.order
	}
	if t.makesActor() {
		return t
	}
	return nil
}

// lends reports whether a wait gives the cores of this worker to others; mu must be held.
func (w *worker) lends() bool {
	if w == nil || w.actor == nil {
		return w.depth() > 0
	}
	return w.actor.blocks && len(w.stack) > 1
}

// leave ends the actor by its own will; it does not return.
func (w *worker) leave(creation *order) {
	w.closeActor()
	c, now := w.c, time.Now()
	c.mu.Lock()
	w.stack = slices.DeleteFunc(w.stack, func(t *order) bool { return t == creation })
	c.out.result(creation, sdk.ResultOK, now, now, nil)
	c.mu.Unlock()
	c.flushAll()
	os.Exit(0)
}

// closeActor has the instance clean up.
func (w *worker) closeActor() {
	if w.actor == nil {
		return
	}
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(os.Stderr, "launcher: Close of an actor: %v\n", panicError(p))
		}
	}()
	w.actor.stop(nil)
	if x, ok := w.actor.instance.(io.Closer); ok {
		if err := x.Close(); err != nil {
			fmt.Fprintf(os.Stderr, "launcher: Close of an actor: %v\n", err)
		}
	}
}

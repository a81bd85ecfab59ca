package launcher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"launcher/internal/errs"
	"launcher/wire/sdk"
)

// orderKey is where a task's context has its order.
type orderKey struct{}

// run runs a task and reports how it ended.
func (w *worker) run(t *order) {
	start := time.Now()
	ctx, stop := context.WithCancelCause(context.WithValue(context.Background(), orderKey{}, t))
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

// TaskInfo says which task a function runs as.
type TaskInfo struct {
	ID      string
	Name    string
	Attempt int // from 1: a task whose worker is lost runs again, with the next number
	Job     string
	Node    string
}

// Task says as which task the function runs that was given ctx; false outside tasks.
func Task(ctx context.Context) (TaskInfo, bool) {
	t, ok := ctx.Value(orderKey{}).(*order)
	if !ok {
		return TaskInfo{}, false
	}
	w := t.in.c.welcomed
	return TaskInfo{ID: t.task.String(), Name: t.describe().Name, Attempt: int(t.attempt), Job: w.Job, Node: string(w.Node)}, true
}

// about is what the agent says of a task: its options, as far as they matter here.
type about struct {
	Name         string `codec:"name"`
	Backpressure uint32 `codec:"backpressure"`
	Method       string `codec:"method"`
	Group        string `codec:"group"`
	Plain        bool   `codec:"plain"`
	Actor        *struct {
		Concurrency int            `codec:"concurrency"`
		Groups      map[string]int `codec:"groups"`
	} `codec:"actor"`
}

func (t *order) describe() about {
	var a about
	if len(t.about) > 0 && readGeneral(nil, t.about, &a) != nil {
		a = about{}
	}
	if a.Name == "" && t.with != nil {
		a.Name = shortName(t.with.name)
	}
	return a
}

// prepare finds the function and its arguments.
func (w *worker) prepare(ctx context.Context, t *order) error {
	fn := t.with
	if fn == nil || fn.f == nil || fn.f.call == nil {
		name, what := "unknown", "program has no function"
		if fn != nil {
			name = fn.name
		}
		if t.flags&sdk.SubmitCall != 0 {
			what = "actor has no method"
		}
		return errs.New(errs.NotFound, "this %s %s", what, name).
			Hint("register functions and methods in package-level variables, before launcher.Main runs")
	}
	if stream := t.returns == sdk.Stream; stream != fn.f.stream {
		return errs.New(errs.Invalid, "%s gives a stream: %v; the caller takes one: %v", fn.name, fn.f.stream, stream)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return t.in.open(ctx)
}

// invoke calls the function and encodes what it gives.
func (w *worker) invoke(ctx context.Context, t *order) ([]encoded, error) {
	if err := w.prepare(ctx, t); err != nil {
		return nil, err
	}
	fn := t.with
	if t.returns == sdk.Stream {
		t.pressure = t.describe().Backpressure
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
		outs, r.err = c.outputs(context.Background(), r.values...)
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
		text := encodeFailure(r.err, code, r.trace, r.t.describe().Name, string(c.welcomed.Node), os.Getpid())
		outs = []output{{kind: sdk.Failure, form: formMsgpack, data: text, size: len(text)}}
	}
	c.mu.Lock()
	w.stack = slices.DeleteFunc(w.stack, func(t *order) bool { return t == r.t })
	w.less.Broadcast()
	c.out.result(r.t, status, r.start, time.Now(), outs)
	full := c.nudge()
	c.mu.Unlock()
	runtime.KeepAlive(r.values)
	if full {
		c.flush()
	}
}

package launcher

import (
	"context"
	"iter"
	"runtime"
	"sync/atomic"

	"launcher/wire/sdk"
)

// Ref stands for a value that is somewhere in the cluster, or will be: the result of a
// task, or what Put gave. It is small, may be copied, and may be an argument of tasks, a
// part of their arguments and of what they return. The value is kept while a Ref to it
// is in use in any process; Release, or the garbage collector, ends that.
type Ref[T any] struct {
	h *handle
	_ bool // a struct of one pointer only would be taken for that pointer by the encoder
}

// handle is one process's hold on an object: all copies of a Ref have the same.
type handle struct {
	o        *object
	released atomic.Bool
	cleanup  runtime.Cleanup
	pending  *pending // of an actor with MaxPendingCalls; nil = there is no limit
}

// newHandle makes a handle that is already counted in o.
func newHandle(o *object) *handle {
	h := &handle{o: o}
	h.cleanup = runtime.AddCleanup(h, (*object).drop, o)
	return h
}

// release is Ref.Release.
func (h *handle) release() {
	if h.o.c != nil && !h.released.Swap(true) && !h.o.views.Load().any() {
		h.drop()
	}
}

// drop ends the hold before the collector finds it.
func (h *handle) drop() {
	h.cleanup.Stop()
	h.o.drop()
}

// failed is a handle on nothing: what was to make the object could not be begun.
func failed(err error) *handle {
	o := &object{err: err}
	o.state.Store(stateFailed)
	return &handle{o: o}
}

// alive gives the id to pass on, or why there is none.
func (h *handle) alive() (objectID, error) {
	switch {
	case h == nil:
		return objectID{}, errNoRef
	case h.released.Load():
		return objectID{}, ErrReleased
	case h.o.c == nil:
		return objectID{}, h.o.err
	}
	return h.o.id, nil
}

// AnyRef is a Ref of any type.
type AnyRef interface{ handle() *handle }

func (r Ref[T]) handle() *handle { return r.h }

// Get waits for the value. The error is the task's, or that of ctx, which ends the
// waiting and not the task. What Get gives is the caller's own; View does without the
// copy.
func (r Ref[T]) Get(ctx context.Context) (v T, err error) {
	err = get(ctx, r.h, &v)
	runtime.KeepAlive(r.h)
	return v, err
}

// Release says that this process does not need the value any more, sooner than the
// garbage collector would. All copies of the Ref are void.
func (r Ref[T]) Release() {
	if r.h != nil {
		r.h.release()
	}
}

// Cancel ends the task that makes the value, and the tasks that it submitted: one that
// waits is not started, one that runs has its context ended. The Ref then has
// ErrCancelled, unless the task was quicker.
func (r Ref[T]) Cancel() { cancelTask(r.h, sdk.CancelRecursive) }

// Kill is Cancel that also ends the process that runs the task.
func (r Ref[T]) Kill() { cancelTask(r.h, sdk.CancelRecursive|sdk.CancelForce) }

// Get waits for the values of all refs. It returns with the first that fails.
func Get[T any](ctx context.Context, refs ...Ref[T]) ([]T, error) {
	hs := make([]*handle, len(refs))
	for i, r := range refs {
		hs[i] = r.h
	}
	if err := await(ctx, hs, len(hs), true); err != nil {
		return nil, err
	}
	out := make([]T, len(refs))
	for i, h := range hs {
		if err := get(ctx, h, &out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Wait waits until n of the refs have ended, well or not, or ctx ends. It gives those
// that have and the others, each in the order of refs.
func Wait[R AnyRef](ctx context.Context, refs []R, n int) (ready, rest []R) {
	hs := make([]*handle, len(refs))
	for i, r := range refs {
		hs[i] = r.handle()
	}
	_ = await(ctx, hs, min(n, len(hs)), false)
	for i, h := range hs {
		if h == nil || h.o.ended(false) {
			ready = append(ready, refs[i])
		} else {
			rest = append(rest, refs[i])
		}
	}
	return ready, rest
}

// Put makes a value an object: computed or read once, passed to many tasks as a Ref, and
// on this node shared with them without a copy when it is []byte or a slice of numbers.
//
// Values are plain data: numbers, strings, bytes, slices, maps, and structs of these,
// whose exported fields are passed on by name; pointers are followed, functions and
// channels refused.
func Put[T any](ctx context.Context, v T, opts ...PutOption) (Ref[T], error) {
	h, err := put(ctx, v, opts)
	return Ref[T]{h: h}, err
}

// PutOption says how the object of a Put is kept.
type PutOption func(*putOptions)

type putOptions struct{ copies int }

// Copies is on how many nodes the object is kept; with two it survives the loss of one.
// Put then returns when all of them have it.
func Copies(n int) PutOption { return func(o *putOptions) { o.copies = n } }

// argument can be added to a call.
type argument interface{ addTo(c *call) }

// Arg is an argument of type A: a Ref[A], a Gather, or V of a value.
type Arg[A any] interface {
	argument
	is(A)
}

func (r Ref[T]) addTo(c *call) { c.dep(r.h) }
func (r Ref[T]) is(T)          {}

type plainValue[A any] struct{ v A }

// V makes a value an Arg.
func V[A any](v A) Arg[A] { return plainValue[A]{v} }

func (p plainValue[A]) addTo(c *call) { c.value(p.v) }
func (p plainValue[A]) is(A)          {}

type gather[E any] struct{ refs []Ref[E] }

// Gather is the argument []E of the values of refs.
func Gather[E any](refs []Ref[E]) Arg[[]E] { return gather[E]{refs} }

func (g gather[E]) addTo(c *call) {
	c.list(len(g.refs))
	for _, r := range g.refs {
		c.element(r.h)
	}
}
func (g gather[E]) is([]E) {}

// Stream is what a Generator's task yields.
type Stream[R any] struct{ s *stream }

func newStream[R any](s *stream) *Stream[R] {
	out := &Stream[R]{s}
	runtime.AddCleanup(out, (*stream).leave, s)
	return out
}

// All gives the items as they come, in order, once: an item that was taken is released. An
// error ends the stream. A caller that stops early cancels the task.
func (s *Stream[R]) All(ctx context.Context) iter.Seq2[R, error] {
	return func(yield func(R, error) bool) {
		for {
			var v R
			more, err := s.s.take(ctx, &v)
			if err != nil {
				var none R
				yield(none, err)
				return
			}
			if !more {
				return
			}
			if !yield(v, nil) {
				s.s.cancel()
				return
			}
		}
	}
}

// Cancel ends the task.
func (s *Stream[R]) Cancel() { s.s.cancel() }

package launcher

import (
	"context"
	"sync"

	"launcher/internal/errs"
	"launcher/wire/sdk"
)

// call is a task while it is put together.
type call struct {
	ctx    context.Context
	c      *client
	f      *function
	opts   []Option
	actor  *handle // whose method it is
	number uint64  // reserved for it
	shape  uint32  // 0 = that of f and opts
	args   []byte  // msgpack of the arguments, without the array's header
	n      int     // how many
	deps   []*handle
	held   []*handle
	mine   []*handle // of deps: put for this call alone
	err    error
}

// calls are used again: there is one for each task.
var calls = sync.Pool{New: func() any { return new(call) }}

// free ends the use of a call.
func (k *call) free() {
	clear(k.deps)
	clear(k.held)
	*k = call{args: k.args[:0], deps: k.deps[:0], held: k.held[:0]}
	if cap(k.args) <= sdk.InlineMax {
		calls.Put(k)
	}
}

func newCall(ctx context.Context, f *function, opts []Option) *call {
	k := calls.Get().(*call)
	k.ctx, k.f, k.opts = ctx, f, opts
	if f == nil {
		k.err = errs.New(errs.Invalid, "a function that was not registered").Hint("make it with launcher.Func")
		return k
	}
	k.c, k.err = connected(ctx)
	return k
}

// on makes it a call of an actor's method.
func (k *call) on(h *handle) *call {
	if h == nil {
		k.fail(errs.New(errs.Invalid, "an empty Handle").Hint("a Handle comes from New or FindActor"))
	} else if _, err := h.alive(); err != nil {
		k.fail(err)
	}
	k.actor = h
	return k
}

func (k *call) fail(err error) {
	if k.err == nil {
		k.err = err
	}
}

// value adds an argument by value. A large one becomes an object, so that it is copied
// once, into memory that the worker shares.
func (k *call) value(v any) {
	k.n++
	if k.err != nil {
		return
	}
	plain := plainNumbers(k.f.named)
	var b []byte
	raw := false
	switch v := v.(type) {
	case []byte:
		b, raw = v, true
	case Arrow:
		b, raw = v, true
	default:
		if !plain {
			b, raw = rawNumbers(v)
		}
	}
	if raw && len(b) <= sdk.InlineMax {
		k.args = appendBin(k.args, b)
		return
	}
	if raw {
		k.own(encodeValue(v, plain))
		return
	}
	at := len(k.args)
	args, refs, err := appendMsgpack(k.args, v)
	if err != nil {
		k.fail(err)
		return
	}
	if len(args)-at > sdk.InlineMax {
		k.own(encoded{form: formMsgpack, data: args[at:], refs: refs}, nil)
		return
	}
	k.args, k.held = args, append(k.held, refs...)
}

// own puts an argument for this call alone.
func (k *call) own(e encoded, err error) {
	var h *handle
	if err == nil {
		h, err = k.c.put(k.ctx, e)
	}
	if err != nil {
		k.fail(err)
		return
	}
	k.mine = append(k.mine, h)
	k.args = appendDep(k.args, len(k.deps))
	k.deps = append(k.deps, h)
}

// dep adds an argument that is an object's value.
func (k *call) dep(h *handle) {
	k.n++
	k.element(h)
}

// list begins an argument that is a list of n elements.
func (k *call) list(n int) {
	k.n++
	k.args = appendArray(k.args, n)
}

// element adds an object's value to the list.
func (k *call) element(h *handle) {
	if _, err := h.alive(); err != nil {
		k.fail(err)
		return
	}
	k.args = appendDep(k.args, len(k.deps))
	k.deps = append(k.deps, h)
}

// submit makes the task and gives its result.
func (k *call) submit() *handle { return k.submitN(1)[0] }

// submitN makes the task and gives its n results.
func (k *call) submitN(n int) []*handle {
	out := make([]*handle, n)
	if k.err == nil && k.actor != nil && k.actor.pending != nil {
		k.err = k.actor.pending.send(k, out)
	} else if k.err == nil {
		_, k.err = k.send(uint32(n), out)
	}
	if k.err != nil {
		for i := range out {
			out[i] = failed(k.err)
		}
	}
	k.free()
	return out
}

// stream makes the task and gives what it yields.
func (k *call) stream() *stream {
	s := &stream{c: k.c, err: k.err}
	if s.err == nil {
		s.task, s.err = k.send(sdk.Stream, nil)
	}
	k.free()
	return s
}

// send writes the task's frames; out becomes its results.
func (k *call) send(returns uint32, out []*handle) (taskID, error) {
	s := submission{f: k.f, returns: returns, flags: sdk.SubmitNamed, deps: k.deps, held: k.held, n: k.n, args: k.args,
		actor: k.actor, number: k.number, shape: k.shape}
	if k.actor != nil {
		s.flags |= sdk.SubmitCall
	}
	if len(k.args) > sdk.InlineMax {
		h, err := k.c.put(k.ctx, encoded{form: formMsgpack, data: append(appendArray(nil, k.n), k.args...)})
		if err != nil {
			return taskID{}, err
		}
		k.mine = append(k.mine, h)
		s.deps, s.args = append([]*handle{h}, k.deps...), nil
		s.flags |= sdk.SubmitLarge
	}
	var err error
	if s.shape == 0 {
		if s.shape, err = k.c.shapeOf(k.f, k.opts); err != nil {
			return taskID{}, err
		}
	}
	task, err := k.c.submit(k.ctx, s, out)
	for _, h := range k.mine {
		h.release()
	}
	return task, err
}

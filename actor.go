package launcher

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"launcher/internal/errs"
	"launcher/wire/sdk"
)

// Class is a registered constructor: its New makes actors whose state is a T. Actor makes
// it.
type Class[A, T any] struct{ f *function }

// Actor registers a constructor, so that actors can be made with it anywhere in the
// cluster: values that live in a process of their own, and whose methods are called from
// elsewhere. Do it, and register the methods, in package-level variables:
//
//	var (
//		Counter = launcher.Actor(newCounter)
//		Add     = launcher.Method((*counter).Add)
//	)
//
//	func newCounter(ctx context.Context, start int) (*counter, error)
//
//	func (c *counter) Add(ctx context.Context, n int) (int, error)
//
// The constructor's context ends with the actor. A T that has a method Close() error has it
// called at an orderly end. An actor runs one call at a time unless MaxConcurrency or
// ConcurrencyGroup say otherwise.
func Actor[A, T any](construct func(context.Context, A) (T, error), opts ...Option) Class[A, T] {
	return Class[A, T]{registerClass[T](construct, opts, func(ctx context.Context, in *arguments, _ func(any) error) (any, error) {
		var a A
		if err := in.read(&a); err != nil {
			return nil, err
		}
		return construct(ctx, a)
	})}
}

// With is the class with options for all its actors.
func (c Class[A, T]) With(opts ...Option) Class[A, T] { return Class[A, T]{c.f.with(opts)} }

// New makes an actor. It does not wait for the constructor: what that returns as an error
// is the cause of the ErrActorDied of calls, and Ready waits for it.
func (c Class[A, T]) New(ctx context.Context, a A, opts ...Option) (Handle[T], error) {
	k := newCall(ctx, c.f, nil)
	k.value(a)
	return create[T](k, opts)
}

// NewArg is New with an argument that is in the cluster already, or will be.
func (c Class[A, T]) NewArg(ctx context.Context, a Arg[A], opts ...Option) (Handle[T], error) {
	k := newCall(ctx, c.f, nil)
	a.addTo(k)
	return create[T](k, opts)
}

// Class0 is a registered constructor without an argument.
type Class0[T any] struct{ f *function }

// Actor0 is Actor for a constructor without an argument.
func Actor0[T any](construct func(context.Context) (T, error), opts ...Option) Class0[T] {
	return Class0[T]{registerClass[T](construct, opts, func(ctx context.Context, _ *arguments, _ func(any) error) (any, error) {
		return construct(ctx)
	})}
}

// With is the class with options for all its actors.
func (c Class0[T]) With(opts ...Option) Class0[T] { return Class0[T]{c.f.with(opts)} }

// New makes an actor.
func (c Class0[T]) New(ctx context.Context, opts ...Option) (Handle[T], error) {
	return create[T](newCall(ctx, c.f, nil), opts)
}

func registerClass[T any](construct any, opts []Option, call func(context.Context, *arguments, func(any) error) (any, error)) *function {
	var own options
	for _, o := range opts {
		o(&own)
	}
	f := register(construct, opts, call)
	if f.of = reflect.TypeFor[T](); own.name == "" {
		f.defaults.name = className(f.of)
	}
	return f
}

// className is what tables show for an actor.
func className(t reflect.Type) string { return strings.TrimPrefix(t.String(), "*") }

// methods are those of all types of actors, by name.
var methods = struct {
	sync.RWMutex
	of map[reflect.Type]map[string]*function
}{of: map[reflect.Type]map[string]*function{}}

func registerMethod[T any](fn any, stream bool, opts []Option, call func(context.Context, *arguments, func(any) error) (any, error)) *function {
	t := reflect.TypeFor[T]()
	f := &function{of: t, call: call, stream: stream}
	for _, o := range opts {
		o(&f.defaults)
	}
	if f.name = f.defaults.name; f.name == "" {
		full := runtime.FuncForPC(reflect.ValueOf(fn).Pointer()).Name()
		f.name = full[strings.LastIndexByte(full, '.')+1:]
	}
	f.defaults.name, f.defaults.method = className(t)+"."+f.name, f.name
	f.defaults.cpu = new(float64) // it runs in the actor's room
	methods.Lock()
	defer methods.Unlock()
	if methods.of[t] == nil {
		methods.of[t] = map[string]*function{}
	}
	if methods.of[t][f.name] != nil {
		panic(fmt.Sprintf("launcher: a method %s of %s is registered already: give one of them another name, launcher.Method(f, launcher.Name(%q))", f.name, t, "Other"))
	}
	methods.of[t][f.name] = f
	return f
}

// ActorMethod is a registered method of one argument. Method makes it.
type ActorMethod[T, A, R any] struct{ f *function }

// Method registers a method of actors whose state is a T, or a function that takes one
// first:
//
//	var Add = launcher.Method((*counter).Add)
//
// The context of a call ends when the call is cancelled. Options are those of every call:
// Retries (how often a call is repeated that an actor may have begun when it died, 0 without
// it), InGroup, Name (what programs in other languages call it by).
func Method[T, A, R any](fn func(T, context.Context, A) (R, error), opts ...Option) ActorMethod[T, A, R] {
	return ActorMethod[T, A, R]{registerMethod[T](fn, false, opts, func(ctx context.Context, in *arguments, _ func(any) error) (any, error) {
		var a A
		if err := in.read(&a); err != nil {
			return nil, err
		}
		return fn(in.self.(T), ctx, a)
	})}
}

// With is the method with options for all its calls.
func (m ActorMethod[T, A, R]) With(opts ...Option) ActorMethod[T, A, R] {
	return ActorMethod[T, A, R]{m.f.with(opts)}
}

// Submit calls the method. It does not wait; what goes wrong is in the Ref. The calls of
// one program begin in the order in which they were submitted.
func (m ActorMethod[T, A, R]) Submit(ctx context.Context, h Handle[T], a A, opts ...Option) Ref[R] {
	k := newCall(ctx, m.f, opts).on(h.h)
	k.value(a)
	return Ref[R]{h: k.submit()}
}

// SubmitArg is Submit with an argument that is in the cluster already, or will be.
func (m ActorMethod[T, A, R]) SubmitArg(ctx context.Context, h Handle[T], a Arg[A], opts ...Option) Ref[R] {
	k := newCall(ctx, m.f, opts).on(h.h)
	a.addTo(k)
	return Ref[R]{h: k.submit()}
}

// ActorMethod0 is a registered method without an argument.
type ActorMethod0[T, R any] struct{ f *function }

// Method0 is Method for a method without an argument.
func Method0[T, R any](fn func(T, context.Context) (R, error), opts ...Option) ActorMethod0[T, R] {
	return ActorMethod0[T, R]{registerMethod[T](fn, false, opts, func(ctx context.Context, in *arguments, _ func(any) error) (any, error) {
		return fn(in.self.(T), ctx)
	})}
}

// With is the method with options for all its calls.
func (m ActorMethod0[T, R]) With(opts ...Option) ActorMethod0[T, R] {
	return ActorMethod0[T, R]{m.f.with(opts)}
}

// Submit calls the method.
func (m ActorMethod0[T, R]) Submit(ctx context.Context, h Handle[T], opts ...Option) Ref[R] {
	return Ref[R]{h: newCall(ctx, m.f, opts).on(h.h).submit()}
}

// ActorMethod2 is a registered method of two arguments.
type ActorMethod2[T, A, B, R any] struct{ f *function }

// Method2 is Method for a method of two arguments.
func Method2[T, A, B, R any](fn func(T, context.Context, A, B) (R, error), opts ...Option) ActorMethod2[T, A, B, R] {
	return ActorMethod2[T, A, B, R]{registerMethod[T](fn, false, opts, func(ctx context.Context, in *arguments, _ func(any) error) (any, error) {
		var a A
		var b B
		if err := in.read(&a); err != nil {
			return nil, err
		}
		if err := in.read(&b); err != nil {
			return nil, err
		}
		return fn(in.self.(T), ctx, a, b)
	})}
}

// With is the method with options for all its calls.
func (m ActorMethod2[T, A, B, R]) With(opts ...Option) ActorMethod2[T, A, B, R] {
	return ActorMethod2[T, A, B, R]{m.f.with(opts)}
}

// Submit calls the method.
func (m ActorMethod2[T, A, B, R]) Submit(ctx context.Context, h Handle[T], a A, b B, opts ...Option) Ref[R] {
	k := newCall(ctx, m.f, opts).on(h.h)
	k.value(a)
	k.value(b)
	return Ref[R]{h: k.submit()}
}

// SubmitArg is Submit with arguments that are in the cluster; V makes a plain value one.
func (m ActorMethod2[T, A, B, R]) SubmitArg(ctx context.Context, h Handle[T], a Arg[A], b Arg[B], opts ...Option) Ref[R] {
	k := newCall(ctx, m.f, opts).on(h.h)
	a.addTo(k)
	b.addTo(k)
	return Ref[R]{h: k.submit()}
}

// ActorStream is a registered method whose results come one by one.
type ActorStream[T, A, R any] struct{ f *function }

// StreamMethod registers a method that yields any number of results, as StreamFunc does
// for functions.
func StreamMethod[T, A, R any](fn func(T, context.Context, A) iter.Seq2[R, error], opts ...Option) ActorStream[T, A, R] {
	return ActorStream[T, A, R]{registerMethod[T](fn, true, opts, func(ctx context.Context, in *arguments, yield func(any) error) (any, error) {
		var a A
		if err := in.read(&a); err != nil {
			return nil, err
		}
		for r, err := range fn(in.self.(T), ctx, a) {
			if err == nil {
				err = yield(r)
			}
			if err != nil {
				return nil, err
			}
		}
		return nil, nil
	})}
}

// With is the method with options for all its calls.
func (m ActorStream[T, A, R]) With(opts ...Option) ActorStream[T, A, R] {
	return ActorStream[T, A, R]{m.f.with(opts)}
}

// Submit calls the method.
func (m ActorStream[T, A, R]) Submit(ctx context.Context, h Handle[T], a A, opts ...Option) *Stream[R] {
	k := newCall(ctx, m.f, opts).on(h.h)
	k.value(a)
	return newStream[R](k.stream())
}

// NamedMethod is a method of actors of other programs, or in another language, by name.
type NamedMethod[R any] struct{ f *function }

// MethodNamed is a method of an actor that this program knows by its name only. It gets
// and gives plain data, as what Python calls does.
//
//	var Predict = launcher.MethodNamed[float64]("predict")
//
//	model, err := launcher.FindActor[any](ctx, "model", launcher.Namespace("prod"))
//	p, err := Predict.Submit(ctx, model, "some text").Get(ctx)
func MethodNamed[R any](name string, opts ...Option) NamedMethod[R] {
	f := &function{name: name, named: true}
	f.defaults.name = name
	for _, o := range opts {
		o(&f.defaults)
	}
	f.defaults.method, f.defaults.plain, f.defaults.cpu = name, true, new(float64)
	return NamedMethod[R]{f}
}

// Submit calls the method. An argument that is a Ref, or a Gather, stands for its value.
func (m NamedMethod[R]) Submit(ctx context.Context, h AnyHandle, args ...any) Ref[R] {
	return Ref[R]{h: m.call(ctx, h, args).submit()}
}

// Stream calls a method that yields its results one by one.
func (m NamedMethod[R]) Stream(ctx context.Context, h AnyHandle, args ...any) *Stream[R] {
	return newStream[R](m.call(ctx, h, args).stream())
}

func (m NamedMethod[R]) call(ctx context.Context, h AnyHandle, args []any) *call {
	k := newCall(ctx, m.f, nil).on(h.actor())
	for _, a := range args {
		if in, ok := a.(argument); ok {
			in.addTo(k)
		} else {
			k.value(a)
		}
	}
	return k
}

// Handle stands for an actor whose state is a T. It is small, may be copied, and may be an
// argument or result, or a part of one. The actor ends when no process has a handle of it
// any more, unless it is Detached: Release, or the garbage collector, gives one back. To
// programs in other languages it is a reference only: they find actors by their names.
type Handle[T any] struct {
	h *handle
	_ bool // as in Ref
}

// AnyHandle is a Handle of any type.
type AnyHandle interface{ actor() *handle }

func (h Handle[T]) actor() *handle { return h.h }

// ID is the actor's id, as `launcher actors` shows it.
func (h Handle[T]) ID() string {
	if h.h == nil || h.h.o.c == nil {
		return ""
	}
	return h.h.o.id.Task().String()
}

// String is for messages.
func (h Handle[T]) String() string { return fmt.Sprintf("Handle(%s)", h.ID()) }

var isReady = MethodNamed[any]("__ray_ready__", Name("ready"), Retries(-1))

// Ready waits until the actor has done what it was asked before, its constructor to begin
// with. The error is ErrActorDied if that failed.
func (h Handle[T]) Ready(ctx context.Context) error {
	r := isReady.Submit(ctx, h)
	_, err := r.Get(ctx)
	r.Release()
	return err
}

// Release says that this process does not need the actor any more. All copies of the
// Handle are void; calls that were submitted go on.
func (h Handle[T]) Release() {
	if h.h != nil {
		h.h.release()
	}
}

// Kill ends the actor at once and for good, what it runs with it.
func (h Handle[T]) Kill() error { return h.end(sdk.KillForGood) }

// Restart ends the actor's process at once. It begins anew if it has restarts left.
func (h Handle[T]) Restart() error { return h.end(0) }

func (h Handle[T]) end(flags uint32) error {
	id, err := h.h.alive()
	if err != nil {
		return err
	}
	c := h.h.o.c
	c.mu.Lock()
	c.out.begin(sdk.MsgKill)
	c.out.id(id.Task())
	c.out.u32(flags)
	c.out.close()
	if flags == sdk.KillForGood {
		c.killed = append(c.killed[max(0, len(c.killed)-keptKilled):], id.Task())
	}
	err = c.gone
	c.mu.Unlock()
	c.flush()
	runtime.KeepAlive(h.h)
	return err
}

// FindActor gives a handle of the actor that has a name (see ActorName) in this program's
// namespace, or that of the option Namespace. T is what the actor's state is in its
// program; any for actors of other programs, whose methods are then called by MethodNamed.
func FindActor[T any](ctx context.Context, name string, opts ...Option) (Handle[T], error) {
	c, err := connected(ctx)
	if err != nil {
		return Handle[T]{}, err
	}
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	space := o.forActor().space(c)
	h, err := c.find(ctx, space, name, nil, reflect.TypeFor[T]())
	if err == nil && h == nil {
		err = errs.Wrap(errs.NotFound, ErrNoActor, "%q in namespace %q", name, space).Hint("`launcher actors` lists them")
	}
	return Handle[T]{h: h}, err
}

// Self gives a method a handle of the actor that it runs in.
func Self[T any](ctx context.Context) (Handle[T], error) {
	t, ok := ctx.Value(orderKey{}).(*order)
	if !ok || t.in.c.worker == nil || t.in.c.worker.creation(t) == nil {
		return Handle[T]{}, errs.New(errs.Invalid, "Self is for methods of actors")
	}
	return Handle[T]{h: t.in.c.hold(t.in.c.worker.creation(t).task.With(1))}, nil
}

// ExitActor ends the actor whose method was given ctx, by its own will: it is not restarted.
// It does not return, and the caller of the method gets ErrActorDied.
func ExitActor(ctx context.Context) {
	t, ok := ctx.Value(orderKey{}).(*order)
	if !ok || t.in.c.worker == nil || t.in.c.worker.creation(t) == nil {
		panic("launcher: ExitActor is for methods of actors")
	}
	t.in.c.worker.leave(t.in.c.worker.creation(t))
}

// moment is how long the name of an actor may be ahead of it, or behind.
const moment = 10 * time.Second

// keptKilled is how many actors a program knows that it has killed: their names are about
// to be free.
const keptKilled = 1000

// find gives a handle of the actor of a name; nil when there is none. A name is taken a
// moment before its actor is submitted, and let go of a moment after it is over: who finds
// it then looks again.
func (c *client) find(ctx context.Context, space, name string, found [][]byte, t reflect.Type) (*handle, error) {
	for end := time.Now().Add(moment); ; found = nil {
		if found == nil {
			if err := c.ask(ctx, &found, "find_actor", space, name); err != nil {
				return nil, err
			}
		}
		if len(found) != 2 || len(found[0]) != len(objectID{}) {
			return nil, nil
		}
		if is := classOf(found[1]); t.Kind() != reflect.Interface && is != t.String() {
			return nil, errs.New(errs.Invalid, "the actor %q is a %s, not a %s", name, is, t).Hint("find it as FindActor[any], and call its methods by MethodNamed")
		}
		h := c.hold(objectID(found[0]).Task().With(1))
		short, cancel := context.WithTimeout(ctx, moment)
		err := await(short, []*handle{h}, 1, true)
		cancel()
		c.mu.Lock()
		over := err != nil || slices.Contains(c.killed, objectID(found[0]).Task())
		c.mu.Unlock()
		if !over || ctx.Err() != nil || time.Now().After(end) {
			return h, ctx.Err()
		}
		h.release()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// create makes an actor of a call that has the constructor's arguments.
func create[T any](k *call, opts []Option) (Handle[T], error) {
	h, err := k.create(opts, reflect.TypeFor[T]())
	k.free()
	return Handle[T]{h: h}, err
}

// claim takes the name of an actor for this call, or gives who has it already. One that has
// it and is over lets go of it in a moment.
func (k *call) claim(a *actorOptions, id taskID, t reflect.Type) (*handle, error) {
	if !a.orExisting { // whatever it is
		t = reflect.TypeFor[any]()
	}
	for taken := [][]byte(nil); ; {
		if len(taken) > 0 || a.orExisting {
			switch h, err := k.c.find(k.ctx, a.namespace, a.name, taken, t); {
			case err != nil || h != nil && a.orExisting:
				return h, err
			case h != nil:
				h.release()
				return nil, errs.Wrap(errs.Exists, ErrActorExists, "%q in namespace %q", a.name, a.namespace)
			}
		}
		taken = nil
		if err := k.c.ask(k.ctx, &taken, "name_actor", a.namespace, a.name, id[:], a.meta); err != nil {
			return nil, err
		}
		if len(taken) == 0 {
			return nil, nil
		}
	}
}

func (k *call) create(opts []Option, t reflect.Type) (*handle, error) {
	if k.err != nil {
		return nil, k.err
	}
	o := k.f.defaults
	for _, opt := range opts {
		opt(&o)
	}
	a := o.forActor()
	a.meta, a.namespace = metaOf(t), a.space(k.c)
	var err error
	if k.shape, err = k.c.shapeOfOptions(k.f, &o); err != nil {
		return nil, err
	}
	var id taskID
	if a.name != "" {
		id = k.c.reserve()
		if there, err := k.claim(a, id, t); there != nil || err != nil {
			return there, err
		}
		k.number = id.N()
	}
	task, err := k.send(0, nil)
	if err != nil {
		if a.name != "" { // others may want it
			var none any
			_ = k.c.ask(context.WithoutCancel(k.ctx), &none, "unname_actor", id[:])
		}
		return nil, err
	}
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	h := k.c.add(task.With(1))
	if a.pending > 0 {
		h.pending = &pending{most: a.pending}
	}
	return h, nil
}

// reserve makes the id of a task that is submitted later.
func (c *client) reserve() taskID {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.newID(0)
}

// space is the namespace of an actor's name.
func (a *actorOptions) space(c *client) string {
	switch own := os.Getenv("LAUNCHER_NAMESPACE"); {
	case a.namespace != "":
		return a.namespace
	case own != "":
		return own
	}
	return "job " + c.welcomed.Job
}

// metaOf is what handles made from a name know of a class: `{"language", "class",
// "methods": {name: {"stream", "group"}}}`.
func metaOf(t reflect.Type) []byte {
	methods.RLock()
	defer methods.RUnlock()
	b := appendString(appendString(appendMap(nil, 3), "language"), "go")
	b = appendString(appendString(b, "class"), t.String())
	of := methods.of[t]
	b = appendMap(appendString(b, "methods"), len(of))
	for _, name := range slices.Sorted(maps.Keys(of)) {
		f := of[name]
		b = appendBool(appendString(appendMap(appendString(b, name), 2), "stream"), f.stream)
		b = appendString(appendString(b, "group"), f.defaults.group)
	}
	return b
}

// classOf is the Go type that meta is of.
func classOf(meta []byte) string {
	var m struct {
		Language string `codec:"language"`
		Class    string `codec:"class"`
	}
	if readGeneral(nil, meta, &m) != nil || m.Language != "go" {
		return "class of another language"
	}
	return m.Class
}

package launcher

import (
	"context"
	"crypto/sha256"
	"fmt"
	"iter"
	"reflect"
	"runtime"
	"strings"
	"sync"

	"launcher/wire/sdk"
)

// function is a registered one, without its types.
type function struct {
	name   string // as registered
	id     sdk.FuncID
	named  bool         // of another program: called by name with plain data
	of     reflect.Type // of a class or a method: what the actor's state is
	stream bool
	// call runs it on the worker. For a stream, yield gets each item and the result is
	// none.
	call func(ctx context.Context, in *arguments, yield func(any) error) (any, error)
	// defaults are the options of every call; plain the number of their shape.
	defaults options
	plain    shapeCache
}

// functions are all that are registered, by name. They are registered while the program
// starts, in drivers and workers alike.
var functions = struct {
	sync.RWMutex
	byName map[string]*function
	byID   map[sdk.FuncID]*function
}{byName: map[string]*function{}, byID: map[sdk.FuncID]*function{}}

// idOf is the id of a function: docs/tasks.md, section 1.
func idOf(language, code string) (id sdk.FuncID) {
	h := sha256.Sum256([]byte(language + "\x00" + code))
	copy(id[:], h[:])
	return id
}

// register files a function under its own name, or the one that the options give.
func register(fn any, opts []Option, call func(context.Context, *arguments, func(any) error) (any, error)) *function {
	f := &function{call: call}
	for _, o := range opts {
		o(&f.defaults)
	}
	if f.name = f.defaults.name; f.name == "" {
		f.name = runtime.FuncForPC(reflect.ValueOf(fn).Pointer()).Name()
		f.defaults.name = shortName(f.name)
	}
	f.id = idOf("go", f.name)
	functions.Lock()
	defer functions.Unlock()
	if functions.byName[f.name] != nil {
		panic(fmt.Sprintf("launcher: a function %s is registered already: give one of them another name, launcher.Func(f, launcher.Name(%q))", f.name, "other"))
	}
	functions.byName[f.name], functions.byID[f.id] = f, f
	return f
}

// shortName is what tables show: pkg.Func without the path of the package.
func shortName(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// with is f with further options.
func (f *function) with(opts []Option) *function {
	g := &function{name: f.name, id: f.id, named: f.named, of: f.of, stream: f.stream, call: f.call, defaults: f.defaults}
	for _, o := range opts {
		o(&g.defaults)
	}
	return g
}

// Function is a registered function of one argument. Func makes it.
type Function[A, R any] struct{ f *function }

// Func registers a function, so that it can run as a task anywhere in the cluster. Do it
// in a package-level variable, so that workers, which are the same program, know it too:
//
//	var Square = launcher.Func(square)
//
//	func square(ctx context.Context, x int) (int, error) { return x * x, nil }
//
// The context ends when the task is cancelled. Arguments and results are plain data: see
// Put. Options are those of every call; Name is also what programs in other languages
// call it by (otherwise the name that Go gives it, such as main.square).
func Func[A, R any](fn func(context.Context, A) (R, error), opts ...Option) Function[A, R] {
	return Function[A, R]{register(fn, opts, func(ctx context.Context, in *arguments, _ func(any) error) (any, error) {
		var a A
		if err := in.read(&a); err != nil {
			return nil, err
		}
		return fn(ctx, a)
	})}
}

// With is the function with options for all its calls.
func (f Function[A, R]) With(opts ...Option) Function[A, R] {
	return Function[A, R]{f.f.with(opts)}
}

// Submit runs the function as a task. It does not wait; what goes wrong is in the Ref.
func (f Function[A, R]) Submit(ctx context.Context, a A, opts ...Option) Ref[R] {
	c := newCall(ctx, f.f, opts)
	c.value(a)
	return Ref[R]{h: c.submit()}
}

// SubmitArg is Submit with an argument that is in the cluster already, or will be: a
// Ref, or a Gather of several. The task starts when it is there.
func (f Function[A, R]) SubmitArg(ctx context.Context, a Arg[A], opts ...Option) Ref[R] {
	c := newCall(ctx, f.f, opts)
	a.addTo(c)
	return Ref[R]{h: c.submit()}
}

// Function0 is a registered function without an argument.
type Function0[R any] struct{ f *function }

// Func0 is Func for a function without an argument.
func Func0[R any](fn func(context.Context) (R, error), opts ...Option) Function0[R] {
	return Function0[R]{register(fn, opts, func(ctx context.Context, in *arguments, _ func(any) error) (any, error) {
		return fn(ctx)
	})}
}

// With is the function with options for all its calls.
func (f Function0[R]) With(opts ...Option) Function0[R] { return Function0[R]{f.f.with(opts)} }

// Submit runs the function as a task.
func (f Function0[R]) Submit(ctx context.Context, opts ...Option) Ref[R] {
	return Ref[R]{h: newCall(ctx, f.f, opts).submit()}
}

// Function2 is a registered function of two arguments.
type Function2[A, B, R any] struct{ f *function }

// Func2 is Func for a function of two arguments.
func Func2[A, B, R any](fn func(context.Context, A, B) (R, error), opts ...Option) Function2[A, B, R] {
	return Function2[A, B, R]{register(fn, opts, func(ctx context.Context, in *arguments, _ func(any) error) (any, error) {
		var a A
		var b B
		if err := in.read(&a); err != nil {
			return nil, err
		}
		if err := in.read(&b); err != nil {
			return nil, err
		}
		return fn(ctx, a, b)
	})}
}

// With is the function with options for all its calls.
func (f Function2[A, B, R]) With(opts ...Option) Function2[A, B, R] {
	return Function2[A, B, R]{f.f.with(opts)}
}

// Submit runs the function as a task.
func (f Function2[A, B, R]) Submit(ctx context.Context, a A, b B, opts ...Option) Ref[R] {
	c := newCall(ctx, f.f, opts)
	c.value(a)
	c.value(b)
	return Ref[R]{h: c.submit()}
}

// SubmitArg is Submit with arguments that are in the cluster; V makes a plain value one.
func (f Function2[A, B, R]) SubmitArg(ctx context.Context, a Arg[A], b Arg[B], opts ...Option) Ref[R] {
	c := newCall(ctx, f.f, opts)
	a.addTo(c)
	b.addTo(c)
	return Ref[R]{h: c.submit()}
}

// Generator is a registered function whose results come one by one.
type Generator[A, R any] struct{ f *function }

// StreamFunc registers a function that yields any number of results. Each is there for
// the caller when it is yielded. An error that it yields ends the stream.
//
//	var Lines = launcher.StreamFunc(lines)
//
//	func lines(ctx context.Context, path string) iter.Seq2[string, error]
func StreamFunc[A, R any](fn func(context.Context, A) iter.Seq2[R, error], opts ...Option) Generator[A, R] {
	f := register(fn, opts, func(ctx context.Context, in *arguments, yield func(any) error) (any, error) {
		var a A
		if err := in.read(&a); err != nil {
			return nil, err
		}
		for r, err := range fn(ctx, a) {
			if err == nil {
				err = yield(r)
			}
			if err != nil {
				return nil, err
			}
		}
		return nil, nil
	})
	f.stream = true
	return Generator[A, R]{f}
}

// With is the function with options for all its calls.
func (g Generator[A, R]) With(opts ...Option) Generator[A, R] {
	return Generator[A, R]{g.f.with(opts)}
}

// Submit runs the function as a task.
func (g Generator[A, R]) Submit(ctx context.Context, a A, opts ...Option) *Stream[R] {
	c := newCall(ctx, g.f, opts)
	c.value(a)
	return newStream[R](c.stream())
}

// SubmitArg is Submit with an argument that is in the cluster.
func (g Generator[A, R]) SubmitArg(ctx context.Context, a Arg[A], opts ...Option) *Stream[R] {
	c := newCall(ctx, g.f, opts)
	a.addTo(c)
	return newStream[R](c.stream())
}

// SubmitN runs a function that gives a slice as a task whose n elements are objects of
// their own: each can be passed on, and got, alone. It fails if the slice has another
// length.
func SubmitN[A, E any](ctx context.Context, f Function[A, []E], n int, a A, opts ...Option) []Ref[E] {
	c := newCall(ctx, f.f, opts)
	c.value(a)
	refs := make([]Ref[E], n)
	for i, h := range c.submitN(n) {
		refs[i].h = h
	}
	return refs
}

// Named is a function of another program, or in another language, called by the name
// that it is registered by there.
type Named[R any] struct{ f *function }

// Python is a Python function by the names of its module and its own. The module is
// looked for in the directory that this program runs in and where PYTHONPATH says; its
// interpreter is the node's python3, or what Program names. It gets and gives plain data:
// numbers, strings, bytes, lists, dicts with strings as keys, and Arrow.
//
//	var Score = launcher.Python[float64]("scoring:score")
//
//	s, err := Score.Submit(ctx, "some text", 3).Get(ctx)
func Python[R any](name string, opts ...Option) Named[R] { return named[R]("python", name, opts) }

// Go is the function that another Go program registered by a name; Program says where
// that is.
func Go[R any](name string, opts ...Option) Named[R] { return named[R]("go", name, opts) }

func named[R any](language, name string, opts []Option) Named[R] {
	f := &function{name: name, id: idOf("named", name), named: true}
	f.defaults.name, f.defaults.language = name, language
	if language == "python" {
		f.defaults.program = "python3"
	}
	for _, o := range opts {
		o(&f.defaults)
	}
	return Named[R]{f}
}

// With is the function with options for all its calls.
func (f Named[R]) With(opts ...Option) Named[R] { return Named[R]{f.f.with(opts)} }

// Submit runs the function as a task. An argument that is a Ref, or a Gather, stands for
// its value. What the function makes of the arguments shows when it runs.
func (f Named[R]) Submit(ctx context.Context, args ...any) Ref[R] {
	c := newCall(ctx, f.f, nil)
	for _, a := range args {
		if in, ok := a.(argument); ok {
			in.addTo(c)
		} else {
			c.value(a)
		}
	}
	return Ref[R]{h: c.submit()}
}

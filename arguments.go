package launcher

import (
	"context"
	"reflect"

	"launcher/internal/errs"
	"launcher/wire/sdk"
)

// arguments are those of one task, on the worker.
type arguments struct {
	c       *client
	self    any  // the actor whose method it is
	large   bool // the payload is the first dep's value
	deps    []dep
	payload []byte
	left    int // arguments not read yet
	pins    []pin
}

// dep is an object that the task was to have.
type dep struct {
	id   objectID
	kind uint8
	value
}

// open finds the deps in shared memory and the beginning of the arguments.
func (a *arguments) open(ctx context.Context) error {
	if err := a.fetchApart(ctx); err != nil {
		return err
	}
	for i := range a.deps {
		d := &a.deps[i]
		switch d.kind {
		case sdk.Inline:
		case sdk.Failure:
			return decodeFailure(d.data)
		case sdk.Shared:
			form, data, p, err := a.c.store.pin(ctx, a.c, d.id)
			if !p.held() && err == nil { // moved meanwhile
				h := a.c.hold(d.id)
				form, data, p, err = fetch(ctx, h)
				h.release()
			}
			if err != nil {
				return err
			}
			a.pins = append(a.pins, p)
			d.form, d.data = form, data
		default:
			return errs.New(errs.Corrupt, "argument %d of the task is of kind %d", i, d.kind)
		}
	}
	if a.large {
		if len(a.deps) == 0 {
			return errs.New(errs.Corrupt, "a task without its arguments")
		}
		a.payload, a.deps = a.deps[0].data, a.deps[1:]
	}
	n, rest, ok := cutArray(a.payload)
	if !ok {
		return errs.New(errs.Invalid, "the arguments are no list").Hint("functions of a Go program take positional arguments only")
	}
	a.left, a.payload = n, rest
	return nil
}

// fetchApart gets the deps that did not fit the frame of the task, all at once.
func (a *arguments) fetchApart(ctx context.Context) error {
	var hs []*handle
	var of []*dep
	for i := range a.deps {
		if d := &a.deps[i]; d.kind == sdk.Apart {
			hs, of = append(hs, a.c.hold(d.id)), append(of, d)
		}
	}
	if len(hs) == 0 {
		return nil
	}
	defer func() {
		for _, h := range hs {
			h.release()
		}
	}()
	if err := await(ctx, hs, len(hs), true); err != nil {
		return err
	}
	for i, d := range of {
		if d.kind = sdk.Shared; hs[i].o.state.Load() == stateInline {
			d.kind, d.value = sdk.Inline, hs[i].o.value
		}
	}
	return nil
}

// release ends the use of shared memory.
func (a *arguments) release() {
	for _, p := range a.pins {
		p.release()
	}
	a.pins = nil
}

// read decodes the next argument into p. Values that lie in shared memory stay there.
func (a *arguments) read(p any) error {
	if a.left == 0 {
		return errs.New(errs.Invalid, "too few arguments: a %s is missing", typeOf(p))
	}
	a.left--
	if i, rest, ok := cutDep(a.payload); ok {
		a.payload = rest
		return a.dep(i, p)
	}
	if n, rest, ok := cutArray(a.payload); ok && len(a.deps) > 0 && hasDep(rest, n) {
		a.payload = rest
		return a.gathered(n, p)
	}
	if v, rest, ok := cutBin(a.payload); ok {
		a.payload = rest
		return decodeValue(a.c, formBytes, v, p, false)
	}
	v, rest, err := cutValue(a.payload)
	if err != nil {
		return err
	}
	a.payload = rest
	return decodeValue(a.c, formMsgpack, v, p, false)
}

func (a *arguments) dep(i int, p any) error {
	if i >= len(a.deps) {
		return errs.New(errs.Corrupt, "an argument that is dep %d of %d", i, len(a.deps))
	}
	d := &a.deps[i]
	return decodeValue(a.c, d.form, d.data, p, d.kind == sdk.Shared)
}

// hasDep reports whether one of the n values that b begins with stands for a dep.
func hasDep(b []byte, n int) bool {
	for range n {
		_, rest, err := cutValue(b)
		if err != nil {
			return false
		}
		if _, _, ok := cutDep(b); ok {
			return true
		}
		b = rest
	}
	return false
}

// gathered decodes a list of deps, and perhaps other values, into p, a pointer to a slice.
func (a *arguments) gathered(n int, p any) error {
	s := reflect.ValueOf(p).Elem()
	loose := s.Kind() == reflect.Interface
	if loose {
		s = reflect.New(reflect.TypeFor[[]any]()).Elem()
	}
	if s.Kind() != reflect.Slice {
		return errs.New(errs.Invalid, "the argument is a list, not a %s", typeOf(p))
	}
	out := reflect.MakeSlice(s.Type(), n, n)
	for i := range n {
		e := out.Index(i).Addr().Interface()
		dep, rest, ok := cutDep(a.payload)
		var err error
		if ok {
			err = a.dep(dep, e)
		} else {
			var v []byte
			if v, rest, err = cutValue(a.payload); err == nil {
				err = decodeValue(a.c, formMsgpack, v, e, false)
			}
		}
		if err != nil {
			return err
		}
		a.payload = rest
	}
	s.Set(out)
	if loose {
		reflect.ValueOf(p).Elem().Set(s)
	}
	return nil
}

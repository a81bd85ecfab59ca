package launcher

import (
	"context"
	"sync"
)

// View is a value in place: []byte and slices of numbers are in memory that all
// processes of the node share, and must not be written (that is a fault).
type View[T any] struct {
	Value T
	h     *handle // keeps the object; nil: the value is the View's own
}

// View waits for the value and gives it without a copy, if it is []byte or a slice of
// numbers and large; others as Get does. Release it when the value is not looked at any
// more, or it takes up memory as long as the Ref is in use.
func (r Ref[T]) View(ctx context.Context) (*View[T], error) {
	v := &View[T]{}
	for {
		o, err := ready(ctx, r.h)
		if err != nil {
			return nil, err
		}
		if o.state.Load() == stateInline {
			return v, decodeValue(o.c, o.value.form, o.value.data, &v.Value, false)
		}
		form, data, ok, err := o.begin(ctx)
		if err != nil {
			return nil, err
		}
		if !ok {
			o.c.again(o)
			continue
		}
		v.h = r.h
		if err := decodeValue(o.c, form, data, &v.Value, true); err != nil {
			v.Release()
			return nil, err
		}
		return v, nil
	}
}

// Release ends the use of the value, which is void from then on.
func (v *View[T]) Release() {
	var none T
	v.Value = none
	h := v.h
	if h == nil {
		return
	}
	v.h = nil
	if h.o.views.Load().less() && h.released.Load() {
		h.drop() // Release of the Ref left that to the last View
	}
}

// views are the uses of an object in place. All of them have one pin. Each use keeps a
// handle, so when the last handle is gone, uses that were never ended are over too.
type views struct {
	mu   sync.Mutex // guards what follows
	n    int
	pin  pin
	form uint8
	data []byte
}

// begin begins a use; without ok the object is not in memory.
func (o *object) begin(ctx context.Context) (form uint8, data []byte, ok bool, err error) {
	v := o.views.Load()
	if v == nil {
		o.views.CompareAndSwap(nil, &views{})
		v = o.views.Load()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.n == 0 {
		if v.form, v.data, v.pin, err = o.c.store.pin(ctx, o.c, o.id); err != nil || !v.pin.held() {
			return 0, nil, false, err
		}
	}
	v.n++
	return v.form, v.data, true, nil
}

// less ends a use; it reports whether it was the last.
func (v *views) less() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.n == 0 {
		return false
	}
	if v.n--; v.n == 0 {
		v.pin.release()
		v.pin = pin{}
	}
	return v.n == 0
}

// any reports whether there is a use now.
func (v *views) any() bool {
	if v == nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.n > 0
}

// end ends them all.
func (v *views) end() {
	if v == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.n > 0 {
		v.n = 0
		v.pin.release()
		v.pin = pin{}
	}
}

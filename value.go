package launcher

import (
	"encoding"
	"fmt"
	"reflect"
	"sync"

	"github.com/ugorji/go/codec"

	"launcher/internal/errs"
)

// Values cross between processes as plain data, never as code: []byte as it is, slices
// of numbers as their little-endian bytes, everything else as msgpack (structs as maps
// by field name, `codec` and `json` tags count). A Ref inside a value stays a reference. Of
// what Python programs put and return, plain data is read as such.

// Arrow is a table in Arrow's IPC stream format: what Python functions called by name
// take and give as pyarrow tables.
type Arrow []byte

// The forms of a value (docs/tasks.md, section 2).
const (
	formPython uint8 = iota
	formMsgpack
	formBytes
	formArrow
)

// Extensions of msgpack: in the arguments of a call, and in any value.
const (
	extDep = 1 // u32: the value of that dep
	extRef = 2 // id: a reference
)

// plainNumbers makes slices of numbers arrays that every language reads, not bytes.
type plainNumbers bool

// encoded is a value on its way out.
type encoded struct {
	form uint8
	data []byte
	refs []*handle // inside it; they must live until the frame is written
}

// encodeValue turns a value into bytes. What it gives may share memory with v.
func encodeValue(v any, plain plainNumbers) (encoded, error) {
	switch v := v.(type) {
	case []byte:
		return encoded{form: formBytes, data: v}, nil
	case Arrow:
		return encoded{form: formArrow, data: v}, nil
	}
	if !plain {
		if b, ok := rawNumbers(v); ok {
			return encoded{form: formBytes, data: b}, nil
		}
	}
	data, refs, err := appendMsgpack(nil, v)
	return encoded{form: formMsgpack, data: data, refs: refs}, err
}

// decodeValue reads a value into p, a pointer. With alias what it gives may share memory with
// data where the type allows it.
func decodeValue(c *client, form uint8, data []byte, p any, alias bool) error {
	switch form {
	case formMsgpack:
		return readMsgpack(c, data, p)
	case formBytes, formArrow:
		switch p := p.(type) {
		case *[]byte:
			*p = copyOf(data, alias)
			return nil
		case *Arrow:
			*p = Arrow(copyOf(data, alias))
			return nil
		case *string:
			*p = string(data)
			return nil
		case *any:
			*p = copyOf(data, alias)
			return nil
		}
		if form == formBytes {
			if ok, err := setNumbers(p, data, alias); ok {
				return err
			}
		}
		return errs.New(errs.Invalid, "the value is %d bytes, not a %s", len(data), typeOf(p)).
			Hint("take it as []byte, or have the other side give plain data")
	case formPython:
		data, err := plainOf(data)
		if err != nil {
			return err
		}
		return readMsgpack(c, data, p)
	}
	return errs.New(errs.Corrupt, "a value of the unknown form %d", form)
}

// copyOf is data, or a copy of it.
func copyOf(data []byte, alias bool) []byte {
	if alias {
		return data
	}
	return append(make([]byte, 0, len(data)), data...)
}

// typeOf names what a pointer points to.
func typeOf(p any) string { return reflect.TypeOf(p).Elem().String() }

// A coder holds an encoder and a decoder of the general case. The references of the
// value in work are found through its handle's extension, so each has a handle.
type coder struct {
	enc  *codec.Encoder
	dec  *codec.Decoder
	c    *client   // whose references are decoded
	refs []*handle // met while encoding
	err  error
}

var coders = sync.Pool{New: func() any {
	k := &coder{}
	h := &codec.MsgpackHandle{WriteExt: true}
	h.RawToString = true
	h.SignedInteger = true
	h.MapType = reflect.TypeFor[map[string]any]()
	h.MaxDepth = 256
	h.MaxInitLen = 1 << 16
	if err := h.SetBytesExt(reflect.TypeFor[reference](), extRef, k); err != nil {
		panic("launcher: " + err.Error())
	}
	k.enc, k.dec = codec.NewEncoderBytes(nil, h), codec.NewDecoderBytes(nil, h)
	return k
}}

// WriteExt writes a reference's id.
func (k *coder) WriteExt(v any) []byte {
	var r reference
	switch v := v.(type) {
	case reference:
		r = v
	case *reference:
		r = *v
	}
	id, err := r.h.alive()
	if err != nil {
		k.err = err
		return make([]byte, len(id))
	}
	k.refs = append(k.refs, r.h)
	return id[:]
}

// ReadExt makes a reference of an id.
func (k *coder) ReadExt(dst any, src []byte) {
	r, ok := dst.(*reference)
	switch {
	case !ok || len(src) != len(objectID{}):
		k.err = errs.New(errs.Corrupt, "a reference of %d bytes", len(src))
	case k.c == nil:
		k.err = errs.New(errs.Invalid, "a reference in a value outside a cluster")
	default:
		r.h = k.c.hold(objectID(src))
	}
}

// passable remembers which types can be passed on: nil, or why not.
var passable sync.Map

// checkType says why values of a type cannot be passed on: what has no meaning in another
// process would silently be left out.
func checkType(t reflect.Type) error {
	if err, ok := passable.Load(t); ok {
		err, _ := err.(error)
		return err
	}
	var err error
	if bad := unpassable(t, map[reflect.Type]bool{}); bad != nil {
		err = errs.New(errs.Invalid, "a %s cannot be passed on: it has a %s in it", t, bad).
			Hint("pass plain data, or give the field the tag `codec:\"-\"`")
	}
	passable.Store(t, err)
	return err
}

// unpassable finds a function, channel or raw pointer within a type.
func unpassable(t reflect.Type, seen map[reflect.Type]bool) reflect.Type {
	if seen[t] || t.Implements(reflect.TypeFor[codec.Selfer]()) || t.Implements(reflect.TypeFor[encoding.BinaryMarshaler]()) {
		return nil
	}
	seen[t] = true
	switch t.Kind() {
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		return t
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return unpassable(t.Elem(), seen)
	case reflect.Map:
		if bad := unpassable(t.Key(), seen); bad != nil {
			return bad
		}
		return unpassable(t.Elem(), seen)
	case reflect.Struct:
		for f := range t.Fields() {
			if f.IsExported() && f.Tag.Get("codec") != "-" && f.Tag.Get("json") != "-" {
				if bad := unpassable(f.Type, seen); bad != nil {
					return bad
				}
			}
		}
	}
	return nil
}

// general appends v's msgpack by reflection.
func general(b []byte, v any) (out []byte, refs []*handle, err error) {
	if err := checkType(reflect.TypeOf(v)); err != nil {
		return nil, nil, err
	}
	k := coders.Get().(*coder)
	k.refs, k.err = nil, nil
	defer func() {
		if r := recover(); r != nil {
			out, refs, err = nil, nil, errs.New(errs.Invalid, "a %T cannot be passed on: %v", v, r)
			return // a coder that panicked is not used again
		}
		coders.Put(k)
	}()
	var data []byte
	k.enc.ResetBytes(&data)
	if err := k.enc.Encode(v); err != nil {
		return nil, nil, errs.Wrap(errs.Invalid, err, "a %T cannot be passed on", v)
	}
	return append(b, data...), k.refs, k.err
}

// readGeneral decodes by reflection. Bytes left over are an error.
func readGeneral(c *client, b []byte, p any) (err error) {
	k := coders.Get().(*coder)
	k.c, k.err = c, nil
	defer func() {
		if r := recover(); r != nil {
			err = errs.New(errs.Corrupt, "the value is not a %s: %v", typeOf(p), r)
			return
		}
		k.c = nil
		coders.Put(k)
	}()
	k.dec.ResetBytes(b)
	if err := k.dec.Decode(p); err != nil {
		return errs.Wrap(errs.Invalid, err, "the value is not a %s", typeOf(p))
	}
	if k.err == nil && k.dec.NumBytesRead() != len(b) {
		return errs.New(errs.Corrupt, "%d bytes after a value that is a %s", len(b)-k.dec.NumBytesRead(), typeOf(p))
	}
	return k.err
}

// reference is what a Ref is inside a value: the same type for all of them, so that the
// coder knows it.
type reference struct {
	h *handle
	_ bool
}

// CodecEncodeSelf makes a Ref inside a value a reference there.
func (r Ref[T]) CodecEncodeSelf(e *codec.Encoder) {
	if r.h == nil {
		e.MustEncode(nil)
		return
	}
	e.MustEncode(reference{h: r.h})
}

// CodecDecodeSelf makes a Ref of a reference inside a value.
func (r *Ref[T]) CodecDecodeSelf(d *codec.Decoder) {
	var in reference
	d.MustDecode(&in)
	r.h = in.h
}

// CodecEncodeSelf makes a Handle inside a value a reference to what stands for the actor.
func (h Handle[T]) CodecEncodeSelf(e *codec.Encoder) { Ref[T]{h: h.h}.CodecEncodeSelf(e) }

// CodecDecodeSelf makes a Handle of a reference inside a value.
func (h *Handle[T]) CodecDecodeSelf(d *codec.Decoder) {
	var in reference
	d.MustDecode(&in)
	h.h = in.h
}

// String shows the id, for messages.
func (r Ref[T]) String() string {
	if r.h == nil {
		return "Ref(none)"
	}
	return fmt.Sprintf("Ref(%x)", r.h.o.id[:])
}

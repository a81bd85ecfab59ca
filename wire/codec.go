package wire

import (
	"reflect"
	"sync"

	"github.com/ugorji/go/codec"

	"launcher/internal/errs"
)

// handle encodes structs as arrays, strings as msgpack str and []byte as bin, and
// refuses to build deep or unbounded values out of hostile input.
var handle = func() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.StructToArray = true
	h.RawToString = true
	h.MapType = reflect.TypeFor[map[string]any]()
	h.MaxDepth = 64
	h.MaxInitLen = 4096
	h.Canonical = true // maps in key order, so that journals and vectors are reproducible
	return h
}()

// Marshal encodes a message.
func Marshal(v any) []byte {
	var b []byte
	e := encoders.Get().(*codec.Encoder)
	e.ResetBytes(&b)
	if err := e.Encode(v); err != nil {
		// Only types that msgpack cannot hold (channels, functions) get here.
		panic("wire: cannot encode " + reflect.TypeOf(v).String() + ": " + err.Error())
	}
	e.ResetBytes(new([]byte)) // it keeps nothing of what it wrote
	encoders.Put(e)
	return b
}

// To make an encoder or a decoder takes longer than to use it on a small message. One that
// met an error is not used again.
var (
	encoders = sync.Pool{New: func() any { return codec.NewEncoderBytes(new([]byte), handle) }}
	decoders = sync.Pool{New: func() any { return codec.NewDecoderBytes(nil, handle) }}
)

// Unmarshal decodes into v, a pointer. Fields that the sender did not know stay zero;
// fields that we do not know are skipped. Bytes left over are an error.
func Unmarshal(b []byte, v any) (err error) {
	defer func() {
		// The decoder panics on a few kinds of malformed input; that is the sender's fault.
		if r := recover(); r != nil {
			err = errs.New(errs.Corrupt, "malformed message for %T: %v", v, r)
		}
	}()
	d := decoders.Get().(*codec.Decoder)
	d.ResetBytes(b)
	if err := d.Decode(v); err != nil {
		return errs.Wrap(errs.Corrupt, err, "malformed message for %T", v)
	}
	n := d.NumBytesRead()
	d.ResetBytes(nil)
	decoders.Put(d)
	if n != len(b) {
		return errs.New(errs.Corrupt, "%d bytes after the message for %T", len(b)-n, v)
	}
	return nil
}

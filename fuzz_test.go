package launcher

import (
	"bytes"
	"net"
	"testing"

	"launcher/wire/sdk"
)

// FuzzArguments reads the arguments of a task as a worker does.
func FuzzArguments(f *testing.F) {
	f.Add([]byte{0x92, 1, 0xa1, 'x'})
	f.Add([]byte{0x93, 0xc4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0xd6, 1, 0, 0, 0, 0, 0x92, 0xd6, 1, 0, 0, 0, 0, 0xd6, 1, 0, 0, 0, 0})
	f.Add([]byte{0x91, 0x81, 0xa1, 'a', 0xd8, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		for range 2 {
			in := arguments{payload: b, deps: []dep{{kind: sdk.Inline, value: value{form: formMsgpack, data: []byte{1}}}}}
			if in.open(t.Context()) != nil {
				return
			}
			var n int
			var s []float64
			var a any
			var p struct{ X map[string]Ref[int] }
			for _, v := range []any{&n, &s, &a, &p} {
				_ = in.read(v)
			}
		}
	})
}

// FuzzFrames gives a client anything that a broken agent might send.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{24, 0, 0, 0, 0x41, 0x04, 0, 0}, true)
	f.Add(append([]byte{60, 0, 0, 0, 0x42, 0x04, 0, 0}, make([]byte, 56)...), true)
	f.Add(append([]byte{12, 0, 0, 0, 0x46, 0x04, 0, 0}, make([]byte, 8)...), false)
	f.Fuzz(func(t *testing.T, b []byte, worker bool) {
		kind := sdk.KindDriver
		if worker {
			kind = sdk.KindWorker
		}
		c := makeClient(sdk.Hello{Kind: kind}, nil)
		o := &object{c: c, holders: 1}
		c.objects[o.id] = o
		fr := &frames{conn: &net.UnixConn{}, buf: bytes.Clone(b), w: len(b)}
		c.mu.Lock()
		defer c.mu.Unlock()
		for {
			typ, flags, body, ok, err := fr.next()
			if err != nil || !ok || c.handle(fr, typ, flags, body) != nil {
				return
			}
		}
	})
}

// FuzzFailure reads the failure of a task.
func FuzzFailure(f *testing.F) {
	f.Add(encodeFailure(errNoRef, "task", "trace", "name", "node", 7))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := decodeFailure(b); err == nil || explain(err) == "" {
			t.Error("a failure that is none")
		}
	})
}

// FuzzMsgpack finds the end of a value where the general decoder finds it.
func FuzzMsgpack(f *testing.F) {
	f.Add([]byte{0x92, 0xc0, 0x81, 0xa1, 'a', 0xcb, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, rest, err := cutValue(b)
		if err == nil && len(v)+len(rest) != len(b) {
			t.Errorf("%d and %d bytes of %d", len(v), len(rest), len(b))
		}
		var a any
		if general := readGeneral(nil, b, &a); general == nil && (err != nil || len(rest) != 0) {
			t.Errorf("the general decoder takes all of %x, cutValue leaves %x: %v", b, rest, err)
		}
	})
}

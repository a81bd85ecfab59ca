//go:build linux

package launcher

import (
	"context"
	"encoding/binary"
	"io"
	"testing"

	"launcher/wire"
	"launcher/wire/sdk"
)

// echoNode is an agent that has every task's result at once, in as few writes as it can:
// what is left to measure is the SDK.
func echoNode(b *testing.B) {
	conn, mine := pair(b)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4+1<<20)
		_, _ = io.ReadFull(mine, buf[:4])
		var out []byte
		r, w := 0, 0
		for {
			n, err := mine.Read(buf[w:])
			if err != nil {
				return
			}
			w += n
			for w-r >= 8 && w-r >= 4+int(u32(buf, r)) {
				body := buf[r+8 : r+4+int(u32(buf, r))]
				switch binary.LittleEndian.Uint16(buf[r+4:]) {
				case sdk.MsgHello:
					out = wire.AppendFrame(out, sdk.MsgWelcome, wire.Marshal(sdk.Welcome{Version: sdk.Version, Number: 1, Client: 1, Node: "n"}))
				case sdk.MsgGet:
					for ids := body[8:]; len(ids) > 0; ids = ids[16:] {
						out = append(out, 37, 0, 0, 0, 0x41, 0x04, 0, 0) // Object
						out = append(out, ids[:16]...)
						out = append(out, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7)
					}
				case sdk.MsgCall:
					out = wire.AppendFrame(out, sdk.MsgAnswer, append(body[:4:4], 0, 0, 0, 0, 0xc0))
				}
				r += 4 + int(u32(buf, r))
			}
			if r == w {
				r, w = 0, 0
			} else if r > len(buf)/2 {
				w = copy(buf, buf[r:w])
				r = 0
			}
			if _, err := mine.Write(out); err != nil {
				return
			}
			out = out[:0]
		}
	}()
	c, err := newClient(context.Background(), conn, greetingOf(sdk.KindDriver), nil)
	if err != nil {
		b.Fatal(err)
	}
	theClient.Store(c)
	b.Cleanup(func() {
		theClient.Store(nil)
		c.close()
		mine.Close()
		<-done
	})
}

func BenchmarkSubmitThenGet(b *testing.B) {
	echoNode(b)
	ctx := b.Context()
	for b.Loop() {
		refs := make([]Ref[int], 1000)
		for i := range refs {
			refs[i] = square.Submit(ctx, i)
		}
		if _, err := Get(ctx, refs...); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/task")
}

func BenchmarkGetLocal(b *testing.B) {
	echoNode(b)
	ctx := b.Context()
	r, err := Put(ctx, 7)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := r.Get(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	echoNode(b)
	ctx := b.Context()
	for b.Loop() {
		if _, err := Put(ctx, 7); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkViewShared(b *testing.B) {
	startFake(b)
	ctx := b.Context()
	r, err := Put(ctx, make([]byte, 1<<20))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		v, err := r.View(ctx)
		if err != nil {
			b.Fatal(err)
		}
		v.Release()
	}
}

func BenchmarkPut4MiB(b *testing.B) {
	startFake(b)
	ctx := b.Context()
	data := make([]byte, 4<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		c := theClient.Load()
		at, err := c.store.write(ctx, c, data)
		if err != nil {
			b.Fatal(err)
		}
		c.store.undo(at, len(data))
	}
}

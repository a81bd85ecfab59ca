package transport

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"launcher/wire"
)

func TestFrames(t *testing.T) {
	h := Header{Kind: Partial, Length: 1234, Round: 1 << 40, Seq: 7, Sig: 1 << 63, Off: 4096, Node: 3}
	b := h.Append(nil)
	if len(b) != HeaderSize {
		t.Errorf("a header of %d bytes", len(b))
	}
	if got, err := ParseHeader(b); got != h || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	g := Greeting{Group: wire.Try{Task: wire.Task{Job: 3, Index: 4}, Attempt: 5}, From: 1, Lane: 2, Nodes: 3, World: 9, Round: 1 << 20}
	if got, err := ParseGreeting(g.Append(nil)); got != g || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	f := Farewell{Kind: 2, Rank: -1, Cause: "why"}
	if got, err := ParseFarewell(f.Append(nil)); got != f || err != nil {
		t.Errorf("%+v, %v", got, err)
	}
	long := Farewell{Cause: string(make([]byte, 10_000))}
	if _, err := ParseFarewell(long.Append(nil)); err != nil {
		t.Error(err)
	}
	h.Length = MaxPayload + 1
	for _, bad := range [][]byte{nil, b[:10], bytes.Repeat([]byte{0}, HeaderSize), h.Append(nil), append([]byte{'L', 'R', byte(endKind)}, b[3:]...)} {
		if _, err := ParseHeader(bad); err == nil {
			t.Errorf("%x is a header", bad)
		}
	}
	if _, err := ReadPayload(bytes.NewReader(nil), Header{Length: 100}, 99); err == nil {
		t.Error("a payload beyond its limit is read")
	}
}

// TestLink: frames arrive in order and whole, small and large; what is queued before
// Finish still goes out, but not before a farewell.
func TestLink(t *testing.T) {
	for _, farewell := range []bool{false, true} {
		a, b := net.Pipe()
		l := NewLink()
		large := bytes.Repeat([]byte("x"), 3*join)
		written := make(chan struct{}, 10)
		done := func() { written <- struct{}{} }
		l.Send(Header{Kind: Ready, Round: 1}, nil, done)
		l.Send(Header{Kind: Partial, Round: 2}, large, done)
		l.Send(Header{Kind: Final, Round: 3}, []byte("small"), done)
		last := Header{}
		if farewell {
			last.Kind = End
		}
		l.Finish(last, Farewell{Kind: 1, Cause: "c"}.Append(nil))
		l.Send(Header{Kind: Ready, Round: 4}, nil, done) // too late
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := l.Run(a); err != nil {
				t.Error(err)
			}
			a.Close()
		})
		_ = b.SetReadDeadline(time.Now().Add(10 * time.Second))
		var kinds []Kind
		for {
			h, err := ReadHeader(b)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			p, err := ReadPayload(b, h, 1<<20)
			if err != nil || h.Kind == Partial && !bytes.Equal(p, large) {
				t.Fatalf("%+v: %d bytes, %v", h, len(p), err)
			}
			kinds = append(kinds, h.Kind)
		}
		wg.Wait()
		want := []Kind{Ready, Partial, Final}
		if farewell {
			want = []Kind{End}
		}
		if string(asBytes(kinds)) != string(asBytes(want)) {
			t.Errorf("farewell %v: frames %v, want %v", farewell, kinds, want)
		}
		if !farewell && (len(written) != 3 || l.Sent() != int64(3*HeaderSize+len(large)+5)) {
			t.Errorf("%d written, %d bytes sent", len(written), l.Sent())
		}
	}
}

func asBytes(k []Kind) (b []byte) {
	for _, v := range k {
		b = append(b, byte(v))
	}
	return b
}

func TestLinkError(t *testing.T) {
	a, b := net.Pipe()
	b.Close()
	l := NewLink()
	l.Send(Header{Kind: Ready}, nil, func() { t.Error("written to a closed connection") })
	if err := l.Run(a); err == nil {
		t.Error("no error")
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(Header{Kind: Final, Length: 9}.Append(nil))
	f.Add(Greeting{Nodes: 2}.Append(nil))
	f.Add(Farewell{Kind: 3, Rank: -1, Cause: "x"}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, err := ParseHeader(b); err == nil {
			if again, err := ParseHeader(h.Append(nil)); again != h || err != nil || h.Length > MaxPayload {
				t.Fatalf("%+v comes back as %+v, %v", h, again, err)
			}
		}
		if g, err := ParseGreeting(b); err == nil && !bytes.Equal(g.Append(nil), b) {
			t.Fatalf("%+v", g)
		}
		if w, err := ParseFarewell(b); err == nil && !bytes.Equal(w.Append(nil), b) {
			t.Fatalf("%+v", w)
		}
	})
}

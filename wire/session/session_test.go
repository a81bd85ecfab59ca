package session

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/secure"
)

func tlsServer(c net.Conn, tc *tls.Config) *tls.Conn { return tls.Server(c, tc) }

func TestRequestAndAnswer(t *testing.T) {
	l := newLab(t)
	addr := l.serve(l.config(l.head), func(ctx context.Context, s *Session) {
		if p := s.Peer(); p.Role != secure.RoleClient || p.Name != "me" || p.Version != "v1-test" || p.Unix || p.Addr == "" || p.PID != os.Getpid() {
			t.Errorf("the server sees %+v", p)
		}
		for {
			_, st, err := s.Accept(ctx)
			if err != nil {
				return
			}
			typ, body, err := st.ReadMsg()
			if err != nil {
				t.Errorf("server: %v", err)
			}
			for range 3 {
				st.WriteRaw(typ+1, body)
			}
			st.Close() // right behind the answer: it must still arrive
		}
	})
	s := l.dial(addr)
	if p := s.Peer(); p.Role != secure.RoleHead || p.Name != "head" || p.Clock.Abs() > time.Minute {
		t.Errorf("the client sees %+v", p)
	}
	for range 50 {
		st, err := s.Open(l.context(), wire.StreamRequest)
		if err != nil {
			t.Fatal(err)
		}
		if err := st.WriteMsg(5, []string{"a", "b"}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			typ, body, err := st.ReadMsg()
			var got []string
			if err != nil || typ != 6 || wire.Unmarshal(body, &got) != nil || len(got) != 2 {
				t.Fatalf("answer %d %q %v", typ, body, err)
			}
		}
		if _, _, err := st.ReadMsg(); err != io.EOF {
			t.Fatalf("after the last answer: %v", err)
		}
		st.Close()
	}
	l.eventually("streams are forgotten", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.streams) == 0 })
	if _, err := s.Ping(l.context()); err != nil {
		t.Error(err)
	}
}

// Every byte arrives, once and in order, whatever the sizes of writes and reads.
func TestBulk(t *testing.T) {
	l := newLab(t)
	c, s := l.pair(0, nil)
	const streams, size = 8, 3<<20 + 12345
	var wg sync.WaitGroup
	for i := range streams {
		a, b := l.streams(c, s)
		if i%2 == 1 {
			a, b = b, a
		}
		want := make([]byte, size)
		r := rand.New(rand.NewPCG(1, uint64(i)))
		for j := range want {
			want[j] = byte(r.Uint32())
		}
		wg.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(i)))
			for rest := want; len(rest) > 0; {
				n := min(len(rest), 1+r.IntN([]int{10, 3000, 200_000, 1 << 20}[r.IntN(4)]))
				if _, err := a.Write(rest[:n]); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				rest = rest[n:]
			}
			a.CloseWrite()
		})
		wg.Go(func() {
			got, err := io.ReadAll(b)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("stream %d: %d bytes of %d, same %v, %v", i, len(got), len(want), bytes.Equal(got, want), err)
			}
		})
	}
	wg.Wait()
}

// A reader that does not read stops its own writer and nobody else.
func TestFlowControl(t *testing.T) {
	l := newLab(t)
	c, s := l.pair(0, nil)
	a, b := l.streams(c, s)
	wrote := make(chan int, 1)
	go func() {
		n, err := a.Write(make([]byte, 3*window))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the write ended with %v", err)
		}
		wrote <- n
	}()
	l.eventually("the window is full", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.buffered == window })
	a.SetWriteDeadline(time.Unix(1, 0))
	if n := <-wrote; n != window {
		t.Errorf("wrote %d bytes, the window has %d", n, window)
	}
	x, y := l.streams(c, s)
	x.Write([]byte("hi"))
	x.CloseWrite()
	if got, err := io.ReadAll(y); string(got) != "hi" || err != nil {
		t.Errorf("the other stream: %q, %v", got, err)
	}
	// Reading makes room again.
	a.SetWriteDeadline(time.Time{})
	done := make(chan error, 1)
	go func() {
		_, err := a.Write(make([]byte, window))
		a.CloseWrite()
		done <- err
	}()
	if m, err := io.Copy(io.Discard, b); m != 2*window || err != nil {
		t.Errorf("read %d, %v", m, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Pieces of one byte that nobody reads cost about their size.
func TestSmallPiecesAreCollected(t *testing.T) {
	l := newLab(t)
	c, s := l.pair(0, nil)
	a, b := l.streams(c, s)
	const n = 20_000
	for range n {
		if _, err := a.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	l.eventually("all arrived", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.buffered == n })
	b.mu.Lock()
	chunks := len(b.recv)
	b.mu.Unlock()
	if chunks > n/1000 {
		t.Errorf("%d bytes are kept in %d pieces", n, chunks)
	}
}

func TestReadDeadline(t *testing.T) {
	l := newLab(t)
	c, s := l.pair(0, nil)
	a, b := l.streams(c, s)
	b.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	b.SetReadDeadline(time.Time{})
	a.Write([]byte("x"))
	if n, err := b.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("after the deadline was lifted: %d, %v", n, err)
	}
	// A deadline in the past wakes a reader that waits already.
	done := make(chan error, 1)
	go func() {
		_, err := b.Read(make([]byte, 1))
		done <- err
	}()
	b.SetReadDeadline(time.Unix(1, 0))
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// The ways a stream ends, as the other side sees them.
func TestStreamEnds(t *testing.T) {
	l := newLab(t)
	c, s := l.pair(0, nil)
	cause := errs.New(errs.Fenced, "attempt 2 has begun").Hint("stop attempt 1")
	write := func(st *Stream) error { // until it fails
		for deadline := time.Now().Add(soon); ; time.Sleep(time.Millisecond) { // sleep: a bounded poll
			if _, err := st.Write([]byte("x")); err != nil || time.Now().After(deadline) {
				return err
			}
		}
	}
	t.Run("CloseWrite", func(t *testing.T) {
		a, b := l.streams(c, s)
		a.Write([]byte("last"))
		a.CloseWrite()
		got, err := io.ReadAll(b)
		if string(got) != "last" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		if _, err := a.Write([]byte("x")); err == nil {
			t.Error("wrote after CloseWrite")
		}
		b.Write([]byte("answer"))
		b.Close()
		if got, err := io.ReadAll(a); string(got) != "answer" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
	})
	t.Run("Close", func(t *testing.T) {
		a, b := l.streams(c, s)
		a.Write([]byte("last"))
		a.Close()
		select {
		case <-b.Unwanted():
		case <-time.After(soon):
			t.Fatal("the writer does not learn that nobody reads")
		}
		l.wantErr(write(b), errs.Cancelled, "reads no more")
		if got, err := io.ReadAll(b); string(got) != "last" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
		if _, err := a.Read(make([]byte, 1)); !errs.Is(err, errs.Cancelled) {
			t.Errorf("read after Close: %v", err)
		}
	})
	t.Run("CloseWith", func(t *testing.T) {
		a, b := l.streams(c, s)
		a.Write([]byte("last"))
		a.CloseWith(cause)
		got, err := io.ReadAll(b)
		if string(got) != "last" {
			t.Errorf("read %q", got)
		}
		l.wantErr(err, errs.Fenced, "attempt 2 has begun", "hint: stop attempt 1")
		l.wantErr(write(b), errs.Fenced)
	})
	t.Run("CloseUnderWrite", func(t *testing.T) {
		a, b := l.streams(c, s)
		done := make(chan error, 1)
		go func() { _, err := a.Write(make([]byte, 2*window)); done <- err }()
		l.eventually("the writer is stuck", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.send == 0 })
		a.Close()
		l.wantErr(<-done, errs.Cancelled, "closed here")
		if n, err := io.Copy(io.Discard, b); n != window || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
		b.Close()
	})
	t.Run("CloseRead", func(t *testing.T) {
		a, b := l.streams(c, s)
		b.CloseRead(cause)
		l.wantErr(write(a), errs.Fenced)
		b.Write([]byte("more"))
		b.CloseWrite()
		if got, err := io.ReadAll(a); string(got) != "more" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
	})
	l.eventually("streams are forgotten", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(s.streams)+len(c.streams)+s.theirs == 0
	})
}

// The end of a session reaches everyone who waits on it, with its cause.
func TestSessionEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*Session)
		kind errs.Kind
		text string
	}{
		{"Close", func(s *Session) { s.Close() }, errs.Unavailable, "closed the session"},
		{"CloseWith", func(s *Session) { s.CloseWith(errs.New(errs.Fenced, "epoch 3 is here")) }, errs.Fenced, "epoch 3 is here"},
		{"Broken", func(s *Session) { s.conn.(interface{ NetConn() net.Conn }).NetConn().Close() }, errs.Unavailable, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t)
			client, server := l.pair(0, nil)
			a, _ := l.streams(client, server)
			full, _ := l.streams(client, server)
			done := make(chan error, 4)
			go func() { _, err := a.Read(make([]byte, 1)); done <- err }()
			go func() { _, err := full.Write(make([]byte, 2*window)); done <- err }()
			go func() { _, _, err := client.Accept(l.context()); done <- err }()
			go func() { <-a.Unwanted(); <-client.Done(); done <- client.Err() }()
			l.eventually("the writer is stuck", func() bool { full.mu.Lock(); defer full.mu.Unlock(); return full.send == 0 })
			c.end(server)
			for range cap(done) {
				select {
				case err := <-done:
					l.wantErr(err, c.kind, c.text)
				case <-time.After(soon):
					t.Fatal("somebody waits on a dead session")
				}
			}
			if _, err := client.Open(l.context(), 1); err == nil {
				t.Error("opened a stream in a dead session")
			}
			if context.Cause(client.Context()) != client.Err() {
				t.Errorf("the context ended with %v", context.Cause(client.Context()))
			}
		})
	}
}

func TestSilentPeer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	client, server := l.pair(400*time.Millisecond, nil)
	a, _ := l.streams(client, server)
	// Quiet is not dead: nothing is sent for many intervals.
	time.Sleep(2 * time.Second) // sleep: nothing must happen meanwhile
	if client.Err() != nil || server.Err() != nil {
		t.Fatalf("a quiet session died: %v, %v", client.Err(), server.Err())
	}
	// The server stops, as a stopped process would: it neither reads nor writes.
	server.wmu.Lock()
	stopped := time.Now()
	done := make(chan error, 1)
	go func() { _, err := a.Read(make([]byte, 1)); done <- err }()
	select {
	case err := <-done:
		l.wantErr(err, errs.Unavailable, "no sign of life from head")
		if d := time.Since(stopped); d < 700*time.Millisecond { // two whole intervals, less what timers are off by
			t.Errorf("given up after %s", d)
		}
	case <-time.After(soon):
		t.Error("a silent peer is waited for")
	}
	server.wmu.Unlock()
}

// gate stops reading when it is shut.
type gate struct {
	net.Conn
	shut chan struct{} // closed = shut
	open chan struct{} // closed at the end
}

func (g *gate) Read(p []byte) (int, error) {
	select {
	case <-g.shut:
		<-g.open
	default:
	}
	return g.Conn.Read(p)
}

// TestBear: a side that was told to bears silence for longer than others, and what waits on
// the session with it.
func TestBear(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	const every = 100 * time.Millisecond
	client, server := l.pair(every, nil)
	client.Bear(time.Hour)
	server.Bear(time.Hour)
	a, _ := l.streams(client, server)
	done := make(chan error, 1)
	go func() { _, err := a.Read(make([]byte, 1)); done <- err }()
	server.wmu.Lock() // it neither reads nor writes any more
	defer server.wmu.Unlock()
	select {
	case <-time.After(20 * every): // nothing must happen meanwhile
	case err := <-done:
		t.Fatalf("it ended: %v", err)
	}
	client.Bear(every)
	l.wantErr(<-done, errs.Unavailable, "no sign of life from head")
}

// A peer that stopped with its buffers full is noticed as soon as one whose are empty,
// though every writer hangs in the connection.
func TestSilentPeerUnderWriters(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.patient = true
	g := &gate{shut: make(chan struct{}), open: make(chan struct{})}
	// The gate is on the client's side here, so it is the server that writes.
	client, server := l.pair(400*time.Millisecond, func(c net.Conn) net.Conn { g.Conn = c; return g })
	defer close(g.open)
	const writers = 16
	var out []*Stream
	for range writers {
		st, err := server.Open(l.context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, st)
	}
	if _, err := server.Ping(l.context()); err != nil {
		t.Fatal(err)
	}
	close(g.shut)
	client.wmu.Lock() // and it writes nothing
	defer client.wmu.Unlock()
	began := time.Now()
	done := make(chan error, writers)
	for _, st := range out {
		go func() { _, err := st.Write(make([]byte, window)); done <- err }()
	}
	<-server.Done()
	l.wantErr(server.Err(), errs.Unavailable, "no sign of life from client me")
	for range writers {
		select {
		case <-done: // what fitted into buffers was written
		case <-time.After(soon):
			t.Fatal("a writer hangs")
		}
	}
	if d := time.Since(began); d > writeBound/2 {
		t.Errorf("noticed after %s", d)
	}
}

func TestTooManyStreams(t *testing.T) {
	l := newLab(t)
	c, s := l.pair(0, nil)
	for range maxStreams {
		if _, err := c.Open(l.context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	st, err := c.Open(l.context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Read(make([]byte, 1))
	l.wantErr(err, errs.Exhausted, "streams in one session")
	// One that ends makes room.
	_, b, err := s.Accept(l.context())
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	s.Ping(l.context())
	if st, err = c.Open(l.context(), 1); err != nil {
		t.Fatal(err)
	}
	st.Write([]byte("x"))
	if _, err := c.Ping(l.context()); err != nil || st.werr != nil {
		t.Errorf("no room after one ended: %v, %v", err, st.werr)
	}
}

func TestRelay(t *testing.T) {
	l := newLab(t)
	c1, s1 := l.pair(0, nil)
	c2, s2 := l.pair(0, nil)
	start := func(ctx context.Context) (near, far *Stream, done chan error) {
		near, in := l.streams(c1, s1)
		out, far := l.streams(c2, s2)
		done = make(chan error, 1)
		go func() { done <- Relay(ctx, in, out) }()
		return near, far, done
	}
	near, far, done := start(l.context())
	near.Write([]byte("question"))
	near.CloseWrite()
	if got, err := io.ReadAll(far); string(got) != "question" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	far.Write([]byte("answer"))
	far.CloseWith(errs.New(errs.NotFound, "no job 7"))
	got, err := io.ReadAll(near)
	if string(got) != "answer" {
		t.Errorf("read %q", got)
	}
	l.wantErr(err, errs.NotFound, "no job 7")
	<-done
	// An answer right before the end arrives, though its sender wants nothing more.
	for range 200 {
		near, far, done = start(l.context())
		near.Write([]byte("q"))
		far.Read(make([]byte, 1))
		far.Write([]byte("answer"))
		far.Close()
		if got, err := io.ReadAll(near); string(got) != "answer" || err != nil {
			t.Fatalf("read %q, %v", got, err)
		}
		near.Close()
		<-done
	}
	// A reader that goes away ends the writer on the far side.
	near, far, done = start(l.context())
	near.WriteRaw(1, nil)
	near.Close()
	select {
	case <-far.Unwanted():
	case <-time.After(soon):
		t.Error("the far side writes for nobody")
	}
	far.Close()
	<-done
	// The relay's own end is told to both.
	ctx, cancel := context.WithCancelCause(l.context())
	near, far, done = start(ctx)
	cancel(errors.New("going away"))
	for _, st := range []*Stream{near, far} {
		_, err := st.Read(make([]byte, 1))
		l.wantErr(err, errs.Unavailable, "going away")
	}
	<-done
}

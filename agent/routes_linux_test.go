package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"testing"

	"launcher/agent/supervisor/supervisortest"
	"launcher/internal/errs"
	"launcher/internal/testkit"
	"launcher/wire"
	"launcher/wire/session"
)

// apart starts three agents; the first two do not reach each other's addresses.
func apart(t *testing.T) (*fakeHead, [3]*agent) {
	h := startHead(t, 0)
	h.walls = map[[2]wire.NodeID]bool{{"p-0", "p-1"}: true, {"p-1", "p-0"}: true}
	var as [3]*agent
	for i := range as {
		id := wire.NodeID(fmt.Sprintf("p-%d", i))
		inProcessWith(t, h.config(t, id), supervisortest.Start(t), func(a *agent) {
			as[i] = a
			a.links.serves[wire.StreamTasks] = func(_ context.Context, st *session.Stream, m wire.PeerOpen) error {
				_, err := io.Copy(st, st)
				_ = st.CloseWrite()
				return err
			}
		})
		h.up(id, 1)
	}
	return h, as
}

// echoes sends much to the second agent and has it back.
func echoes(t *testing.T, a *agent, lane int) {
	t.Helper()
	st, err := a.links.stream(t.Context(), 2, lane, wire.StreamTasks)
	must(t, err)
	defer st.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		_, _ = st.Write(sent)
		_ = st.CloseWrite()
	}()
	got, err := io.ReadAll(st)
	if err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes came back of %d, %v", len(got), len(sent), err)
	}
}

// TestRoutes: nodes that do not reach each other talk through one that reaches both, or
// through the head, and who relays is told.
func TestRoutes(t *testing.T) {
	for _, x := range []struct {
		name, told string
		via        []uint32
	}{
		{"the head", "p-1 via the head", nil},
		{"a node", "p-1 via p-2", []uint32{3}},
		{"a node that is no help", "p-1 via the head", []uint32{9}},
	} {
		t.Run(x.name, func(t *testing.T) {
			h, as := apart(t)
			h.mu.Lock()
			h.via = map[wire.NodeID][]uint32{"p-1": x.via}
			h.mu.Unlock()
			for lane := range 3 {
				echoes(t, as[0], lane)
			}
			if got := as[0].routes.relays(); !slices.Equal(got, []string{x.told}) {
				t.Errorf("relays: %q, want %q", got, x.told)
			}
			if n := as[0].routes.meter.Load(); n < 6<<20 {
				t.Errorf("%d bytes were counted, 6 MiB went", n)
			}
		})
	}
}

// TestRouteEnds: the end of a node that relays is the end of what it relays, and the next
// session takes another way.
func TestRouteEnds(t *testing.T) {
	h := startHead(t, 0)
	h.walls = map[[2]wire.NodeID]bool{{"p-0", "p-1"}: true}
	h.via = map[wire.NodeID][]uint32{"p-1": {3}}
	var first *agent
	var stop func()
	for i := range 3 {
		id := wire.NodeID(fmt.Sprintf("p-%d", i))
		end := inProcessWith(t, h.config(t, id), supervisortest.Start(t), func(a *agent) {
			if i == 0 {
				first = a
			}
			a.links.serves[wire.StreamTasks] = func(_ context.Context, st *session.Stream, m wire.PeerOpen) error {
				_, err := io.Copy(st, st)
				_ = st.CloseWrite()
				return err
			}
		})
		if i == 2 {
			stop = end
		}
		h.up(id, 1)
	}
	st, err := first.links.stream(t.Context(), 2, 0, wire.StreamTasks)
	must(t, err)
	_, err = st.Write([]byte("x"))
	must(t, err)
	_, err = io.ReadFull(st, make([]byte, 1))
	must(t, err)
	if got := first.routes.relays(); !slices.Equal(got, []string{"p-1 via p-2"}) {
		t.Fatalf("relays: %q", got)
	}
	stop()
	if _, err := io.ReadAll(st); err == nil {
		t.Error("the stream did not end with an error")
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		st, err := first.links.stream(t.Context(), 2, 0, wire.StreamTasks)
		if err != nil {
			return err.Error()
		}
		_ = st.Close()
		if got := first.routes.relays(); !slices.Equal(got, []string{"p-1 via the head"}) {
			return fmt.Sprintf("relays: %q", got)
		}
		return ""
	})
}

// TestProbe: a node says which others it reaches itself; a relay does not count.
func TestProbe(t *testing.T) {
	h, as := apart(t)
	as[0].routes.probe(t.Context(), wire.Probe{Numbers: []uint32{2, 3, 9}})
	got := map[uint32]wire.Reach{}
	testkit.Eventually(t, testkit.Bound, func() string {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, m := range h.nodes["p-0"].msgs {
			if r, ok := m.(wire.Reach); ok {
				got[r.Number] = r
			}
		}
		if len(got) < 3 {
			return fmt.Sprint(got)
		}
		return ""
	})
	if got[2].OK || got[2].Why == "" || !got[3].OK || got[3].Addr != as[2].peers.addr() || got[9].OK {
		t.Errorf("%+v", got)
	}
	if _, err := as[0].routes.plain(t.Context(), 2); !errs.Is(err, errs.Unavailable) {
		t.Errorf("a relay over a relay: %v", err)
	}
}

// TestRates: the busiest second of the last minute counts, and then no more.
func TestRates(t *testing.T) {
	var r rates
	const second = int64(1e9)
	if got := r.sample(second, 100); got != 0 {
		t.Errorf("at first %d", got)
	}
	if got := r.sample(2*second, 1100); got != 1000 {
		t.Errorf("after a second %d", got)
	}
	for k := int64(3); k < 60; k++ {
		if got := r.sample(k*second, 1100+k); got != 1000 {
			t.Fatalf("after %d s %d", k, got)
		}
	}
	if got := r.sample(70*second, 1100+70); got > 10 {
		t.Errorf("a minute later %d", got)
	}
	if got := r.sample(10000*second, 1100+70); got != 0 {
		t.Errorf("long after %d", got)
	}
}

package agent

import (
	"context"
	"fmt"
	"io"
	"testing"

	"launcher/agent/supervisor/supervisortest"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/session"
)

// TestPeerStreams: agents reach each other by the numbers of their lives; one that is
// over, or another life at the same address, is not reached.
func TestPeerStreams(t *testing.T) {
	h := startHead(t, 0)
	var as [2]*agent
	for i := range as {
		id := wire.NodeID(fmt.Sprintf("p-%d", i))
		inProcessWith(t, h.config(t, id), supervisortest.Start(t), func(a *agent) {
			as[i] = a
			a.links.serves[wire.StreamTasks] = func(_ context.Context, st *session.Stream, m wire.PeerOpen) error {
				_, err := io.Copy(st, io.LimitReader(st, 5))
				return err
			}
		})
		h.up(id, 1)
	}
	for lane := range 3 {
		st, err := as[0].links.stream(t.Context(), 2, lane, wire.StreamTasks)
		must(t, err)
		_, err = st.Write([]byte("hello"))
		must(t, err)
		b, err := io.ReadAll(st)
		if string(b) != "hello" {
			t.Errorf("lane %d: %q, %v", lane, b, err)
		}
		must(t, st.Close())
	}
	if n := len(as[0].links.open); n != 3 {
		t.Errorf("%d sessions for three lanes", n)
	}
	if _, err := as[0].links.stream(t.Context(), 9, 0, wire.StreamTasks); !errs.Is(err, errs.Lost) {
		t.Errorf("a life that is over: %v", err)
	}
	as[1].links.number.Store(7)
	st, err := as[0].links.stream(t.Context(), 2, 0, wire.StreamTasks)
	must(t, err)
	typ, _, err := st.ReadMsg()
	if err != nil || typ != wire.MsgError {
		t.Errorf("another life at the address: message %#x, %v", typ, err)
	}
	must(t, st.Close())
}

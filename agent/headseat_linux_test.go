package agent

import (
	"net"
	"testing"

	"launcher/agent/supervisor/supervisortest"
	"launcher/wire"
)

// An agent that was killed while it waited for a head leaves a port at which that will never
// answer: the next agent closes it, here and at the supervisor.
func TestSeatOfNobody(t *testing.T) {
	h := startHead(t, 0)
	sv := supervisortest.Start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	f, err := l.(*net.TCPListener).File()
	must(t, err)
	before := sv.Connect(t)
	must(t, before.StoreFD(t.Context(), wire.KeptGiven, f))
	before.Close()
	f.Close()
	l.Close()
	opened := make(chan struct{})
	inProcessWith(t, h.config(t, "p-0"), sv, func(a *agent) {
		if err := a.super.Alive(t.Context()); err != nil { // it has taken the orders before
			t.Error(err)
		}
		close(opened)
	})
	h.up("p-0", 1)
	<-opened
	if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the port of a head that never came is still open")
	}
}

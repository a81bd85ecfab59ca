package core

import (
	"strings"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
)

// roamer is a head that goes into the allocations of pool burst, of n nodes that are in
// since 2 s; each is an allocation of its own.
func roamer(t *testing.T, n int, seat wire.NodeID) *Core {
	t.Helper()
	c := queue(t, wire.Pool{Min: n, Max: n})
	s := c.d.st.Subs[sortedKeys(c.d.st.Subs)[0]]
	var allocs []Alloc
	for i := range s.Nodes {
		allocs = append(allocs, Alloc{Handle: []byte{byte('a' + i)}, Nodes: s.Nodes[i : i+1]})
	}
	c.Step(2*second, Submitted{Token: s.Token, Allocs: allocs})
	for i, id := range s.Nodes {
		c.Step(2*second, AgentUp{Node: id, Epoch: s.Epochs[i], Hello: wire.Hello{Total: wire.Resources{CPU: wire.Unit}}})
	}
	c.cfg.Roam, c.cfg.Seat = "burst", seat
	return c
}

func moves(o Output) *MoveHead {
	for _, e := range o.Effects {
		if m, ok := e.(MoveHead); ok {
			return &m
		}
	}
	return nil
}

// await gives the first move up to a second.
func await(c *Core, from, to int64) (at int64, m *MoveHead) {
	at = first(c, from, to, func(o Output) bool { m = moves(o); return m != nil })
	return at, m
}

// The head goes where it can stay longest, once nodes have settled.
func TestHeadGoesIn(t *testing.T) {
	c := roamer(t, 3, "")
	c.Step(2*second, ends("a", 4000))
	c.Step(2*second, ends("b", 5000))
	c.Step(2*second, ends("c", 60)) // not worth it
	if at, m := await(c, 3, 20); at != 5 || m.Node != "burst-1" || !strings.Contains(m.Why, "burst-1 is in") {
		t.Fatalf("at %d s it moves: %+v", at, m)
	}
	if m := moves(c.Step(21*second, Tick{})); m != nil {
		t.Errorf("a second move during the first: %+v", m)
	}
	// That node cannot: the next best is asked, that one later again.
	c.Step(21*second, MoveFailed{Node: "burst-1", Err: errs.New(errs.Unavailable, "no")})
	if at, m := await(c, 21, 40); at != 22 || m.Node != "burst-0" {
		t.Errorf("at %d s it moves: %+v", at, m)
	}
	if i := c.info(); !strings.Contains(i.HeadWhy, "could not move: no") {
		t.Errorf("status says %q", i.HeadWhy)
	}
}

// Before its node leaves the head goes on to another, or home where none lasts.
func TestHeadGoesOn(t *testing.T) {
	for _, x := range []struct {
		name  string
		other int64
		want  wire.NodeID
	}{{"another", 5000, "burst-1"}, {"none", 1030, ""}} {
		c := roamer(t, 2, "burst-0")
		c.Step(2*second, ends("a", 1000))
		c.Step(2*second, ends("b", x.other))
		at, m := await(c, 3, 1000)
		if m == nil || at != 970 || m.Node != x.want || !strings.Contains(m.Why, "burst-0 leaves: its allocation ends") {
			t.Fatalf("%s: at %d s it moves: %+v", x.name, at, m)
		}
		// The node waits with its end for that.
		if c.nodes["burst-0"].leaving {
			t.Errorf("%s: the node was told to end with the head on it", x.name)
		}
		c.Step(at*second, MoveFailed{Node: m.Node, Err: errs.New(errs.Unavailable, "no")})
		if end := first(c, at, at+60, func(Output) bool { n := c.nodes["burst-0"]; return n == nil || n.leaving }); end < at+29 || end > at+31 {
			t.Errorf("%s: the node was told %d s after", x.name, end-at)
		}
	}
}

// What runs on its node and was told to leave is waited for, at most for a while: the last
// reports of ranks are counted by one head.
func TestHeadWaitsForWork(t *testing.T) {
	for _, x := range []struct{ leaves, want int64 }{{0, 15}, {4, 4}} {
		c := roamer(t, 2, "burst-0")
		c.Step(2*second, ends("a", 1000))
		c.Step(2*second, ends("b", 5000))
		on := map[wire.NodeID]wire.Try{}
		for range 2 {
			j := c.jobs[submitOne(c, int64(3+len(on))*second, wire.JobSpec{})]
			n := c.where(j, 0)[0]
			on[n.id] = j.try(0)
			c.Step(6*second, AgentMsg{Node: n.id, Epoch: n.epoch, Msg: wire.Running{Items: []wire.TryState{{Try: j.try(0), Running: true, Started: 6 * second}}}})
		}
		var m *MoveHead
		drain := first(c, 7, 1000, func(o Output) bool { m = moves(o); return m != nil || c.durable(c.nodes["burst-0"]).Drain != nil })
		if m != nil || drain == 0 {
			t.Fatalf("at %d s it moves with the drain: %+v", drain, m)
		}
		if x.leaves > 0 {
			at, m := await(c, drain+1, drain+x.leaves-1)
			if m != nil {
				t.Fatalf("at %d s it moves: %+v", at, m)
			}
			c.Step((drain+x.leaves-1)*second, AgentMsg{Node: "burst-0", Epoch: c.nodes["burst-0"].epoch, Msg: wire.Done{Seq: 1, Items: []wire.Ended{{Proc: wire.Proc{Try: on["burst-0"]}, Code: 75}}}})
		}
		if at, m := await(c, drain+max(x.leaves, 1), 1000); m == nil || at != drain+x.want {
			t.Errorf("at %d s, %d after the drain began, it moves: %+v", at, at-drain, m)
		}
	}
}

// A cluster goes down from home; a node that is told to end is left at once.
func TestHeadGoesHome(t *testing.T) {
	c := roamer(t, 2, "burst-0")
	if m := moves(c.Step(10*second, ClientReq{ID: 1, Req: wire.Down{}})); m == nil || m.Node != "" {
		t.Errorf("down moves it: %+v", m)
	}
	if c.nodes["burst-0"].leaving {
		t.Error("its node was told to end with the head on it")
	}
	c = roamer(t, 2, "burst-0")
	if m := moves(c.Step(10*second, SeatLeaves{Why: "told"})); m == nil || m.Node != "burst-1" || m.Why != "told" {
		t.Errorf("told to leave it moves: %+v", m)
	}
}

// What is written of moves is counted, and the same after a replay.
func TestHeadMovesCount(t *testing.T) {
	d := NewDurable(nil)
	for i, seat := range []wire.NodeID{"", "a-0", "a-0", "a-1", ""} {
		if err := d.Apply(RecHead{Epoch: wire.Epoch(i + 1), At: int64(i + 1), Seat: seat, Why: map[bool]string{true: "w" + string(seat)}[i != 2]}); err != nil {
			t.Fatal(err)
		}
		if i == 2 && d.st.Head.Why != "wa-0" {
			t.Errorf("restarted it is there because %q", d.st.Head.Why)
		}
	}
	if d.st.Moves != 3 || d.st.Moved != 5 {
		t.Errorf("%d moves, the last at %d", d.st.Moves, d.st.Moved)
	}
}

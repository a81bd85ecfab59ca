package agent

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher"
	"launcher/agent/core"
	"launcher/agent/supervisor/supervisortest"
	"launcher/collectives"
	"launcher/wire"
)

// playRank is a rank of a gang: it all-reduces until a file is there, then ends well. It
// says its pid first, and the error that ended it last.
func playRank() int {
	stop := os.Args[2]
	fmt.Println("pid", os.Getpid(), "rank", launcher.Rank(), "of", launcher.WorldSize())
	comm, err := launcher.Collective(context.Background())
	if err != nil {
		fmt.Println("error", err)
		return 3
	}
	for n := 1; ; n++ {
		_, ferr := os.Stat(stop)
		v := []float64{float64(launcher.Rank() + 1), 0}
		if ferr == nil {
			v[1] = 1
		}
		if err := collectives.AllReduce(comm, v, collectives.Sum); err != nil {
			fmt.Println("error at", time.Now().UnixNano(), err)
			return 3
		}
		if w := float64(launcher.WorldSize()); v[0] != w*(w+1)/2 {
			fmt.Println("wrong sum", v[0])
			return 4
		}
		if n == 10 {
			fmt.Println("ten")
		}
		if v[1] > 0 {
			fmt.Println("over")
			return 0
		}
		time.Sleep(time.Millisecond) // sleep: the pace of a program // sleep: between two looks at shared memory, bounded by the caller
	}
}

// gang is three ranks over two nodes that are playing.
type gang struct {
	h     *fakeHead
	try   wire.Try
	stop  string
	nodes []wire.GangNode
}

func (g *gang) proc(rank uint32) (wire.NodeID, wire.Proc) {
	for _, n := range g.nodes {
		if rank >= n.First && rank < n.First+n.Count {
			return n.Node, wire.Proc{Try: g.try, Rank: rank}
		}
	}
	panic("no such rank")
}

// printed waits until a rank has printed something, and gives the words after it.
func (g *gang) printed(rank uint32, what string) []string {
	g.h.t.Helper()
	id, p := g.proc(rank)
	var words []string
	g.h.wait(fmt.Sprintf("rank %d to print %q", rank, what), func() bool {
		text := ""
		for b := g.h.logs[logKey{id, p.Job}]; len(b) > 0; {
			f, data, n, err := wire.ParseLogFrame(b)
			if err != nil || n == 0 {
				break
			}
			if f.Rank == rank && f.Attempt == p.Attempt {
				text += string(data)
			}
			b = b[n:]
		}
		if i := strings.Index(text, what); i >= 0 && strings.HasSuffix(text, "\n") {
			words = strings.Fields(text[i+len(what):])
			return true
		}
		return false
	})
	return words
}

func (g *gang) pid(rank uint32) int {
	g.h.t.Helper()
	pid, err := strconv.Atoi(g.printed(rank, "pid")[0])
	must(g.h.t, err)
	return pid
}

// startGang starts a gang with so many ranks on each of the nodes p-0, p-1, ...
func startGang(t *testing.T, h *fakeHead, attempt wire.Attempt, counts ...uint32) *gang {
	t.Helper()
	g := &gang{h: h, try: wire.Try{Task: wire.Task{Job: 1}, Attempt: attempt}, stop: t.TempDir() + "/stop"}
	exe, err := os.Executable()
	must(t, err)
	j := jobOf(1, wire.KindTrain, exe, "rank", g.stop)
	j.Spec.Train = &wire.TrainSpec{}
	first := uint32(0)
	for i, n := range counts {
		id := wire.NodeID(fmt.Sprintf("p-%d", i))
		h.send(id, wire.MsgJob, j)
		h.send(id, wire.MsgReserve, wire.Reserve{Gang: g.try, Count: n, Until: time.Now().Add(time.Minute).UnixNano()})
		r := msgOf(h, id, "the reservation", func(r wire.Reserved) bool { return r.Gang == g.try })
		if !r.OK || r.Port == 0 || r.Addr == "" {
			t.Fatalf("reserved %+v", r)
		}
		g.nodes = append(g.nodes, wire.GangNode{Node: id, Addr: h.nodes[id].hellos[0].Addr, First: first, Count: n})
		first += n
	}
	for _, n := range g.nodes {
		h.send(n.Node, wire.MsgStart, wire.Start{Gang: g.try, World: first, Nodes: g.nodes, MasterAddr: "127.0.0.1", MasterPort: 1, Item: wire.Item{Attempt: attempt}})
	}
	for r := range first {
		g.printed(r, "ten")
	}
	return g
}

// TestGangOverTwoNodes: collectives work; a rank that is killed, and one that is
// stopped, is an error that names it on all others, neighbours or not, in time.
func TestGangOverTwoNodes(t *testing.T) {
	h := startHead(t, 0)
	for i := range 2 {
		id := wire.NodeID(fmt.Sprintf("p-%d", i))
		inProcess(t, h, h.config(t, id), supervisortest.Start(t))
		h.up(id, 1)
	}
	t.Run("ends well", func(t *testing.T) {
		g := startGang(t, h, 1, 2, 1)
		must(t, os.WriteFile(g.stop, nil, 0o600))
		for r := range uint32(3) {
			id, p := g.proc(r)
			if e := h.endOf(id, p); e.Code != 0 {
				t.Errorf("rank %d ended %+v", r, e)
			}
		}
	})
	for _, c := range []struct {
		name   string
		sig    syscall.Signal
		bound  time.Duration
		causes string
		code   int32
	}{{"killed", syscall.SIGKILL, time.Second, "killed by signal 9", 137}, {"stopped", syscall.SIGSTOP, 3 * time.Second, "was stopped", 137}} {
		t.Run(c.name, func(t *testing.T) {
			g := startGang(t, h, wire.Attempt(2+c.bound/time.Second), 2, 1)
			at := time.Now()
			must(t, syscall.Kill(g.pid(1), c.sig))
			gone := msgOf(h, "p-0", "the news", func(m wire.GangGone) bool { return m.Gang == g.try })
			if gone.Rank != 1 || !strings.Contains(gone.Cause, c.causes) || !strings.Contains(gone.Cause, "p-0") {
				t.Errorf("the head is told %+v", gone)
			}
			// A real head stops the other nodes; here the ring alone must tell them.
			for _, r := range []uint32{0, 2} {
				words := g.printed(r, "error at")
				ns, err := strconv.ParseInt(words[0], 10, 64)
				must(t, err)
				if d := time.Unix(0, ns).Sub(at); d > c.bound+slack {
					t.Errorf("rank %d knew after %v, want %v", r, d, c.bound)
				}
				if text := strings.Join(words[1:], " "); !strings.Contains(text, "rank 1") || !strings.Contains(text, c.causes) {
					t.Errorf("rank %d printed %q", r, text)
				}
				id, p := g.proc(r)
				if e := h.endOf(id, p); e.Code != 3 {
					t.Errorf("rank %d ended %+v", r, e)
				}
			}
			id, p := g.proc(1)
			if e := h.endOf(id, p); e.Code != c.code || e.Reason != wire.ReasonNone {
				t.Errorf("rank 1 ended %+v", e)
			}
		})
	}
}

// TestGroupSurvivesAgent: kill -9 of the agent under a gang of one node; the ranks go on.
// Over two nodes they get an error that says what happened.
func TestGroupSurvivesAgent(t *testing.T) {
	h := startHead(t, 0)
	bin := supervisortest.Binary(t)
	for i := range 2 {
		id := wire.NodeID(fmt.Sprintf("p-%d", i))
		supervisortest.StartNode(t, bin, h.config(t, id), nil)
		h.up(id, 1)
	}
	g := startGang(t, h, 1, 2)
	must(t, syscall.Kill(agentOf(h, "p-0", 1), syscall.SIGKILL))
	agentOf(h, "p-0", 2)
	must(t, os.WriteFile(g.stop, nil, 0o600))
	for r := range uint32(2) {
		id, p := g.proc(r)
		if e := h.endOf(id, p); e.Code != 0 {
			t.Errorf("rank %d ended %+v", r, e)
		}
	}
	g = startGang(t, h, 2, 1, 1)
	must(t, syscall.Kill(agentOf(h, "p-1", 1), syscall.SIGKILL))
	for r := range uint32(2) {
		g.printed(r, "error at")
	}
	// The one whose agent died may be past it when it is back; the other has lost its link.
	h.wait("the news", func() bool {
		for _, n := range h.nodes {
			for _, m := range n.msgs {
				if x, ok := m.(wire.GangGone); ok && x.Gang == g.try {
					return true
				}
			}
		}
		return false
	})
}

// TestGroupBeforeTheHeadKnows: a group that a node has just made is known there, though the
// head is yet to hear of it.
func TestGroupBeforeTheHeadKnows(t *testing.T) {
	a := testAgent(t)
	cpu := wire.Resources{CPU: wire.Unit}
	a.core = core.New(core.Config{Hello: wire.Hello{Node: "p-0", Total: cpu}, CPUs: []int{0}}, core.NewState())
	id := wire.NewObjectID(1, 1, 1, 0)
	a.core.Step(1, core.HeadUp{})
	a.core.Step(2, core.FromHead{Msg: wire.Welcome{HeadEpoch: 1}})
	a.core.Step(3, core.MakeGroup{Spec: wire.GroupSpec{ID: id, Bundles: []wire.Resources{cpu}, Job: "d1", Owner: 1}})
	s := newSDKServer(a)
	theirs := wire.GroupInfo{Spec: wire.GroupSpec{ID: wire.NewObjectID(2, 1, 1, 0)}}
	for _, x := range []struct {
		list []wire.GroupInfo
		ask  wire.GroupRequest
		want int
	}{
		{nil, wire.GroupRequest{What: "look", ID: id}, 1},
		{nil, wire.GroupRequest{What: "look", ID: theirs.Spec.ID}, 0},
		{[]wire.GroupInfo{theirs}, wire.GroupRequest{What: wire.GroupList}, 2},
		{[]wire.GroupInfo{theirs, {Spec: wire.GroupSpec{ID: id}}}, wire.GroupRequest{What: wire.GroupList}, 2},
	} {
		if got := s.withOwn(x.list, x.ask); len(got) != x.want {
			t.Errorf("%+v of %d: %d, want %d", x.ask, len(x.list), len(got), x.want)
		}
	}
}

//go:build linux

package launcher

import (
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"launcher/collectives"
	"launcher/internal/errs"
	"launcher/shm"
	"launcher/wire"
)

// fakeGroup serves a group of two on a socket, as the agent does. The first connection
// breaks: it is made again.
func fakeGroup(t *testing.T) (path string, n *collectives.Node) {
	t.Helper()
	n, err := collectives.NewNode(collectives.NodeConfig{Group: wire.Try{Task: wire.Task{Job: 7}, Attempt: 1}, Self: "n",
		Nodes: []wire.GangNode{{Node: "n", Count: 2}}})
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait(); n.Close() })
	wg.Go(func() {
		for i := 0; ; i++ {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			if i > 0 {
				answerJoin(t, c, n)
			}
			c.Close()
		}
	})
	return path, n
}

func answerJoin(t *testing.T, c *net.UnixConn, n *collectives.Node) {
	typ, body, err := wire.ReadFrame(c)
	var req collectives.JoinRequest
	if err == nil {
		err = json.Unmarshal(body, &req)
	}
	if err != nil || typ != collectives.MsgJoin {
		t.Errorf("request %#x %q: %v", typ, body, err)
		return
	}
	rank, ok := map[string]int{"7.0#1/0": 0, "7.0#1/1": 1}[req.Proc]
	if !ok {
		b, _ := json.Marshal(map[string]any{"kind": "fenced", "msg": "replaced", "hints": []string{"give up"}})
		_ = wire.WriteFrame(c, wire.MsgError, b)
		return
	}
	b, err := json.Marshal(n.Answer(rank))
	if err == nil {
		err = shm.SendFDs(c, wire.AppendFrame(nil, collectives.MsgJoined, b), n.File())
	}
	if err != nil {
		t.Error(err)
	}
}

func TestCollective(t *testing.T) {
	path, _ := fakeGroup(t)
	t.Setenv("LAUNCHER_SOCKET", path)
	t.Setenv("WORLD_SIZE", "2")
	var comms []*collectives.Comm
	for _, proc := range []string{"7.0#1/0", "7.0#1/1"} {
		t.Setenv("LAUNCHER_PROC", proc)
		c, err := Collective(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		comms = append(comms, c)
	}
	var wg sync.WaitGroup
	for i, c := range comms {
		wg.Go(func() {
			v := []float64{1, float64(i)}
			if err := collectives.AllReduce(c, v, collectives.Sum); err != nil || v[0] != 2 || v[1] != 1 {
				t.Errorf("rank %d: %v, %v", i, v, err)
			}
		})
	}
	wg.Wait()

	t.Setenv("LAUNCHER_PROC", "7.0#9/0")
	if _, err := Collective(t.Context()); !errs.Is(err, errs.Fenced) || !strings.Contains(err.Error(), "replaced") || len(errs.HintsOf(err)) != 1 {
		t.Errorf("refused: %v", err)
	}
	t.Setenv("LAUNCHER_SOCKET", path+".none")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Collective(ctx); err == nil {
		t.Error("joined through no socket")
	}
}

func TestCollectiveAlone(t *testing.T) {
	for _, world := range []string{"", "1"} {
		if world == "" {
			t.Setenv("LAUNCHER_SOCKET", "")
		} else {
			t.Setenv("LAUNCHER_SOCKET", "/nowhere")
			t.Setenv("LAUNCHER_PROC", "7.0#1/0")
			t.Setenv("WORLD_SIZE", world)
		}
		c, err := Collective(t.Context())
		if err != nil || c.Rank() != 0 || c.Size() != 1 {
			t.Fatalf("%v", err)
		}
		c.Close()
	}
}

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/agent/supervisor/supervisortest"
	"launcher/wire"
)

// agentOf waits for the life of a node's agent that said Hello so often and gives its pid.
func agentOf(h *fakeHead, id wire.NodeID, times int) int {
	h.t.Helper()
	n := h.up(id, times)
	h.mu.Lock()
	defer h.mu.Unlock()
	return n.hellos[len(n.hellos)-1].PID
}

// TestAgentKilled: kill -9 of the agent, again and again, in the middle of an array and
// beside a process that runs long: every task runs once, no output is lost, the long one
// keeps its pid, and its agent answers again on the same socket.
func TestAgentKilled(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	supervisortest.StartNode(t, supervisortest.Binary(t), cfg, nil)
	pid := agentOf(h, "p-0", 1)
	ledger := filepath.Join(t.TempDir(), "ledger")

	long := jobOf(1, wire.KindRun, "sh", "-c", "echo $$; read x < "+ledger+".fifo; echo end; exit 9")
	must(t, syscall.Mkfifo(ledger+".fifo", 0o600))
	h.give("p-0", long, 1)
	const tasks = 60
	j := jobOf(2, wire.KindArray, "sh", "-c", "echo s$LAUNCHER_TASK_INDEX >> "+ledger+"; sleep 0.02; echo out; echo e$LAUNCHER_TASK_INDEX >> "+ledger)
	h.give("p-0", j, tasks)
	for life := 2; life <= 4; life++ {
		n := h.nodes["p-0"]
		h.wait("some ends", func() bool { return len(n.ended) >= 10*(life-1) })
		must(t, syscall.Kill(pid, syscall.SIGKILL))
		if next := agentOf(h, "p-0", life); next == pid {
			t.Fatal("the agent was not killed")
		} else {
			pid = next
		}
	}
	h.wait("all ends", func() bool { return len(h.nodes["p-0"].ended) == tasks })
	b, err := os.ReadFile(ledger)
	must(t, err)
	lines := strings.Fields(string(b))
	sort.Strings(lines)
	var want []string
	for i := range tasks {
		want = append(want, "s"+strconv.Itoa(i), "e"+strconv.Itoa(i))
	}
	sort.Strings(want)
	if got := strings.Join(lines, " "); got != strings.Join(want, " ") {
		t.Errorf("the ledger has %d lines: %s", len(lines), got)
	}
	for i := range uint32(tasks) {
		if out := h.output("p-0", procOf(2, i), 1); out != "out\n" {
			t.Errorf("task %d printed %q", i, out)
		}
	}
	if status, body := ask(t, filepath.Join(cfg.Dir, "agent.sock"), "GET", "/v1/should-leave", "1.0#1/0", ""); status != 200 {
		t.Errorf("the new agent answers %d %s", status, body)
	}
	must(t, os.WriteFile(ledger+".fifo", []byte("go\n"), 0))
	if e := h.endOf("p-0", procOf(1, 0)); e.Code != 9 {
		t.Errorf("the long one ended %+v", e)
	}
	wait(t, "its files to be removed, by an agent that did not make them", func() bool {
		left, _ := filepath.Glob(filepath.Join(cfg.Dir, "tasks", "1-0-1-0"))
		return len(left) == 0
	})
	if out := strings.Fields(h.output("p-0", procOf(1, 0), 1)); len(out) != 2 || out[1] != "end" {
		t.Errorf("the long one printed %q", out)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.joins != 1 {
		t.Errorf("the join key was used %d times", h.joins)
	}
	if r := h.nodes["p-0"].hellos[len(h.nodes["p-0"].hellos)-1].Restarts; r != 3 {
		t.Errorf("the agent says that it was restarted %d times", r)
	}
}

// TestShutdown: the node ends when the head says so, and leaves nothing.
func TestShutdown(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	n := supervisortest.StartNode(t, supervisortest.Binary(t), cfg, nil)
	h.up("p-0", 1)
	h.give("p-0", jobOf(1, wire.KindRun, "sh", "-c", "trap '' TERM; echo started; while :; do sleep 0.1; done"), 1)
	h.wait("its output", func() bool { return len(h.logs[logKey{"p-0", 1}]) > 0 })
	h.send("p-0", wire.MsgShutdown, wire.Shutdown{Grace: int64(300 * time.Millisecond), Why: "the cluster goes down"})
	if e := h.endOf("p-0", procOf(1, 0)); e.Signal != 9 || e.Reason != wire.ReasonShutdown {
		t.Errorf("ended %+v", e)
	}
	msgOf(h, "p-0", "the farewell", func(l wire.Leaving) bool { return l.Dead && l.Why == "the cluster goes down" })
	if status, err := n.Wait(bound); err != nil || status != 0 {
		t.Errorf("the guard ended with %d, %v", status, err)
	}
	left, _ := os.ReadDir(cfg.Dir)
	for _, f := range left {
		if f.Name() != "agent.log" && f.Name() != "node.lock" {
			t.Errorf("%s is left", f.Name())
		}
	}
}

// TestStopSignal: a node that its own machine stops ends its work in order.
func TestStopSignal(t *testing.T) {
	h := startHead(t, 0)
	n := supervisortest.StartNode(t, supervisortest.Binary(t), h.config(t, "p-0"), nil)
	h.up("p-0", 1)
	h.give("p-0", jobOf(1, wire.KindRun, "sleep", "100"), 1)
	msgOf(h, "p-0", "the start", func(wire.Running) bool { return true })
	must(t, n.Guard.Signal(syscall.SIGTERM))
	if e := h.endOf("p-0", procOf(1, 0)); e.Signal != 15 || e.Reason != wire.ReasonShutdown {
		t.Errorf("ended %+v", e)
	}
	msgOf(h, "p-0", "the farewell", func(l wire.Leaving) bool { return strings.Contains(l.Why, "was told to stop") })
	if _, err := n.Wait(bound); err != nil {
		t.Error(err)
	}
}

// TestNotice: a node that is taken away says so, by SIGUSR1 some time before, by SIGTERM when
// it is; its work has the time that there is.
func TestNotice(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	cfg.Notice = int64(300 * time.Millisecond)
	n := supervisortest.StartNode(t, supervisortest.Binary(t), cfg, nil)
	h.up("p-0", 1)
	h.give("p-0", jobOf(1, wire.KindRun, "sleep", "100"), 1)
	msgOf(h, "p-0", "the start", func(wire.Running) bool { return true })
	must(t, n.Guard.Signal(syscall.SIGUSR1))
	msgOf(h, "p-0", "the warning", func(l wire.Leaving) bool {
		return !l.Dead && l.By == 0 && strings.Contains(l.Why, "SIGUSR1")
	})
	must(t, n.Guard.Signal(syscall.SIGTERM))
	msgOf(h, "p-0", "the notice", func(l wire.Leaving) bool { return !l.Dead && l.By != 0 })
	if e := h.endOf("p-0", procOf(1, 0)); e.Signal != 15 || e.Reason != wire.ReasonPreempted {
		t.Errorf("ended %+v", e)
	}
	msgOf(h, "p-0", "the farewell", func(l wire.Leaving) bool { return l.Dead })
	if _, err := n.Wait(bound); err != nil {
		t.Error(err)
	}
}

// TestHeadMoves: the head dies and comes back elsewhere; cluster.json says where. What
// ended meanwhile is told then.
func TestHeadMoves(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	inProcess(t, h, cfg, supervisortest.Start(t))
	n := h.up("p-0", 1)
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, syscall.Mkfifo(fifo, 0o600))
	h.give("p-0", jobOf(1, wire.KindRun, "sh", "-c", "read x < "+fifo+"; echo done; exit 4"), 1)
	msgOf(h, "p-0", "the start", func(wire.Running) bool { return true })

	h.ln.Close() // and nobody listens at the old address any more
	h.mu.Lock()
	h.quiet = true
	_ = n.s.Close()
	h.mu.Unlock()
	must(t, os.WriteFile(fifo, []byte("go\n"), 0))
	wait(t, "the end to be noticed", func() bool { // by its own agent: the try is gone there
		status, _ := ask(t, filepath.Join(cfg.Dir, "agent.sock"), "GET", "/v1/params", "1.0#1/0", "")
		return status == 404
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	b, err := json.Marshal(wire.ClusterFile{Version: 1, Name: "test", Addrs: []string{ln.Addr().String()}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(filepath.Dir(filepath.Dir(cfg.Dir)), "cluster.json"), b, 0o600))
	h.mu.Lock()
	h.quiet = false
	h.mu.Unlock()
	h.serve(ln)
	if e := h.endOf("p-0", procOf(1, 0)); e.Code != 4 {
		t.Errorf("ended %+v", e)
	}
	if out := h.output("p-0", procOf(1, 0), 1); out != "done\n" {
		t.Errorf("printed %q", out)
	}
}

// TestRenewal: with certificates of a short life a node outlives many of them, and so
// does an agent that is started again.
func TestRenewal(t *testing.T) {
	const life = 10 * time.Second // half of it is the time to renew in, on a busy machine too
	h := startHead(t, life)
	cfg := h.config(t, "p-0")
	supervisortest.StartNode(t, supervisortest.Binary(t), cfg, nil)
	n := h.up("p-0", 1)
	first := time.Now()
	wait(t, "the first certificate to expire", func() bool { return time.Since(first) > life+life/4 })
	h.mu.Lock()
	_ = n.s.Close() // open sessions go on; a new one needs a valid certificate
	h.mu.Unlock()
	pid := agentOf(h, "p-0", 2)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	agentOf(h, "p-0", 3)
	if h.joins != 1 {
		t.Errorf("joined %d times", h.joins)
	}
}

// TestRefused: a wrong key is final, and said.
func TestRefused(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	cfg.JoinKey = []byte("wrong")
	err := Main(context.Background(), Options{Supervisor: supervisortest.Start(t).Connect(t), Config: &cfg, Binary: "/bin/launcher"})
	if err == nil || !Fatal(err) || !strings.Contains(err.Error(), "join key is not right") {
		t.Errorf("got %v", err)
	}
}

// TestRootOtherUser: the socket is for this user's processes only, whatever the modes of
// files say.
func TestRootOtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	h := startHead(t, 0)
	dir, err := os.MkdirTemp("", "agent")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	cfg := h.config(t, "p-0")
	cfg.Dir = dir
	inProcess(t, h, cfg, supervisortest.Start(t))
	h.up("p-0", 1)
	sock := filepath.Join(dir, "agent.sock")
	must(t, os.Chmod(sock, 0o666))
	cmd := supervisortest.Command("knock", sock)
	cmd.Path = supervisortest.Binary(t)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "closed\n" {
		t.Errorf("another user got %q, %v", out, err)
	}
}

// playKnock asks a question at a socket and says what came.
func playKnock() int {
	c, err := net.Dial("unix", os.Args[2])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	_ = c.SetDeadline(time.Now().Add(bound))
	_, _ = c.Write([]byte("GET /v1/params HTTP/1.0\r\n\r\n"))
	b := make([]byte, 100)
	if n, err := c.Read(b); err == nil {
		fmt.Printf("answered %q\n", b[:n])
		return 1
	}
	fmt.Println("closed")
	return 0
}

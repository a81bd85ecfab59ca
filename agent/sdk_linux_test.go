package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"launcher/agent/supervisor/supervisortest"
	"launcher/wire"
)

// driver connects a driver to the agent of a node.
func driver(t testing.TB, dir string, shape map[string]any) *rawSDK {
	t.Helper()
	r, err := dialSDK(filepath.Join(dir, "agent.sock"))
	must(t, err)
	t.Cleanup(func() { r.c.Close() })
	must(t, r.hello(helloMsg{Kind: 1, Name: "test"}))
	r.begin(shape)
	return r
}

// ask submits tasks and gives their values, in order.
func (r *rawSDK) run(t testing.TB, words ...string) []string {
	t.Helper()
	var ids [][16]byte
	for _, w := range words {
		ids = append(ids, ret(r.submit(w), 0))
	}
	r.get(3, ids...)
	must(t, r.flush())
	got, err := r.answers(ids...)
	must(t, err)
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = got[id]
	}
	return out
}

func sdkNode(t testing.TB) (h *fakeHead, dir string) {
	t.Helper()
	h = startHead(t, 0)
	cfg := h.config(t, "p-0")
	inProcess(t, h, cfg, supervisortest.Start(t))
	h.up("p-0", 1)
	return h, cfg.Dir
}

func TestTasks(t *testing.T) {
	_, dir := sdkNode(t)
	r := driver(t, dir, map[string]any{"name": "f", "env": map[string]string{"COLOR": "red"}})
	if r.node == 0 || r.client == 0 || len(r.files) != 2 || !strings.HasPrefix(r.job, "d") {
		t.Errorf("welcomed as %d.%d of job %q with %d descriptors", r.node, r.client, r.job, len(r.files))
	}
	got := r.run(t, "say one", "say two", "env COLOR", "env LAUNCHER_JOB_ID", "fail it broke", "nested")
	want := []string{"one", "two", "red", r.job, "error task: it broke", "outer inner"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
	a, b := r.submit("say left"), r.submit("say right")
	c := r.submit("join", ret(a, 0), ret(b, 0))
	r.get(1, ret(c, 0))
	must(t, r.flush())
	if got, err := r.answers(ret(c, 0)); err != nil || got[ret(c, 0)] != "left+right" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestNoAnswerWanted: calls with request 0 are done, and not answered.
func TestNoAnswerWanted(t *testing.T) {
	_, dir := sdkNode(t)
	r := driver(t, dir, map[string]any{"name": "f"})
	r.n++
	group := r.id(0)
	call := func(request uint32, verb string, args ...any) {
		r.add(fCall, request, wire.Marshal(append([]any{verb, group[:]}, args...)))
	}
	call(0, "group_create", "", 0, []any{[]any{10, 0, 0, map[string]int{}}}, []any{}, false)
	call(7, "group_wait", 60_000)
	must(t, r.flush())
	if f, err := r.until(fAnswer); err != nil || string(f.body) != "\x07\x00\x00\x00\x00\x00\x00\x00\xc3" {
		t.Fatalf("answer %x, %v", f.body, err)
	}
	call(0, "group_remove")
	call(0, "nonsense")
	call(8, "sync")
	must(t, r.flush())
	if f, err := r.until(fAnswer); err != nil || f.body[0] != 8 {
		t.Fatalf("answer %x, %v", f.body, err)
	}
}

// TestWorkerDies: what it ran is run again, or says how it died.
func TestWorkerDies(t *testing.T) {
	_, dir := sdkNode(t)
	r := driver(t, dir, map[string]any{"name": "f"})
	if got := r.run(t, "once"); got[0] != "attempt 2" {
		t.Errorf("got %q", got)
	}
	r = driver(t, dir, map[string]any{"name": "g", "max_retries": 0})
	if got := r.run(t, "die"); !strings.Contains(got[0], "worker_crashed") || !strings.Contains(got[0], "signal 9 (SIGKILL)") {
		t.Errorf("got %q", got)
	}
	if got := r.run(t, "garbage"); !strings.Contains(got[0], "worker_crashed") || !strings.Contains(got[0], "broke the protocol") {
		t.Errorf("got %q", got)
	}
	if got := r.run(t, "say on"); got[0] != "on" {
		t.Errorf("got %q", got)
	}
}

// TestOutputComesToTheDriver: what workers print.
func TestOutputComesToTheDriver(t *testing.T) {
	_, dir := sdkNode(t)
	r := driver(t, dir, map[string]any{"name": "f"})
	task := r.submit("print hello there")
	r.get(1, ret(task, 0))
	must(t, r.flush())
	f, err := r.until(fLog)
	must(t, err)
	if s := string(f.body); !strings.HasSuffix(s, "hello there\n") || f.body[0] != 1 || !strings.Contains(s, "node=p-0") {
		t.Errorf("log %q", s)
	}
	b, err := os.ReadFile(filepath.Join(dir, "workers", r.job+".log"))
	if err != nil || string(b) != "hello there\n" {
		t.Errorf("the file has %q, %v", b, err)
	}
}

// TestBadClients: what they send harms nobody else.
func TestBadClients(t *testing.T) {
	_, dir := sdkNode(t)
	good := driver(t, dir, map[string]any{"name": "f"})
	for name, b := range map[string]string{
		"length":  "LSDK\xff\xff\xff\xff\x10\x04\x00\x00",
		"type":    "LSDK\x04\x00\x00\x00\x99\x09\x00\x00",
		"msgpack": "LSDK\x06\x00\x00\x00\x10\x04\x00\x00\xc1\xc1",
		"version": "LSDK\x06\x00\x00\x00\x10\x04\x00\x00\x91\x07",
	} {
		r, err := dialSDK(filepath.Join(dir, "agent.sock"))
		must(t, err)
		_, err = r.c.Write([]byte(b))
		must(t, err)
		if f, err := r.next(); err != nil || f.typ != 0x300 {
			t.Errorf("%s: %#x %v", name, f.typ, err)
		}
		if _, err := r.next(); err == nil {
			t.Errorf("%s: goes on", name)
		}
		r.c.Close()
	}
	bad := driver(t, dir, map[string]any{"name": "f"})
	bad.node++ // ids of another node
	bad.submit("say no")
	must(t, bad.flush())
	if _, err := bad.until(fObject); err == nil || !strings.Contains(err.Error(), "not its to submit") {
		t.Errorf("a forged id: %v", err)
	}
	r, err := dialSDK(filepath.Join(dir, "agent.sock"))
	must(t, err)
	if err := r.hello(helloMsg{Kind: 2, Token: "guess"}); err == nil || !strings.Contains(err.Error(), "no worker with this token") {
		t.Errorf("a worker that nobody started: %v", err)
	}
	if got := good.run(t, "say fine"); got[0] != "fine" {
		t.Errorf("got %q", got)
	}
}

// TestDriverDies: its workers end.
func TestDriverDies(t *testing.T) {
	_, dir := sdkNode(t)
	r := driver(t, dir, map[string]any{"name": "f"})
	var pid int
	if _, err := fmt.Sscan(r.run(t, "pid")[0], &pid); err != nil {
		t.Fatal(err)
	}
	r.submit("wait /no/such/file")
	must(t, r.flush())
	r.c.Close()
	wait(t, "the worker to end", func() bool { return syscall.Kill(pid, 0) != nil })
}

// TestTasksOutliveTheAgent: workers go on, drivers come back, nothing is run twice or lost.
func TestTasksOutliveTheAgent(t *testing.T) {
	h := startHead(t, 0)
	cfg := h.config(t, "p-0")
	supervisortest.StartNode(t, supervisortest.Binary(t), cfg, nil)
	h.up("p-0", 1)
	r := driver(t, cfg.Dir, map[string]any{"name": "f"})
	pids := r.run(t, "pid", "say warm")
	gate := filepath.Join(t.TempDir(), "gate")
	var ids [][16]byte
	for range 5 { // more than there are cores: some run, some wait
		ids = append(ids, ret(r.submit("wait "+gate), 0))
	}
	ids = append(ids, ret(r.submit("join", ids[0]), 0))
	r.get(3, ids...)
	must(t, r.flush())
	for i := range uint32(4) {
		r.add(fCall, i+1, wire.Marshal([]any{"sync"}))
		must(t, r.flush())
		if _, err := r.until(fAnswer); err != nil {
			t.Fatal(err)
		}
		must(t, syscall.Kill(agentOf(h, "p-0", int(i)+1), syscall.SIGKILL))
		for f, err := r.until(fObject); err == nil; f, err = r.until(fObject) {
			if id, text, err := object(f); slices.Contains(ids, id) {
				t.Fatalf("an answer before the gate is open: %q, %v", text, err)
			}
		}
		h.up("p-0", int(i)+2)
		var again *rawSDK
		wait(t, "the agent to be back", func() bool {
			n, err := dialSDK(filepath.Join(cfg.Dir, "agent.sock"))
			if err != nil {
				return false
			}
			n.client, n.nonce = r.client, r.nonce
			if err := n.hello(helloMsg{Kind: 1, Name: "test"}); err != nil {
				n.c.Close()
				return false
			}
			again = n
			return true
		})
		t.Cleanup(func() { again.c.Close() })
		again.n = r.n
		r.c.Close()
		again.sent = r.sent
		r = again
		r.buf = append(r.buf, r.sent...) // it knows no better
		must(t, r.flush())
	}
	must(t, os.WriteFile(gate, nil, 0o600))
	got, err := r.answers(ids...)
	must(t, err)
	for _, id := range ids {
		if got[id] != "" {
			t.Errorf("got %q", got[id])
		}
	}
	if got := r.run(t, "pid", "say on"); got[1] != "on" {
		t.Errorf("got %q", got)
	}
	if err := syscall.Kill(atoi(t, pids[0]), 0); err != nil {
		t.Errorf("the worker of before is gone: %v", err)
	}
}

func atoi(t testing.TB, s string) (n int) {
	t.Helper()
	_, err := fmt.Sscan(s, &n)
	must(t, err)
	return n
}

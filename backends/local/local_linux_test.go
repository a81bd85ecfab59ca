package local

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/backends"
	"launcher/backends/backendtest"
	"launcher/internal/errs"
	"launcher/wire"
)

// homeVar tells the nodes of one test from those of another.
const homeVar = "TEST_LOCAL_HOME"

// The test binary is the launcher binary too: as `node` it does what the label "do" of
// its configuration says.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "node" {
		os.Exit(node())
	}
	os.Exit(m.Run())
}

func node() int {
	b, err := io.ReadAll(os.Stdin)
	if err != nil || len(b) == 0 {
		return 3
	}
	var c wire.NodeConfig
	if err := wire.Unmarshal(b, &c); err != nil {
		return 4
	}
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, syscall.SIGTERM)
	write := func(name string, v any) {
		b, _ := json.Marshal(v)
		os.WriteFile(filepath.Join(c.Dir, name+".tmp"), b, 0o600)
		os.Rename(filepath.Join(c.Dir, name+".tmp"), filepath.Join(c.Dir, name))
	}
	switch c.Labels["do"] {
	case "exit":
		fmt.Fprintln(os.Stderr, "as told")
		return 7
	case "leave":
		return 0
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		child(c)
		write("up", c)
		time.Sleep(time.Hour) // sleep: it is a process that does nothing
	case "parent":
		child(c)
	}
	write("up", c)
	<-sigs
	return 0
}

// child starts a process that has left our session and hears no SIGTERM.
func child(c wire.NodeConfig) {
	cmd := exec.Command("/bin/sh", "-c", `trap "" TERM; echo > "`+c.Dir+`/child"; while :; do sleep 0.2; done`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
}

type world struct {
	t    *testing.T
	home string
	next int
}

func newWorld(t *testing.T) *world {
	home := t.TempDir()
	t.Setenv(homeVar, home)
	w := &world{t: t, home: home}
	t.Cleanup(func() {
		for _, p := range markedProcesses(homeVar + "=" + home) {
			t.Errorf("process %d is left", p)
			syscall.Kill(p, syscall.SIGKILL)
		}
	})
	return w
}

func (w *world) open() *Backend {
	b := New(w.home)
	b.termBound, b.killBound = time.Minute, time.Minute
	return b
}

func (w *world) request(token string, n int) backends.Request {
	exe, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	r := backends.Request{Token: backendtest.Token(token), Cluster: "lab", Pool: "local", Options: backends.Options{"nodes": int64(64)},
		Resources: &wire.Resources{CPU: wire.Unit}, Home: w.home, Binary: exe, Join: backends.Join{Addrs: []string{"127.0.0.1:1"}, CA: []byte("PEM"), Key: []byte("key")}}
	for range n {
		r.Nodes = append(r.Nodes, wire.NodeID("local-"+strconv.Itoa(w.next)))
		r.Epochs = append(r.Epochs, 1)
		w.next++
	}
	return r
}

// nodes counts the processes that are nodes of this test.
func (w *world) nodes() int {
	n := 0
	for _, pid := range markedProcesses(homeVar + "=" + w.home) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.HasSuffix(b, []byte("\x00node\x00")) {
			n++
		}
	}
	return n
}

func (w *world) submit(b *Backend, r backends.Request) []backends.Alloc {
	w.t.Helper()
	a, err := b.Submit(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// wait waits for a file that a node writes.
func (w *world) wait(id wire.NodeID, name string) []byte {
	w.t.Helper()
	path := filepath.Join(w.home, "clusters", "lab", "nodes", string(id), name)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) { // sleep: a bounded poll
		if b, err := os.ReadFile(path); err == nil {
			return b
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("no %s", path)
		}
	}
}

func (w *world) end(b *Backend, a backends.Alloc) backends.Status {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) { // sleep: a bounded poll
		st, err := b.Status(w.t.Context(), [][]byte{a.Handle})
		if err != nil {
			w.t.Fatal(err)
		}
		if st[0].State.Ended() {
			return st[0]
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%s does not end: %+v", a.Nodes, st[0])
		}
	}
}

func TestLaws(t *testing.T) {
	w := newWorld(t)
	backendtest.Run(t, backendtest.Harness{
		Open:    func(*testing.T) backends.Backend { return w.open() },
		Request: func(_ *testing.T, token string, n int) backends.Request { return w.request(token, n) },
		Nodes:   func(*testing.T) int { return w.nodes() },
		Kill: func(t *testing.T, a backends.Alloc) {
			r, _ := parseHandle(a.Handle)
			syscall.Kill(r.PID, syscall.SIGKILL)
		},
		Good: []backends.Options{{}, {"nodes": int64(2)}, {"nodes": uint64(1)}},
		Bad:  []backends.Options{{"nodes": int64(0)}, {"nodes": "two"}, {"nodes": int64(5000), "hosts": []any{"a"}}, {"node": int64(1)}},
		BadSubmit: func(t *testing.T, token string) backends.Request {
			r := w.request(token, 1)
			r.Binary = filepath.Join(w.home, "no-such-binary")
			return r
		},
		Bound: time.Minute,
	})
}

func TestConfiguration(t *testing.T) {
	w := newWorld(t)
	b := w.open()
	r := w.request("tok", 1)
	r.Nodes[0] = "local-5"
	r.Labels = map[string]string{"fabric": "ib"}
	a := w.submit(b, r)
	var c wire.NodeConfig
	if err := json.Unmarshal(w.wait("local-5", "up"), &c); err != nil {
		t.Fatal(err)
	}
	if c.Cluster != "lab" || c.Node != "local-5" || c.Epoch != 1 || c.Token != r.Token || string(c.JoinKey) != "key" || c.Labels["fabric"] != "ib" ||
		c.Slot != 5 || c.Slots != 64 || len(c.CPUs) != 1 || c.CacheDir != filepath.Join(w.home, "cache") {
		t.Errorf("configuration %+v", c)
	}
	// Secrets are nowhere on disk, and everything is the user's alone.
	filepath.WalkDir(w.home, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() && p == w.home {
			return err
		}
		if st, err := os.Stat(p); err == nil && st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", p, st.Mode())
		}
		return nil
	})
	rec, _ := parseHandle(a[0].Handle)
	if text, err := os.ReadFile(rec.path(".json")); err != nil || bytes.Contains(text, []byte("key")) {
		t.Errorf("record %s, %v", text, err)
	}
	// It has a session of its own and nothing of ours.
	if sid, err := syscall.Getpgid(rec.PID); err != nil || sid != rec.PID {
		t.Errorf("process group %d of process %d, %v", sid, rec.PID, err)
	}
	if err := b.Cancel(t.Context(), [][]byte{a[0].Handle}); err != nil {
		t.Fatal(err)
	}
}

func TestShares(t *testing.T) {
	cores := []int{0, 1, 2, 5, 6, 7, 8}
	for slots := 1; slots <= len(cores); slots++ {
		var all []int
		for s := range slots {
			own, why := shareOf(cores, s, slots)
			if len(own) < len(cores)/slots || why != "" {
				t.Errorf("slot %d of %d: %v %q", s, slots, own, why)
			}
			all = append(all, own...)
		}
		if !slices.Equal(all, cores) {
			t.Errorf("%d slots cover %v", slots, all)
		}
	}
	own, why := shareOf(cores, 9, 14)
	if len(own) != 1 || own[0] != 6 || why != "shares core 6 with 1 other node" {
		t.Errorf("slot 9 of 14: %v %q", own, why)
	}
	if own, why := shareOf([]int{3}, 2, 40); len(own) != 1 || !strings.Contains(why, "39 other nodes") {
		t.Errorf("slot 2 of 40: %v %q", own, why)
	}
}

func TestTooManyNodes(t *testing.T) {
	w := newWorld(t)
	b := w.open()
	many := int64(len(usableCores()) + 38)
	r := w.request("tok", 1)
	r.Options, r.Resources = backends.Options{"nodes": many}, nil
	_, err := b.Submit(t.Context(), r)
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), fmt.Sprintf("%d nodes on a machine with", many)) || !strings.Contains(err.Error(), "give at most") {
		t.Errorf("got %v", err)
	}
	if n, why := b.Bound(r.Options, nil); n != len(usableCores()) || !strings.Contains(why, "give at most") {
		t.Errorf("bound %d, %q", n, why)
	}
	if n, _ := b.Bound(r.Options, &wire.Resources{CPU: wire.Unit}); n < int(many) {
		t.Errorf("with resources the bound is %d", n)
	}
}

func TestEnds(t *testing.T) {
	w := newWorld(t)
	b := w.open()
	for _, c := range []struct {
		do   string
		want backends.AllocState
		why  string
	}{
		{"exit", backends.Failed, "exit status 7"},
		{"leave", backends.Done, "by itself"},
	} {
		r := w.request(c.do, 1)
		r.Labels = map[string]string{"do": c.do}
		a := w.submit(b, r)
		if st := w.end(b, a[0]); st.State != c.want || !strings.Contains(st.Why, c.why) {
			t.Errorf("%s: %+v", c.do, st)
		}
		if c.do == "exit" {
			if text := w.wait(r.Nodes[0], "agent.log"); !strings.Contains(string(text), "as told") {
				t.Errorf("log %q", text)
			}
		}
		// Another process sees the same end.
		if st := w.end(w.open(), a[0]); st.State != c.want {
			t.Errorf("%s, seen by another: %+v", c.do, st)
		}
	}
}

// TestForgotten: who ends a node that another process has just forgotten leaves nothing.
func TestForgotten(t *testing.T) {
	w := newWorld(t)
	b := w.open()
	r := w.request("tok", 1)
	r.Labels = map[string]string{"do": "leave"}
	h := [][]byte{w.submit(b, r)[0].Handle}
	w.end(b, backends.Alloc{Handle: h[0]})
	rec, _ := parseHandle(h[0])
	dir := func() (names []string) {
		ents, _ := os.ReadDir(rec.Dir)
		for _, e := range ents {
			names = append(names, e.Name())
		}
		return names
	}
	if err := b.Cancel(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if err := b.Forget(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if err := w.open().Cancel(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	rec.writeEnd(end{backends.Done, "late"})
	if left := dir(); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	// One that was killed in the middle.
	for _, ext := range []string{".end", ".stop"} {
		if err := os.WriteFile(rec.path(ext), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Forget(t.Context(), h); err != nil || len(dir()) > 0 {
		t.Errorf("left by a Forget that was killed: %q, %v", dir(), err)
	}
}

func TestKilledGuardLeavesNothing(t *testing.T) {
	w := newWorld(t)
	b := w.open()
	r := w.request("tok", 1)
	r.Labels = map[string]string{"do": "parent"}
	a := w.submit(b, r)
	w.wait(r.Nodes[0], "up")
	w.wait(r.Nodes[0], "child")
	rec, _ := parseHandle(a[0].Handle)
	syscall.Kill(rec.PID, syscall.SIGKILL)
	if st := w.end(b, a[0]); st.State == backends.Done {
		t.Errorf("ended as %+v", st)
	}
	if len(rec.marked()) == 0 {
		t.Fatal("the child is gone already: the test shows nothing")
	}
	if err := b.Cancel(t.Context(), [][]byte{a[0].Handle}); err != nil {
		t.Fatal(err)
	}
	if left := rec.marked(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

func TestStubbornNode(t *testing.T) {
	w := newWorld(t)
	b := w.open()
	b.termBound = 300 * time.Millisecond
	r := w.request("tok", 1)
	r.Labels = map[string]string{"do": "stubborn"}
	a := w.submit(b, r)
	w.wait(r.Nodes[0], "up")
	if err := b.Cancel(t.Context(), [][]byte{a[0].Handle}); err != nil {
		t.Fatal(err)
	}
	if st := w.end(b, a[0]); st.State != backends.Done {
		t.Errorf("ended as %+v", st)
	}
	if n := w.nodes(); n != 0 {
		t.Errorf("%d nodes are left", n)
	}
}

// A new life of a node ends the one before, whatever state it is in.
func TestNewLife(t *testing.T) {
	w := newWorld(t)
	b := w.open()
	b.killBound = 2 * time.Second
	r := w.request("one", 1)
	r.Labels = map[string]string{"do": "stubborn"}
	old := w.submit(b, r)
	w.wait(r.Nodes[0], "up")
	rec, _ := parseHandle(old[0].Handle)
	syscall.Kill(rec.PID, syscall.SIGSTOP)
	r.Token, r.Epochs = backendtest.Token("two"), []wire.Epoch{2}
	fresh := w.submit(b, r)
	if rec.alive() || len(rec.marked()) > 0 {
		t.Error("the earlier life goes on")
	}
	st, _ := b.Status(t.Context(), [][]byte{old[0].Handle, fresh[0].Handle})
	if !st[0].State.Ended() || st[1].State != backends.Running {
		t.Errorf("states %+v", st)
	}
	b.termBound = 200 * time.Millisecond
	if err := b.Cancel(t.Context(), [][]byte{fresh[0].Handle}); err != nil {
		t.Fatal(err)
	}
}

// A caller that dies between starting a process and writing it down leaves a process
// that goes away, and no allocation.
func TestHalfStarted(t *testing.T) {
	w := newWorld(t)
	exe, _ := os.Executable()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "node")
	cmd.Stdin = in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	out.Close()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		if err == nil {
			t.Error("it took nothing for a configuration")
		}
	case <-time.After(time.Minute):
		cmd.Process.Kill()
		t.Error("it waits for ever")
	}
	if n := w.nodes(); n != 0 {
		t.Errorf("%d nodes", n)
	}
}

// A handle whose pid belongs to another process now must not be signalled.
func TestReusedPid(t *testing.T) {
	w := newWorld(t)
	b := w.open()
	victim := exec.Command("sleep", "100")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { victim.Process.Kill(); victim.Wait() })
	r := record{V: 1, Dir: filepath.Join(w.home, "clusters", "lab", "nodes"), Token: "t", Node: "local-0", Epoch: 1}
	r.identify(victim.Process.Pid)
	if !r.alive() {
		t.Fatal("the victim is not alive")
	}
	os.MkdirAll(r.Dir, 0o700)
	for _, forge := range []func(*record){func(r *record) { r.Start++ }, func(r *record) { r.Boot = "another" }} {
		f := r
		forge(&f)
		f.Epoch++
		if err := f.write(); err != nil {
			t.Fatal(err)
		}
		if err := b.Cancel(t.Context(), [][]byte{f.alloc().Handle}); err != nil {
			t.Fatal(err)
		}
		if !r.alive() {
			t.Fatal("a stranger was killed")
		}
	}
}

func TestDiskFaults(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(w.home, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := w.request("tok", 1)
	r.Home = file
	if _, err := w.open().Submit(t.Context(), r); err == nil || errs.KindOf(err) == errs.Unknown {
		t.Errorf("got %v", err)
	}
	if n := w.nodes(); n != 0 {
		t.Errorf("%d nodes", n)
	}
}

func TestDryRunText(t *testing.T) {
	w := newWorld(t)
	r := w.request("tok", 1)
	r.Home, r.Binary, r.Nodes[0] = "/home/a b", "/opt/launcher", "local-0"
	r.Options, r.Resources = backends.Options{}, nil
	var out bytes.Buffer
	if err := w.open().DryRun(r, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# node local-0: the whole machine\n", "mkdir -p -m 700 '/home/a b/clusters/lab/nodes/local-0'\n",
		"setsid /opt/launcher node < CONFIG >> '/home/a b/clusters/lab/nodes/local-0/agent.log' 2>&1", `"join_key": "(one-use join key`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, &out)
		}
	}
}

func TestWatchWithoutDescriptors(t *testing.T) {
	w := newWorld(t)
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	r := record{V: 1, Dir: w.home, Node: "local-0"}
	r.identify(cmd.Process.Pid)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	told := 0
	time.AfterFunc(20*time.Millisecond, func() { cmd.Process.Kill() })
	watchBy(ctx, []*record{&r, nil}, func(int) (int, error) { return -1, syscall.ENOSYS }, func(i int) bool {
		told++
		if i == 1 { // not an allocation: told at once
			return true
		}
		cancel()
		return false
	})
	if told != 2 {
		t.Errorf("told %d times", told)
	}
}

func FuzzParseHandle(f *testing.F) {
	f.Add([]byte(`{"v":1,"dir":"/x","node":"a-0","epoch":1,"pid":7}`))
	f.Add([]byte(`{"v":1,"dir":"/x","node":"../a","epoch":1,"pid":-7}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parseHandle(b)
		if ok && (r.PID <= 1 || !strings.HasPrefix(r.key(), filepath.Clean(r.Dir))) {
			t.Errorf("%q gave %+v", b, r)
		}
	})
}

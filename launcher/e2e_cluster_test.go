package main

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/broker"
	"launcher/internal/sockpath"
	"launcher/internal/testkit"
)

func TestUpDownForget(t *testing.T) {
	h := lab(t)
	h.OK("run", "--", "echo", "kept")
	if out := h.OK("up", "lab.toml"); !strings.Contains(out, "cluster lab is up: 2 nodes") {
		t.Errorf("up of what is up: %q", out)
	}
	// Another spec of the same name.
	h.Write("other/lab.toml", labSpec)
	h.Fails(125, []string{`there is a cluster "lab" already`, "hint: ", "--replace"}, "up", "other/lab.toml")
	h.Fails(125, []string{"is up", "launcher down lab"}, "forget", "lab")
	// Without a name, elsewhere than on a terminal, nothing running: there is nothing to lose.
	if out := h.OK("down"); !strings.Contains(out, "cluster lab is down") {
		t.Errorf("down: %q", out)
	}
	if left := h.Leaks(); len(left) > 0 {
		t.Errorf("left after down:\n%s", strings.Join(left, "\n"))
	}
	// The record is there with nothing up.
	if out := h.OK("logs", "1"); out != "kept\n" {
		t.Errorf("logs of the record: %q", out)
	}
	if out := h.OK("jobs", "-c", "lab"); !strings.Contains(out, "echo kept") {
		t.Errorf("jobs of the record: %q", out)
	}
	if out := h.OK("status"); !strings.Contains(out, "lab, down") {
		t.Errorf("status of the record: %q", out)
	}
	h.OK("tasks", "1")
	h.OK("wait", "1")
	h.Fails(125, []string{"not up", "lab.toml"}, "run", "-c", "lab", "--", "true")
	h.OK("down", "lab") // again: nothing to do is no error
	// Up again: numbers go on, the old output is there.
	h.OK("up", "lab.toml")
	if out := h.OK("run", "--", "sh", "-c", "echo $LAUNCHER_JOB_ID"); out != "2\n" {
		t.Errorf("the second job's number: %q", out)
	}
	if out := h.OK("logs", "1"); out != "kept\n" {
		t.Errorf("logs after up: %q", out)
	}
	h.OK("up", "--replace", "--yes", "other/lab.toml")
	if out := h.OK("run", "--", "sh", "-c", "echo $LAUNCHER_JOB_ID"); out != "1\n" {
		t.Errorf("after --replace: %q", out)
	}
	h.OK("down", "lab")
	h.OK("forget", "lab")
	h.Fails(125, []string{"there is no cluster"}, "logs", "-c", "lab", "1")
	if ents, _ := os.ReadDir(filepath.Join(h.Dir, "clusters")); len(ents) > 0 {
		t.Errorf("forget left %v", ents)
	}
	h.OK("up", "lab.toml") // for the clean-up
}

func TestDeepHome(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	h := testkit.New(t)
	deep := filepath.Join(h.Dir, strings.Repeat("d", 60), strings.Repeat("e", 60), strings.Repeat("f", 60))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	h.Write("lab.toml", labSpec)
	h.Env = []string{"LAUNCHER_HOME=" + deep}
	h.OK("up", "lab.toml")
	sock, err := sockpath.Find(filepath.Join(deep, "clusters", "lab", "head.sock"))
	if err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(filepath.Dir(sock)); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the short directory: %v %v", st, err)
	}
	if out := h.OK("run", "--", "sh", "-c", `"$LAUNCHER" report loss=1`); out != "go\n" {
		t.Errorf("report through a short socket: %q", out)
	}
	h.OK("down", "lab")
	if _, err := os.Stat(sock); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", sock, err)
	}
	if _, err := os.Stat(filepath.Dir(sock)); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", filepath.Dir(sock), err)
	}
	for _, p := range (&testkit.Home{Dir: deep}).Processes() {
		t.Errorf("left: %v", p.Args)
	}
}

func TestMoreNodesThanThereAre(t *testing.T) {
	h := testkit.New(t)
	h.Write("big.toml", "version = 1\n[[pool]]\nname = \"local\"\nbackend = \"local\"\nnodes = 1000\n")
	h.Fails(125, []string{"error: ", "big.toml:", "1000 nodes on a machine"}, "up", "big.toml")
	if _, err := os.Stat(filepath.Join(h.Dir, "clusters")); err == nil {
		t.Error("a state directory was made")
	}
}

func TestOn(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	h := testkit.New(t)
	h.Write("lab.toml", labSpec)
	r := h.Run("run", "--on", "lab.toml", "--", "sh", "-c", "echo hi; exit 4")
	if r.Code != 4 || r.Out != "hi\n" {
		t.Errorf("%s", r)
	}
	if left := h.Leaks(); len(left) > 0 {
		t.Errorf("left:\n%s", strings.Join(left, "\n"))
	}
	h.Write("job.toml", "version = 1\nkind = \"array\"\ncommand = [\"sh\", \"-c\", \"echo e $LAUNCHER_TASK_INDEX\"]\non = \"lab.toml\"\n[array]\nrange = \"0-4\"\n")
	if out := h.OK("submit", "job.toml"); strings.Count(out, "e ") != 5 {
		t.Errorf("submit of a job with on: %q", out)
	}
	// A cluster that was up stays up.
	h.OK("up", "lab.toml")
	h.OK("run", "--on", "lab.toml", "--", "true")
	h.OK("run", "--", "true")
	h.OK("down", "lab")
}

// TestCrash kills everything of ours at once, and the head for good.
func TestCrash(t *testing.T) {
	h := lab(t)
	id := strings.TrimSpace(h.OK("run", "--detach", "--", "sh", "-c", "echo begin $LAUNCHER_ATTEMPT; while ! test -e gate; do sleep 0.02; done; echo end"))
	testkit.Eventually(t, testkit.Bound, func() string {
		out := h.Run("logs", id).Out
		if strings.HasPrefix(out, "begin") {
			return ""
		}
		return "output " + out
	})
	// The head and its supervisor at once: nothing brings it back but up.
	for _, kind := range []string{"head-supervise", "head"} {
		for _, p := range h.PIDs(kind) {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
	}
	testkit.Eventually(t, testkit.Bound, func() string {
		if r := h.Run("nodes"); r.Code == 125 {
			return ""
		}
		return "the head still answers"
	})
	h.OK("up", "lab.toml")
	h.Write("gate", "")
	if r := h.Run("attach", id); r.Code != 0 || r.Out != "begin 1\nend\n" {
		t.Errorf("the job over the head's death: %s", r)
	}
	// Down without a head.
	for _, kind := range []string{"head-supervise", "head"} {
		for _, p := range h.PIDs(kind) {
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
	}
	r := h.Run("down", "lab")
	if r.Code != 0 {
		t.Errorf("down without a head: %s", r)
	}
	if left := h.Leaks(); len(left) > 0 {
		t.Errorf("left:\n%s", strings.Join(left, "\n"))
	}
	h.OK("up", "lab.toml")
	h.OK("run", "--", "true")
	// Everything at once.
	for _, p := range h.Processes() {
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
	}
	h.OK("up", "lab.toml")
	if out := h.OK("run", "--", "echo", "back"); out != "back\n" {
		t.Errorf("%q", out)
	}
}

// TestGarbage sends noise to the head's port and sockets; work goes on.
func TestGarbage(t *testing.T) {
	h := lab(t)
	dir := filepath.Join(h.Dir, "clusters", "lab")
	cf, err := broker.ReadClusterFile(dir)
	if err != nil || len(cf.Addrs) == 0 {
		t.Fatalf("cluster.json: %+v %v", cf, err)
	}
	socks := []string{filepath.Join(dir, "head.sock")}
	agents, _ := filepath.Glob(filepath.Join(dir, "nodes", "*", "agent.sock"))
	socks = append(socks, agents...)
	noise := [][]byte{[]byte("GET / HTTP/1.0\r\n\r\n"), []byte(strings.Repeat("\xff", 4096)), []byte("LNCH" + strings.Repeat("\x00", 64)), {0x16, 3, 1, 0xff, 0xff}, nil}
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Bound)
	defer cancel()
	for _, n := range noise {
		for _, a := range cf.Addrs {
			c, err := net.DialTimeout("tcp", a, 5*time.Second)
			if err != nil {
				continue // an address of another interface
			}
			_, _ = c.Write(n)
			_ = c.Close()
			tc, err := tls.DialWithDialer(&net.Dialer{Timeout: testkit.Bound}, "tcp", a, &tls.Config{InsecureSkipVerify: true})
			if err == nil {
				_, _ = tc.Write(n)
				_ = tc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				b := make([]byte, 256)
				if k, _ := tc.Read(b); k > 0 && strings.Contains(string(b[:k]), "PRIVATE") {
					t.Errorf("a stranger got %q", b[:k])
				}
				_ = tc.Close()
			}
		}
		for _, s := range socks {
			c, err := sockpath.Dial(ctx, s)
			if err != nil {
				t.Errorf("%s: %v", s, err)
				continue
			}
			_, _ = c.Write(n)
			_ = c.Close()
		}
	}
	if out := h.OK("run", "--", "echo", "fine"); out != "fine\n" {
		t.Errorf("%q", out)
	}
	if n := len(h.PIDs("head")); n != 1 {
		t.Errorf("%d heads", n)
	}
}

// TestRootSecondUser: another user of the machine must not get in, not see, not disturb.
func TestRootSecondUser(t *testing.T) {
	one, two := testkit.PlainUser(t, 1), testkit.PlainUser(t, 2)
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	h := testkit.NewAs(t, one)
	h.Write("lab.toml", labSpec)
	h.OK("up", "lab.toml")
	t.Cleanup(func() { h.OK("down", "lab") })
	// The directories above are closed to others; open those, to see that ours hold by themselves.
	if err := os.Chmod(filepath.Dir(h.Dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(h.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	thief := testkit.NewAs(t, two)
	thief.Env = []string{"LAUNCHER_HOME=" + h.Dir}
	if r := thief.Run("run", "-c", "lab", "--", "id"); r.Code != 125 || strings.Contains(r.Out, "uid") {
		t.Errorf("another user ran a command: %s", r)
	}
	dir := filepath.Join(h.Dir, "clusters", "lab")
	for _, p := range []string{"ca.key", "head.config", "cluster.json", "head.sock", "spec.toml", "journal"} {
		c := thief.Program(context.Background(), "cat", filepath.Join(dir, p))
		if r := testkit.Finish(c); r.Code == 0 {
			t.Errorf("another user read %s", p)
		}
	}
	if out := h.OK("run", "--", "id", "-un"); out != one.Name+"\n" {
		t.Errorf("ran as %q", out)
	}
	// Two users' clusters of the same name do not meet.
	own := testkit.NewAs(t, two)
	own.Write("lab.toml", labSpec)
	own.OK("up", "lab.toml")
	if out := own.OK("run", "--", "id", "-un"); out != two.Name+"\n" {
		t.Errorf("ran as %q", out)
	}
	own.OK("down", "lab")
	if out := h.OK("run", "--", "echo", "still here"); out != "still here\n" {
		t.Errorf("%q", out)
	}
}

// TestUpdate changes the spec of a running cluster.
func TestUpdate(t *testing.T) {
	h := lab(t)
	nodes := func() string {
		var ids []string
		for _, n := range lastJSON(t, h.OK("nodes", "--json"))["nodes"].([]any) {
			m := n.(map[string]any)
			ids = append(ids, m["id"].(string)+" "+m["state"].(string))
		}
		slices.Sort(ids)
		return strings.Join(ids, ", ")
	}
	h.Write("lab.toml", strings.Replace(labSpec, "nodes = 2", "nodes = 3", 1))
	r := h.Run("up", "lab.toml")
	if r.Code != 0 || !strings.Contains(r.Err, "the file differs") || !strings.Contains(r.Out, "3 nodes") {
		t.Errorf("%s", r)
	}
	if got := nodes(); got != "local-0 up, local-1 up, local-2 up" {
		t.Error(got)
	}
	// Fewer nodes end work: not without asking.
	job := strings.TrimSpace(h.OK("run", "--detach", "--cpus", "4", "--nodes", "3", "--", "sh", "-c", "exec sleep 600"))
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := h.OK("tasks"); !strings.Contains(out, "running") {
			return "tasks: " + out
		}
		return ""
	})
	h.Write("lab.toml", strings.Replace(labSpec, "nodes = 2", "nodes = 1", 1))
	h.Fails(125, []string{"this removes 2 nodes", "--yes"}, "up", "lab.toml")
	if got := nodes(); got != "local-0 up, local-1 up, local-2 up" {
		t.Error(got)
	}
	h.OK("cancel", "--grace", "0s", job)
	h.Fails(130, nil, "wait", job)
	h.OK("up", "--yes", "lab.toml")
	testkit.Eventually(t, testkit.Bound, func() string {
		if got := nodes(); got != "local-0 up" {
			return "nodes: " + got
		}
		return ""
	})
	if out := h.OK("run", "--", "echo", "one"); out != "one\n" {
		t.Errorf("%q", out)
	}
	// Bad files change nothing.
	h.Write("lab.toml", labSpec+"nodse = 3\n")
	h.Fails(125, []string{"nodse"}, "up", "lab.toml")
	h.Write("lab.toml", labSpec)
	h.OK("up", "lab.toml")
}

func TestDrain(t *testing.T) {
	h := lab(t)
	r := running(t, h, "--", "sh", "-c", "echo up; while ! test -e gate; do sleep 0.02; done; echo end")
	h.OK("drain", "local-0")
	h.OK("drain", "local-1")
	id := strings.TrimSpace(h.OK("run", "--detach", "--", "echo", "late"))
	if out := h.OK("why", id); !strings.Contains(out, "drain") {
		t.Errorf("why: %s", out)
	}
	h.Write("gate", "")
	if res := r.Wait(); res.Code != 0 || res.Out != "up\nend\n" {
		t.Errorf("what ran on a drained node: %s", res)
	}
	h.Fails(125, []string{"local-7"}, "drain", "local-7")
}

// TestDownOfWhatCameUp: down asks a head that was not there yet when it looked for the cluster.
func TestDownOfWhatCameUp(t *testing.T) {
	h := lab(t)
	t.Setenv("LAUNCHER_HOME", h.Dir)
	was, err := named("lab")
	if err != nil || !was.up {
		t.Fatalf("%+v, %v", was, err)
	}
	was.up = false
	if err := newApp(strings.NewReader(""), io.Discard, io.Discard).takeDown(t.Context(), was, downOptions{}); err != nil {
		t.Fatal(err)
	}
	if !wentDown(was.dir) {
		t.Error("its processes were ended, and it was not told")
	}
}

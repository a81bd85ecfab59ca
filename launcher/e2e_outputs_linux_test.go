package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"launcher/internal/testkit"
)

// TestRootNetOutputs: what tasks write on hosts that do not share the working directory comes
// back to it, and nothing else: of arrays, gangs, attempts that count, and jobs whose command
// is long gone.
func TestRootNetOutputs(t *testing.T) {
	for _, head := range []string{"here", "pool:box"} {
		t.Run(head, func(t *testing.T) {
			n := netTest(t)
			a, b := n.Host("h1", testkit.HostOptions{}), n.Host("h2", testkit.HostOptions{})
			h := n.Laptop
			h.Write("boxes.toml", netSpec(n, head, "box: h1 h2"))
			h.OK("up", "boxes.toml")
			outputs(t, h)
			h.OK("down", "boxes")
			onlyBinary(t, a, b)
		})
	}
}

func outputs(t *testing.T, h *testkit.Home) {
	work := filepath.Join(h.Work, "a place")
	write := func(name, text string) {
		for p := h.Write("a place/"+name, text); p != h.Work; p = filepath.Dir(p) {
			_ = os.Chown(p, h.User.UID, h.User.GID)
		}
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(work, name))
		if err != nil {
			return "(" + err.Error() + ")"
		}
		return string(text)
	}
	is := func(name, want string) {
		t.Helper()
		if got := read(name); got != want {
			t.Errorf("%s is %q, wanted %q", name, got, want)
		}
	}
	write("in/file", "of the submitter\n")
	write("out/old", "as it was\n")
	run := func(args ...string) testkit.Result {
		t.Helper()
		return h.Run(append([]string{"run", "--workdir", work}, args...)...)
	}

	// Only what is meant and was changed, with its mode, in directories, and links.
	r := run("--outputs", "out/**", "--outputs", "model", "--", "sh", "-ec",
		"pwd; cat in/file; mkdir -p out/deep model; echo new >out/deep/x; chmod 750 out/deep/x; ln -s x out/deep/link; echo w >model/weights; echo no >other; echo no >in/file")
	if r.Code != 0 || !strings.Contains(r.Out, "/tries/0.a") || !strings.Contains(r.Err, "outputs of job 1: 3 files (6B) came to "+work) {
		t.Errorf("run: %s", r)
	}
	is("out/deep/x", "new\n")
	is("out/deep/link", "new\n")
	is("model/weights", "w\n")
	is("out/old", "as it was\n")
	is("in/file", "of the submitter\n")
	if fi, err := os.Stat(filepath.Join(work, "out/deep/x")); err != nil || fi.Mode().Perm() != 0o750 {
		t.Errorf("out/deep/x: %v, %v", fi, err)
	}
	if _, err := os.Stat(filepath.Join(work, "other")); err == nil {
		t.Error("what was not meant came")
	}

	// An array: each element begins with what was submitted. A failed attempt does not count
	// when another follows, and does when none does.
	r = run("--array", "0-19", "--outputs", "out/*", "--retry-failed", "1", "--", "sh", "-ec",
		"test $(ls out | wc -l) = 2; echo $LAUNCHER_TASK_INDEX >out/e$LAUNCHER_TASK_INDEX; echo $LAUNCHER_ATTEMPT >out/a$LAUNCHER_ATTEMPT; [ $LAUNCHER_TASK_INDEX != 7 ] || [ $LAUNCHER_ATTEMPT = 2 ] || exit 3")
	first := "1"
	if r.Code != 0 {
		t.Errorf("an array: %s", r)
	}
	for i := range 20 {
		is(fmt.Sprintf("out/e%d", i), fmt.Sprintf("%d\n", i))
	}
	is("out/a"+first, first+"\n")
	is("out/a2", "2\n")
	if r = run("--outputs", "why", "--", "sh", "-c", "echo because >why; exit 3"); r.Code != 3 {
		t.Errorf("a command that fails: %s", r)
	}
	is("why", "because\n")

	// A gang: what ranks on all nodes wrote.
	if r = run("--nodes", "2", "--outputs", "rank*", "--", "sh", "-c", "hostname >rank$RANK"); r.Code != 0 {
		t.Errorf("a gang: %s", r)
	}
	if x, y := read("rank0"), read("rank1"); x == y || x[0] != 'h' || y[0] != 'h' {
		t.Errorf("a gang: %q and %q", x, y)
	}

	// Nobody waits: they come all the same, once the directory can take them.
	job := strings.TrimSpace(h.OK("run", "--detach", "--workdir", work, "--outputs", "late", "--", "sh", "-c", "echo late >late"))
	testkit.Eventually(t, testkit.Bound, func() string {
		if got := read("late"); got != "late\n" {
			return "late is " + got
		}
		return ""
	})
	testkit.Eventually(t, testkit.Bound, func() string {
		if r = h.Run("logs", job); !strings.Contains(r.Err, "outputs of job "+job+": 1 file (5B) came to "+work) {
			return "logs: " + r.String()
		}
		return ""
	})
	write("blocked", "a file\n")
	r = run("--outputs", "blocked", "--", "sh", "-c", "rm blocked; mkdir blocked; echo x >blocked/x")
	if r.Code != 125 || !strings.Contains(r.Err, "the outputs of 1 task wait: ") || !strings.Contains(r.Err, "blocked") {
		t.Errorf("a directory where a file is: %s", r)
	}
	is("blocked", "a file\n")
	job = lastJob(t, h)
	away := work + ".away"
	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	move(work, away)
	write("in/file", "another directory of that name\n")
	if r = h.Run("wait", job); r.Code != 125 || !strings.Contains(r.Err, "is another one") {
		t.Errorf("with another directory of that name: %s", r)
	}
	move(work, work+".other")
	if r = h.Run("wait", job); r.Code != 125 || !strings.Contains(r.Err, "is not there any more") {
		t.Errorf("without the directory: %s", r)
	}
	move(away, work)
	if err := os.Remove(filepath.Join(work, "blocked")); err != nil {
		t.Fatal(err)
	}
	if r = h.Run("wait", job); r.Code != 0 {
		t.Errorf("wait: %s", r)
	}
	is("blocked/x", "x\n")
	for _, d := range []string{work, work + ".other"} {
		if err := os.RemoveAll(d); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRootNetProgram: the tasks of a program that runs in a private copy find its modules and
// its files on the other nodes.
func TestRootNetProgram(t *testing.T) {
	n := netTest(t)
	a, b := n.Host("h1", testkit.HostOptions{}), n.Host("h2", testkit.HostOptions{})
	h := n.Laptop
	h.Write("boxes.toml", netSpec(n, "here", "box: h1 h2"))
	h.Write("helper.py", "def word():\n    return 'of the module'\n")
	h.Write("data.txt", "of the file")
	h.Write("main.py", `import socket
import helper
import launcher
from launcher.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@launcher.remote
def f():
    return socket.gethostname(), helper.word(), open("data.txt").read()

here = launcher.get_runtime_context().get_node_id()
other = next(n["NodeID"] for n in launcher.nodes() if n["NodeID"] != here)
where, *got = launcher.get(f.options(scheduling_strategy=NodeAffinitySchedulingStrategy(other, soft=False)).remote())
print(where != socket.gethostname(), *got)
`)
	h.OK("up", "boxes.toml")
	for _, more := range [][]string{nil, {"--outputs", "out/*"}} {
		r := h.Run(append(append([]string{"run"}, more...), "--", "python3", "main.py")...)
		if r.Code != 0 || r.Out != "True of the module of the file\n" {
			t.Errorf("a program with %q: %s", more, r)
		}
	}
	h.OK("down", "boxes")
	onlyBinary(t, a, b)
}

// TestRootNetOutputsKilled: outputs are whole and of the attempt that counts, whatever is
// killed and whoever was cut off.
func TestRootNetOutputsKilled(t *testing.T) {
	n := netTest(t)
	hosts := []*testkit.Host{n.Host("h1", testkit.HostOptions{}), n.Host("h2", testkit.HostOptions{})}
	h := n.Laptop
	h.Write("boxes.toml", netSpec(n, "here", "box: h1 h2"))
	h.OK("up", "boxes.toml")
	const tasks = 24
	r := h.Start("run", "--array", fmt.Sprintf("0-%d", tasks-1), "--outputs", "out", "--", "sh", "-ec",
		`mkdir out; head -c 2000000 /dev/urandom >out/$LAUNCHER_TASK_INDEX; cd out; sha256sum $LAUNCHER_TASK_INDEX >$LAUNCHER_TASK_INDEX.sum`)
	came := func() []string {
		all, _ := filepath.Glob(filepath.Join(h.Work, "out", "*.sum"))
		return all
	}
	for k := range 5 {
		testkit.Eventually(t, testkit.Bound, func() string {
			if len(came()) < 3*k {
				return fmt.Sprintf("%d came", len(came()))
			}
			return ""
		})
		if k%2 == 0 {
			hosts[k/2%2].Kill("launcher agent")
			continue
		}
		for _, pid := range h.PIDs("head") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if res := r.Wait(); res.Code != 0 {
		t.Errorf("the array: %s", res)
	}
	if len(came()) != tasks {
		t.Errorf("%d of %d came", len(came()), tasks)
	}
	check := exec.Command("sh", "-c", "cat *.sum | sha256sum -c --quiet; ls | wc -l; ls -A | grep -c launcher || true")
	check.Dir = filepath.Join(h.Work, "out")
	if out, err := check.CombinedOutput(); err != nil || string(out) != fmt.Sprintf("%d\n0\n", 2*tasks) {
		t.Errorf("what came: %s, %v", out, err)
	}

	const until = "until [ -e /tmp/go ]; do sleep 0.1; done"
	r = h.Start("run", "--cpus", "2", "--outputs", "who", "--", "sh", "-c", until+"; echo $LAUNCHER_ATTEMPT on $(hostname) >who")
	testkit.Eventually(t, testkit.Bound, func() string {
		if len(having(hosts, until)) != 1 {
			return "it does not run: " + r.Err()
		}
		return ""
	})
	x := having(hosts, until)[0]
	y := hosts[0]
	if x == y {
		y = hosts[1]
	}
	x.Down()
	testkit.Eventually(t, testkit.Bound, func() string {
		if len(having([]*testkit.Host{y}, until)) != 1 {
			return "it runs nowhere else: " + r.Err()
		}
		return ""
	})
	x.Write("/tmp/go", "")
	testkit.Eventually(t, testkit.Bound, func() string {
		if len(having([]*testkit.Host{x}, until)) != 0 {
			return "the ghost runs"
		}
		return ""
	})
	x.Up()
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := h.OK("nodes"); strings.Count(out, " up ") != 2 {
			return "the host that was cut is no node again: " + out
		}
		return ""
	})
	y.Write("/tmp/go", "")
	if res := r.Wait(); res.Code != 0 {
		t.Errorf("the job: %s", res)
	}
	if got := h.Read("who"); got != "2 on "+y.Name+"\n" {
		t.Errorf("who is %q, wanted the second attempt on %s", got, y.Name)
	}
	h.OK("down", "boxes")
}

// TestRootNetOutputsDown: down lets outputs arrive that are on their way to a laptop with a
// narrow link.
func TestRootNetOutputsDown(t *testing.T) {
	n := netTest(t)
	n.Host("h1", testkit.HostOptions{})
	h := n.Laptop
	h.Write("boxes.toml", netSpec(n, "pool:box", "box: h1"))
	h.OK("up", "boxes.toml")
	n.Port.Rate("20mbit")
	const size = 12 << 20
	job := strings.TrimSpace(h.OK("run", "--detach", "--outputs", "big", "--", "sh", "-c", fmt.Sprintf("head -c %d /dev/urandom >big", size)))
	testkit.Eventually(t, testkit.Bound, func() string {
		if out := h.OK("jobs", "--all"); !strings.Contains(out, "done") {
			return "job " + job + " has not ended: " + out
		}
		return ""
	})
	h.OK("down", "boxes")
	if got := len(h.Read("big")); got != size {
		t.Errorf("%d of %d bytes came", got, size)
	}
}

// lastJob is the number of the newest job.
func lastJob(t *testing.T, h *testkit.Home) string {
	t.Helper()
	var list struct{ Jobs []struct{ ID int } }
	if err := json.Unmarshal([]byte(h.OK("jobs", "--all", "--json")), &list); err != nil || len(list.Jobs) == 0 {
		t.Fatalf("jobs: %v", err)
	}
	last := 0
	for _, j := range list.Jobs {
		last = max(last, j.ID)
	}
	return fmt.Sprint(last)
}

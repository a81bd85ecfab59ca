package launcher_test

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher"
	"launcher/internal/testkit"
)

// programs are the drivers that the tests run on real clusters, as processes of their
// own: this test binary, which is the program of their workers too.
var programs = map[string]func(){
	"ExampleMain": ExampleMain, "ExampleGather": ExampleGather, "ExampleWait": ExampleWait, "ExamplePut": ExamplePut,
	"ExampleStream_All": ExampleStream_All, "ExampleRegisterError": ExampleRegisterError,
	"ExampleActor": ExampleActor,
}

const programVar = "TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv("LAUNCHER_WORKER") != "" {
		launcher.Main(nil)
	}
	if name := os.Getenv(programVar); name != "" {
		programs[name]()
	}
	os.Exit(testkit.Main(m))
}

// cluster is a local one, and runs programs on it.
type cluster struct {
	t *testing.T
	h *testkit.Home
}

func up(t *testing.T, pool string) *cluster {
	t.Helper()
	h := testkit.New(t)
	spec := filepath.Join(h.Work, "cluster.toml")
	text := "version = 1\nname = \"t\"\n[[pool]]\nname = \"local\"\nbackend = \"local\"\n" + pool
	if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.OK("up", spec)
	t.Cleanup(func() { h.OK("down", "t") })
	return &cluster{t, h}
}

// run runs a program to its end.
func (c *cluster) run(name string, env ...string) testkit.Result {
	c.t.Helper()
	return c.start(name, env...)()
}

// start starts a program; what it gives waits for the end.
func (c *cluster) start(name string, env ...string) func() testkit.Result {
	c.t.Helper()
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	return c.startFile(self, name, env...)
}

// startFile starts a program from a copy of this binary.
func (c *cluster) startFile(self, name string, env ...string) func() testkit.Result {
	ctx, cancel := context.WithTimeout(c.t.Context(), testkit.Bound)
	p := c.h.Program(ctx, self)
	p.Env = append(append(p.Env, programVar+"="+name), env...)
	ended := make(chan testkit.Result, 1)
	go func() {
		r := testkit.Finish(p)
		if ctx.Err() != nil {
			r.Err += "\nended after " + testkit.Bound.String()
		}
		cancel()
		ended <- r
	}()
	return func() testkit.Result { return <-ended }
}

// TestExamples runs the examples of the documentation; what each prints is the comment at
// its end.
func TestExamples(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	c := up(t, "nodes = 1\n")
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		_, body, ok := strings.Cut(string(source), "func "+name+"()")
		if !ok {
			continue
		}
		body, _, _ = strings.Cut(body, "\n}")
		want := ""
		for line := range strings.SplitSeq(body, "\n") {
			if text, ok := strings.CutPrefix(line, "\t// "); ok {
				want += text + "\n"
			}
		}
		if r := c.run(name); r.Code != 0 || r.Out != want {
			t.Errorf("%s: want %q, got %s", name, want, r)
		}
	}
}

// TestPrograms runs drivers to their end.
func TestPrograms(t *testing.T) {
	c := up(t, "nodes = 1\nresources = { cpu = 2, gate = 1 }\n")
	for name, want := range map[string]string{
		"left": "0 <nil>\n2 <nil>\n", "many": "all right\n", "arrays": "104857600 <nil>\n", "crash": "3 <nil>\ntrue\ntrue\n", "recursion": "500 <nil>\n",
		"cancel": "true\ntrue\ntrue\nslept <nil>\n", "stream": "499500\n",
	} {
		t.Run(name, func(t *testing.T) {
			if r := c.run(name); r.Code != 0 || r.Out != want {
				t.Errorf("want %q, got %s", want, r)
			}
		})
	}
}

// TestTwoNodes: tasks run where they are to, values go where they are needed.
func TestTwoNodes(t *testing.T) {
	c := up(t, "nodes = 2\n")
	if r := c.run("nodes"); r.Code != 0 || r.Out != "2\n" {
		t.Error(r)
	}
}

// TestProgramShipsItself: nodes that do not have the program's binary get it, once.
func TestProgramShipsItself(t *testing.T) {
	c := up(t, "nodes = 2\n")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(c.h.Work, "bin", "prog")
	// Where the second run's nodes look they find other bytes.
	other := "#!/bin/sh\nexit 3\n"
	for try := range 2 {
		if err := os.MkdirAll(filepath.Dir(mine), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(mine), 0o777); err != nil { // the driver removes it
			t.Fatal(err)
		}
		if err := os.WriteFile(mine, b, 0o755); err != nil {
			t.Fatal(err)
		}
		env := []string{"GONE=" + mine}
		if try == 1 {
			env = append(env, "INSTEAD="+other)
		}
		if r := c.startFile(mine, "nodes", env...)(); r.Code != 0 || r.Out != "2\n" {
			t.Errorf("run %d: %s", try, r)
		}
		_ = os.Remove(mine)
		list, err := filepath.Glob(filepath.Join(c.h.Dir, "cache", "programs", "*"))
		if err != nil || len(list) != 1 {
			t.Errorf("run %d: in the cache are %v, %v", try, list, err)
		}
	}
}

// TestLocal: with nothing up a program has a cluster of its own, which is gone with it.
func TestLocal(t *testing.T) {
	c := &cluster{t, testkit.New(t)}
	if r := c.run("ExampleMain", "LAUNCHER="+testkit.Binary(t)); r.Code != 0 || r.Out != "144 <nil>\n" {
		t.Error(r)
	}
}

// TestInARun: a driver that `launcher run` started uses the cluster it is in.
func TestInARun(t *testing.T) {
	c := up(t, "nodes = 1\n")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if r := c.h.Run("run", "--env", programVar+"=many", "--", self); r.Code != 0 || !strings.Contains(r.Out, "all right") {
		t.Error(r)
	}
}

// TestKilledAgent: nothing of a program's is lost when its node's agent dies.
func TestKilledAgent(t *testing.T) {
	c := up(t, "nodes = 1\n")
	p := c.start("long")
	for range 3 {
		await(t, "an agent", func() bool { return len(c.h.PIDs("agent")) == 1 })
		time.Sleep(400 * time.Millisecond) // sleep: it is to die in the middle of things
		for _, pid := range c.h.PIDs("agent") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if r := p(); r.Code != 0 || r.Out != "begun\nall right\n" {
		t.Error(r)
	}
}

// await waits for something to be so.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testkit.Bound); !so(); time.Sleep(10 * time.Millisecond) { // sleep: it asks again
		if time.Now().After(deadline) {
			t.Fatalf("no %s after %s", what, testkit.Bound)
		}
	}
}

const scorePy = `
def score(text, numbers, square, raw):
    return {"words": len(text.split()), "sum": sum(numbers), "square": square, "bytes": len(raw)}
`

const callerPy = `
import sys
import launcher

launcher.init()
square = launcher.function("launcher_test.square", program=sys.argv[1])
print(launcher.get([square.remote(i) for i in range(5)]))
total = launcher.function("launcher_test.sum", program=sys.argv[1])
print(launcher.get(total.remote([1, 2, square.remote(3)])))
check = launcher.function("launcher_test.check", program=sys.argv[1])
try:
    launcher.get(check.remote(""))
except Exception as e:
    print("nothing to check" in str(e))
made = launcher.remote(lambda: [4, 5])
print(launcher.get([total.remote(launcher.put([1, 2])), total.remote(made.remote()), total.remote([launcher.put(7), 8])]))
try:
    launcher.get(total.remote(launcher.remote(lambda: {1, 2}).remote()))
except Exception as e:
    print("a Python set, which is no plain data" in str(e) or e)
`

// TestPython: Python and Go call each other's functions.
func TestPython(t *testing.T) {
	py, err := filepath.Abs(".venv/bin/python")
	if err != nil || exec.Command(py, "-c", "import cloudpickle").Run() != nil {
		t.Skip("SKIP: .venv has no Python with cloudpickle: make setup makes it")
	}
	c := up(t, "nodes = 1\n")
	for name, text := range map[string]string{"score.py": scorePy, "caller.py": callerPy} {
		if err := os.WriteFile(filepath.Join(c.h.Work, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r := c.run("python", "TEST_PYTHON="+py); r.Code != 0 || r.Out != "2 3.5 9 3\ntrue\n" {
		t.Error(r)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if r := c.h.Run("run", "--", py, "caller.py", self); r.Code != 0 || r.Out != "[0, 1, 4, 9, 16]\n12\nTrue\n[3, 9, 15]\nTrue\n" {
		t.Error(r)
	}
}

package launcher_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"launcher"
	"launcher/internal/testkit"
)

// programs are the drivers that the tests run on real clusters, as processes of their
// own: this test binary, which is the program of their workers too.
var programs = map[string]func(){
	"ExampleMain": ExampleMain, "ExampleGather": ExampleGather, "ExampleWait": ExampleWait, "ExamplePut": ExamplePut,
	"ExampleStream_All": ExampleStream_All, "ExampleRegisterError": ExampleRegisterError,
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
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), testkit.Bound)
	defer cancel()
	p := c.h.Program(ctx, self)
	p.Env = append(append(p.Env, programVar+"="+name), env...)
	r := testkit.Finish(p)
	if ctx.Err() != nil {
		c.t.Fatalf("%s: not done after %s: %s", name, testkit.Bound, r)
	}
	return r
}

// TestExamples runs the examples of the documentation; what each prints is the comment at
// its end.
func TestExamples(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	c := up(t, "nodes = 1\n")
	for name := range programs {
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

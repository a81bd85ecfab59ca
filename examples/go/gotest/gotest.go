// Package gotest runs the Go examples in tests: an example's test binary is its program
// too, the driver as well as the workers.
package gotest

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"launcher/internal/testkit"
)

const programVar = "EXAMPLE_PROGRAM"

// Main is TestMain of an example: it runs program where this process is one, and the
// tests elsewhere.
func Main(m *testing.M, program func()) {
	if os.Getenv("LAUNCHER_WORKER") != "" || os.Getenv(programVar) != "" {
		program()
		os.Exit(0)
	}
	os.Exit(testkit.Main(m))
}

// Run runs the example on a cluster that is up for it, and gives what it prints.
func Run(t *testing.T, args ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := testkit.New(t)
	spec := filepath.Join(h.Work, "cluster.toml")
	if err := os.WriteFile(spec, []byte("version = 1\nname = \"ex\"\n[[pool]]\nname = \"local\"\nbackend = \"local\"\nnodes = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.OK("up", spec)
	defer h.OK("down", "ex")
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Bound)
	defer cancel()
	p := h.Program(ctx, self, args...)
	p.Env = append(p.Env, programVar+"=1")
	r := testkit.Finish(p)
	if r.Code != 0 {
		t.Fatal(r)
	}
	return r.Out
}

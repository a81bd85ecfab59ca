package benchcore

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"launcher"
	"launcher/internal/testkit"
)

func TestMain(m *testing.M) {
	if os.Getenv("LAUNCHER_WORKER") != "" {
		launcher.Main(nil)
	}
	if os.Getenv("BENCHCORE") != "" {
		launcher.Main(func(ctx context.Context) error {
			_, err := Run(ctx, Options{Rounds: 1, Round: 50 * time.Millisecond, Warm: 10 * time.Millisecond, Scale: 0.002,
				Emit: func(r Row) { fmt.Printf("%s: %v\n", r.What, r.Value > 0) }})
			return err
		})
	}
	os.Exit(testkit.Main(m))
}

// TestRun runs every workload once, small, on a local cluster.
func TestRun(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h := testkit.New(t)
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Bound)
	defer cancel()
	p := h.Program(ctx, self)
	p.Env = append(p.Env, "BENCHCORE=1", "LAUNCHER="+testkit.Binary(t))
	want := strings.Join(Names(), ": true\n") + ": true\n"
	if r := testkit.Finish(p); r.Code != 0 || r.Out != want {
		t.Errorf("want %q, got %s", want, r)
	}
}

package python

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAsRay runs the tests of launcher.as_ray in a process of their own: it is for whole
// processes.
func TestAsRay(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile("tests/test_as_ray.py"); err != nil { // go test must know that its result depends on it
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	for _, py := range []string{os.Getenv("LAUNCHER_TEST_PYTHON"), filepath.Join(root, ".venv/bin/python"), "python3"} {
		if py == "" || exec.CommandContext(ctx, py, "-c", "import numpy, cloudpickle").Run() != nil {
			continue
		}
		cmd := exec.CommandContext(ctx, py, "-W", "error", "-m", "unittest", "test_as_ray")
		cmd.Dir = "tests"
		cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(root, "python"), "PYTHONDONTWRITEBYTECODE=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "\nOK") {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Log(strings.TrimSpace(string(out)))
		return
	}
	t.Skip("SKIP: there is no Python with numpy and cloudpickle: make setup")
}

package python

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestSDK runs the Python SDK's own tests.
func TestSDK(t *testing.T) {
	py, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIP: there is no python3")
	}
	if _, err := os.ReadFile("tests/test_run.py"); err != nil { // go test must know that its result depends on it
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, py, "-W", "error", "-m", "unittest", "discover", "-s", "tests", "-p", "test_run.py")
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "PYTHONPATH="+here, "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "\nOK") {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Log(strings.TrimSpace(string(out)))
}

// TestTasks runs the tests of tasks and objects against a small agent in Python.
func TestTasks(t *testing.T) {
	unittests(t, nil, []string{"test_tasks_parts", "test_tasks_unit", "test_tasks_frames", "test_template", "test_channel"}, "fake_agent.py", "task_cases.py")
}

// TestCluster runs them, and more, on a cluster of the command that was built.
func TestCluster(t *testing.T) {
	unittests(t, onCluster(t), []string{"test_tasks"}, "task_cases.py")
}

// TestGraphs runs graphs of calls there.
func TestGraphs(t *testing.T) {
	unittests(t, onCluster(t), []string{"test_dag"}, "test_tasks.py", "task_cases.py")
}

// onCluster is the environment of tests that use the command that was built.
func onCluster(t *testing.T) []string {
	t.Helper()
	binary := os.Getenv("LAUNCHER_TEST_BINARY")
	if binary == "" {
		binary = "../.build/launcher"
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(binary); err != nil {
		t.Skip("SKIP: there is no launcher command: make build")
	}
	return []string{"LAUNCHER=" + binary, "LAUNCHER_HOME=", "LAUNCHER_CLUSTER=", "LAUNCHER_SOCKET="}
}

// unittests runs test modules with a Python that has what they need. Their result depends
// on them and on other files of theirs.
func unittests(t *testing.T, env, modules []string, others ...string) {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	for _, m := range modules {
		others = append(others, m+".py")
	}
	for _, name := range others {
		if _, err := os.ReadFile(filepath.Join("tests", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, py := range []string{os.Getenv("LAUNCHER_TEST_PYTHON"), filepath.Join(root, ".venv/bin/python"), "python3"} {
		if py == "" || exec.CommandContext(ctx, py, "-c", "import numpy, cloudpickle").Run() != nil {
			continue
		}
		cmd := exec.CommandContext(ctx, py, append([]string{"-W", "error", "-m", "unittest"}, modules...)...)
		cmd.Dir = "tests"
		cmd.WaitDelay = 5 * time.Second // what a test left behind may hold the output
		cmd.Env = append(append(os.Environ(), "PYTHONPATH="+filepath.Join(root, "python"), "PYTHONDONTWRITEBYTECODE=1"), env...)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "\nOK") {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Log(strings.TrimSpace(string(out)))
		return
	}
	t.Skip("SKIP: there is no Python with numpy and cloudpickle: make setup")
}

func TestEmbedded(t *testing.T) {
	for _, name := range []string{"launcher/__init__.py", "launcher/_run.py", "launcher/_http.py", "launcher/py.typed"} {
		if _, err := fs.Stat(Files(), name); err != nil {
			t.Error(err)
		}
	}
	// Whatever lies in the source tree is in the binary.
	var sources []string
	for _, glob := range []string{"launcher/*.py", "launcher/*/*.py", "launcher/*/*/*.py", "as-ray/*/*.py", "as-ray/*/METADATA"} {
		found, err := filepath.Glob(glob)
		if err != nil || len(found) == 0 {
			t.Fatal(err, found)
		}
		sources = append(sources, found...)
	}
	for _, name := range sources {
		if _, err := fs.Stat(Files(), name); err != nil {
			t.Error(err)
		}
	}
}

func TestExtract(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if at, err := Extract(dir); err != nil || at != filepath.Join(dir, "python-"+Hash()) {
				t.Errorf("%s, %v", at, err)
			}
		})
	}
	wg.Wait()
	at, _ := Extract(dir)
	if !whole(at) {
		t.Fatal("what was extracted is not whole")
	}
	for name, spoil := range map[string]func(string) error{
		"deleted": os.Remove,
		"changed": func(p string) error { return os.WriteFile(p, []byte("raise SystemExit"), 0o600) },
	} {
		if err := spoil(filepath.Join(at, "launcher", "_run.py")); err != nil {
			t.Fatal(err)
		}
		if again, err := Extract(dir); err != nil || again != at || !whole(at) {
			t.Errorf("%s: not put right: %v", name, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if _, err := Extract(filepath.Join(at, "launcher", "_run.py", "x")); err == nil {
		t.Error("extracted below a file")
	}
}

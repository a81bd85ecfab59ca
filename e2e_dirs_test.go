package launcher_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"launcher/internal/testkit"
)

// apart gives a cluster of two nodes, the second of which sees another directory at a path.
func apart(t *testing.T, path string) *cluster {
	t.Helper()
	if out, err := exec.Command("unshare", "-m", "mount", "-t", "tmpfs", "none", path).CombinedOutput(); err != nil {
		t.Skipf("SKIP: this user may not mount: %v %s", err, out)
	}
	real := testkit.Binary(t)
	h := testkit.New(t)
	mine, spec := filepath.Join(h.Work, "launcher"), filepath.Join(h.Work, "cluster.toml")
	b, err := os.ReadFile(real)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{mine: string(b), spec: "version = 1\nname = \"t\"\n[[pool]]\nname = \"local\"\nbackend = \"local\"\nnodes = 2\n"} {
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Bound)
	defer cancel()
	if r := testkit.Finish(h.Program(ctx, mine, "up", spec)); r.Code != 0 {
		t.Fatal(r)
	}
	t.Cleanup(func() { h.OK("down", "t") })
	// The next life of the second node has mounts of its own.
	script := "#!/bin/sh\nexec unshare -m sh -c 'mount -t tmpfs none \"$0\" && shift && exec \"$@\"' " + path + " x " + real + " \"$@\"\n"
	if err := os.Remove(mine); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(mine, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	var rec struct{ PID int }
	b, err = os.ReadFile(filepath.Join(h.Dir, "clusters", "t", "nodes", "local-1.1.json"))
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(rec.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(h.Dir, "clusters", "t", "nodes", "local-1.2.json")
	for {
		list := h.OK("nodes")
		if _, err := os.Stat(sock); err == nil && strings.Contains(list, "local-1  up") {
			return &cluster{t, h}
		}
		if ctx.Err() != nil {
			t.Fatalf("the second node does not come back:\n%s", list)
		}
		time.Sleep(100 * time.Millisecond) // sleep: the head starts a node anew
	}
}

func TestRootWorkingDir(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "dir")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte("here"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := apart(t, top)
	want := "local-0 asks local-0: here blue there\nlocal-0 asks local-1: here blue elsewhere\nlocal-1 asks local-0: here blue there\nlocal-1 asks local-1: here blue elsewhere\n" +
		"local-0 here\x00\x00\x00\x00\x00 false\nlocal-1  true\n"
	if r := c.run("dirs", "TEST_DIR="+dir, "LAUNCHER_SOCKET="+filepath.Join(c.h.Dir, "clusters", "t", "nodes", "local-0", "agent.sock")); r.Code != 0 || r.Out != want {
		t.Errorf("want %q, got %s", want, r)
	}
	// The program's own directory is not brought, which it is told.
	c.h.Work = filepath.Join(top, "other")
	if r := c.run("own-dir"); r.Code != 0 || !strings.Contains(r.Err, "node local-1 does not have the program's directory "+c.h.Work) || strings.Contains(r.Err, "node local-0 does not") {
		t.Error(r)
	}
	if left, _ := filepath.Glob(filepath.Join(c.h.Work, ".launcher-*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

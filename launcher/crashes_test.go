package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCrashesAreTold: doctor tells of agents that crashed, also when their nodes are gone.
func TestCrashesAreTold(t *testing.T) {
	h := t.TempDir()
	t.Setenv("LAUNCHER_HOME", h)
	dir := filepath.Join(h, "clusters", "c")
	for node, text := range map[string]string{"p-0": "level=INFO\npanic: first\n\ngoroutine 1\npanic: second\n", "p-1": "level=INFO msg=\"panic: no\"\n"} {
		if err := os.MkdirAll(filepath.Join(dir, "nodes", node), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "nodes", node, "agent.log"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "spec.toml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"up", "down"} {
		var f findings
		f.clusters()
		var told []string
		for _, x := range f {
			if strings.Contains(x.What, "crashed 2 times") {
				told = append(told, x.What)
			}
		}
		if len(told) != 1 || !strings.HasSuffix(told[0], "panic: second") {
			t.Fatalf("%s: it is told %q of %+v", when, told, f)
		}
		if err := removeRemains(target{name: "c", dir: dir, sock: filepath.Join(dir, "head.sock")}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "nodes")); !os.IsNotExist(err) {
		t.Errorf("the nodes' files are there: %v", err)
	}
}

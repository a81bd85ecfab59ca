package host

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFinalPrune: an end that is being written beside a record that was forgotten is waited
// for, nodes and records are not.
func TestFinalPrune(t *testing.T) {
	s, err := NewServer(t.TempDir(), "/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	const id = "0123456789"
	nodes := filepath.Join(s.dir(id), "clusters", "c", "nodes")
	for _, c := range []struct {
		name string
		done bool
	}{{".tmp-1", false}, {"n-0.1.end", false}, {"n-0.1.json", true}, {"n-0/", true}} {
		path := filepath.Join(nodes, c.name)
		for _, d := range []string{nodes, filepath.Join(s.dir(id), "cache", "x")} {
			if err := os.MkdirAll(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if c.name[len(c.name)-1] == '/' {
			err = os.Mkdir(path, 0o700)
		} else {
			err = os.WriteFile(path, nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if done := s.prune(id); done != c.done {
			t.Errorf("with %s: done %t, wanted %t", c.name, done, c.done)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if !s.prune(id) {
			t.Errorf("without %s there is more to do", c.name)
		}
		if left, _ := os.ReadDir(filepath.Join(s.root, "hosts")); len(left) > 0 {
			t.Errorf("left after %s: %v", c.name, left)
		}
	}
}

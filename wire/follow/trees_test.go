package follow

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
)

// TestTrees: what a head announces comes whole or not at all, what it has no more goes, and
// nothing else is ever written.
func TestTrees(t *testing.T) {
	dir, a, b := t.TempDir(), strings.Repeat("a", 64), strings.Repeat("b", 64)
	serve := func(in ...message) (have []string, err error) {
		s := &script{in: in}
		err = New(dir, 0).Serve(s)
		for _, m := range s.out {
			var h HaveTrees
			must(t, wire.Unmarshal(m.body, &h))
			have = h.Names
		}
		return have, err
	}
	keep := func(names ...string) message { return message{MsgTrees, wire.Marshal(Trees{Epoch: 1, Keep: names})} }
	piece := func(name, data string, final bool) message {
		return message{MsgTree, wire.Marshal(Tree{Name: name, Data: []byte(data), Final: final})}
	}
	if have, err := serve(keep(a, b), piece(a, "con", false), piece(a, "tents", true), piece(b, "half", false)); err != nil || len(have) > 0 {
		t.Fatalf("%v, %v", have, err)
	}
	if have, err := serve(keep(a, b)); err != nil || !slices.Equal(have, []string{a}) {
		t.Errorf("after a cut: %v, %v", have, err)
	}
	to := filepath.Join(t.TempDir(), "dirs")
	must(t, InstallTrees(dir, to))
	if got, err := os.ReadFile(filepath.Join(to, a)); err != nil || string(got) != "contents" {
		t.Errorf("installed: %q, %v", got, err)
	}
	for _, m := range []message{piece("../x", "x", true), piece(b, "not announced", true)} {
		if _, err := serve(keep(a, "../x"), m); !errs.Is(err, errs.Invalid) {
			t.Errorf("%v", err)
		}
	}
	if have, err := serve(keep(b)); err != nil || len(have) > 0 {
		t.Errorf("what the head has no more: %v, %v", have, err)
	}
	if ents, _ := os.ReadDir(filepath.Join(dir, treesDir)); len(ents) > 0 {
		t.Errorf("left: %v", ents)
	}
	c := New(dir, 0)
	c.Heard(2)
	if err := c.Serve(&script{in: []message{keep(a)}}); !errs.Is(err, errs.Fenced) {
		t.Errorf("an older head: %v", err)
	}
}

func FuzzTrees(f *testing.F) {
	f.Add(wire.Marshal(Trees{Epoch: 1, Keep: []string{strings.Repeat("c", 64)}}), wire.Marshal(Tree{Name: strings.Repeat("c", 64), Data: []byte("x"), Final: true}), wire.Marshal(Tree{}))
	f.Fuzz(func(t *testing.T, first, a, b []byte) {
		dir := t.TempDir()
		_ = New(dir, 0).Serve(&script{in: []message{{MsgTrees, first}, {MsgTree, a}, {MsgTree, b}}})
		ents, _ := os.ReadDir(dir)
		for _, e := range ents {
			if e.Name() != treesDir {
				t.Errorf("%s was written", e.Name())
			}
		}
	})
}

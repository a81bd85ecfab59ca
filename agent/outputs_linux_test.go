package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	"launcher/wire"
	"launcher/wire/bundle"
)

// TestOutputsLeave: no rank begins in a copy that is on its way to the head, and is removed
// then.
func TestOutputsLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutputs(nil)
		rank := func(r uint32) wire.Proc {
			return wire.Proc{Try: wire.Try{Task: wire.Task{Job: 1, Index: 2}, Attempt: 3}, Rank: r}
		}
		for r := range uint32(2) {
			if err := o.begins(t.Context(), rank(r)); err != nil {
				t.Fatal(err)
			}
		}
		if o.last(rank(0)) != nil {
			t.Error("another rank is in the copy, and it leaves")
		}
		gone := o.last(rank(1))
		if gone == nil {
			t.Fatal("the last rank has ended, and the copy stays")
		}
		begun := make(chan error, 2)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { begun <- o.begins(ctx, rank(2)) }()
		go func() { begun <- o.begins(t.Context(), rank(3)) }()
		synctest.Wait()
		if len(begun) > 0 {
			t.Error("a rank begins in a copy that leaves")
		}
		cancel()
		if err := <-begun; err == nil {
			t.Error("one that was told to end begins")
		}
		gone()
		if err := <-begun; err != nil {
			t.Error(err)
		}
		if o.last(rank(2)) != nil || o.last(rank(3)) == nil {
			t.Error("of those in the new copy the last is not the one that began there")
		}
	})
}

// TestOutputsRemove: a copy of which something cannot be removed is not taken for what a
// process of another agent wrote.
func TestOutputsRemove(t *testing.T) {
	at := filepath.Join(t.TempDir(), "0.a1")
	sub := filepath.Join(at, "sub")
	if err := os.MkdirAll(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sub, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(sub, 0o500); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(at+".gone", "sub"), 0o700) })
	remove(at)
	if isDir(at) {
		t.Error("it is still there")
	}
}

// TestOutputsMadeOf: what a copy was made of is here until its outputs have left, however
// many other working directories come meanwhile.
func TestOutputsMadeOf(t *testing.T) {
	work := t.TempDir()
	if err := os.WriteFile(filepath.Join(work, "x"), []byte("as it came"), 0o600); err != nil {
		t.Fatal(err)
	}
	var tar, packed bytes.Buffer
	if err := bundle.Pack(t.Context(), &tar, work); err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(tar.Bytes())
	sum := hex.EncodeToString(h[:])
	z, err := bundle.Compress(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(tar.Bytes()); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	a := &agent{}
	a.cfg.Dir = t.TempDir()
	a.trees, a.outputs, a.starts, a.head = newTrees(a), newOutputs(a), newStarter(a), &headLink{a: a, back: make(chan struct{})}
	at := a.trees.packed(sum)
	if err := os.MkdirAll(filepath.Dir(at), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, packed.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	p := wire.Proc{Try: wire.Try{Task: wire.Task{Job: 1}, Attempt: 1}}
	j := &wire.Job{Job: 1, Spec: wire.JobSpec{Dir: "/none", DirToken: "of another machine", DirSum: sum, Outputs: []string{"*"}}}
	copied, err := a.trees.workdir(t.Context(), j, p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Dir(at)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // there is no head to have it from
	in, err := a.trees.madeOf(ctx, sum, copied)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := bundle.Unpack(in, t.TempDir()); err != nil {
		t.Error(err)
	}
	remove(copied)
	if left, err := os.ReadDir(filepath.Dir(copied)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

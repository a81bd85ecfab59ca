package head

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"launcher/wire"
	"launcher/wire/bundle"
)

// TestOutputs: what the attempt wrote that ended a task comes to the job's directory, once,
// also after the head was killed; what others wrote does not.
func TestOutputs(t *testing.T) {
	c := newCluster(t, 1)
	work := t.TempDir()
	stage := func(task, attempt int, name, text string) {
		dir := filepath.Join(c.dir, "jobs", "1", "outputs", fmt.Sprintf("%d.a%d", task, attempt), "0")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Error(err)
		}
	}
	c.task = func(it wire.Item) (string, int32) {
		i := int(it.Index)
		stage(i, int(it.Attempt), fmt.Sprint("x", i), "right")
		stage(i, int(it.Attempt)+1, fmt.Sprint("x", i), "of an attempt that never was")
		return "", 0
	}
	c.start()
	s := c.client()
	spec := array(3)
	spec.Dir, spec.DirToken, spec.DirSum, spec.Outputs = work, bundle.Token(work), "of a copy", []string{"x*"}
	mustAsk[wire.Submitted](t, s, wire.MsgSubmit, wire.Submit{Token: "t", Spec: spec})
	watch(t, s, 1)
	check := func(files int, names ...string) {
		t.Helper()
		got := mustAsk[wire.Outputs](t, c.client(), wire.MsgOutputs, wire.OutputsRequest{Job: 1})
		if got.Files != files || got.Waiting != 0 || len(got.Failed) != 0 {
			t.Errorf("of the outputs came %+v, wanted %d files", got, files)
		}
		for _, n := range names {
			if b, err := os.ReadFile(filepath.Join(work, n)); string(b) != "right" {
				t.Errorf("%s is %q, %v", n, b, err)
			}
		}
		if left, _ := filepath.Glob(filepath.Join(c.dir, "jobs", "1", "outputs", "[0-9]*")); left != nil {
			t.Errorf("left: %q", left)
		}
	}
	check(3, "x0", "x1", "x2")

	// A part that came just before the head was killed, and whose task is over.
	c.kill()
	stage(1, 1, "late", "right")
	c.start()
	check(4, "late")
	info := watch(t, c.client(), 1)
	if info.Outputs == nil || info.Outputs.Files != 4 || info.Outputs.Bytes != 20 {
		t.Errorf("the job says %+v", info.Outputs)
	}
}

// TestOutputsDown: a head whose cluster is down ends when what it is bringing is there.
func TestOutputsDown(t *testing.T) {
	c := newCluster(t, 0)
	c.start()
	idle := make(chan struct{})
	o := c.head.outputs
	j := &jobOutputs{due: map[uint32]wire.Attempt{}, idle: idle}
	o.mu.Lock()
	o.jobs[1] = j
	o.mu.Unlock()
	mustAsk[wire.DownProgress](t, c.client(), wire.MsgDown, wire.Down{})
	select {
	case err := <-c.end:
		t.Errorf("it ends before: %v", err)
		c.head = nil
		return
	case <-time.After(100 * time.Millisecond): // that nothing comes
	}
	if p := mustAsk[wire.DownProgress](t, c.client(), wire.MsgDown, wire.Down{}); !p.Final || p.Text != "the cluster is down" {
		t.Errorf("whoever asks again is told %+v", p)
	}
	o.mu.Lock()
	j.idle = nil
	close(idle)
	o.mu.Unlock()
	select {
	case <-c.end:
		c.head = nil
	case <-time.After(testBound):
		t.Error("it does not end")
	}
}

// TestTreesBesideEachOther: what the ranks of a gang give comes at the same time into one
// directory, and what one of them has only half is nothing to the others.
func TestTreesBesideEachOther(t *testing.T) {
	from := t.TempDir()
	for i := range 4 {
		if err := os.WriteFile(filepath.Join(from, fmt.Sprint(i)), []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var packed bytes.Buffer
	z, err := bundle.Compress(&packed)
	if err == nil {
		err = bundle.PackAll(t.Context(), z, from)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	var wg sync.WaitGroup
	for rank := range 8 {
		wg.Go(func() {
			for range 8 {
				at := filepath.Join(to, "0.a1", fmt.Sprint(rank))
				if err := takeTree(bytes.NewReader(packed.Bytes()), at); err != nil {
					t.Error(err)
					return
				}
				if ents, err := os.ReadDir(at); len(ents) != 4 {
					t.Errorf("rank %d: %d files came, %v", rank, len(ents), err)
				}
			}
		})
	}
	wg.Wait()
}

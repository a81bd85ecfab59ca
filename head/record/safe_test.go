package record

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"launcher/internal/errs"
	"launcher/wire"
)

// TestAppendDuringSync: a disk that is slow to make output safe does not hold up what
// comes meanwhile, and that is not called safe.
func TestAppendDuringSync(t *testing.T) {
	w := newWriter(t, t.TempDir(), Options{})
	in, hang := make(chan struct{}), make(chan struct{})
	w.fsync = func(f *os.File) error {
		in <- struct{}{}
		<-hang
		return f.Sync()
	}
	s := &spool{job: 1, node: "n-0", epoch: 1}
	s.write(0, 0, "first\n")
	s.send(t, w)
	first := int64(len(s.b))
	synced := make(chan error, 1)
	go func() { synced <- w.Sync() }()
	<-in
	appended := make(chan struct{})
	go func() {
		s.write(0, 0, "second\n")
		s.send(t, w)
		close(appended)
	}()
	select {
	case <-appended:
	case <-time.After(20 * time.Second):
		t.Fatal("Append waits for Sync")
	}
	close(hang)
	if err := <-synced; err != nil {
		t.Fatal(err)
	}
	if safe, err := w.Safe(1, "n-0", 1); err != nil || safe != first {
		t.Errorf("safe: %d, want %d, %v", safe, first, err)
	}
	w.fsync = (*os.File).Sync
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSyncFails: after a failed sync the kernel may have dropped what was written. It is
// not there, and not called safe by a later sync that goes well.
func TestSyncFails(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Options{Segment: 200})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	s.write(0, 0, "safe\n")
	s.send(t, w)
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	safe := int64(len(s.b))
	for _, how := range []string{"Sync", "roll"} {
		s.write(0, 0, "not safe\n")
		s.send(t, w)
		w.fsync = func(*os.File) error { return syscall.EDQUOT }
		var err error
		if how == "Sync" {
			err = w.Sync()
		} else {
			s.write(0, 0, "nor this\n")
			_, err = w.Append(s.batch(s.sent, len(s.b)))
		}
		if !errs.Is(err, errs.Exhausted) {
			t.Fatalf("%s on a full quota: %v", how, err)
		}
		w.fsync = (*os.File).Sync
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		for what, f := range map[string]func(wire.JobID, wire.NodeID, wire.Epoch) (int64, error){"safe": w.Safe, "have": w.Have} {
			if n, err := f(1, "n-0", 1); err != nil || n != safe {
				t.Errorf("%s: %s: %d, want %d, %v", how, what, n, safe, err)
			}
		}
		if n, _ := outputSize(JobDir(dir, 1)); n != w.total {
			t.Errorf("%s: %d bytes, counted %d", how, n, w.total)
		}
		s.sent = int(safe)
	}
	s.send(t, w) // all of it again
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, _ := logs(t, dir, all(1)); got != "1.0#1/0 n-0 1 \"safe\\n\"\n1.0#1/0 n-0 1 \"not safe\\n\"\n1.0#1/0 n-0 1 \"not safe\\n\"\n1.0#1/0 n-0 1 \"nor this\\n\"\n" {
		t.Errorf("in the end:\n%s", got)
	}
}

// TestEmptySegment: a head that died when it had just begun a segment leaves an empty
// one. What the next head writes there can be read without the segments before it.
func TestEmptySegment(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Options{})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	s.write(0, 0, "one\n")
	s.send(t, w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(segmentPath(JobDir(dir, 1), 1), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(JobDir(dir, 1), "table.json.tmp123")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w = newWriter(t, dir, Options{})
	s.write(0, 0, "two\n")
	s.send(t, w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(segmentPath(JobDir(dir, 1), 0)); err != nil { // as the cap does
		t.Fatal(err)
	}
	if _, err := os.Stat(left); err == nil {
		t.Error("what a dead head left of a table is still there")
	}
	w = newWriter(t, dir, Options{})
	if have, err := w.Have(1, "n-0", 1); err != nil || have != int64(len(s.b)) {
		t.Errorf("have %d of %d, %v", have, len(s.b), err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCapKeepsPlaces: of a job that has ended, but whose output is still coming, the
// place of each node is kept when output is dropped.
func TestCapKeepsPlaces(t *testing.T) {
	w := newWriter(t, t.TempDir(), Options{Cap: 400, Segment: 100})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	s.write(0, 0, "one\n")
	s.send(t, w)
	if err := w.WriteTable(Table{Job: wire.JobInfo{ID: 1, State: wire.StateDone}}); err != nil {
		t.Fatal(err)
	}
	other := &spool{job: 2, node: "n-0", epoch: 1}
	for range 20 {
		other.write(0, 0, "more\n")
		other.send(t, w)
	}
	s.write(0, 0, "two\n")
	s.send(t, w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

package record

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"launcher/internal/errs"
	"launcher/wire"
)

func mine() error { return nil }

// TestApart: a writer that was replaced while it slept spoils nothing when it wakes.
func TestApart(t *testing.T) {
	dir := t.TempDir()
	old := newWriter(t, dir, Options{})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	s.write(0, 0, "before\n")
	s.send(t, old)
	if err := old.Sync(); err != nil {
		t.Fatal(err)
	}
	w := newWriter(t, dir, Options{Claim: mine})
	s.write(1, 0, "one that the next head has\n")
	s.send(t, w)
	late := &spool{job: 1, node: "n-1", epoch: 1}
	late.write(2, 0, "one that comes to a head which has woken up\n")
	if _, err := old.Append(late.batch(0, len(late.b))); err != nil {
		t.Fatal(err)
	}
	_ = old.Close()
	s.write(3, 0, "after\n")
	s.send(t, w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, _ := logs(t, dir, all(1))
	if strings.Count(got, "\n") != 3 || !strings.Contains(got, "before") || !strings.Contains(got, "next head has") || !strings.Contains(got, "after") {
		t.Errorf("the record has\n%s", got)
	}
	// Its own files are copied once.
	w = newWriter(t, dir, Options{Claim: mine})
	for range 2 {
		if _, err := w.Have(1, "n-0", 1); err != nil {
			t.Fatal(err)
		}
		before, err := os.Stat(segmentPath(JobDir(dir, 1), 0))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Ended(1); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Have(1, "n-0", 1); err != nil {
			t.Fatal(err)
		}
		after, err := os.Stat(segmentPath(JobDir(dir, 1), 0))
		if err != nil || !os.SameFile(before, after) {
			t.Errorf("copied again: %v", err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(JobDir(dir, 1), "*.tmp*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestReplaced: a writer that was replaced while it slept opens, makes and replaces no files
// when it wakes, neither of jobs that it knows nor of such that were new then.
func TestReplaced(t *testing.T) {
	dir := t.TempDir()
	replaced := false
	old := newWriter(t, dir, Options{Claim: func() error {
		if replaced {
			return errs.New(errs.Fenced, "another one has it")
		}
		return nil
	}})
	spools := map[wire.JobID]*spool{}
	write := func(job wire.JobID, text string) *spool {
		s := spools[job]
		if s == nil {
			s = &spool{job: job, node: "n-0", epoch: 1}
			spools[job] = s
		}
		s.write(0, 0, text)
		return s
	}
	const closed, fresh, begun = 1, 2, 3
	write(closed, "before\n").send(t, old)
	if err := old.Ended(closed); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Have(begun, "n-0", 1); err != nil {
		t.Fatal(err)
	}
	replaced = true
	w := newWriter(t, dir, Options{Claim: mine})
	write(closed, "one\n").send(t, w)
	write(fresh, "one\n").send(t, w)
	for _, job := range []wire.JobID{closed, fresh, begun} {
		late := &spool{job: job, node: "n-1", epoch: 1}
		late.write(1, 0, "late\n")
		if _, err := old.Append(late.batch(0, len(late.b))); !errs.Is(err, errs.Fenced) {
			t.Errorf("job %d: the one before has taken output: %v", job, err)
		}
	}
	table := func(name string) Table { return Table{Job: wire.JobInfo{ID: closed, Name: name}} }
	nodes := func(id wire.NodeID) []wire.NodeInfo { return []wire.NodeInfo{{ID: id}} }
	if err := errors.Join(w.WriteTable(table("new")), w.WriteNodes(nodes("new"))); err != nil {
		t.Fatal(err)
	}
	if err := old.WriteTable(table("late")); !errs.Is(err, errs.Fenced) {
		t.Errorf("the one before has written a table: %v", err)
	}
	if err := old.WriteNodes(nodes("late")); !errs.Is(err, errs.Fenced) {
		t.Errorf("the one before has written who the nodes are: %v", err)
	}
	for _, job := range []wire.JobID{closed, fresh, begun} {
		write(job, "two\n").send(t, w)
	}
	_ = old.Close()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := readTable(dir, closed); err != nil || got.Job.Name != "new" {
		t.Errorf("the table is %+v, %v", got, err)
	}
	for job, want := range map[wire.JobID]int{closed: 3, fresh: 2, begun: 1} {
		if got, _ := logs(t, dir, all(job)); strings.Count(got, "\n") != want || strings.Contains(got, "late") {
			t.Errorf("the record of job %d has\n%s", job, got)
		}
	}
}

// TestCopied: a copy that lacks what was cut off meanwhile takes nobody's place, nor does one
// whose maker was replaced while it was made.
func TestCopied(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("some"); err != nil {
		t.Fatal(err)
	}
	if g, err := copied(f, 5, mine); err == nil {
		_ = g.Close()
		t.Error("4 bytes of 5 were copied, and that is good")
	}
	fenced := errs.New(errs.Fenced, "another one has it")
	if g, err := copied(f, 4, func() error { return fenced }); !errs.Is(err, errs.Fenced) {
		_ = g.Close()
		t.Errorf("one that was replaced meanwhile puts its copy in place: %v", err)
	}
	if left, _ := filepath.Glob(f.Name() + "*"); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

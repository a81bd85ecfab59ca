package record

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"launcher/internal/errs"
	"launcher/wire"
)

// spool is a node's spool of a job.
type spool struct {
	job   wire.JobID
	node  wire.NodeID
	epoch wire.Epoch
	b     []byte
	sent  int
}

func (s *spool) write(index, rank uint32, data string) {
	s.b = wire.LogFrame{Stream: 1, Length: uint32(len(data)), Index: index, Attempt: 1, Rank: rank, Time: 7}.Append(s.b)
	s.b = append(s.b, data...)
}

var encoder, _ = zstd.NewWriter(nil)

func (s *spool) batch(from, to int) wire.LogBatch {
	return wire.LogBatch{Job: s.job, Node: s.node, Epoch: s.epoch, From: int64(from), To: int64(to), Zstd: encoder.EncodeAll(s.b[from:to], nil)}
}

// send appends what is new.
func (s *spool) send(t testing.TB, w *Writer) {
	t.Helper()
	have, err := w.Append(s.batch(s.sent, len(s.b)))
	if err != nil || have != int64(len(s.b)) {
		t.Fatalf("append: %d, %v", have, err)
	}
	s.sent = len(s.b)
}

func newWriter(t testing.TB, dir string, o Options) *Writer {
	t.Helper()
	w, err := NewWriter(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// logs gives the chunks that q asks for as text, one a line, and the last offset.
func logs(t testing.TB, dir string, q wire.LogsRequest) (out string, next int64) {
	t.Helper()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	err = r.Logs(context.Background(), q, func(c wire.LogChunk) error {
		if c.Note != "" {
			fmt.Fprintf(&b, "note: %s\n", c.Note)
		} else {
			fmt.Fprintf(&b, "%s %s %d %q\n", c.Proc, c.Node, c.Stream, c.Data)
		}
		next = c.Offset
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), next
}

func all(job wire.JobID) wire.LogsRequest { return wire.LogsRequest{Job: job, Task: -1, Rank: -1} }

func TestTwoNodes(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Options{})
	a := &spool{job: 3, node: "local-0", epoch: 1}
	b := &spool{job: 3, node: "local-1", epoch: 4}
	a.write(0, 0, "one\n")
	a.send(t, w)
	b.write(1, 0, "two\n")
	b.write(1, 1, "three\n")
	b.send(t, w)
	a.write(2, 0, "four\n")
	a.send(t, w)
	want := []string{
		`3.0#1/0 local-0 1 "one\n"`, `3.1#1/0 local-1 1 "two\n"`, `3.1#1/1 local-1 1 "three\n"`, `3.2#1/0 local-0 1 "four\n"`,
	}
	check := func(when string) {
		t.Helper()
		if got, _ := logs(t, dir, all(3)); got != strings.Join(want, "\n")+"\n" {
			t.Errorf("%s:\n%s", when, got)
		}
		if got, _ := logs(t, dir, wire.LogsRequest{Job: 3, Task: 1, Rank: -1}); got != want[1]+"\n"+want[2]+"\n" {
			t.Errorf("%s, task 1:\n%s", when, got)
		}
		if got, _ := logs(t, dir, wire.LogsRequest{Job: 3, Task: -1, Rank: 1}); got != want[2]+"\n" {
			t.Errorf("%s, rank 1:\n%s", when, got)
		}
	}
	check("while open")
	// Sent twice, in part, and behind a gap.
	if have, err := w.Append(a.batch(0, len(a.b))); err != nil || have != int64(len(a.b)) {
		t.Errorf("twice: %d, %v", have, err)
	}
	b.write(9, 0, "lost\n")
	gap := len(b.b)
	b.write(9, 0, "five\n")
	if have, err := w.Append(b.batch(gap, len(b.b))); !errs.Is(err, errs.Invalid) || have != int64(b.sent) {
		t.Errorf("gap: %d, %v", have, err)
	}
	b.b = b.b[:b.sent]
	b.write(4, 0, "five\n")
	if have, err := w.Append(b.batch(0, len(b.b))); err != nil || have != int64(len(b.b)) {
		t.Errorf("in part: %d, %v", have, err)
	}
	want = append(want, `3.4#1/0 local-1 1 "five\n"`)
	check("overlap")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	check("closed")
	// Opened again, each node's place is known; a new life of a node begins at 0.
	w = newWriter(t, dir, Options{})
	if have, err := w.Have(3, "local-1", 4); err != nil || have != int64(len(b.b)) {
		t.Errorf("have %d, %v", have, err)
	}
	c := &spool{job: 3, node: "local-1", epoch: 5}
	c.write(5, 0, "six\n")
	c.send(t, w)
	want = append(want, `3.5#1/0 local-1 1 "six\n"`)
	check("new life")
	if err := w.Ended(3); err != nil {
		t.Fatal(err)
	}
	check("ended")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOffsetsGoOn(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Options{Segment: 400})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	for i := range 100 {
		s.write(uint32(i), 0, fmt.Sprint("line ", i, "\n"))
		if i%3 == 2 {
			s.send(t, w)
		}
	}
	s.send(t, w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	whole, _ := logs(t, dir, all(1))
	if n := strings.Count(whole, "\n"); n != 100 {
		t.Fatalf("%d lines", n)
	}
	if segs, _ := listSegments(JobDir(dir, 1)); len(segs) < 3 {
		t.Fatalf("%d segments", len(segs))
	}
	// Wherever reading stops, it goes on there.
	r, _ := Open(dir)
	for stop := range 100 {
		var first []string
		var at int64
		stopped := fmt.Errorf("stop")
		err := r.Logs(context.Background(), all(1), func(c wire.LogChunk) error {
			if len(first) > stop {
				return stopped
			}
			first = append(first, fmt.Sprintf("%s %s %d %q\n", c.Proc, c.Node, c.Stream, c.Data))
			at = c.Offset
			return nil
		})
		if err != stopped && stop < 99 {
			t.Fatal(err)
		}
		q := all(1)
		q.Offset = at
		rest, _ := logs(t, dir, q)
		if strings.Join(first, "")+rest != whole {
			t.Fatalf("stopped after %d", stop)
		}
	}
}

func TestTailFollows(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Options{Segment: 300})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	if r, err := Open(dir); err != nil {
		t.Fatal(err)
	} else if early, err := r.Tail(all(1)); err != nil || early.Read(context.Background(), nil) != nil {
		t.Fatalf("before there is anything: %v", err)
	}
	s.write(0, 0, "begin\n")
	s.send(t, w)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 200 {
			s.write(uint32(i%5), 0, fmt.Sprintln(i))
			have, err := w.Append(s.batch(s.sent, len(s.b)))
			if err != nil || have != int64(len(s.b)) {
				t.Errorf("append: %d, %v", have, err)
			}
			s.sent = len(s.b)
		}
	})
	r, _ := Open(dir)
	tail, err := r.Tail(wire.LogsRequest{Job: 1, Task: -1, Rank: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	n := 0
	for n < 201 {
		_, more, err := w.End(1)
		if err != nil {
			t.Fatal(err)
		}
		err = tail.Read(ctx, func(c wire.LogChunk) error {
			if want := fmt.Sprintln(n - 1); n > 0 && string(c.Data) != want || c.Note != "" {
				return fmt.Errorf("chunk %d is %q %s", n, c.Data, c.Note)
			}
			n++
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if n == 201 {
			break
		}
		select {
		case <-more:
		case <-ctx.Done():
			t.Fatalf("after %d chunks: %v", n, ctx.Err())
		}
	}
	wg.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTornAnywhere cuts the last segment at every length: what is whole is kept, and the
// node is asked for the rest.
func TestTornAnywhere(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Options{})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	for i := range 6 {
		s.write(uint32(i), 0, fmt.Sprint("line ", i, "\n"))
		s.send(t, w)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	whole, _ := logs(t, dir, all(1))
	path := segmentPath(JobDir(dir, 1), 0)
	b, _ := os.ReadFile(path)
	for cut := 0; cut <= len(b); cut += 5 {
		if err := os.WriteFile(path, b[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		got, _ := logs(t, dir, all(1))
		if !strings.HasPrefix(whole, got) {
			t.Fatalf("cut at %d: %s", cut, got)
		}
		w := newWriter(t, dir, Options{})
		have, err := w.Have(1, "n-0", 1)
		if err != nil {
			t.Fatal(err)
		}
		if have < int64(len(s.b)) {
			if _, err := w.Append(s.batch(int(have), len(s.b))); err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got, _ := logs(t, dir, all(1)); got != whole {
			t.Fatalf("cut at %d, then sent again: %s", cut, got)
		}
	}
}

// TestDamage: what is damaged is said, and the rest is still read.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Options{Segment: 500})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	for i := range 20 {
		s.write(uint32(i), 0, fmt.Sprint("line ", i, "\n"))
		s.send(t, w)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := segmentPath(JobDir(dir, 1), 0)
	b, _ := os.ReadFile(path)
	for i := range b {
		bad := slices.Clone(b)
		bad[i] ^= 4
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		got, _ := logs(t, dir, all(1))
		if !strings.Contains(got, "note: ") || !strings.Contains(got, "line 19") || strings.Count(got, "line ") < 18-int(1) {
			t.Fatalf("flip at %d:\n%s", i, got)
		}
	}
}

func TestRefusesGarbage(t *testing.T) {
	w := newWriter(t, t.TempDir(), Options{})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	s.write(0, 0, "x")
	good := s.batch(0, len(s.b))
	bomb := encoder.EncodeAll(make([]byte, maxRaw+1), nil)
	for name, b := range map[string]wire.LogBatch{
		"no zstd":      {Job: 1, Node: "n-0", Epoch: 1, To: 3, Zstd: []byte("abc")},
		"wrong length": {Job: 1, Node: "n-0", Epoch: 1, To: good.To + 1, Zstd: good.Zstd},
		"negative":     {Job: 1, Node: "n-0", Epoch: 1, From: -5, To: good.To - 5, Zstd: good.Zstd},
		"no frames":    {Job: 1, Node: "n-0", Epoch: 1, To: 40, Zstd: encoder.EncodeAll(make([]byte, 40), nil)},
		"cut frame":    {Job: 1, Node: "n-0", Epoch: 1, To: good.To - 1, Zstd: encoder.EncodeAll(s.b[:len(s.b)-1], nil)},
		"bomb":         {Job: 1, Node: "n-0", Epoch: 1, To: maxRaw + 1, Zstd: bomb},
		"job 0":        {Node: "n-0", Epoch: 1, To: good.To, Zstd: good.Zstd},
	} {
		if _, err := w.Append(b); errs.KindOf(err) != errs.Corrupt && errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := w.Append(good); err != nil {
		t.Error(err)
	}
}

func TestCapDropsOldestEnded(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Options{Cap: 60_000, Segment: 8_000})
	rnd := rand.New(rand.NewPCG(1, 1))
	noise := func() string { // does not compress
		b := make([]byte, 4000)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return string(b)
	}
	spools := map[wire.JobID]*spool{}
	for job := wire.JobID(1); job <= 3; job++ {
		spools[job] = &spool{job: job, node: "n-0", epoch: 1}
		for range 3 {
			spools[job].write(0, 0, noise())
			spools[job].send(t, w)
		}
		state := wire.StateDone
		if job == 2 {
			state = wire.StateRunning
		}
		if err := w.WriteTable(Table{Job: wire.JobInfo{ID: job, State: state, LogsDone: state.Terminal()}}); err != nil {
			t.Fatal(err)
		}
	}
	size := func() (total int64) {
		for job := range wire.JobID(6) {
			n, _ := outputSize(JobDir(dir, job))
			total += n
		}
		return total
	}
	last := &spool{job: 4, node: "n-0", epoch: 1}
	steps := 0
	for ; steps < 100; steps++ {
		last.write(0, 0, noise())
		last.send(t, w)
		if n := size(); n > 60_000 || n != w.total {
			t.Fatalf("step %d: %d bytes, counted %d", steps, n, w.total)
		}
		if steps == 7 {
			// Job 1, the oldest that has ended, went first; job 2 runs.
			if n, _ := outputSize(JobDir(dir, 1)); n > 8_000 {
				t.Errorf("job 1 still has %d bytes", n)
			}
			if got, _ := logs(t, dir, all(2)); strings.Contains(got, "note") {
				t.Error("a running job's output was dropped while an ended one's was there")
			}
		}
	}
	for _, job := range []wire.JobID{1, 3, 4} {
		if got, _ := logs(t, dir, all(job)); !strings.HasPrefix(got, "note: ") || !strings.Contains(got, "dropped") {
			t.Errorf("job %d does not say what was dropped: %.200s", job, got)
		}
	}
	// The place of each node survives the dropping of the segments it was in.
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = newWriter(t, dir, Options{Cap: 60_000, Segment: 8_000})
	if have, err := w.Have(4, "n-0", 1); err != nil || have != int64(len(last.b)) {
		t.Errorf("have %d of %d, %v", have, len(last.b), err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTables(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	w := newWriter(t, dir, Options{})
	metric := 0.5
	want := Table{
		Job:    wire.JobInfo{ID: 7, Name: "s", Kind: wire.KindSweep, State: wire.StateDone, Tasks: 2},
		Tasks:  []wire.TaskInfo{{Task: wire.Task{Job: 7}, State: wire.StateDone}, {Task: wire.Task{Job: 7, Index: 1}, State: wire.StateFailed, ExitCode: 3}},
		Trials: &wire.TrialTable{Metric: "loss", Trials: []wire.Trial{{Index: 1, Params: map[string]any{"lr": 0.1}, Metric: &metric}}},
	}
	if err := w.WriteTable(want); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteTable(Table{Job: wire.JobInfo{ID: 10, State: wire.StateRunning}}); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteNodes([]wire.NodeInfo{{ID: "n-0", State: "gone"}}); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	infos, err := r.Jobs()
	if err != nil || len(infos) != 2 || infos[0].ID != 7 || infos[1].ID != 10 {
		t.Errorf("%v, %v", infos, err)
	}
	tasks, err := r.Tasks(wire.TasksRequest{Job: 7, States: []wire.State{wire.StateFailed}})
	if err != nil || len(tasks) != 1 || tasks[0].ExitCode != 3 {
		t.Errorf("%v, %v", tasks, err)
	}
	if tasks, _ := r.Tasks(wire.TasksRequest{Job: 7, Offset: 1, Limit: 5}); len(tasks) != 1 || tasks[0].Task.Index != 1 {
		t.Errorf("%v", tasks)
	}
	trials, err := r.Trials(7)
	if err != nil || trials.Job.Name != "s" || *trials.Trials[0].Metric != 0.5 {
		t.Errorf("%+v, %v", trials, err)
	}
	if _, err := r.Trials(10); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
	if _, err := r.Table(11); !errs.Is(err, errs.NotFound) {
		t.Error(err)
	}
	nodes, err := r.Nodes()
	if err != nil || len(nodes) != 1 || nodes[0].ID != "n-0" {
		t.Errorf("%v, %v", nodes, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.tmp*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := os.WriteFile(filepath.Join(JobDir(dir, 10), "table.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if infos, err := r.Jobs(); !errs.Is(err, errs.Corrupt) || len(infos) != 1 {
		t.Errorf("%v, %v", infos, err)
	}
}

// TestOneTaskOfMany: a task of a big job is found by headers, not by unpacking it all.
func TestOneTaskOfMany(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Options{})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	line := strings.Repeat("output that says something ", 30)
	for i := range 1000 {
		for k := range 10 {
			s.write(uint32(i), 0, fmt.Sprintln(i, k, line))
		}
		if i%4 == 3 {
			s.send(t, w)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	took := func(q wire.LogsRequest) (time.Duration, int) {
		start := time.Now()
		out, _ := logs(t, dir, q)
		return time.Since(start), strings.Count(out, "\n")
	}
	q := all(1)
	whole, n := took(q)
	q.Task = 777
	one, k := took(q)
	for range 5 { // a machine that is busy may hold one of them up
		again, _ := took(q)
		one = min(one, again)
	}
	if n != 10_000 || k != 10 {
		t.Fatalf("%d and %d lines", n, k)
	}
	if one > max(2*time.Second, whole/2) {
		t.Errorf("one task took %v, all %v", one, whole)
	}
	if size, _ := outputSize(JobDir(dir, 1)); size > int64(len(s.b))/10 {
		t.Errorf("%d bytes of output are kept in %d", len(s.b), size)
	}
}

func FuzzScan(f *testing.F) {
	var b []byte
	b = appendNodes(b, 0, 0, []nodeEntry{{Node: "n-0", Epoch: 1}})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	s.write(3, 0, "hello")
	blk := block{kind: kindOutput, to: int64(len(s.b))}
	if err := blk.summarize(s.b); err != nil {
		f.Fatal(err)
	}
	b = blk.append(b, encoder.EncodeAll(s.b, nil))
	f.Add(b)
	f.Add(b[:len(b)-4])
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		jd := JobDir(dir, 1)
		if err := os.MkdirAll(jd, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(segmentPath(jd, 0), b, 0o600); err != nil {
			t.Fatal(err)
		}
		r, _ := Open(dir)
		err := r.Logs(context.Background(), all(1), func(c wire.LogChunk) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		w := newWriter(t, dir, Options{})
		if _, _, err := w.End(1); err != nil && !errs.Is(err, errs.Corrupt) {
			t.Fatal(err)
		}
		_ = w.Close()
	})
}

func BenchmarkAppend(b *testing.B) {
	w := newWriter(b, b.TempDir(), Options{})
	s := &spool{job: 1, node: "n-0", epoch: 1}
	for i := range 100 {
		s.write(uint32(i), 0, string(bytes.Repeat([]byte("x"), 100)))
	}
	base := s.batch(0, len(s.b))
	b.SetBytes(int64(len(s.b)))
	for i := 0; b.Loop(); i++ {
		x := base
		x.From, x.To = int64(i*len(s.b)), int64((i+1)*len(s.b))
		if _, err := w.Append(x); err != nil {
			b.Fatal(err)
		}
	}
}

// TestLostAtTheNode: what the node has deleted and the record does not have is noted, and
// the rest goes on, also after a restart; a gap for no such reason is refused.
func TestLostAtTheNode(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, dir, Options{})
	s := &spool{job: 1, node: "a", epoch: 1}
	s.write(4, 0, "first\n")
	s.send(t, w)
	s.write(4, 0, "gone\n")
	from := len(s.b)
	s.write(5, 0, "second\n")
	b := s.batch(from, len(s.b))
	if _, err := w.Append(b); !errs.Is(err, errs.Invalid) {
		t.Fatalf("a gap: %v", err)
	}
	b.Base = b.From
	for range 2 { // the second is there already
		if have, err := w.Append(b); err != nil || have != b.To {
			t.Fatalf("a loss: %d, %v", have, err)
		}
	}
	// All that is left is lost: there is nothing to go on with.
	s.write(5, 0, "gone too\n")
	b = s.batch(len(s.b), len(s.b))
	b.Base = b.From
	if have, err := w.Append(b); err != nil || have != b.To {
		t.Fatalf("a loss at the end: %d, %v", have, err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = newWriter(t, dir, Options{})
	defer w.Close()
	if have, err := w.Have(1, "a", 1); err != nil || have != int64(len(s.b)) {
		t.Errorf("the next writer has %d of %d, %v", have, len(s.b), err)
	}
	s.sent = len(s.b)
	s.write(4, 0, "third\n")
	s.send(t, w)
	out, _ := logs(t, dir, all(1))
	for _, want := range []string{"first", fmt.Sprintf("launcher: %d bytes of output of node a are lost here", wire.LogFrameHeader+len("gone\n")), "second",
		fmt.Sprintf("launcher: %d bytes of output of node a are lost here", wire.LogFrameHeader+len("gone too\n")), "third"} {
		i := strings.Index(out, want)
		if i < 0 {
			t.Fatalf("no %q, in this order, in\n%s", want, out)
		}
		out = out[i:]
	}
}

package record

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"

	"launcher/internal/errs"
	"launcher/wire"
)

// Reader reads a cluster's record, whether the cluster is up or not.
type Reader struct{ dir string }

// Open opens the record in the cluster's directory dir.
func Open(dir string) (*Reader, error) {
	if _, err := os.Stat(filepath.Join(dir, "jobs")); err != nil {
		kind := errs.Unavailable
		if errors.Is(err, fs.ErrNotExist) {
			kind = errs.NotFound
		}
		return nil, errs.Wrap(kind, err, "no record in %s", dir)
	}
	return &Reader{dir: dir}, nil
}

// Jobs lists the jobs, oldest first. A table that cannot be read does not hide the
// others: err tells of the first such.
func (r *Reader) Jobs() (infos []wire.JobInfo, err error) {
	ids, err := listJobs(r.dir)
	for _, id := range ids {
		t, err2 := readTable(r.dir, id)
		switch {
		case err2 == nil:
			infos = append(infos, t.Job)
		case err == nil && !errs.Is(err2, errs.NotFound):
			err = err2
		}
	}
	return infos, err
}

// Table gives a job's table.
func (r *Reader) Table(job wire.JobID) (*Table, error) { return readTable(r.dir, job) }

// Tasks gives the lines of a job's table that a request asks for.
func (r *Reader) Tasks(q wire.TasksRequest) ([]wire.TaskInfo, error) {
	t, err := readTable(r.dir, q.Job)
	if err != nil {
		return nil, err
	}
	tasks := slices.DeleteFunc(t.Tasks, func(i wire.TaskInfo) bool {
		return q.Index != nil && i.Task.Index != *q.Index || len(q.States) > 0 && !slices.Contains(q.States, i.State)
	})
	tasks = tasks[min(max(q.Offset, 0), len(tasks)):]
	if q.Limit > 0 {
		tasks = tasks[:min(q.Limit, len(tasks))]
	}
	return tasks, nil
}

// Trials gives the table of a sweep.
func (r *Reader) Trials(job wire.JobID) (wire.TrialTable, error) {
	t, err := readTable(r.dir, job)
	if err != nil {
		return wire.TrialTable{}, err
	}
	if t.Trials == nil {
		return wire.TrialTable{}, errs.New(errs.Invalid, "job %d is no sweep: it has no trials", job)
	}
	t.Trials.Job = t.Job
	return *t.Trials, nil
}

// Nodes gives the nodes that the cluster had when it was last written.
func (r *Reader) Nodes() ([]wire.NodeInfo, error) {
	path := filepath.Join(r.dir, "nodes.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, diskError(err, "cannot read the record")
	}
	var v struct{ Nodes []wire.NodeInfo }
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, errs.Wrap(errs.Corrupt, err, "%s", path)
	}
	return v.Nodes, nil
}

// Logs hands the chunks that q asks for to emit, in record order, up to what is there
// now. A chunk's Data is only valid during the call.
func (r *Reader) Logs(ctx context.Context, q wire.LogsRequest, emit func(wire.LogChunk) error) error {
	if _, err := os.Stat(JobDir(r.dir, q.Job)); err != nil {
		return errs.New(errs.NotFound, "no job %d in the record %s", q.Job, r.dir)
	}
	l, err := r.Tail(q)
	if err != nil {
		return err
	}
	defer l.Close()
	return l.Read(ctx, emit)
}

// Tail gives a place in a job's output; each Read goes on from where the last one ended.
// There need not be any output, nor a record of the job, yet.
func (r *Reader) Tail(q wire.LogsRequest) (*Tail, error) {
	dir := JobDir(r.dir, q.Job)
	dec, err := newDecoder()
	if err != nil {
		return nil, err
	}
	return &Tail{q: q, r: r, dir: dir, dec: dec, seg: -1, said: -1}, nil
}

// Tail is a place in a job's output.
type Tail struct {
	q   wire.LogsRequest
	r   *Reader
	dir string
	dec *zstd.Decoder

	seg   int // number of the open segment; -1 = none
	scan  *scanner
	nodes []nodeEntry
	at    int64 // offset in the job's log that has been read up to
	begun bool
	said  int64 // where it was last said that something is missing
}

// Close gives the open file back.
func (l *Tail) Close() {
	if l.scan != nil {
		_ = l.scan.f.Close()
		l.scan = nil
	}
	l.dec.Close()
}

// Read hands what is there and was not read yet to emit.
func (l *Tail) Read(ctx context.Context, emit func(wire.LogChunk) error) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		last, err := l.open(emit)
		if err != nil || l.scan == nil {
			return err
		}
		l.scan.limit = 0 // it may have grown
		for {
			if err := ctx.Err(); err != nil {
				return err
			}
			b, damaged, err := l.scan.next()
			if err != nil {
				return err
			}
			if b == nil {
				break
			}
			if damaged > 0 {
				if err := l.note(emit, "%d bytes of the record are damaged here; output is missing", damaged); err != nil {
					return err
				}
			}
			if err := l.block(b, emit); err != nil {
				return err
			}
		}
		if last {
			return nil
		}
		if rest := l.scan.limit - l.scan.good; rest > 0 {
			if err := l.note(emit, "%d bytes of the record are damaged here; output is missing", rest); err != nil {
				return err
			}
		}
		_ = l.scan.f.Close()
		l.scan = nil
	}
}

// open makes sure that a segment is open, the next one if none is, and says whether it
// is the last. Without any, scan stays nil.
func (l *Tail) open(emit func(wire.LogChunk) error) (last bool, err error) {
	segs, err := listSegments(l.dir)
	if err != nil {
		return false, err
	}
	if l.scan != nil {
		return len(segs) == 0 || l.seg >= segs[len(segs)-1], nil
	}
	for _, n := range segs {
		if n <= l.seg {
			continue
		}
		f, err := os.Open(segmentPath(l.dir, n))
		if errors.Is(err, fs.ErrNotExist) {
			continue // dropped just now
		}
		if err != nil {
			return false, diskError(err, "cannot read output")
		}
		l.seg, l.scan = n, &scanner{f: f}
		return n == segs[len(segs)-1], nil
	}
	if len(segs) == 0 && !l.begun {
		l.begun = true
		if t, err := readTable(l.r.dir, l.q.Job); err == nil && t.Dropped != "" {
			return true, l.note(emit, "%s", t.Dropped)
		}
	}
	return true, nil
}

// block hands the chunks of a block to emit.
func (l *Tail) block(b *block, emit func(wire.LogChunk) error) error {
	if b.at>>termShift > max(l.at, l.q.Offset)>>termShift { // a later term
		seen := max(l.at, l.q.Offset) > 0
		l.at, l.said = b.at, b.at
		if seen {
			if err := l.note(emit, "the record of the output was lost with the machine it was on; here it goes on with what the nodes still have"); err != nil {
				return err
			}
		}
	}
	if b.at > l.at && b.at > l.q.Offset && b.at > l.said {
		l.said = b.at
		if err := l.note(emit, "%d bytes of output were here; they were dropped to keep the record small", b.at-max(l.at, l.q.Offset)); err != nil {
			return err
		}
	}
	l.begun = true
	if b.kind == kindNodes {
		nodes, err := l.scan.nodes(b, l.nodes)
		if errs.Is(err, errs.Corrupt) {
			return l.note(emit, "the record's table of nodes is damaged here")
		}
		l.nodes = nodes
		return err
	}
	end := b.at + int64(b.raw)
	l.at = max(l.at, end)
	if b.kind != kindOutput || end <= l.q.Offset || !b.has(l.q.Task) {
		return nil
	}
	body, err := l.scan.body(b)
	if err != nil && !errs.Is(err, errs.Corrupt) {
		return err
	}
	var raw []byte
	if err == nil {
		raw, err = l.dec.DecodeAll(body, nil)
	}
	if err != nil {
		return l.note(emit, "%d bytes of the record are damaged here; output is missing", b.body)
	}
	var node wire.NodeID
	if int(b.node) < len(l.nodes) {
		node = l.nodes[b.node].Node
	}
	off := b.at
	for len(raw) > 0 {
		f, data, n, err := wire.ParseLogFrame(raw)
		if err != nil || n == 0 {
			return l.note(emit, "%d bytes of output are not readable here", len(raw))
		}
		raw, off = raw[n:], off+int64(n)
		if off <= l.q.Offset || l.q.Task >= 0 && int64(f.Index) != l.q.Task || l.q.Rank >= 0 && int64(f.Rank) != l.q.Rank {
			continue
		}
		err = emit(wire.LogChunk{
			Proc:   wire.Proc{Try: wire.Try{Task: wire.Task{Job: l.q.Job, Index: f.Index}, Attempt: f.Attempt}, Rank: f.Rank},
			Node:   node,
			Stream: f.Stream,
			Time:   f.Time,
			Offset: off,
			Data:   data,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Tail) note(emit func(wire.LogChunk) error, format string, args ...any) error {
	return emit(wire.LogChunk{
		Proc:   wire.Proc{Try: wire.Try{Task: wire.Task{Job: l.q.Job}}},
		Offset: max(l.at, l.q.Offset),
		Note:   fmt.Sprintf(format, args...),
	})
}

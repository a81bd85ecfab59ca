package record

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"launcher/internal/disk"
	"launcher/internal/errs"
	"launcher/wire"
)

// termShift is where the term begins in an offset of a job's output.
const termShift = 42

// output gives a job's output, opened if it is not. mu must be held.
func (w *Writer) output(job wire.JobID) (*output, error) {
	if o := w.jobs[job]; o != nil {
		return o, nil
	}
	if w.closed {
		return nil, errClosed
	}
	if job == 0 {
		return nil, errs.New(errs.Invalid, "job 0 has no output")
	}
	if err := w.claim(); err != nil {
		return nil, err
	}
	o := &output{job: job, dir: JobDir(w.dir, job), numbers: map[nodeKey]uint32{}, changed: make(chan struct{})}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return nil, diskError(err, "cannot write output of job %d", job)
	}
	segs, err := listSegments(o.dir)
	if err != nil {
		return nil, err
	}
	for i, n := range segs {
		last := i == len(segs)-1
		cut, err := w.load(o, n, last, last && w.opts.Claim != nil && !w.own[job])
		if err != nil {
			return nil, err
		}
		w.total -= cut
	}
	w.own[job] = true
	o.at = max(o.at, int64(w.opts.Term)<<termShift)
	w.jobs[job] = o
	return o, nil
}

// claim says why this writer may not open, make or replace files any more.
func (w *Writer) claim() error {
	if w.opts.Claim == nil {
		return nil
	}
	return w.opts.Claim()
}

// errClosed is what a Writer says that was closed: another one may be at it.
var errClosed = errs.New(errs.Unavailable, "the record is closed")

// load reads the headers of segment n; the last one is left open for appending, less a
// torn tail: what is behind the last good block was never acknowledged. With apart that is a
// copy, which takes its name.
func (w *Writer) load(o *output, n int, last, apart bool) (cut int64, err error) {
	flag := os.O_RDONLY
	if last {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(segmentPath(o.dir, n), flag, 0)
	if err != nil {
		return 0, diskError(err, "cannot open output")
	}
	s := scanner{f: f, verify: last}
	for {
		b, _, err := s.next()
		if err != nil {
			_ = f.Close()
			return 0, err
		}
		if b == nil {
			break
		}
		if b.kind == kindNodes {
			if o.nodes, err = s.nodes(b, o.nodes); err != nil {
				_ = f.Close()
				return 0, err
			}
			for i, e := range o.nodes[b.node:] {
				o.numbers[nodeKey{e.Node, e.Epoch}] = b.node + uint32(i)
			}
			o.at = max(o.at, b.at)
			continue
		}
		if int(b.node) < len(o.nodes) {
			o.nodes[b.node].Have = max(o.nodes[b.node].Have, b.to)
		}
		o.at = max(o.at, b.at+int64(b.raw))
	}
	o.n = n
	if !last {
		return 0, f.Close()
	}
	if apart {
		g, err := copied(f, s.good, w.opts.Claim)
		_ = f.Close()
		if errs.Is(err, errs.Fenced) {
			return 0, err
		} else if err != nil {
			return 0, diskError(err, "cannot take over %s", f.Name())
		}
		o.f, o.size, o.synced = g, s.good, s.good
		return s.limit - s.good, nil
	}
	if err := f.Truncate(s.good); err != nil {
		_ = f.Close()
		return 0, diskError(err, "cannot cut the torn tail of %s off", f.Name())
	}
	// Its last blocks may be in the page cache only; from now on they count.
	if err := f.Sync(); err != nil {
		_ = f.Close()
		return 0, diskError(err, "cannot open output")
	}
	o.f, o.size, o.synced = f, s.good, s.good
	return s.limit - s.good, nil
}

// copied puts a copy of a file's first n bytes in its place. Whoever has the file open
// writes where nobody looks from then on. It may take a while: claim is asked when it is made.
func copied(f *os.File, n int64, claim func() error) (*os.File, error) {
	g, err := os.CreateTemp(filepath.Dir(f.Name()), filepath.Base(f.Name())+".tmp*")
	if err != nil {
		return nil, err
	}
	if _, err = io.CopyN(g, io.NewSectionReader(f, 0, n), n); err == nil {
		err = g.Sync()
	}
	if err == nil {
		err = claim()
	}
	if err == nil {
		err = os.Rename(g.Name(), f.Name())
	}
	if err != nil {
		_ = g.Close()
		_ = os.Remove(g.Name())
		return nil, err
	}
	_ = disk.Sync(filepath.Dir(f.Name()))
	return g, nil
}

// outputSize is the size of a job's segments.
func outputSize(jobDir string) (total int64, err error) {
	segs, err := listSegments(jobDir)
	for _, n := range segs {
		if st, err := os.Stat(segmentPath(jobDir, n)); err == nil {
			total += st.Size()
		}
	}
	return total, err
}

// shrink drops output until the record is under its cap: of ended jobs, the oldest
// first; then the oldest segments of the others, but never the one being written. mu
// must be held.
func (w *Writer) shrink(writing wire.JobID) {
	ids, err := listJobs(w.dir)
	if err != nil {
		return
	}
	for _, ended := range []bool{true, false} {
		for _, id := range ids {
			if w.ended[id] != ended || id == writing && ended {
				continue
			}
			w.drop(id)
			if w.total <= w.opts.Cap {
				return
			}
		}
	}
}

// drop removes segments of a job, oldest first, until the record is under its cap. The
// last one goes only when the job has ended. mu must be held.
func (w *Writer) drop(id wire.JobID) {
	dir := JobDir(w.dir, id)
	segs, err := listSegments(dir)
	if err != nil || len(segs) == 0 {
		return
	}
	if w.ended[id] {
		_ = w.release(id)
	} else {
		segs = segs[:len(segs)-1]
	}
	dropped := false
	for _, n := range segs {
		if w.total <= w.opts.Cap {
			break
		}
		path := segmentPath(dir, n)
		st, err := os.Stat(path)
		if err != nil || os.Remove(path) != nil {
			continue
		}
		w.total -= st.Size()
		dropped = true
	}
	if !dropped {
		return
	}
	why := fmt.Sprintf("output was dropped to keep the record under %s", wire.Bytes(w.opts.Cap))
	w.opts.Log.Warn("record: "+why, "job", id)
	w.tables.Lock()
	defer w.tables.Unlock()
	if t, err := readTable(w.dir, id); err == nil {
		t.Dropped = why
		_ = writeJSON(dir+"/table.json", t)
	}
}

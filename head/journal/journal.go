// Package journal is the head's durable log: what was journalled has happened, and
// replaying it gives the head's durable state exactly.
//
// A journal is a directory of plain files, which only ever grow by appending and change
// by renaming, so it works on NFS and Lustre: no file lock, no mmap.
//
//	epoch.N           the claim of writer N; the one not struck out is the writer's
//	seg-SEQ.EPOCH     records from number SEQ on, by writer EPOCH (package reclog)
//	snap-SEQ          the state after record SEQ
//
// Each Open is a new writer with a higher epoch. It moves the records of the last segment
// into one of its own, less a torn tail. A segment of an older epoch counts only up to
// where that of a newer one begins; so what a replaced writer still writes is never read,
// and before it tells anyone that a record is safe, or removes anything that it has
// replaced, it looks at its claim once more, finds it struck out, and fails (errs.Fenced).
//
// Appends are gathered while the disk is busy and made safe together by one fdatasync
// (group commit). Nothing waits for company: an append to an idle journal is written at
// once, and one to a busy journal with the next write.
//
// When the disk is full or fails, nothing half-written counts, what was appended stays
// in memory and is tried again until there is room; Stalled says so meanwhile.
package journal

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"launcher/internal/errs"
)

// Options of Open. The zero value is good.
type Options struct {
	Log *slog.Logger // nil = discard
	// SegmentSize is when a new segment is begun; 0 = 16 MiB.
	SegmentSize int64
	// SlowAfter is how long a write may take before Stalled says so; 0 = 5 s.
	SlowAfter time.Duration
	// RetryEvery is how often a write to a full or failing disk is tried again; 0 = 1 s.
	RetryEvery time.Duration
	// Recent is how many bytes of the newest records stay in memory for Recent; 0 = none.
	Recent int
	// OnStall is told when writing begins to fail, and with nil when it goes on. It is
	// called from the journal's own goroutine and must not block.
	OnStall func(error)
}

// Recovered is what Open or Load found.
type Recovered struct {
	Snapshot    []byte   // state after record SnapshotSeq; nil = none
	SnapshotSeq uint64   // 0 = none
	Records     [][]byte // records SnapshotSeq+1 on
	Epoch       uint64   // of the writer before; 0 = the journal is new
	Cut         int64    // bytes of a torn tail that were cut off
	CutFile     string
}

// Last is the number of the last record.
func (r *Recovered) Last() uint64 { return r.SnapshotSeq + uint64(len(r.Records)) }

// Journal is open for appending. Its methods may be called concurrently.
type Journal struct {
	dir   string
	opts  Options
	epoch uint64
	claim string // what is in our claim while we are the writer

	wake chan struct{} // the writer has something to do
	quit chan struct{}
	done chan struct{}

	mu      sync.Mutex
	moved   *sync.Cond    // safe, failed or stalled changed; guarded by mu
	pending [][]byte      // appended, not written
	next    uint64        // number that the next append gets
	safe    uint64        // last record that is on disk and acknowledged
	failed  error         // the journal cannot be used any more
	stalled error         // writing fails for now
	began   time.Time     // when the write under way began; zero = none
	changed chan struct{} // closed and replaced whenever safe grows: for readers
	rotate  bool          // begin a new segment before the next write
	closing bool
	recent  [][]byte // the newest safe records, up to record safe; guarded by mu
	size    int      // of recent

	seg  *segment // the writer's own
	open func(path string) (file, error)
}

// Open takes the journal in dir over: it claims a new epoch, recovers what is there,
// cuts a torn tail off, and begins a segment. dir is made when it is not there.
func Open(dir string, opts Options) (*Journal, *Recovered, error) { return open(dir, opts, createFile) }

func open(dir string, opts Options, create func(string) (file, error)) (*Journal, *Recovered, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.SegmentSize <= 0 {
		opts.SegmentSize = 16 << 20
	}
	if opts.SlowAfter <= 0 {
		opts.SlowAfter = 5 * time.Second
	}
	if opts.RetryEvery <= 0 {
		opts.RetryEvery = time.Second
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, classify(err, "cannot make the journal")
	}
	epoch, text, err := claim(dir)
	if err != nil {
		return nil, nil, err
	}
	j := &Journal{
		dir: dir, opts: opts, epoch: epoch, claim: text, open: create,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}), changed: make(chan struct{}),
	}
	j.moved = sync.NewCond(&j.mu)
	rec, err := j.recover()
	if err != nil {
		if fenced := j.fenced(); errs.Is(fenced, errs.Fenced) {
			err = fenced // that is why: the newer writer moves things
		}
		return nil, nil, err
	}
	go j.write()
	return j, rec, nil
}

// recover reads what is there and begins our own segment.
func (j *Journal) recover() (*Recovered, error) {
	was, err := find(j.dir)
	if err != nil {
		return nil, err
	}
	rec := &was.Recovered
	if rec.CutFile != "" {
		j.opts.Log.Warn("journal: torn tail cut off", "file", rec.CutFile, "bytes", rec.Cut)
	}
	j.next, j.safe = rec.Last()+1, rec.Last()
	// The last segment is the one that a writer which does not yet know that it is
	// replaced may still change, so its records move into a segment of our own.
	if j.seg, err = j.newSegment(was.tail, rec.Records[was.tail-rec.SnapshotSeq-1:]); err != nil {
		return nil, err
	}
	// A newer writer that lists the directory while we remove files must be certain to
	// see the one that we put in their place: so it must not have begun before that.
	if err := j.fenced(); err != nil {
		_ = j.seg.f.Close()
		return nil, err
	}
	for _, name := range was.tmps {
		if tmpEpoch(name) < j.epoch {
			was.stale = append(was.stale, name)
		}
	}
	for _, name := range was.stale {
		_ = os.Remove(filepath.Join(j.dir, name)) // never read again either way
	}
	return rec, nil
}

// Epoch is the number of this writer: higher than that of any before.
func (j *Journal) Epoch() uint64 { return j.epoch }

// Append adds records and gives the number of the last one; Wait for it to know that
// they are safe. The records must not be changed afterwards. It does not block. It fails
// when the journal is closed, fenced, or a record is too long; a full disk is no reason:
// the records are kept and written when there is room.
func (j *Journal) Append(records ...[]byte) (seq uint64, err error) {
	for _, r := range records {
		if len(r) > maxRecord {
			return 0, errs.New(errs.Invalid, "a journal record of %d bytes, the limit is %d", len(r), maxRecord)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failed != nil {
		return 0, j.failed
	}
	if j.closing {
		return 0, errClosed()
	}
	j.pending = append(j.pending, records...)
	j.next += uint64(len(records))
	j.poke()
	return j.next - 1, nil
}

// Wait returns when record seq is safe. When ctx ends first and the reason is that the
// disk is full or fails, the error says so.
func (j *Journal) Wait(ctx context.Context, seq uint64) error {
	stop := context.AfterFunc(ctx, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.moved.Broadcast()
	})
	defer stop()
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.safe < seq {
		switch {
		case j.failed != nil:
			return j.failed
		case ctx.Err() != nil && j.stalled != nil:
			return j.stalled
		case ctx.Err() != nil:
			return errs.Wrap(errs.Unknown, ctx.Err(), "journal record %d is not yet safe", seq)
		case seq >= j.next:
			return errs.New(errs.Internal, "waiting for journal record %d, the next is %d", seq, j.next)
		}
		j.moved.Wait()
	}
	return nil
}

// Sync waits until all that has been appended is safe.
func (j *Journal) Sync(ctx context.Context) error {
	j.mu.Lock()
	last := j.next - 1
	j.mu.Unlock()
	return j.Wait(ctx, last)
}

// Safe is the number of the last record that is safe.
func (j *Journal) Safe() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.safe
}

// Stalled says why nothing can be written at the moment: errs.Exhausted when the disk or
// the quota is full, errs.Unavailable when it fails or does not answer, errs.Fenced for
// good; nil = all well.
func (j *Journal) Stalled() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.failed != nil:
		return j.failed
	case j.stalled != nil || j.began.IsZero():
		return j.stalled
	}
	if d := time.Since(j.began); d > j.opts.SlowAfter {
		return errs.New(errs.Unavailable, "the disk of the journal %s has not answered for %s", j.dir, d.Round(time.Second)).
			Hint("look at that file system; the head goes on by itself")
	}
	return nil
}

// Changed gives a channel that is closed when more records are safe than now.
func (j *Journal) Changed() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.changed
}

// Close makes all that was appended safe, or fails to within ctx, and ends the writer.
func (j *Journal) Close(ctx context.Context) error {
	err := j.Sync(ctx)
	j.mu.Lock()
	again := j.closing
	j.closing = true
	j.mu.Unlock()
	if !again {
		close(j.quit)
	}
	<-j.done
	return err
}

// poke wakes the writer. mu must be held or nothing pending matters.
func (j *Journal) poke() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

func errClosed() error { return errs.New(errs.Unavailable, "the journal is closed") }

// classify says what sort of failure of a file err is.
func classify(err error, format string, args ...any) error {
	kind := errs.Unavailable
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
	switch {
	case errs.KindOf(err) != errs.Unknown:
		kind = errs.Unknown
	case full:
		kind = errs.Exhausted
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EROFS):
		kind = errs.Permission
	}
	e := errs.Wrap(kind, err, format, args...)
	if full {
		e = e.Hint("make room on that file system, or raise the quota; the head goes on by itself")
	}
	return e
}

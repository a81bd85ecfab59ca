package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"launcher/internal/disk"
	"launcher/internal/errs"
	"launcher/wire"
)

const (
	// DefaultCap bounds the output that a cluster keeps.
	DefaultCap     = 2 << 30
	defaultSegment = 32 << 20
)

// Options of NewWriter. The zero value is good.
type Options struct {
	Log     *slog.Logger
	Cap     int64 // bytes of output kept; 0 = DefaultCap
	Segment int64 // bytes of a segment; 0 = 32 MiB
	// Term is how often the record was begun anew because it was lost with the machine it
	// was on. Offsets of output begin above those of earlier terms, so that who has read up
	// to one of them goes on with what there is now.
	Term uint64
	// Claim, where the writers before and after this one may live at the same time, on other
	// machines that see dir, says whether dir is this one's yet. The files that the writer
	// before has open stay its own: output goes on in copies of them. One that dir is taken
	// from neither opens nor makes any more, nor replaces tables.
	Claim func() error
}

// Writer writes a cluster's record. There is one, in the head. Its methods may be called
// concurrently.
type Writer struct {
	dir  string
	opts Options
	dec  *zstd.Decoder
	enc  *zstd.Encoder

	syncing sync.Mutex           // held by Sync; before mu
	fsync   func(*os.File) error // (*os.File).Sync but in tests
	tables  sync.Mutex           // held while a table is written; after mu

	mu     sync.Mutex // guards all below, and all writing of output
	jobs   map[wire.JobID]*output
	total  int64 // bytes of output of all jobs
	ended  map[wire.JobID]bool
	own    map[wire.JobID]bool // whose last segment no other writer has open
	closed bool                // for good; changed with mu and tables held
}

// output is a job's output, open for appending.
type output struct {
	job     wire.JobID
	dir     string
	n       int      // number of the last segment
	f       *os.File // nil = none yet
	size    int64    // of f
	synced  int64    // of size, what is safe
	fresh   bool     // f is not yet safely in its directory
	at      int64    // length of the job's log
	nodes   []nodeEntry
	numbers map[nodeKey]uint32
	safe    []int64 // of each node, what the newest Sync made safe; meaningful while dirty
	dirty   bool
	changed chan struct{} // closed and replaced when there is more
}

type nodeKey struct {
	node  wire.NodeID
	epoch wire.Epoch
}

// nodeEntry is a line of the node table: what there is of a node's spool.
type nodeEntry struct {
	Node  wire.NodeID
	Epoch wire.Epoch
	Have  int64
}

// NewWriter opens the record in the cluster's directory dir for writing.
func NewWriter(dir string, opts Options) (*Writer, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Cap <= 0 {
		opts.Cap = DefaultCap
	}
	if opts.Segment <= 0 {
		opts.Segment = min(defaultSegment, max(opts.Cap/16, 1))
	}
	if err := os.MkdirAll(filepath.Join(dir, "jobs"), 0o700); err != nil {
		return nil, diskError(err, "cannot make the record")
	}
	w := &Writer{dir: dir, opts: opts, fsync: (*os.File).Sync, jobs: map[wire.JobID]*output{}, ended: map[wire.JobID]bool{}, own: map[wire.JobID]bool{}}
	var err error
	if w.dec, err = newDecoder(); err != nil {
		return nil, err
	}
	if w.enc, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true)); err != nil {
		return nil, errs.Wrap(errs.Internal, err, "zstd")
	}
	ids, err := listJobs(dir)
	if err != nil {
		return nil, err
	}
	sweep(filepath.Join(dir, "nodes.json"))
	for _, id := range ids {
		sweep(filepath.Join(JobDir(dir, id), "table.json"))
		sweep(filepath.Join(JobDir(dir, id), "output-*.log"))
		n, err := outputSize(JobDir(dir, id))
		if err != nil {
			return nil, err
		}
		w.total += n
		if t, err := readTable(dir, id); err == nil && complete(t) {
			w.ended[id] = true
		}
	}
	return w, nil
}

// sweep removes what a head that died left of writing path.
func sweep(path string) {
	names, _ := filepath.Glob(path + ".tmp*")
	for _, name := range names {
		_ = os.Remove(name)
	}
}

// complete reports whether no more output of a job will come. Before that, what there is
// of each node's spool must not be forgotten.
func complete(t *Table) bool { return t.Job.State.Terminal() && t.Job.LogsDone }

func newDecoder() (*zstd.Decoder, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxRaw))
	if err != nil {
		return nil, errs.Wrap(errs.Internal, err, "zstd")
	}
	return d, nil
}

// Append takes a stretch of a node's spool and gives how much of that spool the record
// has now; it is safe after the next Sync. A stretch that is there already is ignored;
// one that begins behind what is there is refused: have says where to begin again.
func (w *Writer) Append(b wire.LogBatch) (have int64, err error) {
	raw, err := w.dec.DecodeAll(b.Zstd, nil)
	if err != nil {
		return 0, errs.Wrap(errs.Corrupt, err, "output of job %d from %s cannot be unpacked", b.Job, b.Node)
	}
	if int64(len(raw)) != b.To-b.From || b.From < 0 {
		return 0, errs.New(errs.Corrupt, "output of job %d from %s: %d bytes for %d to %d", b.Job, b.Node, len(raw), b.From, b.To)
	}
	blk := block{kind: kindOutput, from: b.From, to: b.To}
	if err := blk.summarize(raw); err != nil {
		return 0, errs.Wrap(errs.Unknown, err, "output of job %d from %s", b.Job, b.Node)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	o, err := w.output(b.Job)
	if err != nil {
		return 0, err
	}
	key := nodeKey{b.Node, b.Epoch}
	num, known := o.numbers[key]
	if known {
		have = o.nodes[num].Have
	}
	switch {
	case b.To <= have:
		return have, nil
	case b.From > have && b.Base == b.From:
		// The node has deleted what the record has not: nobody has it any more. Readers are
		// told where it was.
		raw = append(lostNote(raw, b, have), raw...)
		blk = block{kind: kindOutput, from: have, to: b.To}
		if err := blk.summarize(raw); err != nil {
			return have, err
		}
		b.Zstd = w.enc.EncodeAll(raw, nil)
	case b.From > have:
		return have, errs.New(errs.Invalid, "output of job %d from %s: begins at %d, the record has %d", b.Job, b.Node, b.From, have)
	case b.From < have:
		raw = raw[have-b.From:]
		blk = block{kind: kindOutput, from: have, to: b.To}
		if err := blk.summarize(raw); err != nil {
			return have, err
		}
		b.Zstd = w.enc.EncodeAll(raw, nil)
	}
	if len(raw) == 0 {
		return have, nil
	}
	if err := w.roll(o); err != nil {
		return have, err
	}
	nodes := o.nodes
	if !known {
		num = uint32(len(nodes))
		nodes = append(nodes[:num:num], nodeEntry{Node: b.Node, Epoch: b.Epoch})
	}
	var buf []byte
	switch {
	case o.f == nil || o.size == 0: // each segment can be read by itself
		buf = appendNodes(buf, o.at, 0, nodes)
	case !known:
		buf = appendNodes(buf, o.at, num, nodes[num:])
	}
	blk.node, blk.at = num, o.at
	buf = blk.append(buf, b.Zstd)
	if err := w.write(o, buf); err != nil {
		return have, err
	}
	o.nodes = nodes
	o.numbers[key] = num
	o.nodes[num].Have = b.To
	o.at += int64(len(raw))
	close(o.changed)
	o.changed = make(chan struct{})
	if w.total > w.opts.Cap {
		w.shrink(b.Job)
	}
	return b.To, nil
}

// lostNote makes a log frame that says what is missing before raw, as output of the task
// that goes on behind it.
func lostNote(raw []byte, b wire.LogBatch, have int64) []byte {
	f, _, _, err := wire.ParseLogFrame(raw)
	if err != nil || len(raw) == 0 {
		f = wire.LogFrame{Attempt: 1, Time: time.Now().UnixNano()}
	}
	text := fmt.Sprintf("\nlauncher: %d bytes of output of node %s are lost here\n", b.From-have, b.Node)
	f.Stream, f.Length = 2, uint32(len(text))
	return append(f.Append(nil), text...)
}

// appendNodes appends the part of a node table that begins with number first.
func appendNodes(buf []byte, at int64, first uint32, nodes []nodeEntry) []byte {
	blk := block{kind: kindNodes, at: at, node: first}
	return blk.append(buf, wire.Marshal(nodes))
}

// path is that of the last segment; a copy has another name of its own.
func (o *output) path() string { return segmentPath(o.dir, o.n) }

// write appends buf to the last segment; after an error none of it is there.
func (w *Writer) write(o *output, buf []byte) error {
	if o.f == nil {
		if err := w.claim(); err != nil {
			return err
		}
		f, err := os.OpenFile(o.path(), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return diskError(err, "cannot write output")
		}
		o.f, o.size, o.synced, o.fresh = f, 0, 0, true
	}
	if _, err := o.f.WriteAt(buf, o.size); err != nil {
		_ = o.f.Truncate(o.size) // what is left behind o.size is written over
		return diskError(err, "cannot write output to %s", o.path())
	}
	o.size += int64(len(buf))
	w.total += int64(len(buf))
	if !o.dirty {
		o.dirty, o.safe = true, o.haves()
	}
	return nil
}

// roll begins a new segment when the last one is long enough.
func (w *Writer) roll(o *output) error {
	if o.f == nil || o.size < w.opts.Segment {
		return nil
	}
	if o.dirty {
		if err := w.fsync(o.f); err != nil {
			name := o.path()
			w.lose(o)
			return diskError(err, "cannot write output to %s", name)
		}
		o.syncDirs()
	}
	_ = o.f.Close()
	o.f, o.size, o.synced, o.dirty = nil, 0, 0, false
	o.n++
	return nil
}

// Have is how much of a node's spool of a job the record has.
func (w *Writer) Have(job wire.JobID, node wire.NodeID, epoch wire.Epoch) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o, err := w.output(job)
	if err != nil {
		return 0, err
	}
	if num, ok := o.numbers[nodeKey{node, epoch}]; ok {
		return o.nodes[num].Have, nil
	}
	return 0, nil
}

// haves is what there is of each node's spool.
func (o *output) haves() []int64 {
	h := make([]int64, len(o.nodes))
	for i, n := range o.nodes {
		h[i] = n.Have
	}
	return h
}

// Safe is how much of a node's spool of a job is safe in the record.
func (w *Writer) Safe(job wire.JobID, node wire.NodeID, epoch wire.Epoch) (int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o, err := w.output(job)
	if err != nil {
		return 0, err
	}
	num, ok := o.numbers[nodeKey{node, epoch}]
	switch {
	case !ok:
		return 0, nil
	case !o.dirty:
		return o.nodes[num].Have, nil
	case int(num) < len(o.safe):
		return o.safe[num], nil
	}
	return 0, nil
}

// End is the length of the job's log, and a channel that is closed when it has grown.
func (w *Writer) End(job wire.JobID) (int64, <-chan struct{}, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	o, err := w.output(job)
	if err != nil {
		return 0, nil, err
	}
	return o.at, o.changed, nil
}

// Sync makes all output that was appended before it safe. Appends go on meanwhile. After
// an error what could not be made safe is not there any more (Have and Safe say so): the
// kernel may have dropped it, and another try would only seem to succeed.
func (w *Writer) Sync() error {
	w.syncing.Lock()
	defer w.syncing.Unlock()
	type due struct {
		o     *output
		f     *os.File
		size  int64
		haves []int64
	}
	var dues []due
	w.mu.Lock()
	for _, o := range w.jobs {
		if o.dirty {
			dues = append(dues, due{o, o.f, o.size, o.haves()})
		}
	}
	w.mu.Unlock()
	var first error
	for _, d := range dues {
		err := w.fsync(d.f)
		w.mu.Lock()
		switch o := d.o; {
		case w.jobs[o.job] != o || o.f != d.f:
			// Closed meanwhile, and made safe before that.
		case err != nil:
			if first == nil {
				first = diskError(err, "cannot write output to %s", o.path())
			}
			w.lose(o)
		default:
			o.syncDirs()
			o.synced, o.safe = d.size, d.haves
			o.dirty = o.size != d.size
		}
		w.mu.Unlock()
	}
	return first
}

// lose forgets what of a job's output is not safe. mu must be held.
func (w *Writer) lose(o *output) {
	if err := o.f.Truncate(o.synced); err != nil {
		w.opts.Log.Error("record: output that could not be made safe cannot be cut off", "file", o.path(), "err", err)
	}
	w.total -= o.size - o.synced
	_ = o.f.Close()
	close(o.changed)
	delete(w.jobs, o.job) // read again when it is needed
}

// syncDirs makes the name of a new segment safe.
func (o *output) syncDirs() {
	if !o.fresh {
		return
	}
	o.fresh = false
	for _, dir := range []string{o.dir, filepath.Dir(o.dir)} {
		_ = disk.Sync(dir)
	}
}

// Ended tells that a job has ended and all its output is there: its files are closed.
// They are opened again should there be more.
func (w *Writer) Ended(job wire.JobID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended[job] = true
	return w.release(job)
}

// release closes a job's files. mu must be held.
func (w *Writer) release(job wire.JobID) error {
	o := w.jobs[job]
	if o == nil {
		return nil
	}
	if o.f != nil {
		if o.dirty {
			if err := w.fsync(o.f); err != nil {
				w.lose(o)
				return diskError(err, "cannot write output of job %d", job)
			}
			o.syncDirs()
		}
		_ = o.f.Close()
	}
	close(o.changed)
	delete(w.jobs, job)
	return nil
}

// Close makes all output safe and closes the files.
func (w *Writer) Close() error {
	err := w.Sync()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tables.Lock() // no table is being written
	defer w.tables.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	for job := range w.jobs {
		if err2 := w.release(job); err == nil {
			err = err2
		}
	}
	w.dec.Close()
	return err
}

// WriteTable keeps the table of a job.
func (w *Writer) WriteTable(t Table) error {
	if err := w.claim(); err != nil {
		return err
	}
	t.Version = tableVersion
	dir := JobDir(w.dir, t.Job.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return diskError(err, "cannot write the record of job %d", t.Job.ID)
	}
	if complete(&t) {
		w.mu.Lock()
		w.ended[t.Job.ID] = true
		w.mu.Unlock()
	}
	w.tables.Lock()
	defer w.tables.Unlock()
	if w.closed {
		return errClosed
	}
	if old, err := readTable(w.dir, t.Job.ID); err == nil {
		t.Dropped = old.Dropped
	}
	return writeJSON(filepath.Join(dir, "table.json"), t)
}

// WriteNodes keeps the list of nodes.
func (w *Writer) WriteNodes(nodes []wire.NodeInfo) error {
	if err := w.claim(); err != nil {
		return err
	}
	b, err := json.Marshal(struct {
		Version int
		Nodes   []wire.NodeInfo
	}{tableVersion, nodes})
	if err != nil {
		return errs.Wrap(errs.Internal, err, "nodes")
	}
	return WriteFile(filepath.Join(w.dir, "nodes.json"), append(b, '\n'))
}

func diskError(err error, format string, args ...any) error {
	kind := errs.Unavailable
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
	if full {
		kind = errs.Exhausted
	} else if errors.Is(err, os.ErrPermission) {
		kind = errs.Permission
	}
	e := errs.Wrap(kind, err, "%s", fmt.Sprintf(format, args...))
	if full {
		e = e.Hint("make room on that file system; output waits on the nodes meanwhile")
	}
	return e
}

package follow

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"launcher/internal/disk"
	"launcher/internal/errs"
	"launcher/wire"
	"launcher/wire/reclog"
)

// Copies is a follower's directory. It is safe for concurrent use.
type Copies struct {
	dir   string
	limit int64

	mu    sync.Mutex
	epoch uint64  // newest head that was heard of; guarded by mu
	cur   *Writer // who may write; guarded by mu
}

// New makes the Copies in dir, which need not be there. A limit of 0 is DefaultLimit.
func New(dir string, limit int64) *Copies {
	if limit <= 0 {
		limit = DefaultLimit
	}
	c := &Copies{dir: dir, limit: limit}
	ents, _ := os.ReadDir(dir)
	for _, e := range ents {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil {
			c.epoch = max(c.epoch, n)
		}
	}
	return c
}

// Heard: a head of that epoch has been heard of. Older ones are refused from now on.
func (c *Copies) Heard(epoch uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch = max(c.epoch, epoch)
}

// Writer takes the journal of one head, from one connection: the newest that began.
type Writer struct {
	c    *Copies
	base uint64 // the copy is whole once it has this record
	one
	f   *os.File
	log *reclog.Log
}

// Begin has a head of that epoch write; last is its newest safe record.
func (c *Copies) Begin(epoch, last uint64) (*Writer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if epoch == 0 {
		return nil, errs.New(errs.Invalid, "a head of epoch 0")
	}
	if err := c.refused(epoch); err != nil {
		return nil, err
	}
	c.epoch = epoch
	if c.cur != nil {
		c.cur.close()
		c.cur = nil
	}
	w := &Writer{c: c, base: last, one: look(epochDir(c.dir, epoch), epoch)}
	if w.next == 0 { // nothing that counts
		if err := os.RemoveAll(w.dir); err != nil {
			return nil, errs.Wrap(errs.Permission, err, "the copy of the head's journal")
		}
		w.one = one{dir: w.dir, epoch: epoch}
	}
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return nil, errs.Wrap(errs.Permission, err, "the copy of the head's journal")
	}
	c.cur = w
	return w, w.reached()
}

func (c *Copies) refused(epoch uint64) error {
	if epoch < c.epoch {
		return errs.New(errs.Fenced, "the head of epoch %d was replaced by one of epoch %d", epoch, c.epoch)
	}
	return nil
}

// mine says whether w may still write; c.mu must be held.
func (w *Writer) mine() error {
	if err := w.c.refused(w.epoch); err != nil {
		return err
	}
	if w.c.cur != w {
		return errs.New(errs.Unavailable, "the head follows by another connection")
	}
	return nil
}

// Next is the number of the record that is to come; 0 = a snapshot, or record 1.
func (w *Writer) Next() uint64 {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	return w.next
}

// room says whether n more bytes may be written.
func (w *Writer) room(n int) error {
	if w.size+int64(n) > w.c.limit {
		return errs.New(errs.Exhausted, "the copy of the head's journal would have %s, the limit is %s", wire.Bytes(w.size+int64(n)), wire.Bytes(w.c.limit))
	}
	return nil
}

// Append adds records that follow those that are there; what is there already is skipped.
// They are on disk when it returns.
func (w *Writer) Append(first uint64, records [][]byte) error {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if err := w.mine(); err != nil {
		return err
	}
	next := max(w.next, 1)
	if first > next || first == 0 {
		return errGap(next, first)
	}
	if have := next - first; have >= uint64(len(records)) {
		return nil
	} else if have > 0 {
		records = records[have:]
	}
	size := 0
	for _, r := range records {
		size += len(r) + reclog.Header
	}
	if err := w.room(size); err != nil {
		return err
	}
	if w.f == nil {
		if err := w.segment(next); err != nil {
			return err
		}
	}
	_, err := w.log.Append(records...)
	if err == nil {
		err = w.f.Sync()
	}
	if err != nil {
		w.close() // what of it is there, the next Begin will see
		w.c.cur = nil
		return errs.Wrap(errs.Unavailable, err, "the copy of the head's journal")
	}
	w.size += int64(size)
	w.next = next + uint64(len(records))
	return w.reached()
}

// segment begins the segment of records from first on.
func (w *Writer) segment(first uint64) error {
	f, err := os.OpenFile(w.path(reclog.SegmentName(first, w.epoch)), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return errs.Wrap(errs.Permission, err, "the copy of the head's journal")
	}
	var log *reclog.Log
	if _, err = f.WriteAt(reclog.AppendSegmentHeader(nil, w.epoch, first), 0); err == nil {
		log, err = reclog.Open(f, reclog.SegmentHeader, first, nil)
	}
	if err == nil {
		err = disk.Sync(w.dir)
	}
	if err != nil {
		_ = f.Close()
		return errs.Wrap(errs.Unavailable, err, "the copy of the head's journal")
	}
	if !slices.Contains(w.segs, first) {
		w.segs = append(w.segs, first)
	}
	w.f, w.log, w.size = f, log, w.size+reclog.SegmentHeader
	return nil
}

// Snapshot takes the state after record seq in place of the records up to it.
func (w *Writer) Snapshot(seq uint64, state []byte) error {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if err := w.mine(); err != nil {
		return err
	}
	if seq <= w.snap {
		return nil
	}
	if err := w.room(len(state) + reclog.SnapshotHeader); err != nil {
		return err
	}
	path := w.path(reclog.SnapshotName(seq))
	if err := writeSafe(path, reclog.AppendSnapshotHeader(nil, seq, state), state); err != nil {
		return errs.Wrap(errs.Unavailable, err, "the copy of the head's journal")
	}
	w.shut()
	old := w.snap
	w.snap, w.next = seq, max(w.next, seq+1)
	if old > 0 {
		_ = os.Remove(w.path(reclog.SnapshotName(old)))
	}
	// A segment is needed while records behind the snapshot are in it: it ends where the
	// next one begins.
	for len(w.segs) > 0 {
		end := w.next
		if len(w.segs) > 1 {
			end = w.segs[1]
		}
		if end > seq+1 {
			break
		}
		_ = os.Remove(w.path(reclog.SegmentName(w.segs[0], w.epoch)))
		w.segs = w.segs[1:]
	}
	w.size = dirSize(w.dir)
	return w.reached()
}

// reached notes that the copy counts, once it does, and drops older ones. c.mu must be held.
func (w *Writer) reached() error {
	if w.whole || max(w.next, 1) <= w.base {
		return nil
	}
	if err := writeSafe(w.path(wholeFile)); err != nil {
		return errs.Wrap(errs.Unavailable, err, "the copy of the head's journal")
	}
	w.whole = true
	ents, _ := os.ReadDir(w.c.dir)
	for _, e := range ents {
		if n, err := strconv.ParseUint(e.Name(), 10, 64); err == nil && n < w.epoch {
			_ = os.RemoveAll(filepath.Join(w.c.dir, e.Name()))
		}
	}
	return nil
}

// Close ends the writer; what it has written stays.
func (w *Writer) Close() {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if w.c.cur == w {
		w.c.cur = nil
	}
	w.close()
}

func (w *Writer) close() { w.shut() }

// shut ends the segment that is being written.
func (w *Writer) shut() {
	if w.f != nil {
		_ = w.f.Close()
		w.f, w.log = nil, nil
	}
}

// writeSafe makes a file all at once.
func writeSafe(path string, parts ...[]byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if err == nil {
			_, err = f.Write(p)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err == nil {
		err = disk.Sync(filepath.Dir(path))
	}
	if err != nil {
		_ = os.Remove(path + ".tmp")
	}
	return err
}

func dirSize(dir string) (n int64) {
	ents, _ := os.ReadDir(dir)
	for _, e := range ents {
		if st, err := e.Info(); err == nil {
			n += st.Size()
		}
	}
	return n
}

// Stream is what Serve needs of a stream.
type Stream interface {
	ReadMsg() (typ uint16, body []byte, err error)
	WriteMsg(typ uint16, v any) error
}

// Serve takes what a head sends on st until the stream ends (nil) or it cannot go on.
func (c *Copies) Serve(st Stream) error {
	typ, body, err := st.ReadMsg()
	if err != nil {
		return err
	}
	if typ == MsgTrees {
		return c.serveTrees(st, typ, body)
	}
	var b Begin
	if typ != MsgBegin {
		return errs.New(errs.Corrupt, "a head begins with message %#x", typ)
	}
	if err := wire.Unmarshal(body, &b); err != nil {
		return err
	}
	w, err := c.Begin(b.Epoch, b.Last)
	if err != nil {
		return err
	}
	defer w.Close()
	var parts Part
	for {
		if len(parts.Data) == 0 {
			if err := st.WriteMsg(MsgHave, Have{w.Next()}); err != nil {
				return err
			}
		}
		typ, body, err := st.ReadMsg()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch typ {
		case MsgRecords:
			var r Records
			if err = wire.Unmarshal(body, &r); err == nil {
				err = w.Append(r.First, r.Records)
			}
		case MsgPart:
			err = w.part(&parts, body)
		default:
			err = errs.New(errs.Corrupt, "a head sends message %#x", typ)
		}
		if err != nil {
			return err
		}
	}
}

// part puts pieces together; sum is empty again when the last has come.
func (w *Writer) part(sum *Part, body []byte) error {
	var p Part
	if err := wire.Unmarshal(body, &p); err != nil {
		return err
	}
	if len(sum.Data) > 0 && (p.Seq != sum.Seq || p.Snapshot != sum.Snapshot) || len(p.Data) == 0 && !p.Final {
		return errs.New(errs.Corrupt, "a piece of record %d among those of record %d", p.Seq, sum.Seq)
	}
	if err := w.room(len(sum.Data) + len(p.Data)); err != nil {
		return err
	}
	sum.Seq, sum.Snapshot, sum.Data = p.Seq, p.Snapshot, append(sum.Data, p.Data...)
	if !p.Final {
		return nil
	}
	whole := *sum
	*sum = Part{}
	if whole.Snapshot {
		return w.Snapshot(whole.Seq, whole.Data)
	}
	return w.Append(whole.Seq, [][]byte{whole.Data})
}

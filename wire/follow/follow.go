// Package follow keeps copies of a head's journal on other machines: what agents keep, and
// what a head and its followers say to each other on a stream of kind wire.StreamFollow.
//
// A copy is a directory of the very files that a journal is made of (wire/reclog), one per
// epoch of the head, so that another head can go on with it where the first one was lost:
//
//	DIR/EPOCH/seg-SEQ.EPOCH  snap-SEQ  whole
//
// Following is soft: the head does not wait for it. A copy counts from when it has reached
// what was safe at the head when it began (whole); only then those of older epochs go. A
// head of an older epoch than the newest that was heard of is refused (errs.Fenced).
//
//	head                                  follower
//	MsgBegin{Epoch, Last}            ->
//	                                 <-   MsgHave{Next}: of this epoch, all before Next; 0 = nothing
//	MsgPart... (a snapshot, or a record that is long)
//	MsgRecords{First, Records}       ->
//	                                 <-   MsgHave{Next}: on disk, after each of them
package follow

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"launcher/internal/disk"
	"launcher/internal/errs"
	"launcher/wire/reclog"
)

// Messages.
const (
	MsgBegin   uint16 = 0x0701
	MsgHave    uint16 = 0x0702
	MsgPart    uint16 = 0x0703
	MsgRecords uint16 = 0x0704
)

// Begin is the head's first message.
type Begin struct {
	Epoch uint64
	Last  uint64 // its newest safe record
}

// Have says how far the copy is.
type Have struct{ Next uint64 }

// Part is a piece of a snapshot, or of a record that is too long for Records.
type Part struct {
	Seq      uint64
	Snapshot bool
	Data     []byte
	Final    bool
}

// Records are consecutive.
type Records struct {
	First   uint64
	Records [][]byte
}

const (
	// MaxPart bounds a message's data.
	MaxPart = 1 << 20
	// DefaultLimit bounds a follower's directory.
	DefaultLimit = 512 << 20
	wholeFile    = "whole"
	keptCopies   = 64 // directories that are looked at
)

// Found is a copy on disk.
type Found struct {
	Epoch uint64
	Last  uint64 // the newest record
	Whole bool
	Dir   string
}

// Look finds the copies below a follower's directory, the best first: the whole ones, of
// those the newest epoch. What cannot be read ends a copy where it is.
func Look(dir string) []Found {
	ents, _ := os.ReadDir(dir)
	var out []Found
	for _, e := range ents[:min(len(ents), keptCopies)] {
		if epoch, err := strconv.ParseUint(e.Name(), 10, 64); err == nil && epoch > 0 && e.IsDir() {
			f := look(filepath.Join(dir, e.Name()), epoch)
			out = append(out, Found{Epoch: epoch, Last: max(f.next, 1) - 1, Whole: f.whole, Dir: f.dir})
		}
	}
	slices.SortFunc(out, func(a, b Found) int { return Compare(b, a) })
	return out
}

// Compare says which copy a new head had better take.
func Compare(a, b Found) int {
	whole := map[bool]int{true: 1}
	return cmp.Or(cmp.Compare(whole[a.Whole], whole[b.Whole]), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Last, b.Last))
}

// Install copies what f has into dir, the directory of a journal that is not there yet.
func Install(f Found, dir string) error {
	c := look(f.Dir, f.Epoch)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errs.Wrap(errs.Permission, err, "the copy of a journal")
	}
	var err error
	if c.snap > 0 {
		n := reclog.SnapshotName(c.snap)
		err = copyFile(c.path(n), filepath.Join(dir, n), math.MaxInt64)
	}
	for _, first := range c.segs {
		n := reclog.SegmentName(first, f.Epoch)
		if _, size := segmentEnd(c.path(n), first, f.Epoch); err == nil && size > 0 {
			err = copyFile(c.path(n), filepath.Join(dir, n), size) // what is behind does not count
		}
	}
	if err == nil {
		err = disk.Sync(dir)
	}
	if err != nil {
		return errs.Wrap(errs.Unavailable, err, "the copy of a journal")
	}
	return nil
}

func copyFile(from, to string, most int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(in, most))
	if err == nil {
		err = out.Sync()
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// one is the copy of one epoch.
type one struct {
	dir   string
	epoch uint64
	next  uint64 // 0 = nothing yet
	snap  uint64
	segs  []uint64 // the first records of those that count, in order
	whole bool
	size  int64
}

func (c *one) path(name string) string { return filepath.Join(c.dir, name) }

// look reads how far the copy in dir goes: from its newest snapshot, or the first record,
// as far as segments follow each other.
func look(dir string, epoch uint64) one {
	c := one{dir: dir, epoch: epoch}
	ents, _ := os.ReadDir(dir)
	var firsts []uint64
	for _, e := range ents {
		if st, err := e.Info(); err == nil {
			c.size += st.Size()
		}
		if first, ep, ok := reclog.ParseSegment(e.Name()); ok && ep == epoch {
			firsts = append(firsts, first)
		} else if seq, ok := reclog.ParseSnapshot(e.Name()); ok {
			c.snap = max(c.snap, seq)
		} else if e.Name() == wholeFile {
			c.whole = true
		}
	}
	slices.Sort(firsts)
	c.next = c.snap + 1
	if c.snap > 0 && !goodSnapshot(c.path(reclog.SnapshotName(c.snap)), c.snap) {
		return one{dir: dir, epoch: epoch, size: c.size}
	}
	for _, first := range firsts {
		if first > c.next {
			break
		}
		if end, _ := segmentEnd(c.path(reclog.SegmentName(first, epoch)), first, epoch); end > c.next || first == c.next {
			c.next = max(c.next, end)
			c.segs = append(c.segs, first)
		}
	}
	if c.snap == 0 && len(c.segs) == 0 {
		c.next = 0
	}
	return c
}

func goodSnapshot(path string, seq uint64) bool {
	b, err := os.ReadFile(path)
	if err != nil || len(b) < reclog.SnapshotHeader {
		return false
	}
	state := b[reclog.SnapshotHeader:]
	return string(b[:reclog.SnapshotHeader]) == string(reclog.AppendSnapshotHeader(nil, seq, state))
}

// segmentEnd is the number behind the last good record of a segment, and its offset; 0
// where there is not even a header.
func segmentEnd(path string, first, epoch uint64) (next uint64, size int64) {
	f, err := os.Open(path)
	if err != nil {
		return first, 0
	}
	defer f.Close()
	var head [reclog.SegmentHeader]byte
	if _, err := f.ReadAt(head[:], 0); err != nil || string(head[:]) != string(reclog.AppendSegmentHeader(nil, epoch, first)) {
		return first, 0
	}
	st, err := f.Stat()
	if err != nil {
		return first, 0
	}
	size, next, _ = reclog.Scan(f, reclog.SegmentHeader, st.Size(), first, nil)
	return next, size
}

func errGap(have, first uint64) error {
	return errs.New(errs.Invalid, "the copy has all before record %d, and record %d came", have, first)
}

func epochDir(dir string, epoch uint64) string { return filepath.Join(dir, fmt.Sprint(epoch)) }
